from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from usage_lab import MARK, record

from forge_supervisor import events
from forge_supervisor.config import Agent
from forge_supervisor.guards import Guards
from forge_supervisor.memory import State
from forge_supervisor.spend import prices
from forge_supervisor.spend.collector import Collector
from forge_supervisor.worker.messages import UsageRead, UsageRecord

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
USED = {"input": 1000, "output": 1000, "cache_read": 0, "cache_write_5m": 0, "cache_write_1h": 0}


def agent_of(**keys: Any) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "role": "x", **keys})


class Scene:
    """An agent that is told to have used something, as often as a test likes."""

    def __init__(self, path: Path, memory: int | None = None, **keys: Any) -> None:
        self.done: list[str] = []
        self.life: Any = SimpleNamespace(
            agent=agent_of(**keys),
            pid=7,
            state=State.RUNNING,
            stop=lambda: self.done.append("stop"),
            restart=lambda: self.done.append("restart"),
        )
        self.told: list[events.Event] = []
        self.number = 0
        self._next: list[UsageRecord] = []
        realm: Any = SimpleNamespace(ask=self._read)
        self.collector = Collector(
            path / "usage.db",
            prices.load(None, uid=os.geteuid()),
            life_of=lambda _: self.life,
            realm_of=lambda _: realm,
            emit=self.told.append,
        )
        self.guards = Guards(
            self.collector, life_of=lambda _: self.life, memory_of=lambda _: memory, emit=self.told.append
        )
        self.collector.counted = self.guards.counted

    async def turn(self, **more: Any) -> None:
        """Have a turn come to its end, and the guards have looked at what it has used."""
        self._next = [record(f"msg_{self.number}", **{**USED, "time_usec": time.time_ns() // 1000, **more})]
        self.number += 1
        self.collector.turn_ended(self.life)
        await self.collector.settle(self.life.agent)
        while self.guards.looking:
            await asyncio.wait(self.guards.looking)

    async def close(self) -> None:
        await self.guards.close()
        await self.collector.close()

    async def _read(self, _: object) -> UsageRead:
        records, self._next = self._next, []
        return UsageRead(records=records, marks={"/a": MARK} if records else {}, gone=[], more=False)


def exceeded(scene: Scene) -> list[tuple[int, bool]]:
    return [(event.tokens, event.stopped) for event in scene.told if isinstance(event, events.BudgetExceeded)]


@pytest.mark.parametrize(
    ("budget", "told", "done"),
    [
        ({}, [], []),
        ({"daily_tokens": 4000}, [(6000, False)], []),
        ({"daily_tokens": 4000, "action": "stop"}, [(6000, True)], ["stop"]),
        ({"daily_tokens": 100_000, "action": "stop"}, [], []),
        ({"daily_usd": 0.000001, "action": "stop"}, [(2000, True)], ["stop"]),
        ({"daily_usd": 1000, "daily_tokens": 2001}, [(4000, False)], []),
    ],
)
def test_a_budget_is_exceeded_once_a_day(
    tmp_path: Path, budget: dict[str, Any], told: list[tuple[int, bool]], done: list[str]
) -> None:
    async def scene() -> None:
        agent = Scene(tmp_path, budget=budget)
        for _ in range(4):
            await agent.turn()
        assert exceeded(agent) == told
        assert agent.done == done
        await agent.close()

    asyncio.run(scene())


def test_a_budget_in_dollars_that_cannot_see_a_models_price_says_so_once(tmp_path: Path) -> None:
    async def scenario(budget: dict[str, object]) -> list[tuple[str, str]]:
        scene = Scene(tmp_path, budget=budget)
        for _ in range(2):
            await scene.turn(model="gpt-6-sol")
        await scene.turn(model="gpt-6-lua")
        await scene.close()
        return [(event.key, event.problem) for event in scene.told if isinstance(event, events.AgentWarning)]

    problem = 'does not see what "gpt-6-{}" costs: no price of it is known (add it to prices.toml, or set daily_tokens)'
    assert asyncio.run(scenario({"daily_usd": 1.0})) == [
        ("agents.scout.budget.daily_usd", problem.format(name)) for name in ("sol", "lua")
    ]
    assert asyncio.run(scenario({"daily_tokens": 10_000_000})) == []


def test_another_supervisor_does_not_tell_again_but_of_another_budget(tmp_path: Path) -> None:
    async def scene() -> None:
        for number, (most, told) in enumerate([(3000, [(4000, True)]), (3000, []), (9000, [(10_000, True)])]):
            agent = Scene(tmp_path, budget={"daily_tokens": most, "action": "stop"})
            agent.number = 10 * number
            await agent.turn()
            await agent.turn()
            await agent.close()
            assert exceeded(agent) == told

    asyncio.run(scene())


def test_what_was_used_yesterday_is_not_todays(tmp_path: Path) -> None:
    async def scene() -> None:
        agent = Scene(tmp_path, budget={"daily_tokens": 3000})
        await agent.turn(time_usec=time.time_ns() // 1000 - 25 * 3600 * 1_000_000)
        await agent.turn()
        assert not exceeded(agent)
        await agent.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("memory", "resources", "done"),
    [
        (3 * GIB, {"restart_above": "2G"}, ["restart"]),
        (2 * GIB, {"restart_above": "2G"}, []),
        (3 * GIB, {}, []),
        (None, {"restart_above": "2G"}, []),
        (1 << 50, {"restart_above": "50%"}, ["restart"]),
        (4096, {"restart_above": "50%"}, []),
    ],
)
def test_one_that_has_grown_too_large_is_restarted_when_it_is_idle(
    tmp_path: Path, memory: int | None, resources: dict[str, Any], done: list[str]
) -> None:
    async def scene() -> None:
        agent = Scene(tmp_path, memory, resources=resources)
        agent.guards.is_idle(agent.life)
        assert agent.done == done
        assert [event.name for event in agent.told] == ["agent_too_large"] * len(done)
        await agent.close()

    asyncio.run(scene())


def test_one_that_is_too_large_from_the_start_is_not_restarted_again_and_again(tmp_path: Path) -> None:
    async def scene() -> None:
        agent = Scene(tmp_path, 3 * GIB, resources={"restart_above": "2G"})
        for _ in range(3):
            agent.guards.is_idle(agent.life)
        assert agent.done == ["restart"]
        await agent.close()

    asyncio.run(scene())


def test_one_that_is_being_stopped_is_not_restarted(tmp_path: Path) -> None:
    async def scene() -> None:
        agent = Scene(tmp_path, 3 * GIB, resources={"restart_above": "2G"})
        agent.life.state = State.STOPPING
        agent.guards.is_idle(agent.life)
        assert not agent.done
        await agent.close()

    asyncio.run(scene())
