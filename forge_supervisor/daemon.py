"""The long-running process: signals, systemd's notifications, and the wiring of everything else."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import sdnotify

from forge_supervisor import config, events, journal, units
from forge_supervisor.handshake import Handshake
from forge_supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forge_supervisor.config import Config

# Beyond all stop timeouts: a launch under way, SIGKILL, clearing leftovers, the tmux servers.
STOP_MARGIN_SEC = 150
ONE_DAY_SEC = 86_400


def refuse(error: config.ConfigError) -> None:
    """Log why nothing runs, and end the agents of a supervisor that was killed: nobody is going to watch them."""
    for problem in error.problems:
        journal.log(events.ConfigError(file=problem.file, key=problem.key, problem=problem.text))

    async def discard() -> None:
        await units.detect().discard()

    with contextlib.suppress(UnusableRuntimeError, units.PlacementError), only_one(runtime_directory()):
        asyncio.run(discard())


def runtime_directory() -> Path:
    """Tell where sockets are: what the unit says, or else the place that it would say."""
    given = os.environ.get("RUNTIME_DIRECTORY")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/forge-supervisor")
    own = os.environ.get("XDG_RUNTIME_DIR")
    # only_one() refuses one in /tmp that somebody else has made.
    return Path(own) / "forge-supervisor" if own else Path(f"/tmp/forge-supervisor-{os.geteuid()}")  # noqa: S108


class UnusableRuntimeError(Exception):
    pass


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[Path]:
    """Hold the runtime directory against a second supervisor. Raises UnusableRuntimeError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Agents' users connect to the socket in it, and only its owner may put another in its place.
        status = directory.lstat()
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            raise UnusableRuntimeError(f"{directory} is not a directory of this user (remove it)")
        directory.chmod(0o755)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnusableRuntimeError(f"the runtime directory {directory} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield directory
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace")
        text = f"another forge-supervisor is running (pid {holder} holds {directory}/lock)"
        raise UnusableRuntimeError(text) from None
    finally:
        os.close(lock)


class Daemon:
    """One run of the supervisor, until it is told to stop."""

    def __init__(self, loaded: Config, load: Callable[[], Config], runtime: Path) -> None:
        self._config = loaded
        self._load = load
        self._handshake = Handshake(runtime)
        self._notifier = sdnotify.SystemdNotifier()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._stop_reason = ""
        self._status = ""
        self._complaint = ""
        self._at_terminal = os.isatty(2)
        self._supervisor: Supervisor | None = None

    async def run(self) -> int:
        """Run until a signal ends it. Raises OSError or PlacementError if it cannot begin."""
        self._handle_signals()
        _warn_of(self._config)
        placement = units.detect()
        # What an earlier supervisor left holds agents that nobody watches, maybe of users that have none any more.
        await placement.discard()
        self._supervisor = supervisor = Supervisor(
            self._config,
            placement=placement,
            handshake=self._handshake,
            emit=journal.log,
            conceal=journal.conceal,
            changed=self._tell_status,
        )
        watchdog = asyncio.create_task(self._feed_watchdog())
        serving = asyncio.create_task(self._serve(supervisor))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self._notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={self._longest_stop() * 1_000_000}")
        journal.log(events.SupervisorStopping(reason=self._stop_reason or "a fault"))
        serving.cancel()
        stopping.cancel()
        outcome = (await asyncio.gather(serving, return_exceptions=True))[0]
        await supervisor.stop()
        self._handshake.close()
        await placement.close()
        watchdog.cancel()
        journal.log(events.SupervisorStopped())
        if not isinstance(outcome, asyncio.CancelledError):
            assert outcome is not None, "it serves for ever"
            raise outcome
        return 0

    async def _serve(self, supervisor: Supervisor) -> None:
        await supervisor.start()
        self._notify("READY=1")
        while True:
            await self._reload.wait()
            self._reload.clear()
            await self._do_reload(supervisor)

    async def _do_reload(self, supervisor: Supervisor) -> None:
        # sd_notify(3): the time tells systemd that READY=1 answers this reload and no earlier one.
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            loaded = self._load()
        except config.ConfigError as error:
            journal.log(events.SupervisorReloadFailed(problem=str(error)))
            first = error.problems[0]
            self._complaint = f"; not reloaded: {str(first)[:500]}"
        else:
            self._complaint = ""
            _warn_of(loaded)
            await supervisor.reload(loaded)
            self._config = loaded
        self._tell_status()
        self._notify("READY=1")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)

    def _asked_to_reload(self) -> None:
        # A terminal that is closed sends the same signal as systemctl reload does, and then is one no more.
        if self._at_terminal and not os.isatty(2):
            self._asked_to_stop(signal.SIGHUP)
        else:
            self._reload.set()

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set() and self._supervisor is not None:
            self._supervisor.hurry()
        self._stop_reason = number.name
        self._stop.set()

    def _tell_status(self) -> None:
        if self._supervisor is None:
            return
        status = self._supervisor.status() + self._complaint
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={status}")

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the loop still turns, twice in the time that it allows (sd_watchdog_enabled(3))."""
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
        while allowed:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(allowed / 2 / 1_000_000)

    def _notify(self, *lines: str) -> None:
        self._notifier.notify("\n".join(lines))

    def _longest_stop(self) -> int:
        timeouts = [agent.stop_timeout_sec for agent in self._config.agents.values()]
        return int(min(max(timeouts, default=0), ONE_DAY_SEC)) + STOP_MARGIN_SEC


def _warn_of(loaded: Config) -> None:
    for problem in loaded.warnings:
        journal.log(events.ConfigWarning(file=problem.file, key=problem.key, problem=problem.text))
