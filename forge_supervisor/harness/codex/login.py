"""Whose account an agent uses: the one login of its Linux user, or a key of its own.

Codex keeps the login in auth.json of its home. Each agent has a home of its own, so that file is a link to the user's:
codex writes through it, and so do `codex login` and the menu of an agent's terminal. A key in the environment it
ignores, unless a provider is declared that names the variable: so a key stands in no file of the agent's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_supervisor.harness import Link
from forge_supervisor.harness.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from forge_supervisor.harness import LaunchPlan, Paths, Subject

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
_USUAL_URL = "https://api.openai.com/v1"
_PROVIDER = "openai-by-key"


def home_of(paths: Paths) -> Path:
    """Say where the agent's codex keeps its things.

    In its working directory: what codex reads there as a project's settings is then the same file, which is made anew
    at every start, and its sandbox lets no command write there.
    """
    return paths.state / ".codex"


def users_home(paths: Paths) -> Path:
    """Say where the codex of the Linux user keeps its things."""
    return paths.home / ".codex"


def link(paths: Paths) -> Link:
    return Link(home_of(paths) / "auth.json", users_file(paths))


def users_file(paths: Paths) -> Path:
    return users_home(paths) / "auth.json"


def own(subject: Subject) -> dict[str, str]:
    """Return the agent's variables without those of its servers, which may well be keys to the same API."""
    agent = subject.agent
    return {name: value for name, value in subject.env.items() if name in agent.env or name in agent.secrets}


def provider(env: Mapping[str, str]) -> dict[str, Any]:
    """Make the settings by which codex finds its API."""
    url = env.get(BASE_URL)
    if not env.get(KEY):
        return {"openai_base_url": url} if url else {}
    # By this name codex knows what it may ask of it.
    by_key = {"name": "OpenAI", "base_url": url or _USUAL_URL, "env_key": KEY, "wire_api": "responses"}
    return {"model_provider": _PROVIDER, "model_providers": {_PROVIDER: by_key}}


def stands_for(env: Mapping[str, str], paths: Paths) -> str:
    """Name the login that there is; nothing if there is none."""
    if env.get(KEY):
        return "key"
    file = users_file(paths)
    try:
        return f"file of {file.stat().st_mtime_ns}" if read_json(file) else ""
    except OSError:
        return ""


def command(subject: Subject, plan: LaunchPlan) -> str:
    """Write the command by which an operator logs the agent's user in."""
    return f"sudo -iu {subject.agent.run_as} {plan.argv[0]} login --device-auth"
