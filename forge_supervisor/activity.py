"""Pure: what a session is doing, put together from what its harness leaves on disk and what its hooks report.

What is on disk (`Seen`) is true at any moment, but does not tell why; what is reported (`Reported`) does, once, and can
be lost. So that a turn runs, or waits, is taken from the one, and what is wrong from the other, until there is a sign
that it is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

LATEST = 253_402_300_800.0
"""The year 10000, in seconds since 1970: no number of an activity is larger."""


class Doing(StrEnum):
    STARTING = "starting"
    WORKING = "working"
    IDLE = "idle"
    WAITING = "waiting"
    """It has asked something."""
    LIMITED = "limited"
    """It has used what it may, for now."""
    LOGGED_OUT = "logged-out"
    BLOCKED = "blocked"
    """Something keeps it from its prompt: a dialog, mostly."""
    UNRESPONSIVE = "unresponsive"
    """Its model does not answer."""


@dataclass(frozen=True, slots=True)
class Activity:
    doing: Doing
    detail: str = ""
    """What it waits for, or what is wrong: words for people."""
    fix: str = ""
    """What to do about it."""
    until: float | None = None
    """When a limit is over, if that is known, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a harness's files tell of a session."""

    doing: Doing
    """STARTING (it has not got to its prompt yet), WORKING, IDLE or WAITING."""
    detail: str = ""
    """What it waits for."""
    login: str = ""
    """Stands for the login that there is: another one is another word, none is none."""
    login_fix: str = ""
    """How to log in."""
    failed: Activity | None = None
    """What its last turn has failed of, where files tell that too."""
    gauges: Gauges | None = None
    """As far as files tell them."""


@dataclass(frozen=True, slots=True)
class Window:
    """A limit's window: how much of it has been used, and when it is over (seconds since 1970)."""

    name: str
    used_percent: float
    resets_at: float | None


@dataclass(frozen=True, slots=True)
class Gauges:
    context_percent: float | None = None
    """How much of the model's context window is used."""
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class Reported:
    """What a harness's hook tells of a session."""

    turn: Literal["began", "ended", "failed"] | None = None
    words: str = ""
    """Those that a turn began with."""
    trouble: Activity | None = None
    """Why it failed, where something is to be done about it, or to be waited for."""
    gauges: Gauges | None = None


@dataclass(slots=True)
class Tracker:
    """One session. The first three may be what an earlier supervisor knew."""

    failed: Activity | None = None
    login: str | None = None
    """The one that was seen last."""
    has_answered: bool = False
    """Whether a turn has ended well, by whatever login."""
    seen: Seen | None = None
    gauges: Gauges = field(default_factory=Gauges)
    _overdue: str | None = None
    _seen_failed: Activity | None = None

    @property
    def activity(self) -> Activity | None:
        """None: nothing is known yet."""
        if self.seen is not None and self.seen.doing is Doing.WAITING:
            return Activity(Doing.WAITING, self.seen.detail)
        if (trouble := self.trouble) is not None:
            return trouble
        return None if self.seen is None else Activity(self.seen.doing, self.seen.detail)

    @property
    def trouble(self) -> Activity | None:
        """What keeps it from its work, and will not end by itself soon."""
        seen = self.seen
        if seen is None:
            return self.failed
        if not seen.login and not self.has_answered:
            return Activity(Doing.LOGGED_OUT, "there is no login", seen.login_fix)
        if seen.doing is Doing.STARTING:
            return None if self._overdue is None else Activity(Doing.BLOCKED, self._overdue)
        return self.failed

    @property
    def has_prompt(self) -> bool:
        return self.seen is not None and self.seen.doing is not Doing.STARTING

    def saw(self, seen: Seen, now: float = 0.0) -> None:
        """Take note of what files tell; `now` is in seconds since 1970."""
        is_another = self.login is not None and seen.login not in {"", self.login}
        if is_another and self.failed is not None and self.failed.doing is Doing.LOGGED_OUT:
            self.failed = None
        seen = replace(seen, failed=_sane(seen.failed))
        self.seen, self.login = seen, seen.login
        if seen.doing is not Doing.STARTING:
            self._overdue = None
        # Only where that is new: what hooks tell, and what an earlier supervisor knew, stays.
        if seen.failed != self._seen_failed:
            self.failed = self._seen_failed = seen.failed
        if seen.gauges is not None:
            self.gauges = _sane_gauges(seen.gauges)
        self._date_limit(now)

    def is_unseen(self) -> None:
        """Take note that its files cannot be looked at any more."""
        self.seen = None

    def heard(self, reported: Reported, now: float) -> None:
        """Take note of what a hook tells; `now` is in seconds since 1970."""
        if reported.gauges is not None:
            self.gauges = _sane_gauges(reported.gauges)
        if reported.turn == "ended":
            # A turn that came to its end has had an answer.
            self.failed = None
            self.has_answered = True
        elif reported.turn == "failed":
            self.failed = _sane(reported.trouble)
        self._date_limit(now)

    def is_overdue(self, shown: str) -> None:
        """Take note that it should have been at its prompt by now; `shown` is on its screen."""
        if not self.has_prompt:
            self._overdue = shown

    def time_passes(self, now: float) -> None:
        """Have a limit be over whose end has come; `now` is in seconds since 1970."""
        if self.failed is not None and self.failed.until is not None and self.failed.until <= now:
            self.failed = None

    def _date_limit(self, now: float) -> None:
        """Have a limit end when the last window that is used up does; one that has ended says nothing about it."""
        if self.failed is None or self.failed.doing is not Doing.LIMITED:
            return
        used_up = [window.resets_at for window in self.gauges.windows if window.used_percent >= 100]
        ends = [end for end in used_up if end is not None and end > now]
        if ends:
            self.failed = replace(self.failed, until=max(ends))


def _within(value: float | None) -> float | None:
    """Give what can be counted with: programs and users may say infinity, and what is no number at all (NaN)."""
    return value if value is not None and 0 <= value <= LATEST else None


def _sane(trouble: Activity | None) -> Activity | None:
    return None if trouble is None else replace(trouble, until=_within(trouble.until))


def _sane_gauges(gauges: Gauges) -> Gauges:
    windows = (
        Window(window.name, _within(window.used_percent) or 0.0, _within(window.resets_at)) for window in gauges.windows
    )
    return Gauges(_within(gauges.context_percent), tuple(windows))
