"""Where a supervisor meets the world, played: pidfds, the handshake, workers, placement and the saved state.

They keep to what pidfd.py, launch.py, terminal.py, worker/actions.py and units/ do, as far as a supervisor can see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

from model_world import STAND_IN, USERS, Hand, Process

from forge_supervisor.handshake import SCRIPT, Peer, Ticket
from forge_supervisor.saved import Saved, Store
from forge_supervisor.units import Cleared, PlacementError
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import (
    Close,
    Collect,
    Collected,
    Done,
    Finding,
    FindServer,
    Open,
    Opened,
    Prepare,
    Prepared,
    RemoveSocket,
    ServerFound,
    Sweep,
    Swept,
)

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Collection

    from model_ledger import Ledger

    from forge_supervisor.units import User
    from forge_supervisor.worker.messages import Answer


class FakePidfd:
    def __init__(self, hand: Hand, pid: int, uid: int, *, born: int | None = None) -> None:
        process = hand.world.processes.get(pid)
        if process is None or process.exit is not None or born not in {None, pid}:
            raise ProcessLookupError(f"process {pid} has died")
        assert process.uid == uid, "of another user"
        self.pid = self.born = pid
        self._hand = hand
        self._process = process
        self._death: asyncio.Future[None] | None = None
        self._closed = self._was_dead = False

    @property
    def dead(self) -> bool:
        return self._was_dead if self._closed else self._process.exit is not None

    def signal(self, number: signal.Signals) -> None:
        if not self._closed and not self._hand.dead and self._process.exit is None:
            self._hand.world.ending(self._process)
            self._hand.act(f"signal {int(number)}", lambda: self._hand.world.signal(self._process, number))

    async def wait(self) -> None:
        if self._closed and self._was_dead:
            return
        if self._death is None:
            self._death = asyncio.get_running_loop().create_future()
            self._look()
        await asyncio.shield(self._death)

    def _look(self) -> None:
        if self._process.exit is None:
            self._process.turns.append(lambda: self._hand.soon(self._look))
        elif self._death is not None and not self._death.done():
            self._death.set_result(None)

    def close(self) -> None:
        self._was_dead, self._closed = self.dead, True
        if self._death is not None and not self._death.done():
            if self._was_dead:
                self._death.set_result(None)
            else:
                self._death.cancel()


class _Line:
    """The supervisor's end of a launcher's connection."""

    def __init__(self, hand: Hand, process: Process) -> None:
        self._hand = hand
        self._process = process

    def write(self, _plan: bytes) -> None:
        if not self._hand.dead:
            self._hand.act("hand over", lambda: self._hand.world.take_plan(self._process))

    async def drain(self) -> None: ...

    async def read(self, _most: int) -> bytes:
        while self._process.what == "launcher" and self._process.exit is None:
            turned = asyncio.Event()
            self._process.turns.append(partial(self._hand.soon, turned.set))
            await turned.wait()
        return self._process.refused

    def close(self) -> None:
        if not self._hand.dead:
            self._hand.world.give_up(self._process)


class FakeHandshake:
    _numbers = itertools.count()

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._tickets: dict[str, Ticket] = {}

    @contextlib.asynccontextmanager
    async def ticket(self, uid: int) -> AsyncIterator[Ticket]:
        identifier = str(next(self._numbers))
        ticket = self._tickets[identifier] = Ticket(uid, (SCRIPT, identifier))
        try:
            yield ticket
        finally:
            del self._tickets[identifier]
            if ticket.peer.done() and not ticket.peer.cancelled():
                ticket.peer.result().writer.close()
            ticket.peer.cancel()

    def welcome(self, process: Process) -> bool:
        ticket = self._tickets.get(process.ticket)
        if self._hand.dead or ticket is None or ticket.peer.done():
            return False
        line: Any = _Line(self._hand, process)
        ticket.peer.set_result(Peer(line, line, process.pid))
        return True


class FakeWorker:
    """Answers after its time; what it was asked for is done even if whoever asked has given it up."""

    def __init__(self, hand: Hand, user: User) -> None:
        self.lost: str | None = None
        self._hand = hand
        self._world = hand.world
        self._uid = user.uid
        self._pending: dict[asyncio.Future[Answer], Any] = {}
        self._does: dict[type, Callable[[Any], Answer]] = {
            FindServer: self._find_server,
            Sweep: self._sweep,
            Prepare: self._prepare,
            Open: self._open,
            Collect: self._collect,
            Close: self._close,
            RemoveSocket: lambda _: Done(),
        }

    async def ask(self, request: Any) -> Any:
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[answer] = request
        self._world.clock.after(self._world.lags[request.kind], lambda: self._answer(request, answer))
        try:
            return await answer
        finally:
            del self._pending[answer]

    def _answer(self, request: Any, answer: asyncio.Future[Answer]) -> None:
        if self._hand.dead or self.lost is not None:
            return
        try:
            given = self._hand.act(request.kind, lambda: self._does[type(request)](request))
        except WorkerError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(given)

    def lose(self) -> None:
        self.lost = "it ended"
        for answer, request in self._pending.items():
            if isinstance(request, Collect):
                # It is asked for once more, and then given up.
                self._world.processes[request.pid].excused = True
            if not answer.done():
                answer.set_exception(WorkerLostError(self.lost))

    async def stop(self) -> None:
        self.lose()

    def _find_server(self, _request: FindServer) -> ServerFound:
        server = self._world.servers.get(self._uid)
        return ServerFound(pid=None if server is None else server.pid)

    def _sweep(self, request: Sweep) -> Swept:
        swept = []
        for uid, agent in [key for key in self._world.panes if key[0] == self._uid]:
            process = self._world.panes[uid, agent]
            if process.exit is None and process.pid != request.known.get(agent):
                self._world.kill(process)
                swept.append(agent)
            if agent not in request.known:
                self._world.hang_up((uid, agent), excuse=False)
        return Swept(agents=swept)

    def _prepare(self, request: Prepare) -> Prepared:
        trouble = self._world.troubles.get(request.agent["name"])
        if tuple(request.agent["command"]) == STAND_IN:
            self._world.fault(f"{request.agent['name']} is started as what it is not declared as")
        if trouble == "unready":
            raise WorkerError("it has no mind to")
        refused = [Finding(key="model", text="is broken", fatal=True)] if trouble == "broken" else []
        return Prepared(argv=["/bin/agent"], cwd="/", env={}, findings=refused)

    def _open(self, request: Open) -> Opened:
        if self._world.servers.get(self._uid) is None:
            raise WorkerError("no server")
        process = self._world.open(self._uid, request.agent, request.argv[1], request.invocation)
        return Opened(pane="%1", pid=process.pid)

    def _collect(self, request: Collect) -> Collected:
        process = self._world.panes.get((self._uid, request.agent))
        ours = self._world.processes[request.pid]
        known = process is ours and not ours.gone and ours.exit is not None
        told = ours.exit if known else None
        left = [other for other in self._world.alive(request.agent) if other.invocation == request.invocation]
        for other in left:
            self._world.kill(other)
        return Collected(
            code=told.code if told else None,
            signal=told.signal if told else None,
            screen=[],
            terminated=len(left),
            killed=0,
            left=0,
        )

    def _close(self, request: Close) -> Done:
        if (self._uid, request.agent) in self._world.panes:
            self._world.hang_up((self._uid, request.agent), excuse=False)
        return Done()


class _Unit:
    unit = ""

    def __init__(self, hand: Hand, process: Process) -> None:
        self.pid = process.pid
        self._hand = hand
        self._process = process

    async def stop(self, _grace: float) -> None:
        if not self._hand.dead:
            self._hand.act("end tmux", lambda: self._hand.world.end_server(self._process))


class _Scope:
    def __init__(self, hand: Hand, process: Process | None) -> None:
        self._hand = hand
        self._process = process

    def limit(self, _resources: object) -> None: ...

    def is_over(self) -> bool:
        return self._process is None or self._process.exit is not None or self._hand.dead

    async def end(self, _grace: float) -> Cleared:
        process = self._process
        if process is None or self.is_over():
            return Cleared()
        self._hand.act("end scope", lambda: self._hand.world.kill(process))
        return Cleared(terminated=1)


class FakePlacement:
    """As with systemd. Only what an agent's first process is counts: nothing here has children."""

    holds = True

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self._world = hand.world

    def stopping(self) -> None: ...

    async def make_private(self, *_: object) -> None: ...

    async def run(self, _name: str, user: User, *_: object, **__: object) -> _Unit:
        await asyncio.sleep(self._world.lags["run"])
        if self.hand.dead or self._world.troubles.get(user.name) == "no tmux":
            raise PlacementError("there is no tmux")
        return _Unit(self.hand, self.hand.act("run tmux", lambda: self._world.run_server(user.uid)))

    async def find(self, _name: str, user: User) -> _Unit | None:
        server = self._world.servers.get(user.uid)
        return None if server is None else _Unit(self.hand, server)

    def about_to_enclose(self) -> None: ...

    async def enclose(self, agent: str, pidfd: FakePidfd, _resources: object) -> _Scope:
        await asyncio.sleep(self._world.lags["enclose"])
        process = self._world.processes[pidfd.pid]
        if process.exit is not None or self._world.troubles.get(agent) == "no scope":
            raise PlacementError("its scope cannot be made")
        self.hand.act("enclose", lambda: self._enclose(agent, process))
        return _Scope(self.hand, process)

    def _enclose(self, agent: str, process: Process) -> None:
        earlier = self._world.scopes.get(agent)
        if earlier is not None and earlier is not process and earlier.exit is None:
            self._world.kill(earlier)
        self._world.scopes[agent] = process

    def scope(self, agent: str) -> _Scope:
        return _Scope(self.hand, self._world.scopes.get(agent))

    async def discard(self, users: Collection[str], agents: Collection[str]) -> None:
        """End what no file tells of, as the next supervisor does before all else."""
        for agent, process in self._world.scopes.items():
            if agent not in agents and process.exit is None:
                self.hand.act("discard", partial(self._world.kill, process))
        for name, user in USERS.items():
            if name not in users and user.uid in self._world.servers:
                server = self._world.servers[user.uid]
                self.hand.act("discard", partial(self._world.end_server, server))


class FakeStore(Store):
    """The files are strings, but what they say has been written and read as on disk."""

    def __init__(self, hand: Hand, disk: Disk) -> None:
        self._hand = hand
        self._disk = disk

    @property
    def stopping(self) -> bool:
        return self._disk.stopping

    def begin_to_stop(self) -> None:
        self._mark(stopping=True)

    def stopped(self) -> None:
        self._mark(stopping=False)

    def _mark(self, *, stopping: bool) -> None:
        if not self._hand.dead:
            self._hand.act("mark", lambda: self._disk.mark(stopping=stopping))

    def load(self, *, any_boot: bool = False) -> tuple[dict[str, Saved], list[str]]:
        return self._disk.load(), []

    def write(self, agent: str, saved: Saved) -> None:
        if not self._hand.dead:
            self._hand.act(f"write {agent}", lambda: self._disk.write(agent, saved))

    def remove(self, agent: str) -> None:
        if not self._hand.dead:
            self._hand.act(f"remove {agent}", lambda: self._disk.remove(agent))


class Disk:
    """What is written on it, of which a ledger is told."""

    def __init__(self, ledger: Ledger) -> None:
        self.files: dict[str, str] = {}
        self.stopping = False
        self._ledger = ledger

    def write(self, agent: str, saved: Saved) -> None:
        self.files[agent] = saved.model_dump_json()
        self._ledger.wrote(agent, saved)

    def remove(self, agent: str) -> None:
        self.files.pop(agent, None)
        self._ledger.removed(agent)

    def load(self) -> dict[str, Saved]:
        return {name: Saved.model_validate_json(text) for name, text in sorted(self.files.items())}

    def mark(self, *, stopping: bool) -> None:
        self.stopping = self._ledger.all_stop = stopping
