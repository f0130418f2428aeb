"""The worker's process: ``python -I -m forge_supervisor.worker``, run as the agents' user, a Unix socket as stdin.

It answers requests until the socket ends, and ends with it. It holds no state that matters.
"""

from __future__ import annotations

import forge_supervisor.lean  # noqa: F401 - before all that loads what it does

# isort: split
import asyncio
import contextlib
import os
import socket
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from forge_supervisor.worker.actions import ActionError, Actions, from_environment
from forge_supervisor.worker.messages import LINE_LIMIT, AnswerLine, Observe, RequestLine, encode
from forge_supervisor.worker.observing import Observing

if TYPE_CHECKING:
    from forge_supervisor.worker.messages import Answer, AnyRequest

_TOO_LONG = "what there is to tell takes {} bytes, and {} is the most (mind what its harness returns, and large files)"
THREADS = 64
"""At once; each mostly waits for a tmux client or a dying process."""


async def serve(connection: socket.socket, actions: Actions) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
    with contextlib.closing(writer):
        desk = _Desk(writer, actions)
        while line := await reader.readline():
            desk.take(RequestLine.model_validate_json(line))


class _Desk:
    def __init__(self, writer: asyncio.StreamWriter, actions: Actions) -> None:
        self._writer = writer
        self._actions = actions
        self._pool = ThreadPoolExecutor(THREADS)
        self._observing = Observing(self._pool, actions.home)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, line: RequestLine) -> None:
        if line.request is None:
            if line.id in self._tasks:
                # One that runs in a thread goes on there.
                self._tasks[line.id].cancel()
            return
        task = self._tasks[line.id] = asyncio.create_task(self._answer(line.id, line.request))
        task.add_done_callback(lambda _: self._is_done(line.id))

    def _is_done(self, identifier: int) -> None:
        if self._tasks.pop(identifier, None) is not None:
            # It was given up before it had begun.
            self._writer.write(_given_up(identifier))

    async def _answer(self, identifier: int, request: AnyRequest) -> None:
        try:
            answer = await self._do(request)
            reply = encode(AnswerLine(id=identifier, answer=answer.model_dump()))
            if len(reply) >= LINE_LIMIT:
                # The supervisor would let go of this worker, and with it of all that others wait for.
                reply = encode(AnswerLine(id=identifier, error=_TOO_LONG.format(len(reply), LINE_LIMIT)))
        except asyncio.CancelledError:
            reply = _given_up(identifier)
        except ActionError as error:
            reply = encode(AnswerLine(id=identifier, error=str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it was, the supervisor waits for an answer
            traceback.print_exc()
            reply = encode(AnswerLine(id=identifier, error=f"fault in the worker: {error!r}"))
        # What has been answered cannot be given up any more.
        del self._tasks[identifier]
        self._writer.write(reply)
        await self._writer.drain()

    async def _do(self, request: AnyRequest) -> Answer:
        if isinstance(request, Observe):
            return await self._observing.observe(request)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._actions.do, request)


def _given_up(identifier: int) -> bytes:
    return encode(AnswerLine(id=identifier, error="it was given up"))


def main() -> None:
    connection = socket.socket(fileno=os.dup(0))
    # Programs that are asked for their version, and tmux's clients, get nothing to read.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.umask(0o022)
    try:
        asyncio.run(serve(connection, from_environment()))
    finally:
        # Threads may still wait for a program; nobody is left to tell.
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
