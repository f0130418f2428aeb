"""One session of an agent in the real world, and the `Runner` that runs one after the other for a `Lifecycle`.

A session is awaited at few places, each bounded in time or ended by the kernel: the user's worker and tmux server and
the handshake (all of which end in `LaunchError` at worst), and the death of its main process, which a pidfd tells
whatever becomes of worker, tmux and D-Bus.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import structlog

from forge_supervisor import events
from forge_supervisor.config import Problem
from forge_supervisor.config_files import key_path
from forge_supervisor.declared import prepare
from forge_supervisor.handshake import LaunchError, hand_over
from forge_supervisor.pidfd import Pidfd
from forge_supervisor.policy import Exit
from forge_supervisor.realm import agent_environment
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import Collect, Open

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.declared import Declared
    from forge_supervisor.handshake import Handshake, Ticket
    from forge_supervisor.realm import Realm
    from forge_supervisor.worker.messages import Collected, Prepared

KILL_GRACE = 10.0
"""Seconds that a process gets to end on SIGKILL; one that hangs in the kernel does not end."""
HANGUP_GRACE = 2.0
"""Seconds that a process without its terminal gets to end on SIGHUP and SIGTERM."""

log = structlog.get_logger()


class SessionRunner:
    """Runs the sessions of one agent, whose settings may change from one to the next."""

    def __init__(self, make_session: Callable[[Agent, str], Session]) -> None:
        self._make_session = make_session
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None

    def launch(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        self._session = self._make_session(agent, invocation)
        self._task = asyncio.create_task(_run(self._session, life))

    def terminate(self) -> None:
        if self._session is not None:
            self._session.terminate()

    def kill(self) -> None:
        if self._session is not None:
            self._session.kill()


async def _run(session: Session, life: Lifecycle) -> None:
    # Whatever goes wrong in here is a fault of ours, and must not leave the agent in a state without a way out.
    try:
        pid = await session.launch()
    except LaunchError as error:
        life.launch_failed(error.problem)
        return
    except Exception as error:
        log.exception("supervisor_fault", agent=life.agent.name, run_as=life.agent.run_as)
        life.launch_failed(Problem(key="", text=f"fault in the supervisor: {error!r}"))
        return
    life.launched(pid)
    await session.death()
    life.died()
    try:
        exit_, screen = await session.collect()
    except Exception:
        log.exception("supervisor_fault", agent=life.agent.name, run_as=life.agent.run_as)
        exit_, screen = Exit(lost=True), []
    session.close()
    life.exited(exit_, screen)


class Session:
    def __init__(
        self,
        declared: Declared,
        invocation: str,
        *,
        realm: Realm,
        handshake: Handshake,
        emit: Callable[[events.Event], None],
        conceal: Callable[[str, Mapping[str, str], str | None], None],
    ) -> None:
        self._declared = declared
        self._agent = declared.agent
        self._invocation = invocation
        self._realm = realm
        self._conceal = conceal
        self._handshake = handshake
        self._emit = emit
        self._process: Pidfd | None = None
        self._server: Pidfd | None = None
        self._pane = ""
        self._pid = 0
        self._given_up = asyncio.Event()

    async def examine(self) -> None:
        """Look, without writing anything, whether it could be launched. Raises LaunchError."""
        await self._prepare(dry_run=True)

    async def launch(self) -> int:
        """Bring the harness to run, and return its pid. Raises LaunchError."""
        self._server = await self._realm.server()
        prepared, secrets = await self._prepare()
        env = agent_environment(self._realm.user, self._agent, prepared.env, secrets, self._invocation)
        try:
            async with self._handshake.ticket(self._realm.user.uid) as ticket:
                self._process = await self._launch(ticket, prepared, env)
        except OSError as error:
            raise LaunchError("", f"the launch socket cannot be made: {error}") from error
        return self._process.pid

    async def death(self) -> None:
        """Return when the main process has died; or KILL_GRACE seconds after the SIGKILL that it does not heed."""
        assert self._process is not None, "not launched"
        assert self._server is not None, "not launched"
        await _first(self._process.wait(), self._server.wait(), self._given_up.wait())
        if self._server.dead and not self._process.dead:
            # Its terminal is gone. It has been sent SIGHUP by the kernel, and some programs live on.
            self.terminate()
            await _first(self._process.wait(), asyncio.sleep(HANGUP_GRACE))
            if not self._process.dead:
                self.kill()
            await _first(self._process.wait(), self._given_up.wait())

    async def collect(self) -> tuple[Exit, list[str]]:
        """Tell how the main process ended and what was last on its screen, once all that it left behind is gone."""
        try:
            collected = await self._ask_collect()
        except WorkerError as error:
            self._warn("", f"its exit status cannot be known: {error}")
            return Exit(lost=True), []
        if collected.terminated or collected.killed:
            self._emit(
                events.LeftoversCleared(
                    agent=self._agent.name,
                    run_as=self._agent.run_as,
                    terminated=collected.terminated,
                    killed=collected.killed,
                )
            )
        if collected.left:
            self._warn("", f"{collected.left} processes that it left behind do not end")
        if collected.code is None and collected.signal is None:
            return Exit(lost=True), collected.screen
        return Exit(code=collected.code, signal=collected.signal), collected.screen

    def terminate(self) -> None:
        """Send SIGTERM to the main process, if it lives."""
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the main process, if it lives; `death` then returns in bounded time."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
        asyncio.get_running_loop().call_later(KILL_GRACE, self._given_up.set)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    async def _prepare(self, *, dry_run: bool = False) -> tuple[Prepared, Mapping[str, str]]:
        # What is only examined is not the agent's last start.
        owner = f"{self._agent.name} (examined)" if dry_run else self._agent.name
        try:
            preparation = await prepare(
                self._realm,
                self._declared,
                dry_run=dry_run,
                conceal=lambda read: self._conceal(owner, read, None),
            )
        except WorkerError as error:
            raise LaunchError("", str(error)) from error
        # Before anything is said of it.
        self._conceal(owner, preparation.users, self._agent.run_as)
        prepared = preparation.prepared
        for finding in prepared.findings:
            if finding.fatal:
                raise LaunchError(finding.key, finding.text)
            if not dry_run:
                self._warn(finding.key, finding.text)
        if not prepared.argv:
            raise LaunchError("harness", "the worker named no program to run")
        return prepared, preparation.secrets

    async def _launch(self, ticket: Ticket, prepared: Prepared, env: dict[str, str]) -> Pidfd:
        process = await self._open(ticket)
        try:
            await self._hand_over(process, ticket, prepared, env)
        except BaseException:
            process.signal(signal.SIGKILL)
            process.close()
            raise
        return process

    async def _open(self, ticket: Ticket) -> Pidfd:
        assert self._server is not None, "launched without a server"
        request = Open(agent=self._agent.name, argv=list(ticket.argv), server=self._server.pid)
        try:
            opened = await self._realm.ask(request)
        except WorkerError as error:
            raise LaunchError("", str(error)) from error
        self._pane, self._pid = opened.pane, opened.pid
        for note in opened.notes:
            self._warn("", note)
        try:
            return Pidfd(opened.pid, self._realm.user.uid)
        except ProcessLookupError:
            raise await self._early_death() from None
        except OSError as error:
            raise LaunchError("", f"the first process of its pane cannot be watched: {error}") from error

    async def _hand_over(self, process: Pidfd, ticket: Ticket, prepared: Prepared, env: dict[str, str]) -> None:
        handing_over = asyncio.create_task(hand_over(ticket, process.pid, prepared.cwd, prepared.argv, env))
        await _first(asyncio.shield(handing_over), process.wait())
        if process.dead and not ticket.peer.done():
            handing_over.cancel()
            raise await self._early_death()
        # It has asked, so the socket ends the wait: by the harness, by an error, or by death.
        await handing_over

    async def _early_death(self) -> LaunchError:
        exit_, screen = await self.collect()
        said = f": {screen[-1]}" if screen else ""
        return LaunchError("", f"the first process of its pane ended before it was told what to run ({exit_}){said}")

    async def _ask_collect(self) -> Collected:
        assert self._server is not None, "launched without a server"
        request = Collect(
            agent=self._agent.name,
            pane=self._pane,
            pid=self._pid,
            invocation=self._invocation,
            server=self._server.pid,
        )
        try:
            return await self._realm.ask(request)
        except WorkerLostError:
            # The status is tmux's to keep: another worker can ask for it.
            return await self._realm.ask(request)

    def _warn(self, key: str, text: str) -> None:
        name = self._agent.name
        self._emit(events.AgentWarning(agent=name, run_as=self._agent.run_as, key=key_path(name, key), problem=text))


async def _first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Return when one of them has ended, having cancelled the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
