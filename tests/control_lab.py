"""A supervisor of fake sessions that serves io.forge.Supervisor on a real socket, and callers of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from supervisor_lab import Bench

from forge_supervisor import fleet
from forge_supervisor.control import NAME, server
from forge_supervisor.control.desk import Office
from forge_supervisor.control.peer import Peer
from forge_supervisor.control.rights import Rights
from forge_supervisor.control.server import Server
from forge_supervisor.delivery import Delivery
from forge_supervisor.observer import Observer
from forge_supervisor.realms import Realms
from forge_supervisor.saved import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    import pytest

    from forge_supervisor.config import Config

PATIENCE = 30
ROOT = Rights(everything=True)


class Lab:
    """`rights` and `peer` are those of who connects next."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench = bench
        self.path = directory / NAME
        self.rights = ROOT
        self.peer = Peer(0, frozenset(), None)
        self.reloaded: list[bool] = []
        self.reload: Callable[[bool], Awaitable[list[str]]] = self._reload
        self._rights: dict[int, Rights] = {}
        self._numbers = 0
        self.looked_up = 0
        observer = Observer(bench.supervisor.fleet, bench.feed.emit)
        self.server = Server(
            directory,
            Office(
                bench.supervisor,
                bench.placement,
                bench.feed,
                self._rights_of,
                observer,
                Delivery(bench.supervisor.fleet, observer),
                self._do_reload,
            ),
        )

    def peer_of(self, *_: object) -> Peer:
        # By its groups each caller is told from the others.
        self._numbers += 1
        self._rights[self._numbers] = self.rights
        return Peer(self.peer.uid, frozenset({self._numbers}), self.peer.agent)

    def _rights_of(self, peer: Peer) -> Rights:
        (number,) = peer.gids
        self.looked_up += 1
        return self._rights[number]

    async def _do_reload(self, dry_run: bool) -> list[str]:
        return await self.reload(dry_run)

    async def _reload(self, dry_run: bool) -> list[str]:
        self.reloaded.append(dry_run)
        return ["a: is started"]

    def raw(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(os.fspath(self.path))
        connection.setblocking(False)
        return connection

    async def caller(self) -> Caller:
        return Caller(self.raw())

    @contextlib.asynccontextmanager
    async def calling(self) -> Any:
        caller = Caller(self.raw())
        try:
            yield caller
        finally:
            caller.hang_up()

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        async with self.calling() as caller:
            answer: dict[str, Any] = await caller.ask(method, **parameters)
            return answer

    async def is_well(self) -> None:
        """See that another caller is answered."""
        self.rights, before = ROOT, self.rights
        peer, self.peer = self.peer, Peer(0, frozenset(), None)
        answer = await self.ask("Ping")
        self.rights, self.peer = before, peer
        assert answer["parameters"]["pid"] == os.getpid()

    async def quiet(self, baseline: Baseline) -> None:
        """Wait until nothing is left of those who have called."""
        while (left := Baseline()) != baseline:
            await asyncio.sleep(0.01)
            gc.collect()
            assert asyncio.get_running_loop().time() < baseline.deadline, f"left: {left}, before: {baseline}"


class Baseline:
    """What the process has in use: descriptors and tasks."""

    def __init__(self) -> None:
        self.descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        self.tasks = len(asyncio.all_tasks())
        self.deadline = asyncio.get_running_loop().time() + PATIENCE

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Baseline) and (self.descriptors, self.tasks) == (other.descriptors, other.tasks)

    def __hash__(self) -> int:
        return hash((self.descriptors, self.tasks))

    def __repr__(self) -> str:
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        return f"{self.descriptors} descriptors, {self.tasks} tasks ({names[:20]})"


class Caller:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._pending = b""

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def send(self, method: str, parameters: dict[str, Any] | None = None, **flags: Any) -> None:
        await self.say(frame(method, parameters, **flags))

    async def answer(self) -> dict[str, Any]:
        """Return the next answer. ConnectionError if there is none."""
        while b"\0" not in self._pending:
            chunk = await asyncio.get_running_loop().sock_recv(self.connection, 65536)
            if not chunk:
                raise ConnectionError
            self._pending += chunk
        text, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        await self.send(method, parameters)
        return await self.answer()

    async def is_dropped(self) -> None:
        """Read until the server has hung up."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.answer()

    def hang_up(self) -> None:
        self.connection.close()


def frame(method: str, parameters: dict[str, Any] | None = None, **flags: Any) -> bytes:
    name = method if "." in method else f"{NAME}.{method}"
    return json.dumps({"method": name, "parameters": parameters or {}, **flags}).encode() + b"\0"


Scene = Any


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: Config, scene: Scene) -> Lab:
    """Serve a started supervisor while the scene plays, and see that nobody complains of anything."""

    async def scenario() -> Lab:
        bench = Bench(declared, Store(tmp_path))
        bench.monkeypatch = monkeypatch
        monkeypatch.setattr(fleet, "Session", bench.make)

        async def no_server(*_: object) -> None: ...

        monkeypatch.setattr(Realms, "find_server", no_server)
        lab = Lab(bench, tmp_path)
        monkeypatch.setattr(server, "peer_of", lab.peer_of)
        lab.server.start()
        lab.server.serve()
        async with asyncio.timeout(PATIENCE * 2):
            await bench.supervisor.start({})
            try:
                await scene(lab)
            finally:
                await lab.server.close()
        return lab

    with no_complaints():
        return asyncio.run(scenario(), debug=False)


@contextlib.contextmanager
def no_complaints() -> Iterator[None]:
    """Nothing is logged as an error meanwhile, be it when garbage is collected."""
    gc.collect()
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    ear = Ear(logging.ERROR)
    for name in ("asyncio", "asyncvarlink"):
        logging.getLogger(name).addHandler(ear)
    try:
        yield
        gc.collect()
    finally:
        for name in ("asyncio", "asyncvarlink"):
            logging.getLogger(name).removeHandler(ear)
    assert not heard, "\n".join(f"{record.getMessage()}: {record.exc_info}" for record in heard)
