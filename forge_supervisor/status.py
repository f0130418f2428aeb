"""How all agents are, in one line: what `systemctl status` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge_supervisor.memory import State
from forge_supervisor.policy import Result

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from forge_supervisor.activity import Doing
    from forge_supervisor.agent import Lifecycle

_MOST_NAMED = 10
"""systemd ignores a notification of more than 4096 bytes."""


def summed_up(lives: Iterable[Lifecycle], kept: Collection[str], troubles: Mapping[str, Doing] | None = None) -> str:
    """Make the line: ``3 running, 1 of them stuck: coder (limited), 1 failed: scout (exit code 1)``.

    `kept` are as they were before a reload; `troubles` tell why agents that run do not work.
    """
    troubles = troubles or {}
    everybody = list(lives)
    parts = []
    for state in (State.RUNNING, State.STARTING, State.STOPPING, State.AUTO_RESTART, State.INACTIVE, State.FAILED):
        alike = [life for life in everybody if life.state is state]
        if not alike:
            continue
        part = f"{len(alike)} {state}"
        if state in {State.FAILED, State.AUTO_RESTART}:
            part += f": {_whys(alike)}"
        if state is State.RUNNING:
            part += _stuck({name: troubles[name] for name in (life.agent.name for life in alike) if name in troubles})
        parts.append(part)
    status = ", ".join(parts) or "no agents"
    named = ", ".join(sorted(kept)[:_MOST_NAMED])
    return f"{status}; as before the reload: {named}" if named else status


def _stuck(troubles: Mapping[str, Doing]) -> str:
    if not troubles:
        return ""
    named = ", ".join(f"{name} ({doing})" for name, doing in [*troubles.items()][:_MOST_NAMED])
    return f", {len(troubles)} of them stuck: {named}"


def _whys(lives: list[Lifecycle]) -> str:
    whys = ", ".join(f"{life.agent.name} ({_why(life)})" for life in lives[:_MOST_NAMED])
    return whys + (f" and {len(lives) - _MOST_NAMED} more" if len(lives) > _MOST_NAMED else "")


def _why(life: Lifecycle) -> str:
    if life.result is Result.SUCCESS and life.start_limit_hit:
        return "start limit hit"
    if life.result is Result.SUCCESS and life.daily_limit_hit:
        return "daily limit hit"
    if life.result in {Result.EXIT_CODE, Result.SIGNAL} and life.exit is not None:
        return str(life.exit)
    return str(life.result)
