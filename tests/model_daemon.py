"""One supervisor in a played world, wired as daemon.py does it, as far as agents go."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from loop_lab import ClockLoop
from model_seams import FakeHandshake, FakePlacement, FakeStore
from model_world import STAND_IN, Hand, Killed

from forge_supervisor.config import Agent
from forge_supervisor.declared import Declared
from forge_supervisor.fleet import Fleet
from forge_supervisor.memory import AT_REST, State
from forge_supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from model_lab import Lab
    from model_seams import FakeWorker

    from forge_supervisor import events
    from forge_supervisor.config import Config

LIMITS = {"limit_burst": 3, "limit_interval_sec": 20, "limit_daily": 7}


@dataclass(frozen=True)
class Variant:
    """How an agent may be declared."""

    policy: str = "on-failure"
    command: str = "x"
    stop_timeout_sec: float = 3
    run_as: str = "team"
    enabled: bool = True


@cache
def declared(name: str, variant: Variant) -> Agent:
    keys = {
        "name": name,
        "run_as": variant.run_as,
        "harness": "command",
        "command": (variant.command,),
        "enabled": variant.enabled,
        "stop_timeout_sec": variant.stop_timeout_sec,
        "restart": {"policy": variant.policy, "delay_sec": 1, **LIMITS},
    }
    return Agent.model_validate(keys)


_fingerprints: dict[int, tuple[Agent, dict[str, str]]] = {}
_make_fingerprint = Declared.fingerprint


def fingerprint(of: Declared) -> dict[str, str]:
    """Do as Declared.fingerprint, once for each variant: it is half of all work otherwise."""
    if of.agent.command == STAND_IN:
        return _make_fingerprint(of)
    agent, made = _fingerprints.get(id(of.agent), (None, {}))
    if agent is not of.agent:
        made = _make_fingerprint(of)
        _fingerprints[id(of.agent)] = of.agent, made
    return dict(made)


class Daemon:
    def __init__(self, lab: Lab, number: int, config: Config) -> None:
        self.number = number
        self.loop = ClockLoop(lab.clock)
        self.loop.set_exception_handler(self._mishap)
        self.hand = Hand(lab.world, self.loop)
        self.handshake = FakeHandshake(self.hand)
        self.workers: list[FakeWorker] = []
        self.knows_all = False
        """Whether it has begun to adopt; what one that is stopped before that leaves, after_stop.py ends."""
        self.finishing = self.has_ended = False
        self._lab = lab
        self._disk = lab.disk
        self._serving: list[asyncio.Task[None]] = []
        self._reloading = asyncio.Lock()
        handshake: Any = self.handshake
        placement: Any = FakePlacement(self.hand)
        self.placement: FakePlacement = placement
        store = FakeStore(self.hand, lab.disk)
        fleet = Fleet(
            config.socket_name,
            placement=placement,
            handshake=handshake,
            store=store,
            emit=self._emit,
            conceal=lambda *_: None,
            changed=lambda _: None,
        )
        self.supervisor = Supervisor(config, fleet, placement=placement, store=store, emit=self._emit)
        self.begin(self._serve())

    def begin(self, what: Coroutine[Any, Any, None]) -> None:
        self._serving.append(self.loop.create_task(what))

    def _emit(self, event: events.Event) -> None:
        if not self.hand.dead:
            self.hand.act(f"tell {event.name}", lambda: self._lab.told(event))

    def _mishap(self, _loop: object, context: Mapping[str, Any]) -> None:
        if not self.hand.dead:
            self._lab.world.fault(f"{context['message']}: {context.get('exception')!r}")

    async def _serve(self) -> None:
        saved = self._disk.load()
        await self.placement.discard({left.run_as for left in saved.values()}, saved)
        async with self._reloading:
            self.knows_all = True
            await self.supervisor.start(saved)

    async def reload(self, config: Config) -> None:
        async with self._reloading:
            self._lab.reloading(self, config)
            await self.supervisor.reload(config)

    def finish(self, *, leave: bool) -> None:
        """As Daemon.run ends."""
        self.finishing = True
        serving, self._serving = self._serving, []
        for task in serving:
            task.cancel()
        self.begin(self._finish(serving, leave=leave))

    async def _finish(self, serving: list[asyncio.Task[None]], *, leave: bool) -> None:
        await asyncio.gather(*serving, return_exceptions=True)
        await (self.supervisor.leave() if leave else self.supervisor.stop())
        self.has_ended = True

    def faults(self) -> Iterable[str]:
        """Tell of tasks that have ended by a fault."""
        lives = self.supervisor.lives
        tasks = [*self._serving, *(r._task for r in self.supervisor.fleet._runners.values() if r._task is not None)]
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                yield f"a task has ended by {error!r}"
        for name, life in lives.items():
            if life._timer is None and life.state is State.AUTO_RESTART:
                yield f"{name} waits for a restart that never comes"
            if life._timer is not None and life.state in AT_REST:
                yield f"{name} is {life.state}, and a timer is left"

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing more to make true."""
        tasks = [*self._serving, *self.supervisor._seeing.values()]
        return all(task.done() for task in tasks)

    def unwind(self) -> None:
        """Have its coroutines end: nothing that they still do is seen in the world."""
        self.hand.dead = True
        for _ in range(10):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            with contextlib.suppress(Killed):
                self.loop.run()
        assert not asyncio.all_tasks(self.loop), "a task does not end"
        self.loop.close()
