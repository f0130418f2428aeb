"""What plans of any harness are made of, for an agent in a home of the test's own; nothing runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.harness import NEW_EACH_TIME, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from forge_supervisor.harness import File, LaunchPlan


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
    """Make an agent that has been granted all of the library; secrets that are no server's are its own."""
    whole = Library.model_validate(library or {})
    granted = {
        "skills": tuple(whole.skills),
        "plugins": tuple(whole.plugins),
        "mcp_servers": tuple(whole.mcp_servers),
        "discord_bot": next(iter(whole.discord.bots), None),
    }
    of_servers = {name for server in whole.mcp_servers.values() for name in server.secrets}
    own = {name: f"/secrets/{name}" for name in secrets or () if name not in of_servers}
    agent = agent_of(**{**granted, "secrets": own, **keys})
    return Subject(
        agent, whole.granted(agent), settings or HarnessSettings(), secrets or {}, fresh=fresh, new_id=new_id
    )


def file_of(plan: LaunchPlan, path: Path) -> File:
    (file,) = (file for file in plan.files if file.path == path)
    return file


def json_in(plan: LaunchPlan, path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file_of(plan, path).text)
    return content
