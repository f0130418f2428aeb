"""Where the hooks of harnesses report to: a datagram socket a user, which nobody else can send to.

What comes is a hint, as all is that an agent's user says; it names a session by its invocation. Of more than the
supervisor can read in passing the rest waits, and what does not fit is lost to whoever sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from forge_supervisor.report import MOST_BYTES
from forge_supervisor.runtime import bound_for, runtime_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST_AT_ONCE = 32
"""Datagrams that are read before anything else has its turn."""
PAUSE = 0.05
"""Seconds, at least, that whoever sends so many waits for the next to be read."""
_PAUSE_SHARE = 9
"""How many times as long as it took to act on those: a tenth of the supervisor's time is the most that a user gets."""

Letter = tuple[int, str, dict[str, Any]]
"""The sender's uid, the invocation that it names, and what it says."""


def path_of(uid: int) -> Path:
    return runtime_directory() / f"report-{uid}.sock"


class Mailbox:
    """`read` is called with each letter."""

    def __init__(self, read: Callable[[Letter], None]) -> None:
        self._read = read
        self._sockets: dict[int, socket.socket] = {}
        self._pauses: dict[int, asyncio.TimerHandle] = {}

    def open(self, uid: int) -> None:
        """Have that user's agents report. Raises OSError."""
        path = path_of(uid)
        if uid in self._sockets:
            if path.is_socket():
                return
            # Somebody has removed it, or the directory.
            self._close(uid)
        receiving = self._sockets[uid] = bound_for(uid, path, socket.SOCK_DGRAM)
        receiving.setblocking(False)
        asyncio.get_running_loop().add_reader(receiving, self._empty, uid)

    def close(self) -> None:
        for uid in [*self._sockets]:
            self._close(uid)
            path_of(uid).unlink(missing_ok=True)

    def _close(self, uid: int) -> None:
        if uid in self._pauses:
            self._pauses.pop(uid).cancel()
        receiving = self._sockets.pop(uid)
        asyncio.get_running_loop().remove_reader(receiving)
        receiving.close()

    def _empty(self, uid: int) -> None:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_AT_ONCE):
                letter = self._sockets[uid].recv(MOST_BYTES + 64)
                if (opened := _opened(letter)) is not None:
                    self._read((uid, *opened))
            loop.remove_reader(self._sockets[uid])
            pause = max(PAUSE, _PAUSE_SHARE * (time.monotonic() - began))
            self._pauses[uid] = loop.call_later(pause, self._go_on, uid)

    def _go_on(self, uid: int) -> None:
        del self._pauses[uid]
        asyncio.get_running_loop().add_reader(self._sockets[uid], self._empty, uid)


def _opened(letter: bytes) -> tuple[str, dict[str, Any]] | None:
    invocation, _, told = letter.partition(b"\n")
    try:
        values = json.loads(told)
        # JSON can hold half a character, which nothing can write down.
        json.dumps(values, ensure_ascii=False).encode()
        return (invocation.decode("ascii"), values) if isinstance(values, dict) else None
    except (ValueError, RecursionError):
        return None
