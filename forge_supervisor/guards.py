"""Acts on agents that use too much, in the moments between two turns: memory, and what a day may cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events
from forge_supervisor.config_files import key_path
from forge_supervisor.config_resources import Share
from forge_supervisor.memory import State
from forge_supervisor.policy import RateLimit
from forge_supervisor.spend.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.spend.collector import Collector
    from forge_supervisor.spend.store import Who

log = structlog.get_logger()


RESTARTED_AT_MOST = 3600.0
"""Seconds between two restarts of an agent that is too large: one that is so at once would never come to work."""


class Guards:
    """`memory_of` is the placement's; `life_of` the supervisor's."""

    def __init__(
        self,
        collector: Collector,
        *,
        life_of: Callable[[str], Lifecycle | None],
        memory_of: Callable[[int], int | None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self._collector = collector
        self._life_of = life_of
        self._memory_of = memory_of
        self._emit = emit
        self._told: dict[Who, tuple[str, str]] = {}
        """The day on which it was last told of an agent that its budget is used up, and which."""
        self._unpriced: dict[Who, set[str]] = {}
        """Models without a price of which it was told."""
        self._too_large: dict[Who, RateLimit] = {}
        self.looking: set[asyncio.Task[None]] = set()
        """At what agents have used today."""

    def is_idle(self, life: Lifecycle) -> None:
        """Restart an agent that has just become idle, if it has grown too large: the kernel would end it in a turn."""
        most = life.agent.resources.restart_above
        if most is None or life.pid is None or life.state is not State.RUNNING:
            return
        most = _bytes(most)
        used = self._memory_of(life.pid)
        if used is not None and used > most and self._may_restart(life.agent):
            self._emit(
                events.AgentTooLarge(agent=life.agent.name, run_as=life.agent.run_as, memory=used, restart_above=most)
            )
            life.restart()

    def _may_restart(self, agent: Agent) -> bool:
        limit = self._too_large.setdefault((agent.name, agent.run_as), RateLimit(RESTARTED_AT_MOST, 1))
        return limit.allow(asyncio.get_running_loop().time())

    def counted(self, agent: Agent) -> None:
        """See whether the agent's budget is used up, as more of what it used has been counted."""
        if agent.budget.is_limited:
            task = asyncio.create_task(self._look(agent))
            self.looking.add(task)
            task.add_done_callback(self.looking.discard)

    async def close(self) -> None:
        for task in self.looking:
            task.cancel()
        await asyncio.gather(*self.looking, return_exceptions=True)

    async def _look(self, agent: Agent) -> None:
        try:
            await self._check(agent)
        except Exception:
            log.exception("supervisor_fault", agent=agent.name, run_as=agent.run_as)

    async def _check(self, agent: Agent) -> None:
        who = (agent.name, agent.run_as)
        midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        budget = agent.budget
        this = (midnight.date().isoformat(), f"{budget.daily_usd} USD, {budget.daily_tokens} tokens")
        if self._told.get(who) == this:
            return
        with contextlib.suppress(StoreError):  # it has been told
            tokens, dollars, unpriced = await self._used_since(who, round(midnight.timestamp() * 1_000_000))
            if budget.daily_usd:
                self._tell_unpriced(agent, unpriced)
            if tokens > (budget.daily_tokens or tokens) or dollars > (budget.daily_usd or dollars):
                self._told[who] = this
                # Another supervisor may have told, and whoever has started the agent again since has his reasons.
                if await self._collector.exceeds(who, *this):
                    self._exceeded(agent, tokens, dollars)

    async def _used_since(self, who: Who, since_usec: int) -> tuple[int, float, set[str]]:
        """Tell the tokens, what they cost as far as that is known, in US dollars, and the models of which it is not."""
        prices = self._collector.prices
        sums = await self._collector.sums("agent", prices, since_usec, who[1])
        own = [one for one in sums if (one.agent, one.run_as) == who]
        costs = [(one.model, prices.cost(one.tier, one.tokens)) for one in own]
        unpriced = {model for model, cost in costs if cost is None}
        return sum(one.tokens.total for one in own), sum(cost or 0.0 for _, cost in costs), unpriced

    def _tell_unpriced(self, agent: Agent, models: set[str]) -> None:
        told = self._unpriced.setdefault((agent.name, agent.run_as), set())
        for model in sorted(models - told):
            told.add(model)
            key = key_path(agent.name, "budget.daily_usd")
            way_out = "add it to prices.toml, or set daily_tokens"
            text = f'does not see what "{model}" costs: no price of it is known ({way_out})'
            self._emit(events.AgentWarning(agent=agent.name, run_as=agent.run_as, key=key, problem=text))

    def _exceeded(self, agent: Agent, tokens: int, dollars: float) -> None:
        stops = agent.budget.action == "stop"
        self._emit(
            events.BudgetExceeded(
                agent=agent.name, run_as=agent.run_as, tokens=tokens, cost_usd=round(dollars, 2), stopped=stops
            )
        )
        life = self._life_of(agent.name)
        if stops and life is not None and life.agent.run_as == agent.run_as:
            life.stop()


def _bytes(most: int | Share) -> int:
    if isinstance(most, Share):
        return round(most.of_all * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return most
