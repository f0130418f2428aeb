"""The `Runner` of the real world: one session of an agent after the other, for its `Lifecycle`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import harness
from forge_supervisor.config import Problem
from forge_supervisor.handshake import LaunchError
from forge_supervisor.memory import State
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.config_resources import Resources
    from forge_supervisor.saved import SavedSession
    from forge_supervisor.session import Session

log = structlog.get_logger()


class SessionRunner:
    """Runs the sessions of one agent, whose settings may change from one to the next.

    `make_session` is told whether the session is to begin anew.
    `inherited` is the session that an earlier supervisor has left.
    """

    def __init__(
        self, make_session: Callable[[Agent, str, bool], Session], inherited: SavedSession | None = None
    ) -> None:
        self._make_session = make_session
        self._inherited = inherited
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def saved(self) -> SavedSession | None:
        """Where the present session is."""
        return self._session.saved if self._session is not None else None

    @property
    def resumes(self) -> bool:
        """Whether the present session goes on with an earlier one."""
        return self._session is not None and self._session.resumes

    def launch(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        session = self._make_session(agent, invocation, life.begins_anew)
        if self._session is not None:
            session.follow(self._session)
        self._session = session
        self._task = asyncio.create_task(_run(self._session, life))

    def resume(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        self._session = session = self._make_session(agent, invocation, False)
        lives = self._inherited is not None and session.adopt(self._inherited)
        if life.launching:
            self._task = asyncio.create_task(self._resume_launch(session, life))
            return
        if lives:
            life.found()
        self._task = asyncio.create_task(_see_end(session, life))

    async def _resume_launch(self, session: Session, life: Lifecycle) -> None:
        try:
            interrupted = await session.interrupted()
        except Exception:
            log.exception("supervisor_fault", agent=life.agent.name, run_as=life.agent.run_as)
            interrupted = True
        if not interrupted:
            assert session.saved is not None, "launched, and nowhere"
            life.launched(session.saved.pid)
            await _see_end(session, life)
        elif life.state is State.STARTING:
            session.close()
            self._session = self._make_session(life.agent, life.invocation, life.begins_anew)
            # Before its pane is used again: a process that is not its pane's any more would be one that was lost.
            life.changed()
            await _run(self._session, life)
        else:
            session.close()
            life.launch_failed(Problem(key="", text="the supervisor ended in the middle of it"))

    def terminate(self) -> None:
        if self._session is not None:
            self._session.terminate()

    def kill(self) -> None:
        if self._session is not None:
            self._session.kill()

    def limit(self, resources: Resources) -> bool:
        """Give the present session other limits; tell whether it has them."""
        return self._session is None or self._session.limit(resources)

    async def leave(self) -> None:
        """Let go of the present session, as it is, for another supervisor to go on with."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def _run(session: Session, life: Lifecycle) -> None:
    # Whatever goes wrong in here is a fault of ours, and must not leave the agent in a state without a way out.
    try:
        pid = await session.launch()
    except LaunchError as error:
        session.close()
        life.launch_failed(error.problem)
        return
    except Exception as error:
        log.exception("supervisor_fault", agent=life.agent.name, run_as=life.agent.run_as)
        session.close()
        life.launch_failed(Problem(key="", text=f"fault in the supervisor: {error!r}"))
        return
    life.launched(pid)
    await _see_end(session, life)


async def _see_end(session: Session, life: Lifecycle) -> None:
    await session.death()
    life.died()
    try:
        exit_, screen, oom_killed = await session.collect()
    except Exception:
        log.exception("supervisor_fault", agent=life.agent.name, run_as=life.agent.run_as)
        exit_, screen, oom_killed = Exit(lost=True), [], False
    session.close()
    life.exited(exit_, screen, oom_killed=oom_killed, unresumable=_could_not_resume(life.agent, exit_, screen))


def _could_not_resume(agent: Agent, exit_: Exit, screen: list[str]) -> bool:
    try:
        return harness.load(agent.harness).unresumable(exit_, screen)
    except LookupError as error:
        log.warning("harness_broken", agent=agent.name, run_as=agent.run_as, message=str(error))
        return False
    except Exception:
        log.exception("supervisor_fault", agent=agent.name, run_as=agent.run_as)
        return False
