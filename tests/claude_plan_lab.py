"""Plans of Claude Code for an agent in a home of the test's own; nothing runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.harness import NEW_EACH_TIME, Paths, Subject
from forge_supervisor.harness.claude_code import ClaudeCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from forge_supervisor.harness import File, JsonSeed, LaunchPlan, Problem

KEY = "sk-ant-api03-0123456789-abcdefghij-KLMNOPQRST"


def home_of(directory: Path) -> Paths:
    """Make a home with a claude in it."""
    home = directory / "home"
    program(home / ".local/bin/claude", "[ $1 = --version ] && echo '2.1.330 (Claude Code)'")
    search = (str(home / ".local/bin"), "/usr/bin", "/bin")
    return Paths(home=home, forge=home / ".local/state/forge", agent="scout", search=search)


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def agent_of(**keys: Any) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "role": "Look ahead.", **keys})


def subject_of(
    *,
    library: Mapping[str, Any] | None = None,
    settings: Any = None,
    secrets: Any = None,
    fresh: bool = False,
    new_id: str = NEW_EACH_TIME,
    **keys: Any,
) -> Subject:
    """Make an agent that has been granted all of the library."""
    whole = Library.model_validate(library or {})
    granted = {
        "skills": tuple(whole.skills),
        "plugins": tuple(whole.plugins),
        "mcp_servers": tuple(whole.mcp_servers),
        "discord_bot": next(iter(whole.discord.bots), None),
    }
    agent = agent_of(**{**granted, **keys})
    return Subject(
        agent, whole.granted(agent), settings or HarnessSettings(), secrets or {}, fresh=fresh, new_id=new_id
    )


def plan_of(paths: Paths, **keys: Any) -> LaunchPlan:
    return ClaudeCode().plan(subject_of(**keys), paths)


def preflight(paths: Paths, **keys: Any) -> list[Problem]:
    subject = subject_of(**keys)
    return list(ClaudeCode().preflight(subject, ClaudeCode().plan(subject, paths), paths))


def fatal(paths: Paths, **keys: Any) -> list[tuple[str, str]]:
    return [(problem.key, problem.text) for problem in preflight(paths, **keys) if problem.fatal]


def file_of(plan: LaunchPlan, path: Path) -> File:
    (file,) = (file for file in plan.files if file.path == path)
    return file


def json_in(plan: LaunchPlan, path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file_of(plan, path).text)
    return content


def launch_settings(paths: Paths, **keys: Any) -> dict[str, Any]:
    return json_in(plan_of(paths, **keys), paths.launch / "settings.json")


def seed_of(plan: LaunchPlan, name: str = ".claude.json") -> JsonSeed:
    (seed,) = (seed for seed in plan.seeds if seed.path.name == name)
    return seed
