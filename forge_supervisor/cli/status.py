"""How agents are, for people: a table of all, and one in detail. Pure: from what the supervisor tells to text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Agent = dict[str, Any]
"""As io.forge.Supervisor has it."""

_COLOURS = {"running": "32", "starting": "33", "stopping": "33", "auto-restart": "33", "failed": "31"}
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_NOTHING = "-"
RUNNING = frozenset({"running"})


def table(agents: Sequence[Agent], *, now: float, coloured: bool) -> list[str]:
    """Make a line for each agent, below a line of headings. A column that says nothing of anybody is left out."""
    columns = {
        "AGENT": [agent["name"] for agent in agents],
        "USER": [agent["run_as"] for agent in agents],
        "STATE": [state(agent) for agent in agents],
        "SINCE": [_since(agent, now) for agent in agents],
        "PID": [_text(agent["pid"]) for agent in agents],
        "RESTARTS": [_text(agent["n_restarts"]) for agent in agents],
        "ACTIVITY": [_text(agent["activity"]) for agent in agents],
        "MEMORY": [memory(agent["memory"]) for agent in agents],
        "MODEL": [_text(agent["model"]) for agent in agents],
    }
    columns = {head: cells for head, cells in columns.items() if any(cell != _NOTHING for cell in cells)}
    widths = [max(map(len, (head, *cells))) for head, cells in columns.items()]
    lines = [_row(columns, widths)]
    for number, agent in enumerate(agents):
        cells = [column[number] for column in columns.values()]
        line = _row(cells, widths)
        colour = _COLOURS.get(agent["state"])
        lines.append(f"\033[{colour}m{line}\033[0m" if coloured and colour else line)
    return lines


def summary(agents: Iterable[Agent]) -> str:
    """``3 running, 1 failed``."""
    counts: dict[str, int] = {}
    for agent in agents:
        name = agent["state"] if agent["enabled"] else "disabled"
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "no agents"


def detail(agent: Agent, screen: Sequence[str], *, now: float, coloured: bool) -> list[str]:
    """Make a paragraph of one agent, with the last lines of its screen."""
    colour = _COLOURS.get(agent["state"])
    dot = f"\033[{colour}m●\033[0m" if coloured and colour else "●"
    harness = agent["harness"] + (f" ({agent['model']})" if agent["model"] else "")
    rows = {
        "State": f"{state(agent)}{_moment(agent['since_usec'], now, ' since ')}",
        "Activity": _activity(agent, now),
        "Context": _percent(agent.get("context_percent")),
        "Limits": _limits(agent, now),
        "User": agent["run_as"],
        "Main PID": agent["pid"],
        "Memory": memory(agent["memory"]) if agent["memory"] is not None else None,
        "Scope": agent["scope"],
        "Restarts": agent["n_restarts"] or None,
        "Last exit": _last_exit(agent),
        "Restart": _moment(agent["restart_usec"], now, ""),
        "Declared": "otherwise now: it is as before the reload" if agent["declared_otherwise"] else None,
        "Attach": f"forgectl attach {agent['name']}" if agent["pid"] else None,
    }
    width = max(map(len, rows))
    lines = [f"{dot} {agent['name']} - {harness}"]
    lines += [f"{name:>{width + 4}}: {value}" for name, value in rows.items() if value]
    lines += [f"    | {line}" for line in screen]
    return lines


def _activity(agent: Agent, now: float) -> str | None:
    """``limited (You've hit your limit) since Wed …; 5min ago, until Wed …; in 2h``."""
    # An earlier supervisor tells no more than the word.
    if agent["activity"] is None:
        return None
    detail = f" ({agent['activity_detail']})" if agent.get("activity_detail") else ""
    since = _moment(agent.get("activity_since_usec"), now, " since ")
    return f"{agent['activity']}{detail}{since}{_moment(agent.get('limited_until_usec'), now, ', until ')}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}% of the model's window"


def _limits(agent: Agent, now: float) -> str:
    windows = agent.get("limits", [])
    return ", ".join(
        f"{window['name']} {window['used_percent']:.0f}%{_moment(window['resets_usec'], now, ' until ')}"
        for window in windows
    )


def state(agent: Agent) -> str:
    """``running``, ``disabled``, ``failed (exit code 3)``."""
    if not agent["enabled"] and agent["state"] == "inactive":
        return "disabled"
    if agent["state"] == "failed" and agent["start_limit_hit"]:
        return "failed (start limit)"
    if agent["state"] == "failed" and agent.get("daily_limit_hit"):  # which an earlier supervisor does not tell
        return "failed (daily limit)"
    if agent["state"] in {"failed", "auto-restart"}:
        return f"{agent['state']} ({_how(agent)})"
    return str(agent["state"])


def _how(agent: Agent) -> str:
    if agent["result"] == "exit-code" and agent["exit_code"] is not None:
        return f"exit code {agent['exit_code']}"
    if agent["result"] == "signal" and agent["signal"] is not None:
        return f"signal {agent['signal']}"
    return str(agent["result"])


def _last_exit(agent: Agent) -> str | None:
    if agent["exit_code"] is None and agent["signal"] is None and agent["result"] == "success":
        return None
    code, number = agent["exit_code"], agent["signal"]
    how = f"code {code}" if code is not None else f"signal {number}" if number is not None else "not known"
    return f"{how} (result {agent['result']})"


def memory(size: int | None) -> str:
    """``512.0M``, as systemctl(1) writes it."""
    if size is None:
        return _NOTHING
    value, unit = float(size), "B"
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.0f}B" if unit == "B" else f"{value:.1f}{unit}"


def span(seconds: float) -> str:
    """``2d 3h``, ``5min 2s``: its two largest units."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"


def _since(agent: Agent, now: float) -> str:
    return _NOTHING if agent["since_usec"] is None else span(now - agent["since_usec"] / 1e6)


def _moment(usec: int | None, now: float, before: str) -> str:
    if usec is None:
        return ""
    moment = usec / 1e6
    written = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(moment))
    when = f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"
    return f"{before}{written}; {when}"


def _text(value: object) -> str:
    return _NOTHING if value is None else str(value)


def _row(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
