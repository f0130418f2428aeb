"""An event loop whose time is a number: it never waits, but goes straight to the next thing that is due."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ROUNDS = 20_000
"""Rounds of a loop in which no time passes, after which it is taken to spin."""


class Clock:
    """Seconds since some moment, and what happens of its own accord, whether or not any loop runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), what))

    @property
    def next(self) -> float | None:
        return self._due[0][0] if self._due else None

    def do_what_is_due(self) -> bool:
        """Tell whether anything was."""
        some = False
        while self._due and self._due[0][0] <= self.now:
            heapq.heappop(self._due)[2]()
            some = True
        return some

    def advance(self, seconds: float) -> None:
        """Let time pass while no loop runs."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now = max(self.now, self._due[0][0])
            self.do_what_is_due()
        self.now = end


class ClockLoop(asyncio.SelectorEventLoop):
    """Its timers go by a `Clock`; nothing outside of this process can wake it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._impatient = _Impatient(clock, self.stop)
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._clock.now

    def run(self, seconds: float = 0.0, *, rounds: int | None = None) -> bool:
        """Run until nothing more is to be done within so many seconds, which then have passed; or for so many rounds.

        Tells whether nothing more is to be done. Raises AssertionError if it spins.
        """
        self._impatient.until = self._clock.now + seconds
        self._impatient.rounds = rounds
        self._impatient.idle = False
        self.run_forever()
        return self._impatient.idle


class _Impatient(selectors.SelectSelector):
    def __init__(self, clock: Clock, stop: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._stop = stop
        self.until = 0.0
        self.rounds: int | None = None
        self.idle = False
        self._spinning = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        if self.rounds is not None:
            self.rounds -= 1
            if self.rounds <= 0:
                self._stop()
                return []
        self._spinning += 1
        assert self._spinning < MOST_ROUNDS, "the loop spins"
        if self._clock.do_what_is_due() or timeout == 0:
            return []
        due = [self._clock.now + timeout] if timeout is not None else []
        due += [self._clock.next] if self._clock.next is not None else []
        if not due or min(due) > self.until:
            self._clock.now = max(self._clock.now, self.until)
            self.idle = True
            self._stop()
        else:
            self._clock.now = max(self._clock.now, min(due))
            self._clock.do_what_is_due()
        self._spinning = 0
        return []
