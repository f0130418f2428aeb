"""Logins and the answers to a first start's questions: claude's own files below the user's home.

They are read in place and never copied: one login serves all agents of a Linux user.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.harness import JsonSeed
from forge_supervisor.harness.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from forge_supervisor.harness import LaunchPlan, Paths, Subject

CREDENTIAL_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
MANAGED_SETTINGS = Path("/etc/claude-code/managed-settings.json")


def answers(subject: Subject, paths: Paths) -> JsonSeed:
    """Answer what a first start would ask; of an API key claude remembers the last 20 characters."""
    state = Path(os.path.realpath(paths.state))  # a path through a symbolic link does not count
    imports = {"hasClaudeMdExternalIncludesApproved": True, "hasClaudeMdExternalIncludesWarningShown": True}
    projects = {str(state): {"hasTrustDialogAccepted": True, **imports}}
    values: dict[str, Any] = {
        "hasCompletedOnboarding": True,
        "projects": projects,
        # A dialog before an old and long session is resumed, which offers to go on with a summary of it.
        "resumeReturnDismissed": True,
        # Two dialogs that offer to install a plugin, at any moment, and whose first answer is yes.
        "lspRecommendationDisabled": True,
        "claudeCodeHints": {"disabled": True},
        # With it one key at an empty prompt leads to where what is typed begins another session, in the background.
        "leftArrowOpensAgents": False,
    }
    if key := subject.env.get("ANTHROPIC_API_KEY"):
        values["customApiKeyResponses"] = {"approved": [key[-20:]]}
    file = config_file(subject.env, paths)
    return JsonSeed(file, values, Path(f"{file}.lock"))


def config_home(env: Mapping[str, str], paths: Paths) -> Path:
    """Find the directory that claude keeps the user's things in."""
    chosen = env.get("CLAUDE_CONFIG_DIR")
    return paths.state / chosen if chosen else paths.home / ".claude"


def has_credentials(env: Mapping[str, str], paths: Paths) -> bool:
    """Tell whether there is a login of any kind; `claude auth status` would know best, but writes to the home."""
    managed = read_json(MANAGED_SETTINGS)
    given = managed.get("env")
    has = {**env, **(given if isinstance(given, dict) else {})}
    return (
        any(has.get(name) for name in CREDENTIAL_VARIABLES)
        or any(value for name, value in has.items() if name.startswith("CLAUDE_CODE_USE_"))  # Bedrock, Vertex, …
        or bool(stored_login(env, paths))
        or "primaryApiKey" in read_json(config_file(env, paths))
        or "apiKeyHelper" in managed
    )


def stored_login(env: Mapping[str, str], paths: Paths) -> object:
    """Return what claude has stored of the user's login; something false, if there is none."""
    return read_json(config_home(env, paths) / ".credentials.json").get("claudeAiOauth")


def command(subject: Subject, plan: LaunchPlan, *arguments: str) -> str:
    """Write the command by which an operator runs claude as the agent's user does."""
    return f"sudo -iu {subject.agent.run_as} {' '.join((*_program(subject, plan), *arguments))}"


def _program(subject: Subject, plan: LaunchPlan) -> Iterator[str]:
    if chosen := subject.env.get("CLAUDE_CONFIG_DIR"):
        yield from ("env", f"CLAUDE_CONFIG_DIR={chosen}")
    yield plan.argv[0]


def config_file(env: Mapping[str, str], paths: Paths) -> Path:
    """Find the file that claude calls its global config."""
    legacy = config_home(env, paths) / ".config.json"
    if os.path.isfile(legacy) and legacy.stat().st_size > 0:  # then it goes before .claude.json
        return legacy
    return (config_home(env, paths) if env.get("CLAUDE_CONFIG_DIR") else paths.home) / ".claude.json"
