"""Scripts by which bash, zsh and fish complete forgectl's arguments, the agents' names among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import shtab

from forge_supervisor.cli import parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def script(shell: str) -> str:
    made = parser.make()
    for action in _actions(made):
        if getattr(action, "complete", None) == parser.SEES_AGENTS:
            action.complete = shtab.cmd(f"forgectl {parser.NAMES} 2>/dev/null")  # type: ignore[attr-defined]
        elif action.dest == "config":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(made, shell))


def _actions(made: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in made._actions:  # noqa: SLF001 - argparse has no other way to list them
        yield action
        if isinstance(action.choices, dict):
            for verb in action.choices.values():
                yield from _actions(verb)
