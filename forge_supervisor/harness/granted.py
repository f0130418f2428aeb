"""What every harness does with what an agent was granted, and given: find it, as its user, or tell what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness import expand_home, find_program
from forge_supervisor.secrets import SecretRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from forge_supervisor.config import Library
    from forge_supervisor.harness import Paths

SKILL = Path("SKILL.md")


def source_of(source: str, paths: Paths) -> Path:
    """Say where something of the library is; ~/ is the agent's home."""
    return Path(expand_home(source, paths.home))


def server_secrets(granted: Library) -> Iterator[SecretRef]:
    """List the secrets of MCP servers, which pass through the environment of the agent."""
    for name, server in granted.mcp_servers.items():
        for variable, file in server.secrets.items():
            yield SecretRef(f"mcp_servers.{name}.secrets.{variable}", variable, file)


def skill_problems(granted: Library, paths: Paths, user: str) -> Iterator[Problem]:
    """Find skills that the user cannot read."""
    for name, skill in granted.skills.items():
        yield from directory_problems(f"skills.{name}.source", source_of(skill.source, paths), SKILL, user)


def server_problems(granted: Library, paths: Paths) -> Iterator[Problem]:
    """Find MCP servers whose program is not there."""
    for name, server in granted.mcp_servers.items():
        try:
            find_program(server.command, paths.search, home=paths.home)
        except LookupError as error:
            yield Problem(f"mcp_servers.{name}.command", str(error))


def directory_problems(key: str, directory: Path, needed: Path, user: str) -> Iterator[Problem]:
    """Find that a directory, or the file that is needed in it, cannot be read."""
    # Not Path.is_dir and its kin, which raise where a user may not look.
    if not os.path.isdir(directory):
        yield Problem(key, f"{directory} is no directory that {user} can see (namei -l {directory})")
    elif not os.access(directory / needed, os.R_OK) or not os.path.isfile(directory / needed):
        yield Problem(key, f"{directory} has no {needed} that {user} can read (is it the right directory?)")


def effort_problems(effort: str, efforts: Sequence[str]) -> Iterator[Problem]:
    """Refuse an effort that the program does not have: it would ignore it, or pass it on to an API that refuses it."""
    if effort not in efforts:
        yield Problem("effort", f'"{effort}" is no effort level (use one of {", ".join(efforts)})')


def refused_options(arguments: Iterable[str], refused: Mapping[str, str]) -> Iterator[Problem]:
    """Find, among further arguments, options that are set by other keys; `refused` has the option, and why not."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if why := refused.get(option):
            yield Problem("extra_args", f"{option} cannot be given here ({why})")
