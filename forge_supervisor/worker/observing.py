"""Tells, when asked, what a session is doing, as soon as that is something new."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from forge_supervisor import harness
from forge_supervisor.config import Agent
from forge_supervisor.harness import Subject
from forge_supervisor.worker.actions import ActionError
from forge_supervisor.worker.changes import Changes
from forge_supervisor.worker.messages import Observed
from forge_supervisor.worker.preparation import paths_of

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from forge_supervisor.worker.messages import Observe


class Observing:
    def __init__(self, pool: Executor, home: Path) -> None:
        self._pool = pool
        self._home = home
        self._changes = Changes()

    async def observe(self, request: Observe) -> Observed:
        agent = Agent.model_validate(request.agent)
        program = harness.that_tells_activity(agent.harness)
        if program is None:
            raise ActionError(f"the harness {agent.harness} does not tell what it is doing")
        # That there is a secret says enough.
        subject = Subject(agent, secrets=dict.fromkeys(request.secrets, "secret"))
        paths = paths_of(agent, self._home)
        loop = asyncio.get_running_loop()
        while True:
            try:
                # Which files they are can change with them.
                files = program.watched(subject, paths, request.pid)
                async with self._changes.of(files, while_written=program.reads_while_written) as changed:
                    seen = await loop.run_in_executor(self._pool, program.observe, subject, paths, request.pid)
                    if seen is not None:
                        observed = Observed.model_validate(seen, from_attributes=True)
                        if observed != request.known:
                            return observed
                    await changed.wait()
            except OSError as error:
                raise ActionError(f"its files cannot be watched: {error}") from error
