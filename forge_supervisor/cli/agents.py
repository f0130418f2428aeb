"""What forgectl does to agents by way of the supervisor: look, start, stop, send."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from forge_supervisor.cli import client, status
from forge_supervisor.control import LONGEST_TEXT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

NOT_RUNNING = 3

_METHODS = {"start": "Start", "stop": "Stop", "restart": "Restart", "reset-failed": "ResetFailed"}


def show_status(options: argparse.Namespace) -> int:
    agents = client.call("List")["agents"]
    meant = chosen(options.agents, agents) if options.agents else agents
    if options.json:
        print(json.dumps(meant, indent=2))
    elif options.agents:
        _details(meant, options.lines)
    else:
        lines = status.table(meant, now=time.time(), coloured=_coloured()) if meant else []
        print("\n".join([*lines, *([""] if lines else []), status.summary(meant)]))
    if options.agents and any(agent["state"] not in status.RUNNING for agent in meant):
        return NOT_RUNNING
    return 0


def act(options: argparse.Namespace) -> int:
    """Start, stop, restart or reset agents; 1 if one that was to run does not."""
    if options.all and options.agents:
        raise client.ForgectlError("name agents, or --all, and not both")
    agents = client.call("List")["agents"]
    if options.all:
        meant = [agent for agent in agents if agent["enabled"] or options.verb == "stop"]
    elif options.agents:
        meant = chosen(options.agents, agents)
    else:
        raise client.ForgectlError("name an agent, or --all")
    if not meant:
        return 0
    starts = options.verb in {"start", "restart"}
    parameters: dict[str, Any] = {"agents": [agent["name"] for agent in meant]}
    if getattr(options, "fresh", False):
        parameters["fresh"] = True
    told = client.call(_METHODS[options.verb], parameters)["agents"]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        for agent in told:
            _tell(agent, starts=starts)
    return 1 if starts and any(agent["state"] not in status.RUNNING for agent in told) else 0


def send(options: argparse.Namespace) -> int:
    # What is longer is not read to its end, as it may have none.
    text = sys.stdin.read(LONGEST_TEXT + 1) if options.text == ["-"] else " ".join(options.text)
    if len(text) > LONGEST_TEXT:
        raise client.ForgectlError(f"the text is too long: {LONGEST_TEXT} characters is the most")
    told = client.call("Send", {"agent": options.agent, "text": text})
    if options.json:
        print(json.dumps(told["agent"], indent=2))
    return 0


def screen(options: argparse.Namespace) -> int:
    lines = client.call("Capture", {"agent": options.agent})["screen"]
    print(json.dumps(lines, indent=2) if options.json else "\n".join(lines))
    return 0


def follow_events(options: argparse.Namespace) -> int:
    for told in client.stream("Monitor"):
        if (event := told["event"]) is None:
            continue
        if options.json:
            print(json.dumps(event), flush=True)
        else:
            when = time.strftime("%b %d %H:%M:%S", time.localtime(event["time_usec"] / 1e6))
            print(f"{when} {event['message']}", flush=True)
    return 0


def reload(options: argparse.Namespace) -> int:
    plan = client.call("Reload", {"dry_run": options.dry_run})["plan"]
    print(json.dumps(plan, indent=2) if options.json else "\n".join(plan))
    return 0


def names() -> int:
    """Print the agents' names, for completions; nothing if they cannot be known."""
    try:
        print("\n".join(agent["name"] for agent in client.call("List")["agents"]))
    except client.ForgectlError:
        return 1
    return 0


def chosen(patterns: Iterable[str], agents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the agents that names and patterns mean, in their order. Raises NoSuchAgentError."""
    named = {agent["name"]: agent for agent in agents}
    return [named[name] for name in expanded(patterns, named, lambda _: f" (there are: {', '.join(named) or 'none'})")]


def expanded(patterns: Iterable[str], names: Iterable[str], hint: Callable[[str], str]) -> list[str]:
    """Return those of the names that are meant, each once; a pattern that means none gets the hint in its error."""
    meant: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise client.NoSuchAgentError(f'there is no agent "{pattern}"{hint(pattern)}')
        meant |= dict.fromkeys(found)
    return list(meant)


def _details(agents: Iterable[dict[str, Any]], lines: int) -> None:
    paragraphs = []
    for agent in agents:
        tail = _screen_tail(agent, lines)
        paragraphs.append("\n".join(status.detail(agent, tail, now=time.time(), coloured=_coloured())))
    print("\n\n".join(paragraphs))


def _screen_tail(agent: dict[str, Any], lines: int) -> list[str]:
    if lines <= 0:
        return []
    try:
        shown = client.call("Capture", {"agent": agent["name"]})["screen"]
    except client.CallError:
        return []
    return [line for line in shown if line.strip()][-lines:]


def _tell(agent: dict[str, Any], *, starts: bool) -> None:
    pid = f" (pid {agent['pid']})" if agent["pid"] else ""
    print(f"{agent['name']}: {status.state(agent)}{pid}")
    if starts and agent["state"] == "failed" and (agent["start_limit_hit"] or agent.get("daily_limit_hit")):
        hint = f"forgectl reset-failed {agent['name']} forgets its starts, forgectl logs {agent['name']} tells of them"
        print(f"{agent['name']}: it has been started too often; {hint}", file=sys.stderr)


def _coloured() -> bool:
    return os.isatty(1) and "NO_COLOR" not in os.environ
