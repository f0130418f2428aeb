"""systemd's restart rules: whether an exit is clean, whether and when a restart follows, whether a start is allowed.

Pure: no I/O, no clock of its own. Modelled on systemd v252-v255, src/core/service.c (service_shall_restart,
service_restart_usec_next), src/shared/exit-status.c (is_clean_exit) and src/basic/ratelimit.c (ratelimit_below).
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge_supervisor.config import ExitStatuses, Restart

# is_clean_exit() for EXIT_CLEAN_DAEMON: a daemon without handlers for these has not failed when they end it.
CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})


DAY = 86400.0
"""Seconds, the interval of restart.limit_daily."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or the signal that ended it, or `lost` where neither can be known.

    Exactly one is given, otherwise ValueError. Whether a core was dumped is not known (tmux does not tell), so
    systemd's ``core-dump`` is ``signal`` here.
    """

    code: int | None = None
    signal: int | None = None
    lost: bool = False

    def __post_init__(self) -> None:
        if (self.code is not None) + (self.signal is not None) + self.lost != 1:
            raise ValueError(f"an exit is a code or a signal or lost: {self!r}")

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit code {self.code}"
        if self.signal is not None:
            return f"signal {signal_label(self.signal)}"
        return "lost"


def signal_label(number: int) -> str:
    """Name a signal: ``9 (SIGKILL)``, or the bare number where it has no name."""
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


class Result(StrEnum):
    """systemd's Result= of a service, and `lost`."""

    SUCCESS = "success"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    OOM_KILL = "oom-kill"
    TIMEOUT = "timeout"
    RESOURCES = "resources"
    """It could not be set up, so nothing ran and there is no exit."""
    LOST = "lost"


_FAILURES = frozenset(Result) - {Result.SUCCESS}
# The switch in service_shall_restart(). Agents have no watchdog whose time could run out. `lost` is a failure that is
# no exit code, hence abnormal; it is not known to have been a signal, hence no abort.
_RESTARTED_AFTER: dict[str, frozenset[Result]] = {
    "no": frozenset(),
    "always": frozenset(Result),
    "on-success": frozenset({Result.SUCCESS}),
    "on-failure": _FAILURES,
    "on-abnormal": _FAILURES - {Result.EXIT_CODE},
    "on-abort": frozenset({Result.SIGNAL}),
    "on-watchdog": frozenset(),
}


def is_clean(exit_: Exit, success: ExitStatuses, *, also: frozenset[int] = frozenset()) -> bool:
    """Tell whether that exit is no failure.

    `also`: exit codes that are clean in this case only (a harness's stop_exit_status, when a stop was requested).
    """
    if exit_.code is not None:
        return exit_.code == 0 or exit_.code in success.codes or exit_.code in also
    return exit_.signal in CLEAN_SIGNALS or exit_.signal in success.signals


def result_of(exit_: Exit, restart: Restart, *, also: frozenset[int] = frozenset()) -> Result:
    if is_clean(exit_, restart.success_exit_status, also=also):
        return Result.SUCCESS
    if exit_.code is not None:
        return Result.EXIT_CODE
    return Result.LOST if exit_.lost else Result.SIGNAL


def should_restart(restart: Restart, result: Result, exit_: Exit | None, *, stop_requested: bool) -> bool:
    """Tell whether a restart follows, in systemd's order of precedence.

    `exit_` is None where nothing ran (`resources`): then no exit status can prevent or force.
    """
    if stop_requested or _matches(exit_, restart.prevent_exit_status):
        return False
    if _matches(exit_, restart.force_exit_status):
        return True
    return result in _RESTARTED_AFTER[restart.policy]


def _matches(exit_: Exit | None, statuses: ExitStatuses) -> bool:
    return exit_ is not None and (exit_.code in statuses.codes or exit_.signal in statuses.signals)


def restart_delay(restart: Restart, n_restarts: int) -> float:
    """Seconds to wait before the next automatic restart, `n_restarts` of which have gone before.

    With `steps` and `max_delay_sec` it grows geometrically from `delay_sec` and reaches the maximum after `steps`
    restarts; a delay of 0 never grows. A maximum below the delay is the delay (service_verify).
    """
    delay, most = restart.delay_sec, restart.max_delay_sec
    if most is None:
        return delay
    delay = min(delay, most)
    if n_restarts <= 0 or restart.steps <= 0 or delay <= 0:
        return delay
    if n_restarts >= restart.steps:
        return most
    # A float may land just past the maximum where the two are a rounding error apart.
    return min(most, delay * math.pow(most / delay, n_restarts / restart.steps))


@dataclass(slots=True)
class RateLimit:
    """systemd's start limit: at most `burst` starts in a window of `interval` seconds that the first one opens.

    The window is fixed, not sliding: it is replaced by a new one at the first start after its end. Every start
    counts: the first, a manual one, an automatic one. No interval or no burst, no limit.
    """

    interval: float
    burst: int
    begin: float | None = field(default=None, init=False)
    count: int = field(default=0, init=False)

    def allow(self, now: float) -> bool:
        """Count a start at `now`, in seconds on a clock that never steps back, and tell whether it may happen."""
        if self.interval <= 0 or self.burst <= 0:
            return True
        if self.begin is None or now - self.begin > self.interval:
            self.begin, self.count = now, 1
            return True
        self.count += 1
        return self.count <= self.burst

    def reset(self) -> None:
        self.begin, self.count = None, 0

    def set(self, interval: float, burst: int) -> None:
        """Have another limit from now on; what has been counted stays."""
        self.interval, self.burst = interval, burst

    @property
    def window(self) -> tuple[float | None, int]:
        """When it was opened, and the starts in it."""
        return self.begin, self.count

    @window.setter
    def window(self, window: tuple[float | None, int]) -> None:
        self.begin, self.count = window
