"""The socket of io.forge.Supervisor, and what keeps a slow or hostile caller from harming anybody."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections import Counter
from typing import TYPE_CHECKING

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from forge_supervisor import version
from forge_supervisor.control import NAME
from forge_supervisor.control.desk import Desk, Office
from forge_supervisor.control.peer import peer_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncvarlink.message import VarlinkMethodReply
    from asyncvarlink.types import FileDescriptorArray, JSONObject

MOST_CALLERS = 256
MOST_OF_ONE_USER = 32
"""Connections; further ones are closed at once. Those of root and of the supervisor's own user are not counted."""
LONGEST_CALL = 512 * 1024
"""Bytes of one call."""
SEND_TIMEOUT = 10.0
"""Seconds that a caller has to read an answer."""
ACCEPT_PAUSE = 1.0
"""Seconds before the next try where no descriptor is left for a connection."""

# It warns of every caller that hangs up at a bad moment.
logging.getLogger("asyncvarlink").setLevel(logging.ERROR)


class Server:
    """Listens in `directory`, which only the supervisor may write."""

    def __init__(self, directory: Path, office: Office) -> None:
        self._path = directory / NAME
        self._office = office
        self._listening: socket.socket | None = None
        self._callers: set[_Caller] = set()
        self._of_user: Counter[int] = Counter()

    def start(self) -> None:
        """Raises OSError."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listening.bind(os.fspath(self._path))
            # Anybody may connect, and is told by name what only others may do.
            self._path.chmod(0o666)
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening, self._accept)

    def close(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
            self._path.unlink(missing_ok=True)
        for caller in list(self._callers):
            caller.abort()

    def _accept(self) -> None:
        assert self._listening is not None, "closed"
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptor is left: there will be.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listening)
            loop.call_later(ACCEPT_PAUSE, self._accept_again)
            return
        peer = peer_of(connection, self._office.agent_of)
        counted = peer.uid not in {0, os.geteuid()} or peer.agent is not None
        if counted and (len(self._callers) >= MOST_CALLERS or self._of_user[peer.uid] >= MOST_OF_ONE_USER):
            connection.close()
            return
        registry = VarlinkInterfaceRegistry()
        desk = Desk(self._office, peer)
        registry.register_interface(
            VarlinkServiceInterface("forge", "forge-supervisor", version(), "https://varlink.org", registry)
        )
        registry.register_interface(desk)
        self._of_user[peer.uid] += counted
        caller = _Caller(registry, desk, connection)
        self._callers.add(caller)

        def gone() -> None:
            self._callers.discard(caller)
            self._of_user[peer.uid] -= counted

        caller.on_close = gone
        VarlinkTransport(asyncio.get_running_loop(), connection, connection, caller)

    def _accept_again(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)


class _Caller(VarlinkInterfaceServerProtocol):
    """One connection: calls are answered one after the other, and each only once the answer before has been read."""

    def __init__(self, registry: VarlinkInterfaceRegistry, desk: Desk, connection: socket.socket) -> None:
        super().__init__(registry)
        self._desk = desk
        self._connection = connection
        self._sending: asyncio.Future[None] | None = None
        self._watched: int | None = None
        self._received = 0
        self.on_close: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._watched = os.dup(self._connection.fileno())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watched is not None:
            self._unwatch()
            os.close(self._watched)
            self._watched = None
        self._desk.hung_up()
        super().connection_lost(exc)
        self.on_close()

    def abort(self) -> None:
        if isinstance(self._transport, VarlinkTransport):
            self._transport.abort()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        last = data.rfind(b"\0")
        self._received = self._received + len(data) if last < 0 else len(data) - last - 1
        if self._received > LONGEST_CALL:
            self.abort()
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError):
            self.abort()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        # What is no JSON is no varlink.
        self.abort()

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        # While a call is under way nothing is read, so nothing else tells that the caller has gone.
        if self._watched is not None:
            asyncio.get_running_loop().add_reader(self._watched, self._look_whether_gone)
        answering = super().request_received(obj, fds)
        return asyncio.ensure_future(self._answered(answering))

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True  # noqa: FBT001, FBT002
    ) -> asyncio.Future[None]:
        self._sending = super().send_reply(reply, fds, autoclose)
        asyncio.get_running_loop().call_later(SEND_TIMEOUT, self._give_up, self._sending)
        return self._sending

    async def _answered(self, answering: asyncio.Future[None] | None) -> None:
        if answering is not None:
            await answering
        if self._sending is not None:
            await asyncio.wait([self._sending])
        self._unwatch()

    def _give_up(self, sending: asyncio.Future[None]) -> None:
        if not sending.done():
            self.abort()

    def _look_whether_gone(self) -> None:
        assert self._watched is not None, "not watched"
        look = select.poll()
        look.register(self._watched, 0)
        if look.poll(0):  # POLLHUP or POLLERR: others were not asked for
            self.abort()
        else:
            # It has said more already, which would be reported again and again until it is read.
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
