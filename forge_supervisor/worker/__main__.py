"""The worker's process: ``python -I -m forge_supervisor.worker``, run as the agents' user, a Unix socket as stdin.

It answers requests until the socket ends, and ends with it. It holds no state that matters.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

from forge_supervisor.worker.actions import ActionError, Actions, from_environment
from forge_supervisor.worker.messages import LINE_LIMIT, AnswerLine, RequestLine, encode

THREADS = 64
"""At once; each mostly waits for a tmux client or a dying process."""


async def serve(connection: socket.socket, actions: Actions) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
    pool = ThreadPoolExecutor(THREADS)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(_answer(RequestLine.model_validate_json(line), writer, actions, pool))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _answer(
    line: RequestLine, writer: asyncio.StreamWriter, actions: Actions, pool: ThreadPoolExecutor
) -> None:
    try:
        answer = await asyncio.get_running_loop().run_in_executor(pool, actions.do, line.request)
        reply = encode(AnswerLine(id=line.id, answer=answer.model_dump()))
    except ActionError as error:
        reply = encode(AnswerLine(id=line.id, error=str(error)))
    except Exception as error:  # noqa: BLE001 - whatever it was, the supervisor waits for an answer
        traceback.print_exc()
        reply = encode(AnswerLine(id=line.id, error=f"fault in the worker: {error!r}"))
    writer.write(reply)
    await writer.drain()


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
