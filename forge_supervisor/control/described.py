"""How an agent is, as io.forge.Supervisor tells it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from forge_supervisor.control.interface import Agent, Limit
from forge_supervisor.memory import State
from forge_supervisor.policy import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor import config
    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.observation import Observation
    from forge_supervisor.units import Placement


def described(
    agent: config.Agent,
    life: Lifecycle | None,
    *,
    now: float,
    placement: Placement,
    socket_name: str,
    otherwise: bool,
    observation: Observation | None,
) -> Agent:
    """Describe an agent; without a `life` it is one that is not to be started. `now` is on its life's clock.

    `otherwise`: it is not as it is declared now.
    """

    def usec(moment: float | None) -> int | None:
        # Lives are timed by a clock that nobody can set.
        return None if moment is None else round((time.time() - now + moment) * 1_000_000)

    exit_ = life.exit if life is not None else None
    activity = observation.activity if observation is not None else None
    runs = life is not None and life.alive and life.pid is not None
    return Agent(
        name=agent.name,
        run_as=agent.run_as,
        harness=agent.harness,
        model=agent.model,
        enabled=agent.enabled,
        state=life.state if life is not None else State.INACTIVE,
        since_usec=usec(life.since) if life is not None else None,
        activity=activity.doing if activity is not None else None,
        activity_detail=(activity.detail or None) if activity is not None else None,
        activity_since_usec=usec(observation.since) if observation is not None and activity is not None else None,
        limited_until_usec=_in_usec(activity.until) if activity is not None else None,
        context_percent=observation.gauges.context_percent if observation is not None else None,
        limits=[*_limits(observation)],
        result=life.result if life is not None else Result.SUCCESS,
        exit_code=exit_.code if exit_ is not None else None,
        signal=exit_.signal if exit_ is not None else None,
        start_limit_hit=life is not None and life.start_limit_hit,
        daily_limit_hit=life is not None and life.daily_limit_hit,
        n_restarts=life.n_restarts if life is not None else 0,
        pid=life.pid if life is not None and runs else None,
        invocation=(life.invocation or None) if life is not None else None,
        started_usec=usec(life.started_at) if life is not None and runs else None,
        restart_usec=usec(life.due) if life is not None and life.state is State.AUTO_RESTART else None,
        memory=placement.memory_of(life.pid) if life is not None and life.pid is not None and runs else None,
        scope=placement.scope_name(agent.name) if runs else None,
        socket_name=socket_name,
        declared_otherwise=otherwise,
    )


def _limits(observation: Observation | None) -> Iterator[Limit]:
    for window in observation.gauges.windows if observation is not None else ():
        yield Limit(window.name, window.used_percent, _in_usec(window.resets_at))


def _in_usec(moment: float | None) -> int | None:
    return None if moment is None else round(moment * 1_000_000)
