"""Tells that a caller has hung up although nothing is read from it, be there something to read or not."""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class HangUps:
    """One descriptor for all connections: the loop can watch for readiness only, and what waits unread is readiness."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._epoll = select.epoll()
        self._tell: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def watch(self, connection: socket.socket, tell: Callable[[], None]) -> None:
        """Call that once the other end is closed; that it sends no more is no reason. Raises OSError."""
        number = connection.fileno()
        if number not in self._tell:
            # EPOLLHUP and EPOLLERR are told unasked, epoll_ctl(2).
            self._epoll.register(number, 0)
        self._tell[number] = tell

    def unwatch(self, connection: socket.socket) -> None:
        """Watch no more, if it is watched; before it is closed."""
        if self._tell.pop(connection.fileno(), None) is not None:
            self._epoll.unregister(connection.fileno())

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # closed already
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        for number, _ in self._epoll.poll(0):
            self._epoll.unregister(number)
            self._tell.pop(number)()
