"""The supervisor's end of a worker: typed questions, bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import sys
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from forge_supervisor.worker.messages import LINE_LIMIT, AnswerLine, RequestLine, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forge_supervisor.units import Placement, Process, User
    from forge_supervisor.worker.messages import AnswerT, AnyRequest, Request

ARGV = (sys.executable, "-I", "-m", "forge_supervisor.worker")
STOP_TIMEOUT = 5.0
# Of what a thread has freed glibc keeps some for that thread alone: with as many as a worker has, and one running at a
# time, 7 MiB after some thousand restarts.
_ENV = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


class WorkerError(Exception):
    """The worker could not do what it was asked; the text is a sentence for the operator."""


class WorkerLostError(WorkerError):
    """The worker ended, broke the protocol, or did not answer in time."""


class Worker:
    """One running worker process. Of no more use once `lost` is not None."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lost: str | None = None
        self._process = process
        self._writer = writer
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[AnswerLine]] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    @classmethod
    async def start(cls, placement: Placement, user: User, env: Mapping[str, str]) -> Worker:
        """Raises OSError or PlacementError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = await placement.run("worker", user, ARGV, env={**_ENV, **env}, stdin=theirs.fileno())
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    async def ask(self, request: Request[AnswerT]) -> AnswerT:
        """Ends in the answer, WorkerError (its own words), or WorkerLostError; the last also after request.timeout.

        Cancelled, it tells the worker to give it up.
        """
        if self.lost is not None:
            raise WorkerLostError(self.lost)
        identifier = next(self._ids)
        line = encode(RequestLine(id=identifier, request=cast("AnyRequest", request)))
        if len(line) >= LINE_LIMIT:
            text = f"what is declared takes {len(line)} bytes, and {LINE_LIMIT} is the most (mind role and env)"
            raise WorkerError(text)
        answer = self._pending[identifier] = asyncio.get_running_loop().create_future()
        # Whoever gives up before it waits for the answer is not to be complained of.
        answer.add_done_callback(lambda given: given.cancelled() or given.exception())
        try:
            async with asyncio.timeout(None if math.isinf(request.timeout) else request.timeout):
                self._writer.write(line)
                await self._writer.drain()
                reply = await answer
        except asyncio.CancelledError:
            self._give_up(identifier)
            raise
        except TimeoutError:
            await self._lose(f"it did not answer within {request.timeout:g} s")
            raise WorkerLostError(self.lost) from None
        except OSError as error:
            await self._lose(f"it cannot be reached ({error})")
            raise WorkerLostError(self.lost) from error
        if reply.error is not None:
            raise WorkerError(reply.error)
        try:
            return cast("AnswerT", request.answer.model_validate(reply.answer))
        except ValidationError as error:
            await self._lose(f"it answered nonsense ({error.error_count()} faults)")
            raise WorkerLostError(self.lost) from error

    def _give_up(self, identifier: int) -> None:
        if self.lost is None:
            self._writer.write(encode(RequestLine(id=identifier, request=None)))

    async def stop(self) -> None:
        await self._lose("it was stopped")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "it ended"
        try:
            while line := await reader.readline():
                answer = AnswerLine.model_validate_json(line)
                pending = self._pending.pop(answer.id)
                # Who asked may have been cancelled meanwhile.
                if not pending.done():
                    pending.set_result(answer)
        except (ValueError, KeyError, OSError) as error:
            # A line over the limit, or one that is no AnswerLine; an answer to what nobody asked.
            reason = f"it broke the protocol ({type(error).__name__})"
        self._fail_pending(reason)
        self._writer.close()

    def _fail_pending(self, reason: str) -> None:
        self.lost = self.lost or reason
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(WorkerLostError(reason))

    async def _lose(self, reason: str) -> None:
        self._fail_pending(reason)
        self._writer.close()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        await self._process.stop(STOP_TIMEOUT)
