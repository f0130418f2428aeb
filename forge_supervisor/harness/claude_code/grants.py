"""What an agent has of the library: skills as links, MCP servers in .mcp.json, plugins by their directories."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, Link, expand_home
from forge_supervisor.harness.claude_code.login import config_home
from forge_supervisor.harness.granted import directory_problems, server_problems, skill_problems, source_of
from forge_supervisor.harness.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.config import Library
    from forge_supervisor.harness import Paths, Subject

MANIFEST = Path(".claude-plugin/plugin.json")
# Whatever else a user calls a directory is no name by which a skill could be invoked.
_SKILL_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
# With any other, or without a name, claude leaves the plugin out and says nothing.
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def mcp_file(paths: Paths) -> Path:
    """Say where the agent's MCP servers are declared: always, for claude ends at a missing file."""
    return paths.state / ".mcp.json"


def catalog_file(paths: Paths) -> Path:
    """Say where the agent's skills are listed for its system prompt."""
    return paths.state / ".claude/skill-catalog.md"


def files(granted: Library, paths: Paths) -> Iterator[File]:
    """Make the files that declare what was granted."""
    servers = {name: _server(granted, name, paths) for name in granted.mcp_servers}
    origin = tuple(f"mcp_servers.{name}" for name in servers) or ("mcp_servers",)
    yield File(mcp_file(paths), json.dumps({"mcpServers": servers}, indent=2) + "\n", origin)
    origin = tuple(f"skills.{name}" for name in granted.skills) or ("skills",)
    yield File(catalog_file(paths), _catalog(granted), origin)


def _server(granted: Library, name: str, paths: Paths) -> dict[str, Any]:
    server = granted.mcp_servers[name]
    # Claude puts the agent's variables in the place of ${…}: no secret stands in the file.
    env = {**server.env, **{variable: f"${{{variable}}}" for variable in server.secrets}}
    return {"command": expand_home(server.command, paths.home), "args": list(server.args), "env": env}


def _catalog(granted: Library) -> str:
    lines = [
        f"- /{name}" + (f": {' '.join(skill.description.split())}" if skill.description else "")
        for name, skill in granted.skills.items()
    ]
    return "\n".join(["# Available skills", "", *(lines or ["None."]), ""])


def links(subject: Subject, paths: Paths) -> Iterator[Link]:
    """Link each skill into the agent's directory, under the name by which it was granted."""
    for name, skill in subject.granted.skills.items():
        yield Link(paths.state / ".claude/skills" / name, source_of(skill.source, paths), (f"skills.{name}",))
    if "user-skills" in subject.agent.inherit:
        for source in _users_skills(subject, paths):
            if source.name not in subject.granted.skills:
                yield Link(paths.state / ".claude/skills" / source.name, source, ("inherit",))


def _users_skills(subject: Subject, paths: Paths) -> list[Path]:
    directory = config_home(subject.env, paths) / "skills"
    try:
        found = sorted(directory.iterdir())
    except OSError:
        return []
    return [path for path in found if _SKILL_NAME.fullmatch(path.name) and os.path.isfile(path / "SKILL.md")]


def plugin_directories(granted: Library, paths: Paths) -> Iterator[Path]:
    """List the plugins' directories."""
    for plugin in granted.plugins.values():
        yield source_of(plugin.source, paths)


def problems(subject: Subject, paths: Paths) -> Iterator[Problem]:
    """Find what was granted and is not there. Claude starts without it, and without a word."""
    granted, user = subject.granted, subject.agent.run_as
    yield from skill_problems(granted, paths, user)
    yield from server_problems(granted, paths)
    names: dict[str, str] = {}
    for name, plugin in granted.plugins.items():
        key, directory = f"plugins.{name}.source", source_of(plugin.source, paths)
        found = list(directory_problems(key, directory, MANIFEST, user))
        yield from found
        if not found:
            yield from _manifest_problems(name, key, directory, names)


def plugin_name(directory: Path) -> str | None:
    """Read the name in a plugin's manifest; None if claude would not take it."""
    name = read_json(directory / MANIFEST).get("name")
    return name if isinstance(name, str) and _PLUGIN_NAME.fullmatch(name) else None


def _manifest_problems(name: str, key: str, directory: Path, names: dict[str, str]) -> Iterator[Problem]:
    manifest_name = plugin_name(directory)
    if manifest_name is None:
        text = f'{directory / MANIFEST} has no usable "name" (claude plugin validate {directory} tells more)'
        yield Problem(key, text)
        return
    other = names.setdefault(manifest_name, name)
    if other != name:
        text = f'is the plugin "{manifest_name}", as plugins.{other} is, and claude would mix them (grant only one)'
        yield Problem(key, text)
