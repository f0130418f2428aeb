"""Names that claude takes in silence or with a dialog where they are wrong: models, rules, servers, options.

What it makes of them was seen on 2.1.330.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness.granted import refused_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EFFORTS = ("low", "medium", "high", "xhigh", "max")

_ALIASES = frozenset({"best", "default", "fable", "haiku", "opus", "opusplan", "sonnet"})
_DOTTED = re.compile(r"(?:claude-)?([a-z]+)-(\d+)\.(\d+)(\[1m\])?")
# It declares none of these, or hides its tools, and says nothing.
_RESERVED = frozenset(
    {"claude-code-remote", "claude-in-chrome", "computer-use", "ide", "remote-devices", "webagent", "workspace"}
)
_OF_FILES = frozenset({"Edit", "Glob", "NotebookEdit", "NotebookRead", "Read", "Write"})
_NEVER = "would undo what keeps the agent to what was declared"
_OPTIONS = {
    "--add-dir": "use add_dirs",
    "--allow-dangerously-skip-permissions": "use permissions.skip_prompts",
    "--allowedTools": "use allowed_tools",
    "--allowed-tools": "use allowed_tools",
    "--append-system-prompt-file": "use role",
    "--dangerously-load-development-channels": "it opens a dialog at every start",
    "--managed-settings": _NEVER,
    "--plugin-dir-no-mcp": "use plugins",
    "--plugin-url": "use plugins",
    "--bare": _NEVER,
    "--bg": "the agent would run where nobody watches it",
    "--background": "the agent would run where nobody watches it",
    "--channels": "use discord_bot",
    "--dangerously-skip-permissions": "use permissions.skip_prompts",
    "--disallowedTools": "use permissions.deny",
    "--disallowed-tools": "use permissions.deny",
    "--effort": "use effort",
    "--mcp-config": "use mcp_servers",
    "--model": "use model",
    "--continue": "use resume",
    "-c": "use resume",
    "--fork-session": "use resume",
    "--permission-mode": "use permissions",
    "--plugin-dir": "use plugins",
    "--print": "the agent would answer once and end",
    "-p": "the agent would answer once and end",
    "--resume": "use resume",
    "-r": "use resume",
    "--session-id": "use resume",
    "--system-prompt-snapshot": "use resume",
    "--setting-sources": "use inherit",
    "--settings": _NEVER,
    "--strict-mcp-config": _NEVER,
}


def model_problems(model: str | None) -> Iterator[Problem]:
    """Refuse what cannot be a model, and warn of what claude starts with all the same, by guessing."""
    if model is None:
        return
    if model.startswith("-") or not model.isprintable():
        yield Problem("model", f"{json.dumps(model)} is no model name (use an alias such as opus, or a full id)")
    elif dotted := _DOTTED.fullmatch(model):
        family, major, minor, window = dotted.groups("")
        text = f'claude knows no "{model}" (did you mean "claude-{family}-{major}-{minor}{window}"?)'
        yield Problem("model", text, fatal=False)
    elif model.lower().strip().removesuffix("[1m]") not in _ALIASES and "claude-" not in model:
        text = f'claude may not know "{model}" (its aliases: {", ".join(sorted(_ALIASES))}; or a full id, claude-…)'
        yield Problem("model", text, fatal=False)


def rule_problems(key: str, rules: Iterable[str], *, allow: bool) -> Iterator[Problem]:
    """Refuse rules over which claude opens a dialog when it starts, to which nobody is there to answer."""
    for rule in rules:
        if why := _why_no_rule(rule, allow=allow):
            yield Problem(key, f"{json.dumps(rule)} is no permission rule: {why}")


def _why_no_rule(rule: str, *, allow: bool) -> str | None:
    if rule != rule.strip():
        return "blanks around it keep it from matching anything"
    tool, opened, content = rule.partition("(")
    checks = (
        _why_no_mcp_rule(tool, opened, allow=allow) if tool.startswith("mcp__") else _why_no_tool(tool, allow=allow),
        _why_no_content(tool, content) if opened else None,
    )
    return next(filter(None, checks), None)


def _why_no_mcp_rule(tool: str, opened: str, *, allow: bool) -> str | None:
    server = tool.removeprefix("mcp__").partition("__")[0]
    if allow and "*" in server:
        return "it would allow several servers' tools (name one: mcp__server)"
    if ")" in tool:
        return "its parenthesis is not opened"
    return "an MCP tool's has no parentheses (mcp__server__tool)" if opened else None


def _why_no_tool(tool: str, *, allow: bool) -> str | None:
    if allow and "*" in tool:
        return "it would allow several tools (name them one by one)"
    if ")" in tool:
        return "its parenthesis is not opened"
    lower = tool[:1].islower() and not tool.startswith("mcp_")
    return 'a tool\'s name begins with a capital letter ("Bash")' if lower else None


def _why_no_content(tool: str, content: str) -> str | None:
    inner = content[:-1]
    escaped = (len(inner) - len(inner.rstrip("\\"))) % 2
    if not content.endswith(")") or escaped:
        return "its parenthesis is not closed"
    if not inner or (inner == ":*" and tool in _OF_FILES | {"Bash"}):
        return "there is nothing in its parentheses (leave them out)"
    if tool in _OF_FILES and ":*" in inner:
        return "a :* ends the beginning of a command, not of a path (use * or **)"
    return None if inner == "*" else _why_no_search(tool, inner)


def _why_no_search(tool: str, inner: str) -> str | None:
    if tool == "WebFetch" and (not inner.startswith("domain:") or "://" in inner):
        return "a WebFetch rule names a domain (WebFetch(domain:example.org))"
    if tool == "WebSearch" and re.search(r"[*?]", inner):
        return "a WebSearch rule has no wildcards"
    return None


def server_problems(names: Iterable[str]) -> Iterator[Problem]:
    """Refuse servers that claude would not load, for it has its own of the name."""
    for name in names:
        if name.lower() in _RESERVED:
            yield Problem("mcp_servers", f'"{name}" is a name that claude keeps for itself (give the server another)')


def option_problems(arguments: Iterable[str]) -> Iterator[Problem]:
    """Refuse options that are set by other keys, or that break what those promise."""
    return refused_options(arguments, _OPTIONS)
