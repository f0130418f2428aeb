"""Tells, when asked, what a session is doing, as soon as that is something new."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from forge_supervisor import harness
from forge_supervisor.config import Agent
from forge_supervisor.harness import Subject
from forge_supervisor.harness.activity import reads_while_written
from forge_supervisor.worker.actions import ActionError
from forge_supervisor.worker.changes import Changes
from forge_supervisor.worker.messages import Observed
from forge_supervisor.worker.preparation import paths_of

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from forge_supervisor.worker.messages import Observe

LOOKS_IN_VAIN = 10
"""How often files may be half written as they are looked at."""
_BEING_WRITTEN = 0.2
"""Seconds."""


class Observing:
    def __init__(self, pool: Executor, home: Path) -> None:
        self._pool = pool
        self._home = home
        self._changes = Changes()

    async def observe(self, request: Observe) -> Observed:
        try:
            return await self._observe(request)
        except harness.BrokenHarnessError as error:
            raise ActionError(str(error)) from error
        except OSError as error:
            raise ActionError(f"its files cannot be watched: {error}") from error

    async def _observe(self, request: Observe) -> Observed:
        agent = Agent.model_validate(request.agent)
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._pool)
        program = await in_thread(harness.that_tells_activity, agent.harness)
        if program is None:
            raise ActionError(f"the harness {agent.harness} does not tell what it is doing")
        # That there is a secret says enough.
        subject = Subject(agent, secrets=dict.fromkeys(request.secrets, "secret"))
        paths = paths_of(agent, self._home)
        in_vain = 0
        while in_vain < LOOKS_IN_VAIN:
            # Which files they are can change with them.
            files = await in_thread(program.watched, subject, paths, request.pid)
            async with self._changes.of(files, while_written=reads_while_written(program)) as changed:
                seen = await in_thread(program.observe, subject, paths, request.pid)
                if seen is None:
                    in_vain += 1
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), _BEING_WRITTEN)
                    continue
                observed = Observed.model_validate(seen, from_attributes=True)
                if observed != request.known:
                    return observed
                await changed.wait()
        raise ActionError(f"its files say nothing that can be understood: {', '.join(map(str, files))}")
