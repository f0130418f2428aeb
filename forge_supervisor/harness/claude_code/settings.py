"""The settings that bound an agent: what reaches it of its user and of claude itself, and what it may do."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, expand_home
from forge_supervisor.harness.claude_code import activity, sessions
from forge_supervisor.harness.claude_code.discord import PLUGIN
from forge_supervisor.harness.claude_code.login import MANAGED_SETTINGS, config_home
from forge_supervisor.harness.reading import read_json
from forge_supervisor.harness.reporting import as_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.config import Agent
    from forge_supervisor.harness import Paths, Subject

# What claude asks although it may do all (rm -rf of a home), and what an MCP server asks: answers in place of dialogs.
_ANSWERS: dict[str, dict[str, Any]] = {
    "PermissionRequest": {
        "decision": {"behavior": "deny", "message": "Nobody is there to answer: do without it."},
    },
    "Elicitation": {"action": "decline"},
}


# A start then talks to nobody but the API: no self-update under a running agent, and no
# dialog that a server decides on (new consumer terms, whose default is 'train on my chats').
QUIET = {
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_UPDATES": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
    # A dialog that says what has been spent.
    "DISABLE_COST_WARNINGS": "1",
}
# Whether channels deliver is decided by a feature flag, and that comes by the traffic which is not essential.
_QUIET_WITH_CHANNELS = {
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_UPDATES": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_COST_WARNINGS": "1",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
}


_LAUNCH_KEYS = ("inherit", "permissions", "add_dirs")
_OWN_KEYS = ("allowed_tools", "permissions")


def environment(subject: Subject) -> dict[str, str]:
    """Say what claude's own environment has to be."""
    return QUIET if subject.granted.bot is None else _QUIET_WITH_CHANNELS


def launch_file(paths: Paths) -> Path:
    """Say where the settings are that the agent is not meant to edit, and claude reads only when it starts."""
    return paths.launch / "settings.json"


def files(subject: Subject, paths: Paths) -> Iterator[File]:
    """Make the settings of the launch and those of the agent's own directory."""
    yield File(launch_file(paths), as_json(_of_the_launch(subject, paths)), _LAUNCH_KEYS)
    yield File(paths.state / ".claude/settings.json", as_json(_own(subject.agent)), _OWN_KEYS)


def _own(agent: Agent) -> dict[str, Any]:
    """Say what the agent may do, where whoever attaches to it looks. It can write this file, so no more than that."""
    allow = [*agent.allowed_tools, *agent.permissions.allow]
    return {"permissions": {"allow": list(dict.fromkeys(allow)), "deny": list(agent.permissions.deny)}}


def _of_the_launch(subject: Subject, paths: Paths) -> dict[str, Any]:
    """Say what only --settings can: the user's settings do not count, and the project's the agent can write."""
    agent = subject.agent
    directories = [expand_home(directory, paths.home) for directory in agent.add_dirs]
    settings: dict[str, Any] = {
        "skipDangerousModePermissionPrompt": True,
        "permissions": {"deny": [*_denied(agent, paths)], "additionalDirectories": directories},
        "env": _pinned(subject),
        **_bounds(agent, paths),
        **_servers(paths),
        "enabledPlugins": _plugins(subject),
    }
    settings["disableAllHooks"] = False  # the agent's own settings could say otherwise
    settings["hooks"] = {event: [{"hooks": hooks}] for event, hooks in _hooks(subject, paths).items()}
    settings["statusLine"] = activity.status_line(subject)
    return settings


def _hooks(subject: Subject, paths: Paths) -> dict[str, list[dict[str, Any]]]:
    hooks = {event: [activity.hook(subject)] for event in activity.REPORTED}
    hooks.setdefault("SessionStart", []).append(sessions.hook(paths))
    if is_unattended(subject.agent):
        for event, answer in _ANSWERS.items():
            hooks.setdefault(event, []).append(_hook(event, answer))
    return hooks


def _hook(event: str, answer: dict[str, Any]) -> dict[str, Any]:
    said = json.dumps({"hookSpecificOutput": {"hookEventName": event, **answer}})
    return {"type": "command", "command": f"printf %s {shlex.quote(said)}"}


def _denied(agent: Agent, paths: Paths) -> Iterator[str]:
    """Say what stays denied whatever the agent's own settings become."""
    yield from agent.permissions.deny
    # "//" begins an absolute path.
    yield f"Edit(/{paths.launch}/**)"
    # It names the other sessions of the user, agents and people.
    yield "ListAgents"


def _bounds(agent: Agent, paths: Paths) -> dict[str, Any]:
    """Keep from the agent what it does not inherit, of claude, of claude.ai and of its user."""
    bounds: dict[str, Any] = {
        "claudeMdExcludes": [*_foreign_instructions(agent, paths)],
        "disableBundledSkills": "bundled-skills" not in agent.inherit,
        "autoMemoryEnabled": "auto-memory" in agent.inherit,
        "disableClaudeAiConnectors": "claude-ai-connectors" not in agent.inherit,
        "syncClaudeAiSkills": False,
        "syncClaudeAiPlugins": False,
        # Claude sessions of one user can write to each other; what arrives looks like the user's own words.
        "crossSessionInbound": "refuse",
    }
    if _lies_in_a_repository(paths):
        # Of a home that is a git repository, claude would tell the branch, the last commits and all new files.
        bounds["includeGitInstructions"] = False
    return bounds


def _pinned(subject: Subject) -> dict[str, str]:
    """Set again what the process has in its environment: variables in the agent's own settings beat those."""
    pinned = dict(environment(subject))
    if "auto-memory" not in subject.agent.inherit:
        pinned["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] = "1"
        pinned["CLAUDE_CODE_DISABLE_ORG_MEMORY"] = "1"
    if "claude-ai-connectors" not in subject.agent.inherit:
        pinned["ENABLE_CLAUDEAI_MCP_SERVERS"] = "false"
    # The operator's own word goes before ours.
    return {name: subject.agent.env.get(name, value) for name, value in pinned.items()}


def _servers(paths: Paths) -> dict[str, Any]:
    """Answer for the MCP servers of .mcp.json files: those of the directories above would be started as well.

    --strict-mcp-config would close that, and take the plugins' servers away too.
    """
    foreign = {name for directory in _above(paths) for name in _declared_in(directory / ".mcp.json")}
    return {"enableAllProjectMcpServers": True, "disabledMcpjsonServers": sorted(foreign)}


def _declared_in(file: Path) -> Iterator[str]:
    servers = read_json(file).get("mcpServers")
    yield from servers if isinstance(servers, dict) else ()


def _plugins(subject: Subject) -> dict[str, bool]:
    """Choose among the plugins that are there without being granted; AGENTS.md files are read by one."""
    authoring = "bundled-skills" in subject.agent.inherit
    builtin = {"cc-plugin-plugin-authoring@builtin": authoring, "cc-plugin-agents-md@builtin": False}
    return {**builtin, **({PLUGIN: True} if subject.granted.bot is not None else {})}


def is_unattended(agent: Agent) -> bool:
    """Whether nothing may ever wait for somebody at the agent's terminal."""
    return agent.permissions.skip_prompts or agent.permissions.unlisted == "refuse"


def problems(subject: Subject, paths: Paths) -> Iterator[Problem]:
    """Find what has no effect: hooks that managed settings forbid, and what was to be inherited and cannot be."""
    managed = read_json(MANAGED_SETTINGS)
    for key in ("allowManagedHooksOnly", "disableAllHooks"):
        if managed.get(key):
            text = f"{key} in {MANAGED_SETTINGS} keeps claude from telling of lost logins, limits and a silent API"
            yield Problem("", text, fatal=False)
    # Claude finds the user's instructions on its way up alone.
    if "user-instructions" not in subject.agent.inherit:
        return
    users = Path(os.path.realpath(config_home(subject.env, paths)))
    if users.name != ".claude" or users.parent not in _above(paths):
        text = f'"user-instructions" has no effect: claude does not look into {users} from {paths.state} (remove it)'
        yield Problem("inherit", text, fatal=False)


def _foreign_instructions(agent: Agent, paths: Paths) -> Iterator[str]:
    """Name the instruction files above the agent's directory that it does not inherit.

    Claude walks up to the root and takes them all for the project's, ~/.claude included.
    """
    home = Path(os.path.realpath(paths.home))
    for directory in _above(paths):
        if "parent-instructions" not in agent.inherit:
            yield from (str(directory / name) for name in ("CLAUDE.md", "AGENTS.md"))
        inherited = "user-instructions" if directory == home else "parent-instructions"
        if inherited not in agent.inherit:
            inner = directory / ".claude"
            yield from (str(inner / name) for name in ("CLAUDE.md", "AGENTS.md", "rules/**"))


def _above(paths: Paths) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(paths.state)).parents)


def _lies_in_a_repository(paths: Paths) -> bool:
    return any(os.path.exists(directory / ".git") for directory in _above(paths))


def barrier(paths: Paths) -> tuple[Path, ...]:
    """Make the agent's directory the end of claude's walk upwards for skills, sub-agents, commands and workflows.

    An empty .git is enough for claude, and none for git. One that the agent has made stays.
    """
    place = paths.state / ".git"
    there = os.path.lexists(place) and (place.is_symlink() or not os.path.isdir(place))
    return () if there else (place,)
