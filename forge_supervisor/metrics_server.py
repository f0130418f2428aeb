"""Serves GET /metrics on a Unix socket, to anybody: states and counts, and nothing secret.

HTTP as far as it takes for that: one request a connection. Nobody keeps others from being served for long, or the
supervisor from its work, whatever they send, or do not.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = structlog.get_logger()

NAME = "metrics.sock"
MOST_CLIENTS = 16
"""Connections; of more, the oldest is closed of the user who has the most."""
LONGEST_HEAD = 8192
"""Bytes of a request, up to the empty line."""
TIMEOUT = 5.0
"""Seconds for a connection from its first moment to its last."""


class MetricsServer:
    """Listens in `directory`, which only the supervisor may write. `scrape` gives the content type, and the content."""

    def __init__(self, directory: Path, scrape: Callable[[], tuple[str, bytes]]) -> None:
        self._path = directory / NAME
        self._scrape = scrape
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], int] = {}
        """Each with its uid, in the order in which they came."""

    async def start(self) -> None:
        """Raises OSError."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.bind(os.fspath(self._path))
            self._path.chmod(0o666)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listening, limit=LONGEST_HEAD, backlog=MOST_CLIENTS
            )
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None, "called by a server"
        self._clients[client] = _uid_of(writer)
        self._make_room()
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(await self._answer(reader))
                writer.close()
                # Until all has been read, or nearly so, for which there is no more time than for the rest.
                await writer.wait_closed()
        except (OSError, EOFError):  # it was too slow (TimeoutError), or has hung up
            pass
        finally:
            writer.transport.abort()
            self._clients.pop(client, None)

    def _make_room(self) -> None:
        if len(self._clients) <= MOST_CLIENTS:
            return
        # Whoever keeps many connections keeps out itself, and nobody else.
        of_user = Counter(self._clients.values())
        oldest = next(task for task, uid in self._clients.items() if of_user[uid] == max(of_user.values()))
        del self._clients[oldest]
        oldest.cancel()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request, and make the answer. Raises EOFError."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if target.partition(b"?")[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND)
        if method != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET\r\n")
        try:
            kind, content = self._scrape()
        except Exception:
            log.exception("supervisor_fault")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _response(HTTPStatus.OK, kind, content)


def _uid_of(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int
    _, uid, _ = struct.unpack("3i", credentials)
    return uid


def _response(status: HTTPStatus, kind: str = "text/plain", content: bytes | None = None, more: str = "") -> bytes:
    content = f"{status.phrase}\n".encode() if content is None else content
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + content
