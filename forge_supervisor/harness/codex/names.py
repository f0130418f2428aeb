"""Names that codex takes in silence where they are wrong: models, efforts, servers, options.

What it makes of them was seen on 0.169.0.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness.granted import refused_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forge_supervisor.config import Agent, Library

EFFORTS = ("low", "medium", "high", "xhigh", "max", "ultra")
INHERITABLE = frozenset({"bundled-skills", "user-instructions", "user-skills"})

_MODEL = re.compile(r"(gpt-|codex-|o[0-9]).*")
# Its own, whose tools would be mixed with those of a server of that name.
_RESERVED = frozenset({"codex_apps", "codex_tui"})
_NEVER = "would undo what keeps the agent to what was declared"
_ELSEWHERE = "the agent would run where nobody watches it"
_OTHERWISE = "the agent would do something else than wait at its prompt"
_COMMANDS = (
    "a", "agents", "app-server", "apply", "archive", "cloud", "completion", "debug", "delete", "doctor", "e", "exec",
    "exec-server", "features", "help", "login", "logout", "mcp", "mcp-server", "migrate-nfs-db", "migrate-rollouts",
    "plugin", "queue", "remote-control", "review", "sandbox", "unarchive", "update",
)  # fmt: skip
_OPTIONS = {
    "--add-dir": "use add_dirs",
    "--approve-for-me": "use permissions",
    "--ask-for-approval": "use permissions",
    "-a": "use permissions",
    "--cd": _NEVER,
    "-C": _NEVER,
    "--dangerously-bypass-approvals-and-sandbox": "use permissions.skip_prompts",
    "--dangerously-bypass-hook-trust": "it is given anyway",
    "--yolo": "use permissions.skip_prompts",
    "--model": "use model",
    "-m": "use model",
    "--no-daemon": "it is given anyway",
    "--profile": _NEVER,
    "-p": _NEVER,
    "--remote": _ELSEWHERE,
    "--sandbox": "use permissions",
    "-s": "use permissions",
    "--worktree": _ELSEWHERE,
    # What comes after it is no option any more, nor the command by which it is resumed.
    "--": _OTHERWISE,
    **dict.fromkeys(("resume", "fork"), "use resume"),
    **dict.fromkeys(_COMMANDS, _OTHERWISE),
}
_SHORT = ("-a", "-C", "-m", "-p", "-s")
"""Of these options, those to which a value may be glued."""


def model_problems(model: str | None) -> Iterator[Problem]:
    """Refuse what cannot be a model, and warn of what is none of OpenAI's."""
    if model is None:
        return
    if model.startswith("-") or not model.isprintable():
        yield Problem("model", f"{json.dumps(model)} is no model name (codex debug models lists them)")
    elif not _MODEL.fullmatch(model):
        yield Problem("model", f'codex may not know "{model}" (codex debug models lists them)', fatal=False)


def inherit_problems(agent: Agent) -> Iterator[Problem]:
    """Refuse to promise what codex has not, or what cannot be let through by itself."""
    for name in agent.inherit:
        if name not in INHERITABLE:
            yield Problem("inherit", f'"{name}" means nothing to the harness "{agent.harness}" (remove it)')


def server_problems(granted: Library) -> Iterator[Problem]:
    """Refuse servers that codex would mix with its own, and values that it would not fill in."""
    for name, server in granted.mcp_servers.items():
        if name in _RESERVED:
            yield Problem("mcp_servers", f'"{name}" is a name that codex keeps for itself (give the server another)')
        for variable, value in server.env.items():
            if "${" in value:
                text = "codex puts no variable in the place of ${…} (use secrets, or write the value)"
                yield Problem(f"mcp_servers.{name}.env.{variable}", text)


def option_problems(arguments: Iterable[str]) -> Iterator[Problem]:
    """Refuse options that are set by other keys, or that break what those promise."""
    glued = [word[:2] if word[:2] in _SHORT else word for word in arguments]
    return refused_options(glued, _OPTIONS)
