"""The supervisor's side of a launch: hands an agent's plan to its pane's first process (launch.py), and to no other.

Every user may connect to the socket; a plan goes only to a process that names an id which was issued for its uid and
that is the process which the worker said runs in the pane. Each id is good for one connection. What the kernel says
(SO_PEERCRED, pidfd) is trusted, what the worker says is only compared with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import launch
from forge_supervisor.config import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HELLO_TIMEOUT = 5.0
"""Seconds that a client has to name its id."""
LAUNCH_TIMEOUT = 15.0
"""Seconds from the pane's first process to the harness; a loaded machine needs some."""


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
    """Listens on `path`, in a directory that only the supervisor may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tickets: dict[str, Ticket] = {}
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Raises OSError."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._welcome, self._path, limit=256, backlog=512)
        self._path.chmod(0o666)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def ticket(self, uid: int) -> Iterator[Ticket]:
        identifier = secrets.token_hex(16)
        script = str(Path(launch.__file__).resolve())
        ticket = Ticket(uid, (sys.executable, "-I", "-S", script, str(self._path), identifier))
        self._tickets[identifier] = ticket
        try:
            yield ticket
        finally:
            self._tickets.pop(identifier, None)
            if ticket.peer.done() and not ticket.peer.cancelled():
                ticket.peer.result().writer.close()
            ticket.peer.cancel()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid, _gid = _peer_credentials(writer)
        # A stranger is not even read from.
        if any(ticket.uid == uid for ticket in self._tickets.values()):
            with contextlib.suppress(TimeoutError, ValueError, OSError):
                identifier = (await asyncio.wait_for(reader.readline(), HELLO_TIMEOUT)).decode("ascii").strip()
                ticket = self._tickets.get(identifier)
                if ticket is not None and ticket.uid == uid and not ticket.peer.done():
                    ticket.peer.set_result(Peer(reader, writer, pid))
                    return
        writer.close()


def _peer_credentials(writer: asyncio.StreamWriter) -> tuple[int, int, int]:
    connection = writer.get_extra_info("socket")
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


async def hand_over(ticket: Ticket, pane_pid: int, cwd: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Wait for the pane's process, give it its plan, and return once it has become the harness.

    Raises LaunchError, also after LAUNCH_TIMEOUT seconds.
    """
    try:
        async with asyncio.timeout(LAUNCH_TIMEOUT):
            peer = await asyncio.shield(ticket.peer)
            if peer.pid != pane_pid:
                raise LaunchError("run_as", f"process {peer.pid} asked for the launch of pane process {pane_pid}")
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
