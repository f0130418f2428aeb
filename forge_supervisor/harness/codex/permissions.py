"""What an agent may do, in codex's terms: its sandbox, rules by how a command begins, and each server's tools.

With prompts skipped there is no sandbox, and what is denied stays denied. Otherwise commands run in codex's sandbox
(they may read all that the user may, write the agent's directories and /tmp, and have no network); what a rule allows
runs outside of it; and what would be asked at the terminal is refused, or waits for somebody there.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, expand_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from forge_supervisor.config import Agent, Library
    from forge_supervisor.harness import Paths

_COMMAND = re.compile(r"Bash\((?P<words>.*?)(?::\*| \*)\)")
_TOOL = re.compile(r"mcp__(?P<server>[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*)(?:__(?P<tool>[^*()]+|\*))?")
_SEARCH = "WebSearch"
_KEYS = ("allowed_tools", "permissions")
_NO_RULE = (
    "codex knows rules for how a command begins (Bash(git *)), for a server or one of its tools (mcp__tracker, "
    "mcp__tracker__search) and WebSearch"
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What some rules name."""

    commands: tuple[tuple[str, ...], ...]
    """The words with which a command begins."""
    servers: frozenset[str]
    tools: frozenset[tuple[str, str]]
    """Server and tool."""
    search: bool


def problems(agent: Agent) -> Iterator[Problem]:
    """Find rules that codex has no means to keep."""
    for key, rules in (
        ("allowed_tools", agent.allowed_tools),
        ("permissions.allow", agent.permissions.allow),
        ("permissions.deny", agent.permissions.deny),
    ):
        for rule in rules:
            if not _is_one(rule):
                yield Problem(key, f"{json.dumps(rule)} is no permission rule: {_NO_RULE}")
        if rules and key != "permissions.deny" and agent.permissions.skip_prompts:
            text = "has no effect: permissions.skip_prompts allows all that is not denied (set it to false)"
            yield Problem(key, text, fatal=False)


def options(agent: Agent, paths: Paths) -> Iterator[str]:
    """Make the arguments of a start."""
    if agent.permissions.skip_prompts:
        yield "--dangerously-bypass-approvals-and-sandbox"
    else:
        yield from ("--ask-for-approval", "on-request" if may_ask(agent) else "never")
        yield from ("--sandbox", "workspace-write")
    for directory in agent.add_dirs:
        yield from ("--add-dir", expand_home(directory, paths.home))


def may_ask(agent: Agent) -> bool:
    """Whether something may wait for somebody at the agent's terminal."""
    return not agent.permissions.skip_prompts and agent.permissions.unlisted == "ask"


def rules_file(agent: Agent, home: Path) -> File:
    """Make the rules for commands: of several that a command begins with, the strictest counts."""
    lines = [*_lines(_allowed(agent).commands, "allow"), *_lines(_denied(agent).commands, "forbidden")]
    return File(home / "rules/default.rules", "".join(f"{line}\n" for line in lines), _KEYS)


def _lines(commands: Iterable[tuple[str, ...]], decision: str) -> Iterator[str]:
    for words in commands:
        yield f"prefix_rule(pattern = {json.dumps(words, ensure_ascii=False)}, decision = {json.dumps(decision)})"


def search(agent: Agent) -> dict[str, Any]:
    """Make the setting by which its model may search the web, or may not."""
    allowed = agent.permissions.skip_prompts or _allowed(agent).search
    return {} if allowed and not _denied(agent).search else {"web_search": "disabled"}


def of_servers(agent: Agent, granted: Library) -> dict[str, dict[str, Any]]:
    """Make the settings of each granted server that say which of its tools may be used."""
    allowed, denied = _allowed(agent), _denied(agent)
    settings: dict[str, dict[str, Any]] = {}
    for name in granted.mcp_servers:
        tools = {tool: {"approval_mode": "approve"} for server, tool in sorted(allowed.tools) if server == name}
        refused = [tool for server, tool in sorted(denied.tools) if server == name]
        settings[name] = {
            **({"enabled": False} if name in denied.servers else {}),
            **({"disabled_tools": refused} if refused else {}),
            **({"default_tools_approval_mode": "approve"} if name in allowed.servers else {}),
            **({"tools": tools} if tools else {}),
        }
    return settings


def _allowed(agent: Agent) -> Rules:
    # With prompts skipped they have no effect.
    return _read(() if agent.permissions.skip_prompts else (*agent.allowed_tools, *agent.permissions.allow))


def _denied(agent: Agent) -> Rules:
    return _read(agent.permissions.deny)


def _read(rules: Iterable[str]) -> Rules:
    rules = tuple(dict.fromkeys(rules))
    tools = [found for found in map(_TOOL.fullmatch, rules) if found]
    return Rules(
        commands=tuple(filter(None, map(_words, rules))),
        servers=frozenset(found["server"] for found in tools if found["tool"] in {None, "*"}),
        tools=frozenset((found["server"], found["tool"]) for found in tools if found["tool"] not in {None, "*"}),
        search=_SEARCH in rules,
    )


def _words(rule: str) -> tuple[str, ...]:
    found = _COMMAND.fullmatch(rule)
    if found is None or "*" in found["words"] or not rule.isprintable():
        return ()
    try:
        return tuple(shlex.split(found["words"]))
    except ValueError:  # a quotation that does not end
        return ()


def _is_one(rule: str) -> bool:
    return rule == _SEARCH or bool(_words(rule)) or _TOOL.fullmatch(rule) is not None
