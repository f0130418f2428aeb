"""What bounds an agent: config.toml, instructions and skills of a home of its own, made anew at every start.

Codex writes to config.toml itself, so nothing is ever added to it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, Link, expand_home
from forge_supervisor.harness.codex import catalogue, login, permissions, toml
from forge_supervisor.harness.granted import SKILL, server_problems, skill_problems, source_of
from forge_supervisor.harness.reading import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forge_supervisor.harness import Paths, Subject

# A start then talks to nobody but the API, keeps no dialog for later, and asks the model for nothing by itself.
_QUIET: dict[str, Any] = {
    "check_for_update_on_startup": False,
    "analytics": {"enabled": False},
    "tui": {"show_tooltips": False, "auto_recap": False},
}
_FEATURES = {
    # One server for all who have the home, with the first one's environment, which outlives them all.
    "daemon_auto_start": False,
    # Of chatgpt.com: they would come by the login.
    "apps": False,
    "plugins": False,
    # It writes all of the environment into a file, secrets too, so that commands start faster.
    "shell_snapshot": False,
    # A goal that was paused, or has hit a limit, is asked about at the next start, and a message would be the answer.
    "goals": False,
    # A skill could have servers started that nobody has declared.
    "skill_mcp_dependency_install": False,
    # Other prices, by a default that may change.
    "fast_mode": False,
}
_MOST_PLACES = 10_000


def files(subject: Subject, paths: Paths, program: Path) -> Iterator[File]:
    home = login.home_of(paths)
    # It goes before an AGENTS.md, which the agent could write.
    yield File(home / "AGENTS.override.md", _instructions(subject, paths), ("role",))
    origin = ("inherit", "permissions", *(f"mcp_servers.{name}" for name in subject.granted.mcp_servers))
    yield File(home / "config.toml", toml.written(_config(subject, paths, program)), origin)
    yield permissions.rules_file(subject.agent, home)
    # What an agent writes there would go before what was declared.
    yield File(home / ".env", "")


def links(subject: Subject, paths: Paths) -> Iterator[Link]:
    """Link the login, and each skill into the agent's directory."""
    yield login.link(paths)
    for name, skill in subject.granted.skills.items():
        yield Link(paths.state / ".agents/skills" / name, source_of(skill.source, paths), (f"skills.{name}",))


def _instructions(subject: Subject, paths: Paths) -> str:
    agent = subject.agent
    users = read_text(login.users_home(paths) / "AGENTS.md") if "user-instructions" in agent.inherit else ""
    return f"# {agent.name}\n\n{agent.role}\n" + (f"\n{users}" if users else "")


def _config(subject: Subject, paths: Paths, program: Path) -> dict[str, Any]:
    agent = subject.agent
    # Trust is asked for by the path that is asked for, and kept by the real one.
    places = dict.fromkeys((str(paths.state), os.path.realpath(paths.state)))
    return {
        **_QUIET,
        # Of directories above the agent's own, nothing is read.
        "project_root_markers": [],
        "cli_auth_credentials_store": "file",
        # It would read /etc/profile, which sets another PATH than the agent's.
        "allow_login_shell": False,
        **login.provider(login.own(subject)),
        **permissions.search(agent),
        "features": _FEATURES,
        "notice": {
            "model_migrations": _migrations(subject, program),
            # Near a limit it would offer a cheaper model, and a message would be the answer.
            "hide_rate_limit_model_nudge": True,
        },
        "projects": {place: {"trust_level": "trusted"} for place in places},
        "skills": _skills(subject, paths),
        "shell_environment_policy": _environment_of_commands(subject),
        "mcp_servers": _servers(subject, paths),
    }


def _migrations(subject: Subject, program: Path) -> dict[str, str]:
    """Decline, for models that codex has a newer one for, its offer to change to that."""
    if subject.agent.model is None:
        return {}
    return {name: model.upgrade for name, model in catalogue.of(program).items() if model.upgrade}


def _skills(subject: Subject, paths: Paths) -> dict[str, Any]:
    """Leave out codex's own skills, and those of the user's other programs, which only their names keep out."""
    inherit = subject.agent.inherit
    granted = {os.path.realpath(source_of(skill.source, paths)) for skill in subject.granted.skills.values()}
    foreign = () if "user-skills" in inherit else _skills_below(paths.home / ".agents/skills")
    return {
        "bundled": {"enabled": "bundled-skills" in inherit},
        # By whatever name a skill is left out, it is left out by all.
        "config": [{"path": f"{place}/{SKILL}", "enabled": False} for place in foreign if place not in granted],
    }


def _skills_below(directory: Path) -> list[str]:
    """Find directories of skills by their real paths, also behind symbolic links."""
    seen: set[str] = set()
    found: set[str] = set()
    for place, inner, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or len(seen) > _MOST_PLACES:
            inner.clear()
        seen.add(real)
        if str(SKILL) in names:
            found.add(real)
    return sorted(found)


def _environment_of_commands(subject: Subject) -> dict[str, Any]:
    """Give commands the agent's environment, but for what is codex's own or a server's."""
    agent = subject.agent
    of_servers = {name for server in subject.granted.mcp_servers.values() for name in server.secrets}
    hidden = {login.KEY, *of_servers} - ({*agent.env, *agent.secrets} - {login.KEY})
    return {"inherit": "all", "ignore_default_excludes": True, "exclude": sorted(hidden)}


def _servers(subject: Subject, paths: Paths) -> dict[str, Any]:
    granted = subject.granted
    rights = permissions.of_servers(subject.agent, granted)
    return {
        name: {
            "command": expand_home(server.command, paths.home),
            "args": list(server.args),
            "env": dict(server.env),
            # Those that it gets of codex's own environment: no secret stands in the file.
            "env_vars": sorted(server.secrets),
            **rights[name],
        }
        for name, server in granted.mcp_servers.items()
    }


def problems(subject: Subject, paths: Paths) -> Iterator[Problem]:
    """Find what was granted and is not there. Codex starts without it, with a warning on its screen."""
    granted, user = subject.granted, subject.agent.run_as
    found = [*skill_problems(granted, paths, user)]
    yield from found
    if not found:
        yield from _headless_skills(subject, paths)
    yield from server_problems(granted, paths)


def _headless_skills(subject: Subject, paths: Paths) -> Iterator[Problem]:
    for name, skill in subject.granted.skills.items():
        text = read_text(source_of(skill.source, paths) / SKILL)
        head = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
        if "\ndescription:" not in head:
            fault = f"{SKILL} does not begin with a description between two lines of ---: codex would leave it out"
            yield Problem(f"skills.{name}.source", fault)
