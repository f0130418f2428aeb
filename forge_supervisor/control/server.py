"""The socket of io.forge.Supervisor, and what keeps a slow or hostile caller from harming anybody."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from forge_supervisor import version
from forge_supervisor.control import NAME
from forge_supervisor.control.desk import Desk, Office
from forge_supervisor.control.hangups import HangUps
from forge_supervisor.control.peer import peer_of

if TYPE_CHECKING:
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
        self._hang_ups: HangUps | None = None
        self._callers: set[_Caller] = set()
        self._of_user: Counter[int] = Counter()

    def start(self) -> None:
        """Let callers come, and wait. Raises OSError."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listening.bind(os.fspath(self._path))
            # Anybody may connect, and is told by name what only others may do.
            self._path.chmod(0o666)
            listening.listen(128)
            self._hang_ups = HangUps()
        except BaseException:
            listening.close()
            raise
        self._listening = listening

    def serve(self) -> None:
        """Answer them from now on."""
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def close(self) -> None:
        """Returns when nothing that was asked is under way any more."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
            self._path.unlink(missing_ok=True)
        self.hang_up()
        while self._callers:
            await asyncio.wait([caller.ended for caller in self._callers])
        if self._hang_ups is not None:
            self._hang_ups.close()

    def hang_up(self) -> None:
        """Drop all that have called."""
        for caller in list(self._callers):
            caller.abort()

    def _accept(self) -> None:
        assert self._listening is not None, "closed"
        assert self._hang_ups is not None, "closed"
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptor is left: there will be.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listening)
            loop.call_later(ACCEPT_PAUSE, self.serve)
            return
        peer = peer_of(connection, self._office.agent_of)
        # An operator is not to be kept out by others, however many these are.
        counted = not self._office.rights(peer).everything
        if counted and (self._of_user.total() >= MOST_CALLERS or self._of_user[peer.uid] >= MOST_OF_ONE_USER):
            connection.close()
            return
        registry = VarlinkInterfaceRegistry()
        desk = Desk(self._office, peer)
        registry.register_interface(
            VarlinkServiceInterface("forge", "forge-supervisor", version(), "https://varlink.org", registry)
        )
        registry.register_interface(desk)
        self._of_user[peer.uid] += counted
        caller = _Caller(registry, desk, connection, self._hang_ups)
        self._callers.add(caller)

        def gone(_: asyncio.Future[None]) -> None:
            self._callers.discard(caller)
            self._of_user[peer.uid] -= counted
            if not self._of_user[peer.uid]:
                del self._of_user[peer.uid]

        caller.ended.add_done_callback(gone)
        # Without a look ahead at where messages end: that reads on as long as there is something, a message by a call
        # of the kernel's, so that one who talks fast enough would be all that is ever listened to.
        VarlinkTransport(asyncio.get_running_loop(), connection, connection, caller, boundary_predictor=None)


class _Caller(VarlinkInterfaceServerProtocol):
    """One connection: calls are answered one after the other, and each only once the answer before has been read."""

    def __init__(
        self, registry: VarlinkInterfaceRegistry, desk: Desk, connection: socket.socket, hang_ups: HangUps
    ) -> None:
        super().__init__(registry)
        self._desk = desk
        self._connection = connection
        self._hang_ups = hang_ups
        self._sending: asyncio.Future[None] | None = None
        self._answering: asyncio.Future[None] | None = None
        self._received = 0
        self._lost = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it is gone, and nothing that it has asked is under way."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._hang_ups.unwatch(self._connection)
        self._desk.hung_up()
        super().connection_lost(exc)
        self._end()

    def abort(self) -> None:
        if isinstance(self._transport, VarlinkTransport):
            self._transport.abort()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        last = data.rfind(b"\0")
        self._received = self._received + len(data) if last < 0 else len(data) - last - 1
        if self._received > LONGEST_CALL:
            self.abort()
            return
        try:
            # Nobody is to pass us descriptors: those that are not passed on are closed at once.
            super().message_received(data, None)
        except (ValueError, RecursionError):
            self.abort()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        # What is no JSON is no varlink, and what follows it neither.
        self._consumer_queue.clear()
        self.abort()
        self._end()

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        if not self._lost:
            # While a call is under way nothing is read, so nothing else tells that the caller has gone.
            self._hang_ups.watch(self._connection, self.abort)
        answering = super().request_received(obj, fds)
        self._answering = asyncio.ensure_future(self._answered(answering))
        return self._answering

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True  # noqa: FBT001, FBT002
    ) -> asyncio.Future[None]:
        self._sending = super().send_reply(reply, fds, autoclose)
        if not self._sending.done():
            patience = asyncio.get_running_loop().call_later(SEND_TIMEOUT, self.abort)
            self._sending.add_done_callback(lambda _: patience.cancel())
        # The library would leave the method of one who has gone where it is. It comes to its end by itself.
        return asyncio.ensure_future(_over(self._sending))

    async def _answered(self, answering: asyncio.Future[None] | None) -> None:
        if answering is not None:
            await answering
        if self._sending is not None:
            await asyncio.wait([self._sending])
        self._answering = None
        if not self._lost:
            self._hang_ups.unwatch(self._connection)
        self._end()

    def _end(self) -> None:
        # What it has said before it hung up is done, if it was all said: a call may be "oneway".
        if self._lost and self._answering is None and not self._consumer_queue and not self.ended.done():
            self.ended.set_result(None)


async def _over(sending: asyncio.Future[None]) -> None:
    """Return when it has been sent, or cannot be."""
    await asyncio.wait([sending])
