"""What each method of io.forge.Supervisor does, for one caller.

No deferred annotations here: asyncvarlink reads them.
"""

# ruff: noqa: N802

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

from asyncvarlink import VarlinkInterface, varlinkmethod

from forge_supervisor import config, events, journal, version
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config_library import meant
from forge_supervisor.control import LONGEST_TEXT, NAME
from forge_supervisor.control.described import described
from forge_supervisor.control.interface import (
    Agent,
    Agents,
    BadConfiguration,
    Disabled,
    Event,
    Failed,
    Happened,
    NoSuchAgent,
    NotPermitted,
    NotRunning,
    OneAgent,
    Plan,
    Pong,
    Screen,
    TooSlow,
    UsageRow,
    Usages,
)
from forge_supervisor.control.peer import Peer
from forge_supervisor.control.rights import Rights
from forge_supervisor.delivery import Delivery, NotRunningError, UndeliveredError
from forge_supervisor.feed import Feed
from forge_supervisor.handshake import LaunchError
from forge_supervisor.memory import State
from forge_supervisor.observer import Observer
from forge_supervisor.spend.store import By, StoreError
from forge_supervisor.supervisor import Supervisor
from forge_supervisor.units import Placement
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import Capture

MOST_BEHIND = 512
"""What somebody who monitors may leave unread."""
RIGHTS_KEPT = 1.0
"""Seconds for which who monitors keeps the rights that it had: to look them up for each event and each of many takes
longer than all else."""


@dataclass(frozen=True, slots=True)
class Office:
    """What all callers share."""

    supervisor: Supervisor
    placement: Placement
    feed: Feed
    rights: Callable[[Peer], Rights]
    observer: Observer
    delivery: Delivery
    reload: Callable[[bool], Awaitable[list[str]]]
    """Given whether to look only, returns what changes. Raises ConfigError."""
    usage: Callable[[By, int, str | None], Awaitable[list[UsageRow]]] | None = None
    """Given what to sum up by, since when, and for which user or all. Raises StoreError."""

    def agent_of(self, pid: int) -> str | None:
        """As `Placement.agent_of`."""
        lives = self.supervisor.lives.values()
        return self.placement.agent_of(pid, {life.pid: life.agent.name for life in lives if life.alive and life.pid})

    def describe(self, name: str) -> Agent:
        """Raises KeyError."""
        supervisor = self.supervisor
        return described(
            supervisor.agents[name],
            supervisor.lives.get(name),
            now=asyncio.get_running_loop().time(),
            placement=self.placement,
            socket_name=supervisor.fleet.socket_name,
            otherwise=name in supervisor.kept,
            observation=self.observer.of(name),
        )


class Desk(VarlinkInterface, name=NAME):
    """Coding agents that are supervised on this machine, for people and their programs."""

    errors = (NoSuchAgent, NotPermitted, Disabled, NotRunning, Failed, BadConfiguration, TooSlow)

    def __init__(self, office: Office, peer: Peer) -> None:
        self._office = office
        self._peer = peer
        self._monitors: set[asyncio.Queue[Happened | None]] = set()
        self._gone = asyncio.Event()
        self._last_rights = (float("-inf"), Rights())

    def hung_up(self) -> None:
        """Take note that the caller is gone: what it waits for is waited for no more."""
        self._gone.set()
        for monitor in self._monitors:
            _put(monitor, None)

    @varlinkmethod
    async def Ping(self) -> Pong:
        """Tell the version of the supervisor, and its process. Anybody may ask that."""
        return {"version": version(), "pid": os.getpid()}

    @varlinkmethod
    async def List(self) -> Agents:
        """Tell of every agent that the caller may see, those that are not enabled too."""
        return self._told(self._visible())

    @varlinkmethod
    async def Show(self, *, agent: str) -> OneAgent:
        """Tell of one agent."""
        (name,) = self._seen([agent])
        return {"agent": self._office.describe(name)}

    @varlinkmethod
    async def Start(self, *, agents: list[str]) -> Agents:
        """Start agents. Returns when each runs, or has failed to."""
        return await self._do(agents, Lifecycle.start, _has_started)

    @varlinkmethod
    async def Stop(self, *, agents: list[str]) -> Agents:
        """Stop agents; they stay stopped until somebody starts them. Returns when nothing of them is left."""
        return await self._do(agents, Lifecycle.stop, _has_stopped, disabled_too=True)

    @varlinkmethod
    async def Restart(self, *, agents: list[str], fresh: bool | None = None) -> Agents:
        """Stop agents that run, and start them. Returns when each runs, or has failed to.

        `fresh`: their new sessions have no memory of earlier ones.
        """
        return await self._do(agents, partial(Lifecycle.restart, fresh=bool(fresh)), _has_started)

    @varlinkmethod
    async def ResetFailed(self, *, agents: list[str]) -> Agents:
        """Forget that agents have failed, and how often they have been started; they are not started by that."""
        return await self._do(agents, Lifecycle.reset_failed, lambda _: True, disabled_too=True)

    @varlinkmethod
    async def Reload(self, *, dry_run: bool | None = None) -> Plan:
        """Read the configuration and make it true; or, on a dry run, tell what that would change."""
        rights = self._rights()
        if not rights.everything:
            raise NotPermitted(reason=rights.refusal)
        if not dry_run:
            self._refuse_at_the_end()
        try:
            return {"plan": await self._office.reload(bool(dry_run))}
        except config.ConfigError as error:
            raise BadConfiguration(problems=list(map(str, error.problems))) from error

    @varlinkmethod
    async def Capture(self, *, agent: str) -> Screen:
        """Tell what the agent's terminal shows now, in printable characters, with its secrets masked."""
        (name,) = self._seen([agent])
        run_as = self._office.supervisor.agents[name].run_as
        realm = self._office.supervisor.fleet.realm_of(run_as)
        if realm.server_pid is None:
            raise Failed(reason=f"{name} has no terminal yet")
        try:
            captured = await realm.ask(Capture(agent=name, server=realm.server_pid))
        except (WorkerError, LaunchError) as error:
            raise Failed(reason=str(error)) from error
        # All at once, as a secret may be broken into lines.
        shown = journal.shown(run_as, "\n".join(captured.screen))
        return {"screen": shown.split("\n") if shown else []}

    @varlinkmethod
    async def Send(self, *, agent: str, text: str) -> OneAgent:
        """Type a text into the agent's terminal, as one paste, and Enter, once the agent is idle.

        Returns when it has been taken as a message; by an agent whose activity is not known, when it has been read.
        """
        (name,) = self._acted_on([agent])
        life = self._office.supervisor.lives.get(name)
        if life is None or life.state is not State.RUNNING or life.pid is None:
            raise NotRunning(agent=name, state=State.INACTIVE if life is None else life.state)
        if len(text) > LONGEST_TEXT:
            raise Failed(reason=f"the text has {len(text)} characters, and {LONGEST_TEXT} is the most")
        await self._unless_gone(self._deliver(life, text))
        (name,) = self._seen([agent])  # if a reload has not removed it meanwhile
        return {"agent": self._office.describe(name)}

    async def _deliver(self, life: Lifecycle, text: str) -> None:
        try:
            await self._office.delivery.deliver(life, text)
        except NotRunningError:
            raise NotRunning(agent=life.agent.name, state=life.state) from None
        except UndeliveredError as error:
            raise Failed(reason=str(error)) from error

    @varlinkmethod
    async def Usage(self, *, by: str, since_usec: int | None = None) -> Usages:
        """Sum up what agents that the caller may see have used: by "day", "model", "agent" or "session"."""
        self._visible()  # or refuses
        rights = self._rights()
        if by not in get_args(By):
            raise Failed(reason=f'by "{by}" nothing is summed up (one of: {", ".join(get_args(By))})')
        if self._office.usage is None:
            raise Failed(reason="nothing is counted yet")
        try:
            # What is later or earlier than SQLite can count is later or earlier than anything.
            since = max(0, min(since_usec or 0, 2**62))
            rows = await self._office.usage(cast("By", by), since, None if rights.everything else rights.user)
        except StoreError as error:
            raise Failed(reason=str(error)) from error
        return {"rows": rows}

    @varlinkmethod(delay_generator=False)
    async def Monitor(self) -> AsyncIterator[Happened]:
        """Tell every agent as it is, then what happens, as it happens, and how the agent is then. Takes `more`."""
        self._visible()  # or refuses
        queue: asyncio.Queue[Happened | None] = asyncio.Queue(MOST_BEHIND)
        self._monitors.add(queue)
        if self._gone.is_set():
            _put(queue, None)

        def listen(agent: str | None, event: events.Event | None) -> None:
            if (happened := self._happened(agent, event)) is not None:
                _put(queue, happened)

        try:
            with self._office.feed.listening(listen):
                for name in self._visible():
                    # A reload may have removed it while those before it were read.
                    if name in self._office.supervisor.agents:
                        yield {"event": None, "agent": self._office.describe(name)}
                while (happened := await queue.get()) is not None:
                    yield happened
        finally:
            self._monitors.discard(queue)
        raise TooSlow

    def _happened(self, agent: str | None, event: events.Event | None) -> Happened | None:
        rights = self._rights_of_late()
        run_as = getattr(event, "run_as", None)
        known = self._office.supervisor.agents.get(agent) if agent is not None else None
        if known is not None:
            run_as = known.run_as
        if not (rights.everything if run_as is None else rights.sees(run_as)):
            return None
        described = self._office.describe(known.name) if known is not None else None
        return {"event": None if event is None else _as_told(event), "agent": described}

    def _rights(self) -> Rights:
        return self._office.rights(self._peer)

    def _rights_of_late(self) -> Rights:
        when, rights = self._last_rights
        now = asyncio.get_running_loop().time()
        if now - when > RIGHTS_KEPT:
            rights = self._rights()
            self._last_rights = (now, rights)
        return rights

    def _visible(self) -> list[str]:
        rights = self._rights()
        if not rights.everything and rights.user is None:
            raise NotPermitted(reason=rights.refusal)
        return [name for name, agent in self._office.supervisor.agents.items() if rights.sees(agent.run_as)]

    def _seen(self, names: Iterable[str]) -> list[str]:
        visible = self._visible()
        names = list(dict.fromkeys(names))
        for name in names:
            if name not in visible:
                raise NoSuchAgent(agent=name, hint=meant(name, visible).strip())
        return names

    def _acted_on(self, names: Iterable[str]) -> list[str]:
        seen = self._seen(names)
        rights = self._rights()
        for name in seen:
            if not rights.act_on(self._office.supervisor.agents[name].run_as):
                raise NotPermitted(reason=rights.refusal)
        return seen

    async def _do(
        self,
        names: list[str],
        action: Callable[[Lifecycle], None],
        is_done: Callable[[Lifecycle], bool],
        *,
        disabled_too: bool = False,
    ) -> Agents:
        """Do it to all, or, if one of them is not to be acted on, to none; and wait."""
        names = self._acted_on(names)
        self._refuse_at_the_end()
        lives = {name: life for name, life in self._office.supervisor.lives.items() if name in names}
        for name in () if disabled_too else names:
            if name in self._office.supervisor.leaving:
                # A start would undo the stop that the reload waits for.
                raise Failed(reason=f"{name} is being stopped, as a reload has it (try again when it has)")
            if name not in lives and self._office.supervisor.agents[name].enabled:
                raise Failed(reason=f"{name} is about to be started, as a reload has it")
            if name not in lives:
                raise Disabled(agent=name)
        for life in lives.values():
            action(life)
        waiting = list(lives.values())

        def all_are_done() -> bool:
            # Each once: of agents that crash at once, one or the other is always starting again.
            waiting[:] = [life for life in waiting if not is_done(life)]
            return not waiting

        await self._unless_gone(self._office.supervisor.fleet.until(all_are_done))
        return self._told(names)

    def _refuse_at_the_end(self) -> None:
        if self._office.supervisor.ending:
            raise Failed(reason="the supervisor is being stopped")

    async def _unless_gone(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait for it, or until nobody is left to be told. Raises what it raises."""
        wanted, gone = asyncio.create_task(waiting), asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                wanted.result()
        finally:
            for task in (wanted, gone):
                task.cancel()

    def _told(self, names: Iterable[str]) -> Agents:
        # It may have been removed by a reload while it was waited for.
        return {"agents": [self._office.describe(name) for name in names if name in self._office.supervisor.agents]}


def _has_started(life: Lifecycle) -> bool:
    return life.state not in {State.STARTING, State.STOPPING} and not life.start_again


def _has_stopped(life: Lifecycle) -> bool:
    return life.state is not State.STOPPING


def _put(queue: asyncio.Queue[Happened | None], item: Happened | None) -> None:
    """Have who reads the queue read the item; if that is too much, that it is the end."""
    if item is None or queue.full():
        while not queue.empty():
            queue.get_nowait()
        item = None
    queue.put_nowait(item)


def _as_told(event: events.Event) -> Event:
    told = journal.told(event)
    fields = {name: str(value) for name, value in told.items() if name not in {"event", "message"}}
    return Event(event.name, time.time_ns() // 1000, str(told["message"]), fields)
