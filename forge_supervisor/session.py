"""One session of an agent in the real world.

A session is awaited at few places, each bounded in time or ended by the kernel: the user's worker and tmux server and
the handshake (all of which end in `LaunchError` at worst), and the death of its main process, which a pidfd tells
whatever becomes of worker, tmux and D-Bus.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor import events
from forge_supervisor.config_files import key_path
from forge_supervisor.config_resources import Resources
from forge_supervisor.declared import prepare
from forge_supervisor.handshake import SCRIPT, LaunchError, hand_over
from forge_supervisor.launch import GAVE_UP
from forge_supervisor.pidfd import Pidfd
from forge_supervisor.policy import Exit
from forge_supervisor.realm import agent_environment
from forge_supervisor.saved import SavedSession
from forge_supervisor.units import Cleared, PlacementError
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import Collect, Open

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from forge_supervisor.declared import Declared
    from forge_supervisor.handshake import Handshake, Ticket
    from forge_supervisor.realm import Realm
    from forge_supervisor.units import Scope
    from forge_supervisor.worker.messages import Collected, Prepared

KILL_GRACE = 10.0
"""Seconds that a process gets to end on SIGKILL; one that hangs in the kernel does not end."""
HANGUP_GRACE = 2.0
"""Seconds that a process without its terminal gets to end on SIGHUP and SIGTERM."""
LEFTOVER_GRACE = 2.0
"""Seconds that what the worker has not found gets between SIGTERM and SIGKILL."""
LAUNCH_GRACE = 5.0
"""Seconds in which a launch whose supervisor has died comes to its end, one way or the other."""


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
        noted: Callable[[], None] = lambda: None,
        fresh: bool = False,
    ) -> None:
        self._declared = declared
        self._agent = declared.agent
        self._resources = declared.agent.resources
        self._invocation = invocation
        self._realm = realm
        self._conceal = conceal
        self._handshake = handshake
        self._emit = emit
        self._noted = noted
        self._fresh = fresh
        self.resumes = False
        """Whether its harness goes on with an earlier session."""
        self.saved: SavedSession | None = None
        """Where it is, as soon as it is somewhere; `noted` is called then, before any harness runs."""
        self._process: Pidfd | None = None
        self._server: Pidfd | None = None
        self._scope: Scope | None = None
        self._enclosing: Resources | None = None
        """With which limits its scope is made, or was, until it is over."""
        self._owns_server = False
        self._given_up = asyncio.Event()
        self._outcome: tuple[Exit, list[str], bool] | None = None
        self._before: SavedSession | None = None
        """Where the one before it was."""

    def follow(self, earlier: Session) -> None:
        """Be the one after another that has been closed, in the same pane if there still is one."""
        self._before = earlier._before

    def adopt(self, saved: SavedSession) -> bool:
        """Take over what another supervisor has launched, and tell whether its main process lives."""
        self.saved = saved
        self._process = _pinned(saved.pid, saved.uid, saved.born)
        self._server, self._owns_server = _pinned(saved.server, saved.uid, saved.server_born), True
        self._scope = self._realm.placement.scope(self._agent.name)
        return self._process is not None

    async def interrupted(self) -> bool:
        """Tell of a launch that another supervisor has begun whether it came to nothing; otherwise it was launched.

        The pane's first process ends by itself if the supervisor dies before it has said what to run.
        """
        if self.saved is None:
            return True
        deadline = asyncio.get_running_loop().time() + LAUNCH_GRACE
        while self._process is not None and not self._process.dead:
            what = _command_line(self._process.pid)
            late = asyncio.get_running_loop().time() > deadline
            # One that is just ending has no command line any more.
            if (what and SCRIPT.encode() not in what) or (late and not what):
                return False
            if late:
                self.kill()
                await self.death()
                await self.collect()
                return True
            await asyncio.sleep(0.02)  # exec is no event
        exit_, *_ = await self.collect()
        return exit_.code == GAVE_UP

    async def examine(self) -> None:
        """Look, without writing anything, whether it could be launched. Raises LaunchError."""
        await self._prepare(dry_run=True)

    async def launch(self) -> int:
        """Bring the harness to run, and return its pid. Raises LaunchError."""
        self._realm.placement.about_to_enclose()
        self._server = await self._realm.server()
        prepared, secrets = await self._prepare()
        if self._server.dead:
            # Meanwhile another one may have been started for other agents, in which this one would run.
            self._server = await self._realm.server()
        self.resumes = prepared.resumes
        if self._agent.resources != Resources() and not self._realm.placement.holds:
            self._warn("resources", "are not limited, which takes systemd")
        env = agent_environment(self._realm.user, self._agent, prepared.env, secrets, self._invocation)
        try:
            async with self._handshake.ticket(self._realm.user.uid) as ticket:
                self._process = await self._launch(ticket, prepared, env)
        except OSError as error:
            raise LaunchError("", f"the launch socket cannot be made: {error}") from error
        return self._process.pid

    async def death(self) -> None:
        """Return when the main process has died; or KILL_GRACE seconds after the SIGKILL that it does not heed."""
        if self._process is None:
            return
        if self._server is not None:
            await _first(self._process.wait(), self._server.wait(), self._given_up.wait())
        if (self._server is None or self._server.dead) and not self._process.dead:
            # Its terminal is gone. It has been sent SIGHUP by the kernel, and some programs live on.
            self.terminate()
            await _first(self._process.wait(), asyncio.sleep(HANGUP_GRACE))
            if not self._process.dead:
                self.kill()
            await _first(self._process.wait(), self._given_up.wait())

    async def collect(self) -> tuple[Exit, list[str], bool]:
        """Tell how the main process ended, what was last on its screen, and whether the kernel killed for memory.

        By then all that it left behind is gone.
        """
        if self._outcome is None:
            asking = asyncio.create_task(self._collected())
            try:
                await asyncio.sleep(0)
                # While the worker asks. As a rule all that was in it has ended with the main process.
                over = self._scope is not None and self._scope.is_over()
                exit_, screen, cleared = await asking
            finally:
                asking.cancel()
            if self._scope is not None and not over:
                cleared = _sum(cleared, await self._scope.end(LEFTOVER_GRACE))
            self._tell_leftovers(cleared)
            self._outcome = exit_, screen, cleared.oom_killed
        return self._outcome

    async def _collected(self) -> tuple[Exit, list[str], Cleared]:
        try:
            collected = await self._ask_collect()
        except (WorkerError, LaunchError) as error:
            self._warn("", f"its exit status cannot be known: {error}")
            return Exit(lost=True), [], Cleared()
        cleared = Cleared(collected.terminated, collected.killed, collected.left)
        if collected.code is None and collected.signal is None:
            return Exit(lost=True), collected.screen, cleared
        return Exit(code=collected.code, signal=collected.signal), collected.screen, cleared

    def _tell_leftovers(self, cleared: Cleared) -> None:
        name, user = self._agent.name, self._agent.run_as
        if cleared.terminated or cleared.killed:
            self._emit(
                events.LeftoversCleared(
                    agent=name, run_as=user, terminated=cleared.terminated, killed=cleared.killed
                )
            )
        if cleared.left:
            self._warn("", f"{cleared.left} processes that it left behind do not end")

    def terminate(self) -> None:
        """Send SIGTERM to the main process, if it lives."""
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the main process, if it lives; `death` then returns in bounded time."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
        asyncio.get_running_loop().call_later(KILL_GRACE, self._given_up.set)

    def limit(self, resources: Resources) -> bool:
        """Give what runs, or is about to, other limits; tell whether it has them.

        While its scope is made that is not known: it gets them afterwards.
        """
        self._resources = resources
        if self._scope is None and self._enclosing is not None:
            return resources == self._enclosing
        try:
            if self._scope is not None:
                self._scope.limit(resources)
        except PlacementError as error:
            self._warn("resources", str(error))
            return False
        return True

    def close(self) -> None:
        """It is over, and nothing is left of it to go on with."""
        self._before, self.saved = self.saved or self._before, None
        for pinned in (self._process, self._server if self._owns_server else None):
            if pinned is not None:
                pinned.close()
        self._process = self._scope = self._enclosing = None

    async def _prepare(self, *, dry_run: bool = False) -> tuple[Prepared, Mapping[str, str]]:
        # What is only examined is not the agent's last start.
        owner = f"{self._agent.name} (examined)" if dry_run else self._agent.name
        try:
            preparation = await prepare(
                self._realm,
                self._declared,
                dry_run=dry_run,
                fresh=self._fresh,
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
        # While the process gets ready. Should the worker have named any other of that user's, that is what ends below.
        enclosing = asyncio.create_task(self._enclose(process))
        try:
            await self._hand_over(process, ticket, prepared, env, enclosing)
        except asyncio.CancelledError:
            enclosing.cancel()
            await asyncio.gather(enclosing, return_exceptions=True)
            raise
        except Exception:
            # In this order: a scope that is made of one that has died would be left to nobody.
            await asyncio.gather(enclosing, return_exceptions=True)
            process.signal(signal.SIGKILL)
            if self._scope is not None:
                await self._scope.end(LEFTOVER_GRACE)
            process.close()
            raise
        return process

    async def _open(self, ticket: Ticket) -> Pidfd:
        assert self._server is not None, "launched without a server"
        request = Open(
            agent=self._agent.name,
            argv=list(ticket.argv),
            server=self._server.pid,
            invocation=self._invocation,
            pane=self._pane_before(self._server),
        )
        try:
            opened = await self._realm.ask(request)
        except WorkerError as error:
            raise LaunchError("", str(error)) from error
        for note in opened.notes:
            self._warn("", note)
        if self._server.dead:
            raise LaunchError("", "the tmux server ended")
        self.saved = SavedSession(
            uid=self._realm.user.uid,
            pid=opened.pid,
            born=0,
            pane=opened.pane,
            server=self._server.pid,
            server_born=self._server.born,
        )
        try:
            process = Pidfd(opened.pid, self._realm.user.uid)
        except ProcessLookupError:
            raise await self._early_death() from None
        except OSError as error:
            raise LaunchError("", f"the first process of its pane cannot be watched: {error}") from error
        self.saved = self.saved.model_copy(update={"born": process.born})
        self._noted()
        return process

    def _pane_before(self, server: Pidfd) -> str | None:
        before = self._before
        if before is None or (before.server, before.server_born) != (server.pid, server.born):
            return None
        return before.pane

    async def _hand_over(
        self, process: Pidfd, ticket: Ticket, prepared: Prepared, env: dict[str, str], admitted: asyncio.Future[None]
    ) -> None:
        handing_over = asyncio.create_task(
            hand_over(ticket, process.pid, prepared.cwd, prepared.argv, env, admitted=admitted)
        )
        try:
            await _first(asyncio.shield(handing_over), process.wait())
            if process.dead and not ticket.peer.done():
                raise await self._early_death()
            # It has asked, so the socket ends the wait: by the harness, by an error, or by death.
            await handing_over
        finally:
            handing_over.cancel()

    async def _enclose(self, process: Pidfd) -> None:
        """Put it in its scope, before it can have children."""
        self._enclosing = limits = self._resources
        try:
            self._scope = await self._realm.placement.enclose(self._agent.name, process, limits)
        except PlacementError as error:
            raise LaunchError("", str(error)) from error
        if self._resources != limits:
            self.limit(self._resources)

    async def _early_death(self) -> LaunchError:
        exit_, screen, _ = await self.collect()
        said = f": {screen[-1]}" if screen else ""
        return LaunchError("", f"the first process of its pane ended before it was told what to run ({exit_}){said}")

    async def _ask_collect(self) -> Collected:
        assert self.saved is not None, "not launched"
        request = Collect(
            agent=self._agent.name,
            pane=self.saved.pane,
            pid=self.saved.pid,
            invocation=self._invocation,
            # One that has died may have left its pid to any other process.
            server=None if self._server is None or self._server.dead else self._server.pid,
        )
        try:
            return await self._realm.ask(request)
        except WorkerLostError:
            # The status is tmux's to keep: another worker can ask for it.
            return await self._realm.ask(request)

    def _warn(self, key: str, text: str) -> None:
        name = self._agent.name
        self._emit(events.AgentWarning(agent=name, run_as=self._agent.run_as, key=key_path(name, key), problem=text))


def _pinned(pid: int, uid: int, born: int) -> Pidfd | None:
    """Pin a process that was, if it still is."""
    try:
        return Pidfd(pid, uid, born=born)
    except OSError:
        return None


def _command_line(pid: int) -> list[bytes]:
    """Return the words; none if it has ended, or is about to."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _sum(one: Cleared, other: Cleared) -> Cleared:
    return Cleared(
        one.terminated + other.terminated,
        one.killed + other.killed,
        # What the worker could not end is in the scope too, if there is one.
        other.left or (0 if other.killed else one.left),
        oom_killed=other.oom_killed,
    )


async def _first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Return when one of them has ended, having cancelled the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
