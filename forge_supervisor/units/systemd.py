"""Processes in transient units of systemd: a service for each user's worker and tmux server, a scope for each agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from forge_supervisor import private_directory
from forge_supervisor.policy import Exit
from forge_supervisor.units import cgroups, properties
from forge_supervisor.units.manager import DisconnectedError, Manager, ManagerError
from forge_supervisor.units.placement import Cleared, PlacementError, check_user, ran_out
from forge_supervisor.units.properties import scope_name, unit_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from forge_supervisor.config_resources import Resources
    from forge_supervisor.pidfd import Pidfd
    from forge_supervisor.units.placement import Process, Scope, User

_log = logging.getLogger(__name__)

# Seconds: for a program to be executed; the same, when the supervisor's own stop may be what it waits for; for what an
# earlier supervisor left; for the kernel to end what got SIGKILL.
_START_TIMEOUT = 20
_LATE_START_TIMEOUT = 1.0
_STALE_TIMEOUT = 5.0
_KILL_TIMEOUT = 5.0
# While systemd is re-executed: seconds between tries, and after which it is taken to be gone.
_REEXEC_PAUSE = 0.05
_REEXEC_PATIENCE = 5.0
# systemd.exec(5), 'Process Exit Codes': why what systemd forked never became the program.
_EXEC_FAILURES = {
    203: "{program} is missing, or that user may not execute it",
    216: "its groups cannot be set",
    217: "systemd does not know that user",
}


def manager_path() -> str:
    """Return the socket of the manager that starts units for us."""
    if os.geteuid() == 0:
        return "/run/systemd/private"
    return os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}") + "/systemd/private"


def own_job() -> str:
    """Name the type of the job that is queued for the unit that we are in (``stop``, ``restart`` …), or none.

    Raises ManagerError. Within a running event loop only, which stands still while systemd is re-executed.
    """
    deadline = time.monotonic() + _REEXEC_PATIENCE
    while True:
        try:
            with Manager(manager_path()) as manager:
                return manager.job(manager.unit_of(os.getpid()))
        except DisconnectedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_REEXEC_PAUSE)


class SystemdPlacement:
    """Units in forge.slice. They outlive the supervisor unless they are stopped."""

    holds = True

    def __init__(self, manager_path: str) -> None:
        self._manager_path = manager_path
        self._mode = "fail"
        self._limits: set[asyncio.Timeout] = set()
        self._root: str | None = None
        self._easing: Future[None] | None = None
        # asyncio's own executor takes one more thread to be shut down, be that possible or not.
        self._beside = ThreadPoolExecutor(1)

    def stopping(self) -> None:
        # A unit that is ordered before the supervisor's is not started before that has stopped. Yet an exit status may
        # still have to be asked for, by a worker that has to be started for it.
        self._mode = "ignore-dependencies"
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time() + _LATE_START_TIMEOUT)

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        check_user(user)
        unit = unit_name(name, user.name)
        try:
            with Manager(self._manager_path) as manager:
                # Asked for first: a call with a descriptor that is refused would leak the descriptor (pystemd 0.15.3).
                await self._discard(manager, unit)
                told = properties.of_service(name, user, argv, env, manager.environment())
                if stdin is not None:
                    told[b"StandardInputFileDescriptor"] = stdin
                async with self._limit():
                    pid = await _start(manager, unit, argv[0], told, self._mode)
                return _SystemdProcess(pid, unit, manager.invocation(unit), self._manager_path)
        except ManagerError as error:
            raise PlacementError(f"{unit} cannot be started: {error}") from error
        except TimeoutError:
            text = f"{unit} was not started within {_START_TIMEOUT} s (systemctl list-jobs tells what it waits for)"
            raise PlacementError(text) from None

    async def complete(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int, within: float
    ) -> None:
        check_user(user)
        unit = unit_name(name, user.name)
        try:
            with Manager(self._manager_path) as manager:
                # What an earlier supervisor has begun under that name is to come to its end, for which it has its time.
                await manager.ended(unit, manager.invocation(unit))
                told = properties.of_errand(name, user, argv, env, manager.environment(), within)
                told[b"StandardInputFileDescriptor"] = stdin
                # systemd ends it in time; no limit of ours, and whoever cancels this leaves it to that.
                result = await manager.start_transient(unit, told, mode=self._mode)
                ended = manager.changes(unit)
        except DisconnectedError as error:
            raise PlacementError(f"how {unit} ended is not known: {error}") from error
        except ManagerError as error:
            raise PlacementError(f"{unit} cannot be run: {error}") from error
        if result != "done":
            raise PlacementError(f"{_ending(result, ended, argv[0], within)} ({_see(unit)})")

    async def make_private(self, path: Path, user: User) -> None:
        if os.geteuid() != 0:
            return
        # By PID 1, as we have a /tmp of our own, and no right to what is in others'.
        unit = unit_name("directory", user.name)
        argv = (sys.executable, "-I", "-m", private_directory.__name__, str(path), str(user.uid), str(user.gid))
        try:
            with Manager(self._manager_path) as manager:
                await self._discard(manager, unit)
                async with self._limit():
                    result = await manager.start_transient(unit, properties.of_task(unit, argv), mode=self._mode)
        except (ManagerError, TimeoutError) as error:
            raise PlacementError(f"{unit} cannot be run: {error}") from error
        if result != "done":
            raise PlacementError(f"{path} cannot be made for {user.name} ({_see(unit)})")

    @contextlib.asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        async with asyncio.timeout(_START_TIMEOUT) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def find(self, name: str, user: User) -> Process | None:
        unit = unit_name(name, user.name)
        with contextlib.suppress(ManagerError), Manager(self._manager_path) as manager:
            # In that order, as a question about a unit that is not loaded loads it, with nothing in it.
            if (invocation := manager.invocation(unit)) and (pid := manager.main_pid(unit)):
                return _SystemdProcess(pid, unit, invocation, self._manager_path)
        return None

    def about_to_enclose(self) -> None:
        if self._easing is None or self._easing.done():
            with contextlib.suppress(RuntimeError):  # no thread can be started
                self._easing = self._beside.submit(cgroups.ease_moves)

    async def enclose(self, agent: str, process: Pidfd, resources: Resources) -> Scope:
        unit = scope_name(agent)
        told = properties.of_scope(agent, process.pid, resources)
        try:
            async with self._limit():
                while True:
                    with contextlib.suppress(DisconnectedError):
                        return await self._enclose(unit, process, told)
                    await asyncio.sleep(_REEXEC_PAUSE)
        except ManagerError as error:
            raise PlacementError(f"{unit} cannot be made: {error}") from error
        except TimeoutError:
            raise PlacementError(f"{unit} was not made in time (systemctl list-jobs tells what it waits for)") from None

    async def _enclose(self, unit: str, process: Pidfd, told: Mapping[bytes, object]) -> Scope:
        with Manager(self._manager_path) as manager:
            try:
                result = await manager.start_transient(unit, told, mode=self._mode)
            except DisconnectedError:
                raise
            except ManagerError:
                if manager.invocation(unit) is None:
                    raise
                there = await self._encloses(manager, unit, process)
                result = "done" if there else await manager.start_transient(unit, told, mode=self._mode)
            if process.dead:
                # Until now nobody else could have its pid; and who may have it since is not ours to end.
                manager.abandon(unit)
                result = "its first process ended"
            if result != "done":
                raise PlacementError(f"{unit} cannot be made: {result}")
            # It has been told as a rule.
            invocation = manager.changes(unit).get(b"InvocationID") or manager.invocation(unit, loads=True)
            return _SystemdScope(unit, bytes(invocation or b""), self._manager_path)

    async def _encloses(self, manager: Manager, unit: str, process: Pidfd) -> bool:
        """Tell of a scope that is there whether the process is in it; any other is ended."""
        # It may have been made, or be about to be, and only the answer have been lost.
        while manager.invocation(unit) is not None and manager.job(unit) == "start":  # noqa: ASYNC110
            await asyncio.sleep(_REEXEC_PAUSE)
        if manager.invocation(unit) and not process.dead and manager.unit_of(process.pid) == unit:
            return True
        await self._discard(manager, unit)
        return False

    def scope(self, agent: str) -> Scope:
        unit = scope_name(agent)
        invocation = None
        with contextlib.suppress(ManagerError), Manager(self._manager_path) as manager:
            invocation = manager.invocation(unit)
        return _SystemdScope(unit, invocation, self._manager_path)

    def scope_name(self, agent: str) -> str | None:
        return scope_name(agent)

    def agent_of(self, pid: int, agents: Mapping[int, str]) -> str | None:  # noqa: ARG002
        if self._root is None:
            try:
                with Manager(self._manager_path) as manager:
                    self._root = manager.control_group()
            except ManagerError:
                return ""
        return cgroups.agent_of(pid, self._root)

    def memory_of(self, pid: int) -> int | None:
        return cgroups.memory_of(pid)

    async def discard(self, users: Collection[str], agents: Collection[str]) -> None:
        kept = {unit_name("tmux", user) for user in users}.union(map(scope_name, agents))
        try:
            # Workers first: they end with their supervisor anyway. Terminals last: they take their agents' with them.
            for pattern in ("forge-worker-*.service", "forge-agent-*.scope", "forge-tmux-*.service"):
                with Manager(self._manager_path) as manager:
                    left = [unit for unit in manager.units(pattern) if unit not in kept]
                await asyncio.gather(*map(self._try_to_discard, left))
        except ManagerError as error:
            raise PlacementError(f"what is left from an earlier supervisor cannot be ended: {error}") from error

    async def _try_to_discard(self, unit: str) -> None:
        try:
            with Manager(self._manager_path) as manager:
                await self._discard(manager, unit)
        except ManagerError as error:
            # Its user's agents will fail to start and say so; the others are not held up.
            _log.error("%s cannot be ended: %s", unit, error)

    async def _discard(self, manager: Manager, unit: str) -> None:
        if (left := manager.invocation(unit)) is None:
            return
        # A worker ends with its supervisor, and one that still does so is nothing to tell.
        level = logging.DEBUG if unit.startswith("forge-worker-") else logging.WARNING
        _log.log(level, "%s is left from an earlier supervisor and will be ended", unit)
        await _end(manager, unit, left, _STALE_TIMEOUT)

    async def close(self, *, leave: bool) -> None:  # noqa: ARG002 - see Placement
        """Nothing else is held: each operation has its own connection."""
        self._beside.shutdown(wait=False)


class _SystemdProcess:
    def __init__(self, pid: int, unit: str, invocation: bytes | None, manager_path: str) -> None:
        self.pid = pid
        self.unit = unit
        self._invocation = invocation
        self._manager_path = manager_path

    async def stop(self, grace: float) -> None:
        try:
            with Manager(self._manager_path) as manager:
                await _end(manager, self.unit, self._invocation, grace)
        except ManagerError as error:
            _log.warning("%s could not be stopped: %s", self.unit, error)


class _SystemdScope:
    def __init__(self, unit: str, invocation: bytes | None, manager_path: str) -> None:
        self._unit = unit
        self._invocation = invocation
        self._manager_path = manager_path

    def limit(self, resources: Resources) -> None:
        try:
            with Manager(self._manager_path) as manager:
                manager.set_properties(self._unit, resources.properties())
        except ManagerError as error:
            raise PlacementError(f"{self._unit} keeps its limits: {error}") from error

    def is_over(self) -> bool:
        if self._invocation is None:
            return True
        with contextlib.suppress(ManagerError), Manager(self._manager_path) as manager:
            return self._is_gone(manager)
        return False

    def _is_gone(self, manager: Manager) -> bool:
        return manager.invocation(self._unit, loads=True) != self._invocation

    async def end(self, grace: float) -> Cleared:
        if self._invocation is None:
            return Cleared()
        found = 0
        deadline = asyncio.get_running_loop().time() + _REEXEC_PATIENCE
        while True:
            try:
                with Manager(self._manager_path) as manager:
                    # As a rule: what was empty when the main process died is collected by now.
                    if self._is_gone(manager):
                        return Cleared()
                    found = manager.count_processes(self._unit)
                    result, killed = await _end_counted(manager, self._unit, self._invocation, grace)
                    return Cleared(found - killed, killed, oom_killed=result == "oom-kill")
            except ManagerError as error:
                if not isinstance(error, DisconnectedError) or asyncio.get_running_loop().time() > deadline:
                    _log.error("%s cannot be ended: %s", self._unit, error)
                    return Cleared(left=found)
            await asyncio.sleep(_REEXEC_PAUSE)


async def _start(
    manager: Manager, unit: str, program: str, properties: Mapping[bytes, object], mode: str
) -> int:
    try:
        result = await manager.start_transient(unit, properties, mode=mode)
    except asyncio.CancelledError:
        # By a job, as there may be no process yet that could be killed.
        with contextlib.suppress(ManagerError):
            manager.stop(unit)
        raise
    if result == "done":
        # The unit may be gone again.
        with contextlib.suppress(ManagerError):
            if pid := manager.main_pid(unit):
                return pid
        raise PlacementError(f"{unit} ended as soon as it was started ({_see(unit)})")
    changes = manager.changes(unit)
    outcome = changes.get(b"Result", b"?").decode()
    status = changes.get(b"ExecMainStatus", 0)
    why = _EXEC_FAILURES.get(status, f"status {status}").format(program=program)
    raise PlacementError(f"{unit} did not start: {why} (job {result}, result {outcome}; {_see(unit)})")


def _ending(job: str, ended: Mapping[bytes, Any], program: str, within: float) -> str:
    """Say how a unit ended that has not ended well, by its last properties."""
    result, status = ended.get(b"Result", b"?").decode(), ended.get(b"ExecMainStatus", 0)
    if result == "timeout":
        return ran_out(within)
    if result == "exit-code":
        return _EXEC_FAILURES.get(status, str(Exit(code=status))).format(program=program)
    return str(Exit(signal=status)) if result == "signal" else f"job {job}, result {result}"


def _see(unit: str) -> str:
    return f"journalctl {'' if os.geteuid() == 0 else '--user '}-u {unit}"


async def _end(manager: Manager, unit: str, invocation: bytes | None, grace: float) -> None:
    await _end_counted(manager, unit, invocation, grace)


async def _end_counted(manager: Manager, unit: str, invocation: bytes | None, grace: float) -> tuple[str, int]:
    """End that unit and wait until it is gone; not another that has got its name meanwhile.

    Returns its Result (empty if it is gone already) and how many processes SIGTERM did not end.

    By signals, as the time that each gets is ours to say, and then by a job that waits for no other: by default a stop
    of a unit that is ordered before forge-supervisor.service waits until that has stopped, which would be waiting for
    us. Without processes only a job ends it: one that is still to be started, or a scope whose first process had died
    when it was put there, of which systemd is never told that it is empty.
    """
    stubborn = 0
    first = "all" if unit.endswith(".scope") else "main"
    for whom, number, patience in ((first, signal.SIGTERM, grace), ("all", signal.SIGKILL, _KILL_TIMEOUT)):
        processes = manager.count_processes(unit)
        with contextlib.suppress(ManagerError):  # it may be gone by now
            manager.kill(unit, invocation, whom, number)
            if number == signal.SIGKILL:
                stubborn = processes
            if (number == signal.SIGKILL or not processes) and manager.invocation(unit) == invocation:
                manager.stop(unit)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                return await manager.ended(unit, invocation), stubborn
    raise ManagerError("it does not end, not even by SIGKILL")
