"""Processes as plain children, for a machine without systemd (a container): each in a session of its own.

The supervisor is the subreaper of all that they start, prctl(2), so that what an agent has left behind can be found
when everything is stopped. A supervisor that is killed leaves its tmux servers and agents to the next one, which knows
the servers by a file in the runtime directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor import private_directory
from forge_supervisor.pidfd import Pidfd, birth, parent
from forge_supervisor.policy import Exit
from forge_supervisor.units.placement import Cleared, PlacementError, check_user, ran_out

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from forge_supervisor.config_resources import Resources
    from forge_supervisor.units.placement import Process, Scope, User

_log = logging.getLogger(__name__)

# Seconds for the kernel to end what got SIGKILL.
_KILL_TIMEOUT = 5.0
# Seconds for what was to be done long ago to end on SIGTERM.
_ERRAND_GRACE = 2.0
_LONGEST_LINE = 8192
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class DirectPlacement:
    """Children that have dropped privileges, each in a session of its own; what they write is logged line by line.

    Without a `runtime` directory nothing is remembered of them, and nobody's orphans are taken in.
    """

    holds = False

    def __init__(self, runtime: Path | None = None) -> None:
        self._runtime = runtime
        self._outputs: list[asyncio.ReadTransport] = []
        self._children: set[int] = set()
        self._strays: set[int] = set()
        self._orphans = _Orphans(self._children) if runtime is not None else None

    def stopping(self) -> None:
        """Children wait for nobody."""

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        process = await self._begin(name, user, argv, env, stdin)
        self._remember(name, user, process.pid)
        return process

    async def complete(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int, within: float
    ) -> None:
        process = await self._begin(name, user, argv, env, stdin)
        try:
            status = await process.status(within)
        finally:
            # Whoever cancels this leaves nothing behind: here nobody else would end it.
            await process.stop(_ERRAND_GRACE)
        if status is None:
            raise PlacementError(ran_out(within))
        if status:
            raise PlacementError(str(Exit(code=status) if status > 0 else Exit(signal=-status)))

    async def _begin(
        self, name: str, user: User, argv: Sequence[str], env: Mapping[str, str], stdin: int | None
    ) -> _Child:
        check_user(user)
        output, theirs = os.pipe()
        try:
            child = _spawn(user, argv, env, subprocess.DEVNULL if stdin is None else stdin, theirs)
        except OSError as error:
            os.close(output)
            raise PlacementError(f"{argv[0]} cannot be run as {user.name}: {error.strerror}") from error
        finally:
            os.close(theirs)
        self._children.add(child.pid)
        process = _Child(child, self._children)
        await self._log_output(output, name, user.name)
        return process

    async def make_private(self, path: Path, user: User) -> None:
        try:
            if os.geteuid() == 0:
                private_directory.make(path, user.uid, user.gid)
        except OSError as error:
            raise PlacementError(f"{path} cannot be made for {user.name}: {error.strerror}") from error

    def _record(self, name: str, user: User) -> Path | None:
        return None if self._runtime is None else self._runtime / f"direct-{name}-{user.uid}"

    def _remember(self, name: str, user: User, pid: int) -> None:
        record = self._record(name, user)
        with contextlib.suppress(ProcessLookupError):
            if record is not None:
                record.write_text(f"{pid} {birth(pid)}", encoding="ascii")

    async def find(self, name: str, user: User) -> Process | None:
        record = self._record(name, user)
        if record is None:
            return None
        try:
            pid, born = map(int, record.read_text(encoding="ascii").split())
            stray = _Stray(Pidfd(pid, user.uid, born=born))
        except (OSError, ValueError):
            return None
        self._strays.add(pid)
        return stray

    def about_to_enclose(self) -> None:
        """Nothing is enclosed."""

    async def enclose(self, agent: str, process: Pidfd, resources: Resources) -> Scope:  # noqa: ARG002 - see Placement
        return _NoScope()

    def scope(self, agent: str) -> Scope:  # noqa: ARG002 - see Placement
        return _NoScope()

    def scope_name(self, agent: str) -> str | None:  # noqa: ARG002
        return None

    def agent_of(self, pid: int, agents: Mapping[int, str]) -> str | None:
        # All that agents start descends from them or, left behind, from their subreaper, which we are.
        ours = {os.getpid(), *self._children, *self._strays}
        try:
            while pid > 1:
                if pid in agents:
                    return agents[pid]
                if pid in ours:
                    return ""
                pid = parent(pid)
        except OSError:
            return ""
        return None

    def memory_of(self, pid: int) -> int | None:  # noqa: ARG002
        return None

    async def discard(self, users: Collection[str], agents: Collection[str]) -> None:
        """Nothing tells the child of an earlier supervisor from any other process, but for what `find` finds."""

    async def close(self, *, leave: bool) -> None:
        if self._orphans is not None:
            await self._orphans.close(leave=leave)
        for output in self._outputs:
            output.close()

    async def _log_output(self, output: int, name: str, user: str) -> None:
        # Not our own stderr: a descriptor of root's terminal can be read from, and escape sequences written to it.
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Output(name, user), os.fdopen(output, "rb", buffering=0)
        )
        self._outputs = [other for other in self._outputs if not other.is_closing()]
        self._outputs.append(transport)


def _spawn(user: User, argv: Sequence[str], env: Mapping[str, str], stdin: int, output: int) -> subprocess.Popen[bytes]:
    drop: dict[str, Any] = {}
    if os.geteuid() != user.uid:
        drop = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    return subprocess.Popen(
        argv,
        env=env,
        cwd="/",
        stdin=stdin,
        stdout=output,
        stderr=output,
        start_new_session=True,
        umask=0o022,
        **drop,
    )


class _Child:
    """A child process with its process group; reaped as soon as it ends, whether or not anybody waits for it."""

    unit = ""

    def __init__(self, child: subprocess.Popen[bytes], siblings: set[int]) -> None:
        self.pid = child.pid
        self._child = child
        self._siblings = siblings
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(child.pid)
        loop.add_reader(self._pidfd, self._reap)

    async def status(self, within: float) -> int | None:
        """Return its exit code, or its signal as a negative number; None if it lives longer than `within` seconds."""
        await asyncio.wait([self._ended], timeout=within)
        return self._ended.result() if self._ended.done() else None

    async def stop(self, grace: float) -> None:
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            await asyncio.wait([self._ended], timeout=grace)
        if not self._ended.done():
            self._kill_group()
            await asyncio.wait([self._ended], timeout=_KILL_TIMEOUT)
        if not self._ended.done():
            _log.warning("process %d could not be stopped, not even by SIGKILL", self.pid)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # As a service's cgroup is cleared when its main process has ended. Until it is reaped nobody else gets its
        # number, so that this is its group for sure.
        self._kill_group()
        status = self._child.wait()
        self._siblings.discard(self.pid)
        self._ended.set_result(status)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class _Stray:
    """What an earlier supervisor has started, and we are no parent of."""

    unit = ""

    def __init__(self, process: Pidfd) -> None:
        self.pid = process.pid
        self._process = process

    async def stop(self, grace: float) -> None:
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_TIMEOUT)):
            self._process.signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._process.wait()
                    break
        self._process.close()


class _NoScope:
    """Without cgroups of our own: the worker ends what it finds by session, environment and descent."""

    def limit(self, resources: Resources) -> None:
        """Nothing holds processes to limits; the supervisor has said so."""

    def is_over(self) -> bool:
        return True

    async def end(self, grace: float) -> Cleared:  # noqa: ARG002 - see Scope
        return Cleared()


class _Orphans:
    """Descendants that have lost their parent and have become our children, as those of an init do."""

    def __init__(self, known: set[int]) -> None:
        self._known = known
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def _pids(self) -> list[int]:
        children: list[int] = []
        for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - threads that end meanwhile
            with contextlib.suppress(OSError):
                children += map(int, Path(f"/proc/self/task/{task}/children").read_text(encoding="ascii").split())
        return [pid for pid in children if pid not in self._known]

    def _reap(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    async def close(self, *, leave: bool) -> None:
        """Kill those that there are, unless they are to `leave`; each may have children, who then are ours."""
        deadline = self._loop.time() + _KILL_TIMEOUT
        while not leave and (pids := self._pids()) and self._loop.time() < deadline:
            for pid in pids:
                # Not reaped yet, so the number is still its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
            self._reap()
        self._loop.remove_signal_handler(signal.SIGCHLD)


class _Output(asyncio.Protocol):
    def __init__(self, name: str, user: str) -> None:
        self._name = name
        self._user = user
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log(line)

    def eof_received(self) -> None:
        if self._rest:
            self._log(self._rest)

    def _log(self, line: bytes) -> None:
        said = line.decode(errors="replace")
        _log.warning("%s of %s: %s", self._name, self._user, said, extra={"run_as": self._user})
