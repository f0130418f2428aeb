"""The supervisor's side of a launch: hands an agent's plan to its pane's first process (launch.py), and to no other.

Each agents' user has a socket that nobody else can connect to. A plan goes only to a process that names an id which was
issued for its uid and that is the process which the worker said runs in the pane. Each id is good for one connection.
What the kernel says (SO_PEERCRED, pidfd) is trusted, what the worker says is compared with it before anything is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import launch
from forge_supervisor.config import Problem
from forge_supervisor.runtime import bound_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

HELLO_TIMEOUT = 5.0
"""Seconds that a client has to name its id."""
MOST_UNNAMED = 64
"""Clients of one user that have not named theirs yet; further ones are turned away."""
LAUNCH_TIMEOUT = 15.0
"""Seconds from the pane's first process to the harness; a loaded machine needs some."""

SCRIPT = str(Path(launch.__file__).resolve())
"""By which the first process of a pane is known, until it becomes the harness."""


class LaunchError(Exception):
    """The agent's program could not be brought to run; `problem` is for the operator."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(key=key, text=text)


@dataclass(frozen=True, slots=True)
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int


@dataclass(slots=True)
class Ticket:
    """Admits one process of `uid` to one launch."""

    uid: int
    argv: tuple[str, ...]
    """The command line of the pane's first process."""
    peer: asyncio.Future[Peer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Handshake:
    """Listens in `directory`, which only the supervisor may write, on a socket a user."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tickets: dict[str, Ticket] = {}
        self._servers: dict[int, asyncio.Server] = {}
        self._unnamed: Counter[int] = Counter()

    def close(self) -> None:
        for uid, server in self._servers.items():
            server.close()
            self._path(uid).unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def ticket(self, uid: int) -> AsyncIterator[Ticket]:
        """Issue one for a process of that user, good until the context ends. Raises OSError."""
        await self._listen(uid)
        identifier = secrets.token_hex(16)
        ticket = Ticket(uid, (sys.executable, "-I", "-S", SCRIPT, str(self._path(uid)), identifier))
        self._tickets[identifier] = ticket
        try:
            yield ticket
        finally:
            self._tickets.pop(identifier, None)
            if ticket.peer.done() and not ticket.peer.cancelled():
                ticket.peer.result().writer.close()
            ticket.peer.cancel()

    def _path(self, uid: int) -> Path:
        return self._directory / f"launch-{uid}.sock"

    async def _listen(self, uid: int) -> None:
        path = self._path(uid)
        if uid in self._servers:
            if path.is_socket():
                return
            # Somebody has removed it, or the directory.
            self._servers.pop(uid).close()
        listening = bound_for(uid, path, socket.SOCK_STREAM)
        try:
            self._servers[uid] = await asyncio.start_unix_server(self._welcome, sock=listening, limit=256, backlog=64)
        except BaseException:
            listening.close()
            raise

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid, _gid = _peer_credentials(writer)
        if self._unnamed[uid] < MOST_UNNAMED:
            self._unnamed[uid] += 1
            try:
                ticket = self._tickets.get(await _identifier(reader))
            finally:
                self._unnamed[uid] -= 1
            if ticket is not None and ticket.uid == uid and not ticket.peer.done():
                ticket.peer.set_result(Peer(reader, writer, pid))
                return
        writer.close()


async def _identifier(reader: asyncio.StreamReader) -> str:
    """Read what the client names, in time; otherwise what was issued to nobody."""
    try:
        return (await asyncio.wait_for(reader.readline(), HELLO_TIMEOUT)).decode("ascii").strip()
    except (TimeoutError, ValueError, OSError):
        return ""


def _peer_credentials(writer: asyncio.StreamWriter) -> tuple[int, int, int]:
    connection = writer.get_extra_info("socket")
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


async def hand_over(
    ticket: Ticket,
    pane_pid: int,
    cwd: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    admitted: Awaitable[None],
) -> None:
    """Wait for the pane's process, give it its plan, and return once it has become the harness.

    Before it is `admitted` it gets nothing. Raises LaunchError, also after LAUNCH_TIMEOUT seconds.
    """
    try:
        async with asyncio.timeout(LAUNCH_TIMEOUT):
            peer = await asyncio.shield(ticket.peer)
            if peer.pid != pane_pid:
                raise LaunchError("run_as", f"process {peer.pid} asked for the launch of pane process {pane_pid}")
            await admitted
            payload = encode(cwd, argv, env)
            peer.writer.write(len(payload).to_bytes(8, "big") + payload)
            await peer.writer.drain()
            failure = (await peer.reader.read(64)).decode("ascii", "replace")
    except TimeoutError:
        raise LaunchError("run_as", f"its first process did not get to run in {LAUNCH_TIMEOUT:g} s") from None
    except OSError as error:
        raise LaunchError("run_as", f"its first process went away during the launch ({error})") from None
    if failure:
        raise _refused(failure, cwd, argv[0])


def _refused(failure: str, cwd: str, program: str) -> LaunchError:
    step, _, number = failure.partition(" ")
    reason = os.strerror(int(number)) if number.isdecimal() and len(number) < 6 else "unknown error"
    if step == "chdir":
        return LaunchError("cwd", f"cannot enter {cwd}: {reason}")
    return LaunchError("harness", f"cannot run {program}: {reason}")


def encode(cwd: str, argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    fields = [cwd, str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    return b"".join(os.fsencode(field) + b"\0" for field in fields)
