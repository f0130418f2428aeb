"""Where workers and tmux servers live: as transient units of systemd, or as plain children without it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import string
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from forge_supervisor.manager import Manager, ManagerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_log = logging.getLogger(__name__)

# Seconds: for a program to be executed; the same, when the supervisor's own stop may be what it waits for; for what an
# earlier supervisor left; for the kernel to end what got SIGKILL; for what is left of a unit whose main process ended.
_START_TIMEOUT = 20
_LATE_START_TIMEOUT = 1.0
_STALE_TIMEOUT = 5.0
_KILL_TIMEOUT = 5.0
_STOP_BACKSTOP = 10
# systemd.exec(5), 'Environment Variables in Spawned Processes': what a service gets unasked.
_SPAWN_ENVIRONMENT = (
    *("HOME", "INVOCATION_ID", "JOURNAL_STREAM", "LANG", "LOGNAME", "MANAGERPID", "MANAGERPIDFDID", "PATH", "SHELL"),
    *("MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "SYSTEMD_EXEC_PID", "TERM", "USER", "XDG_RUNTIME_DIR"),
)
# systemd.exec(5), 'Process Exit Codes': why what systemd forked never became the program.
_EXEC_FAILURES = {
    203: "{program} is missing, or that user may not execute it",
    216: "its groups cannot be set",
    217: "systemd does not know that user",
}
_IN_UNIT_NAME = frozenset(string.ascii_letters + string.digits + ":_.-")
_LONGEST_LINE = 8192


class PlacementError(Exception):
    """A process could not be started; the text is a sentence for the operator."""


@dataclass(frozen=True)
class User:
    """A Linux user as passwd(5) and group(5) have it; `groups` holds the primary one too."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def lookup(name: str) -> User:
    """Find a user by name. Raises LookupError with a sentence."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL
        raise LookupError(f'no such user "{name}" (create it: useradd -m {name})') from None
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return User(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell or "/bin/sh")


class Process(Protocol):
    pid: int
    unit: str
    """The name of its unit; empty without systemd."""

    async def stop(self, grace: float) -> None:
        """SIGTERM, up to `grace` seconds to end, then SIGKILL to all that belongs to it. Raises nothing."""
        ...


class Placement(Protocol):
    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        """Start a process as `user` in /, with exactly `env`. Raises PlacementError.

        `name` says what it is to that user (worker, tmux). `argv[0]` is an absolute path. `stdin` is a descriptor that
        stays the caller's to close; /dev/null by default. What the process writes goes to the journal, or to our log.
        """
        ...

    async def discard(self) -> None:
        """End all that an earlier supervisor has left, as far as it can be found. Raises PlacementError."""
        ...

    def stopping(self) -> None:
        """Take note that the supervisor itself is being stopped: nothing may wait for the end of that."""
        ...

    async def close(self) -> None:
        """Let go of all processes, without ending them."""
        ...


def detect() -> Placement:
    """Choose systemd wherever it may start units for us: PID 1 for root, the user's own manager otherwise.

    Within a running event loop only.
    """
    path = _manager_path()
    # The socket of a systemd that is not running stays behind, so it must answer.
    with contextlib.suppress(ManagerError), Manager(path) as manager:
        manager.environment()
        return SystemdPlacement(path)
    return DirectPlacement()


def _manager_path() -> str:
    if os.geteuid() == 0:
        return "/run/systemd/private"
    return os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}") + "/systemd/private"


class SystemdPlacement:
    """Transient services in forge.slice. They outlive the supervisor unless they are stopped.

    One that a supervisor of before left behind is ended when another of its name is to be started.
    """

    def __init__(self, manager_path: str) -> None:
        self._manager_path = manager_path
        self._mode = "fail"
        self._limits: set[asyncio.Timeout] = set()

    def stopping(self) -> None:
        # A unit that is ordered before the supervisor's is not started before that has stopped. Yet an exit status may
        # still have to be asked for, by a worker that has to be started for it.
        self._mode = "ignore-dependencies"
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time() + _LATE_START_TIMEOUT)

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        _check_user(user)
        unit = unit_name(name, user.name)
        try:
            with Manager(self._manager_path) as manager:
                # Asked for first: a call with a descriptor that is refused would leak the descriptor (pystemd 0.15.3).
                await self._discard(manager, unit)
                properties = _properties(name, user, argv, env, manager.environment())
                if stdin is not None:
                    properties[b"StandardInputFileDescriptor"] = stdin
                async with self._limit():
                    pid = await _start(manager, unit, argv[0], properties, self._mode)
                return _SystemdProcess(pid, unit, manager.invocation(unit), self._manager_path)
        except ManagerError as error:
            raise PlacementError(f"{unit} cannot be started: {error}") from error
        except TimeoutError:
            text = f"{unit} was not started within {_START_TIMEOUT} s (systemctl list-jobs tells what it waits for)"
            raise PlacementError(text) from None

    @contextlib.asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        async with asyncio.timeout(_START_TIMEOUT) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def discard(self) -> None:
        try:
            with Manager(self._manager_path) as manager:
                # Workers first: they end with their supervisor anyway.
                for name in ("worker", "tmux"):
                    for unit in manager.units(f"forge-{name}-*.service"):
                        await self._try_to_discard(manager, unit)
        except ManagerError as error:
            raise PlacementError(f"what is left from an earlier supervisor cannot be ended: {error}") from error

    async def _try_to_discard(self, manager: Manager, unit: str) -> None:
        try:
            await self._discard(manager, unit)
        except ManagerError as error:
            # Its user's agents will fail to start and say so; the others are not held up.
            _log.error("%s cannot be ended: %s", unit, error)

    async def _discard(self, manager: Manager, unit: str) -> None:
        if left := manager.invocation(unit):
            _log.warning("%s is left from an earlier supervisor and will be ended", unit)
            await _end(manager, unit, left, _STALE_TIMEOUT)

    async def close(self) -> None:
        """Nothing is held: each operation has its own connection."""


class _SystemdProcess:
    def __init__(self, pid: int, unit: str, invocation: bytes, manager_path: str) -> None:
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


async def _start(
    manager: Manager, unit: str, program: str, properties: Mapping[bytes, object], mode: str
) -> int:
    try:
        result = await manager.start_transient(unit, properties, mode=mode)
    except asyncio.CancelledError:
        # By a job, as there may be no process yet that could be killed.
        with contextlib.suppress(ManagerError):
            manager.queue_stop(unit)
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


def _see(unit: str) -> str:
    return f"journalctl {'' if os.geteuid() == 0 else '--user '}-u {unit}"


async def _end(manager: Manager, unit: str, invocation: bytes, grace: float) -> None:
    """End that unit and wait until it is gone; not another that has got its name meanwhile.

    By signals, not by StopUnit: a stop job of a unit that is ordered before forge-supervisor.service waits until the
    stop job of that has ended, which would be waiting for us.
    """
    for whom, number, patience in (("main", signal.SIGTERM, grace), ("all", signal.SIGKILL, _KILL_TIMEOUT)):
        if manager.invocation(unit) != invocation:
            return
        # Its main process may have died already, while systemd is clearing up behind it.
        with contextlib.suppress(ManagerError):
            manager.kill(unit, whom, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await manager.removed(unit, invocation)
                return
    raise ManagerError("it does not end, not even by SIGKILL")


def unit_name(name: str, user: str) -> str:
    """Make ``forge-tmux-team.service``; what a unit's name may not hold is escaped as systemd.unit(5) has it."""
    escaped = "".join(char if char in _IN_UNIT_NAME else _escape(char) for char in user)
    return f"forge-{name}-{escaped}.service"


def _escape(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def _properties(
    name: str, user: User, argv: Sequence[str], env: Mapping[str, str], inherited: Sequence[str]
) -> dict[bytes, object]:
    # systemd.service(5): $ in arguments is expanded, $$ is a dollar sign.
    arguments = [os.fsencode(argument.replace("$", "$$")) for argument in argv]
    unset = {variable.partition("=")[0] for variable in inherited}.union(_SPAWN_ENVIRONMENT).difference(env)
    return {
        b"Description": f"forge {name} of {user.name}".encode(),
        b"Type": b"exec",  # started means executed: a program that cannot be is a failed start
        b"ExecStart": [(os.fsencode(argv[0]), arguments, False)],
        **({b"User": user.name.encode()} if os.geteuid() != user.uid else {}),
        b"WorkingDirectory": b"/",
        b"Environment": [os.fsencode(f"{key}={value}") for key, value in env.items()],
        b"UnsetEnvironment": [variable.encode() for variable in sorted(unset)],
        b"IgnoreSIGPIPE": False,
        b"StandardOutput": b"journal",
        b"StandardError": b"journal",
        b"Slice": b"forge.slice",
        b"CollectMode": b"inactive-or-failed",
        b"TimeoutStopUSec": _STOP_BACKSTOP * 1_000_000,
        # At shutdown units stop in reverse order: the supervisor sees its agents end before their terminals do.
        b"Before": [b"forge-supervisor.service"],
        # By default systemd stops the whole unit where the kernel killed but one process, systemd.service(5).
        b"_custom": (b"OOMPolicy", b"s", b"continue"),
    }


class DirectPlacement:
    """Children that have dropped privileges, each in a session of its own; what they write is logged line by line."""

    def __init__(self) -> None:
        self._outputs: list[asyncio.ReadTransport] = []

    def stopping(self) -> None:
        """Children wait for nobody."""

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        _check_user(user)
        output, theirs = os.pipe()
        try:
            child = _spawn(user, argv, env, subprocess.DEVNULL if stdin is None else stdin, theirs)
        except OSError as error:
            os.close(output)
            raise PlacementError(f"{argv[0]} cannot be run as {user.name}: {error.strerror}") from error
        finally:
            os.close(theirs)
        await self._log_output(output, name, user.name)
        return _Child(child)

    async def discard(self) -> None:
        """Nothing tells a child of an earlier supervisor from any other process."""

    async def close(self) -> None:
        for output in self._outputs:
            output.close()

    async def _log_output(self, output: int, name: str, user: str) -> None:
        # Not our own stderr: a descriptor of root's terminal can be read from, and escape sequences written to it.
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Output(name, user), os.fdopen(output, "rb", buffering=0)
        )
        self._outputs = [other for other in self._outputs if not other.is_closing()]
        self._outputs.append(transport)


def _check_user(user: User) -> None:
    if os.geteuid() not in {0, user.uid}:
        raise PlacementError(f"only root may start processes as {user.name}")


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

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.pid = child.pid
        self._child = child
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._pidfd = os.pidfd_open(child.pid)
        loop.add_reader(self._pidfd, self._reap)

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
        self._child.wait()
        self._ended.set_result(None)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


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
