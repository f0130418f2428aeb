"""Makes what an agent's user says, or has on a screen, fit to be told: a terminal would do what stands in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forge_supervisor import journal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forge_supervisor.activity import Activity, Gauges, Reported, Seen
    from forge_supervisor.config import Agent

_LONGEST = 300
"""Characters of a screen."""


def of_reported(agent: Agent, reported: Reported) -> Reported:
    """Make what a hook has reported fit to be shown."""
    trouble = _trouble(agent, reported.trouble)
    return replace(reported, trouble=trouble, gauges=_gauges(agent, reported.gauges))


def of_seen(agent: Agent, seen: Seen) -> Seen:
    """Make what files tell fit to be shown."""
    detail, login_fix = (_in_one_line(agent, text) for text in (seen.detail, seen.login_fix))
    failed, gauges = _trouble(agent, seen.failed), _gauges(agent, seen.gauges)
    return replace(seen, detail=detail, login_fix=login_fix, failed=failed, gauges=gauges)


def _trouble(agent: Agent, trouble: Activity | None) -> Activity | None:
    if trouble is None:
        return None
    detail, fix = (_in_one_line(agent, text) for text in (trouble.detail, trouble.fix))
    return replace(trouble, detail=detail, fix=fix)


def _gauges(agent: Agent, gauges: Gauges | None) -> Gauges | None:
    if gauges is None:
        return None
    return replace(gauges, windows=tuple(replace(one, name=_in_one_line(agent, one.name)) for one in gauges.windows))


def _in_one_line(agent: Agent, text: str) -> str:
    return " ".join(journal.shown(agent.run_as, text).split())


def summed_up(lines: Iterable[str]) -> str:
    """Put the words of a screen into one line; what is drawn around them says nothing."""
    words = (" ".join(filter(_says_something, line.split())) for line in lines)
    return " · ".join(filter(None, words))[:_LONGEST]


def _says_something(word: str) -> bool:
    return any(char.isalnum() for char in word)
