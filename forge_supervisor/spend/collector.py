"""Has the agents' workers read what was used, puts it into the store, and answers what is asked of that.

An agent that keeps transcripts is read once when the supervisor begins, after each turn, every INTERVAL while one runs,
and after each end. Whatever goes wrong here is told once, and costs no agent anything: what was not read is read the
next time.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from forge_supervisor import events, harness
from forge_supervisor.handshake import LaunchError
from forge_supervisor.memory import State
from forge_supervisor.spend.store import StoreError, UsageStore
from forge_supervisor.spend.totals import Total, Totals
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import ReadUsage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.realm import Realm
    from forge_supervisor.spend.prices import Prices
    from forge_supervisor.spend.store import By, Change, Sum, Who

log = structlog.get_logger()
T = TypeVar("T")

INTERVAL = 60.0
"""Seconds between two readings of an agent that runs."""
WRITTEN_WITHIN = 1.0
"""Seconds after the end of a turn in which its last answer is written down."""
LAST_READING = 10.0
"""Seconds that the end of an agent's session waits at most for what it has used."""
MOST_ANSWERS = 200
"""Of one reading. What is left is read by the next one."""
MOST_A_DAY = 200_000
"""Messages that an agent's user can have put into the store: it lies on root's disk, and who says so is the user."""
_DAY = 86_400.0
_RUNNING = frozenset({State.RUNNING, State.STOPPING})


class Collector:
    """Listens to a feed with `heard`. `life_of` and `realm_of` are the supervisor's."""

    def __init__(
        self,
        path: Path,
        prices: Prices,
        *,
        life_of: Callable[[str], Lifecycle | None],
        realm_of: Callable[[str], Realm],
        emit: Callable[[events.Event], None],
        is_working: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.prices = prices
        self._store = UsageStore(path, self._warn_from_thread)
        self._totals = Totals(prices)
        self._begun = 0
        self._life_of = life_of
        self._realm_of = realm_of
        self._emit = emit
        self._is_working = is_working
        self._loop = asyncio.get_running_loop()
        # SQLite is used by one thread at a time.
        self._thread = ThreadPoolExecutor(1, "usage")
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._late: dict[str, asyncio.TimerHandle] = {}
        self._reading: dict[Who, asyncio.Task[None]] = {}
        self._again: set[Who] = set()
        self._of_today: dict[Who, tuple[float, int]] = {}
        self._problems: dict[Who, str] = {}
        self._closed = False
        self.counted: Callable[[Agent], None] = lambda _: None
        """Called when more has been counted of what an agent uses."""

    def begin(self, agents: list[Agent]) -> None:
        """Read what these have used while no supervisor looked, and answer from now on."""
        for agent in agents:
            self._read_soon(agent)

    def heard(self, name: str | None, event: events.Event | None) -> None:
        life = None if name is None else self._life_of(name)
        if life is None or name is None:
            return
        if isinstance(event, events.AgentExited):
            self._read_soon(life.agent)
        elif name not in self._due:
            self._wait_for(name, life)

    def turn_ended(self, life: Lifecycle) -> None:
        self._read_soon(life.agent)
        # Programs write an answer down a little after they have told of it, and perhaps nothing more for days.
        earlier = self._late.get(life.agent.name)
        if earlier is None or earlier.when() <= self._loop.time():
            self._late[life.agent.name] = self._loop.call_later(WRITTEN_WITHIN, self._read_soon, life.agent)

    async def settle(self, agent: Agent) -> None:
        """Wait until all has been read that the agent, which has ended, has used; or as long as that may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_READING):
                while task := self._reading.get((agent.name, agent.run_as)):
                    await asyncio.wait([task])

    async def sums(self, by: By, prices: Prices, since_usec: int, run_as: str | None) -> list[Sum]:
        """As the store's. Raises StoreError."""
        return await self._blocking(lambda: self._store.sums(by, prices, since_usec=since_usec, run_as=run_as))

    async def exceeds(self, who: Who, day: str, budget: str) -> bool:
        """As the store's. Raises StoreError."""
        return await self._blocking(lambda: self._store.exceeds(who, day, budget))

    def total(self, who: Who) -> Total | None:
        return self._totals.of(who)

    async def replace_prices(self, prices: Prices) -> None:
        self.prices = prices
        with contextlib.suppress(StoreError):
            await self._begin_totals()

    async def close(self) -> None:
        self._closed = True
        for handle in (*self._due.values(), *self._late.values()):
            handle.cancel()
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RuntimeError):
            await self._blocking(self._store.close)
        self._thread.shutdown(wait=False)

    def _wait_for(self, name: str, life: Lifecycle) -> None:
        works = life.state in _RUNNING and self._is_working(name)
        if works and _keeps_transcripts(life.agent.harness) and not self._closed:
            self._due[name] = self._loop.call_later(INTERVAL, self._is_due, name)

    def _is_due(self, name: str) -> None:
        del self._due[name]
        life = self._life_of(name)
        # One that runs no more has been read after its end, and wakes nobody up.
        if life is not None and life.state in _RUNNING:
            self._read_soon(life.agent)
            self._wait_for(name, life)

    def _read_soon(self, agent: Agent) -> None:
        who = (agent.name, agent.run_as)
        if self._closed or not _keeps_transcripts(agent.harness):
            return
        if who in self._reading:
            self._again.add(who)
            return
        self._reading[who] = asyncio.create_task(self._read_all(agent, who))

    async def _read_all(self, agent: Agent, who: Who) -> None:
        try:
            await self._read(agent, who)
            while who in self._again:
                self._again.discard(who)
                await self._read(agent, who)
        except (StoreError, WorkerError, LaunchError) as error:
            self._tell(who, str(error))
        except Exception:
            log.exception("supervisor_fault", agent=agent.name, run_as=agent.run_as)
        else:
            self._problems.pop(who, None)
        finally:
            self._again.discard(who)
            del self._reading[who]

    async def _read(self, agent: Agent, who: Who) -> None:
        if not self._begun:
            await self._begin_totals()
        realm = self._realm_of(agent.run_as)
        begun, marks = -1, {}
        for _ in range(MOST_ANSWERS):
            if begun != self._store.begun:
                # Another file knows nothing of what this one had.
                marks = await self._blocking(partial(self._store.marks, who))
                begun = self._store.begun
            if not self._may_add(who):
                return
            read = await realm.ask(ReadUsage.of(agent, marks))
            if read.records or read.marks or read.gone:
                add = partial(self._store.add, who, read.records, read.marks, read.gone)
                changes = await self._blocking(add)
                self.counted(agent)
                marks = {path: mark for path, mark in {**marks, **read.marks}.items() if path not in read.gone}
                await self._count(who, changes)
            if not read.more and begun == self._store.begun:
                return

    async def _count(self, who: Who, changes: list[Change]) -> None:
        since, number = self._of_today[who]
        self._of_today[who] = (since, number + sum(change.was is None for change in changes))
        if self._store.begun != self._begun:
            await self._begin_totals()
        else:
            self._totals.add(who, changes)

    def _may_add(self, who: Who) -> bool:
        now = self._loop.time()
        since, number = self._of_today.get(who, (now, 0))
        if now - since > _DAY:
            since, number = now, 0
        self._of_today[who] = (since, number)
        if number < MOST_A_DAY:
            return True
        self._tell(who, f"{who[0]} tells of more than {MOST_A_DAY} messages a day: the rest is counted tomorrow")
        return False

    async def _begin_totals(self) -> None:
        prices = self.prices
        found = await self._blocking(lambda: self._store.sums("agent", prices))
        self._begun = self._store.begun
        self._totals.begin(prices, found)

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    def _warn_from_thread(self, problem: str) -> None:
        self._loop.call_soon_threadsafe(self._emit, events.UsageProblem(problem=problem))

    def _tell(self, who: Who, problem: str) -> None:
        """Tell it, unless that is so for long."""
        told, self._problems[who] = problem in self._problems.values(), problem
        if not told and not self._closed:
            self._emit(events.UsageProblem(problem=f"what {who[0]} uses is not counted for now: {problem}"))


@cache
def _keeps_transcripts(harness_name: str) -> bool:
    return harness.that_keeps_transcripts(harness_name) is not None
