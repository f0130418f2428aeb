"""What the oracle asks of systemd and of us alike: one service's rules, its lives, and what is done to it by hand.

Time is counted in cells, whole ones, so that on our side every sum is exact; a tick is five of them. A moment that
matters (a start, a death, the end of a stop's patience) comes so many ticks after an operation, and no two operations
of a scenario have the same place within their tick. So no two moments coincide unless one follows from the other, and
what comes first never depends on a jitter below half a cell. The start limit's interval ends in the middle of a cell:
what is compared with it is the distance of two starts, a number of whole cells give or take less than half of one.
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICK = 5
"""Cells; one more than the operations that may follow the first start."""
FOREVER = 1000
"""Cells, of a life that outlasts its scenario."""
LONGEST = 12
"""Ticks that a scenario takes at most."""

POLICIES = ("no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog")
CODES = (0, 0, 1, 1, 2, 3, 7, 42, 129, 130, 141, 143, 255)
SIGNALS = tuple(
    int(getattr(signal, f"SIG{name}"))
    for name in ("HUP", "INT", "QUIT", "ABRT", "KILL", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM")
)
DUMPING = frozenset({signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV})
VERBS = ("start", "stop", "restart", "reset-failed", "break", "mend")

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """An exit code, or the number of a signal."""

    number: int
    signalled: bool = False

    def __str__(self) -> str:
        return signal.Signals(self.number).name if self.signalled else str(self.number)


@dataclass(frozen=True)
class Life:
    """One run of the service's program."""

    lasts: int = FOREVER
    """Cells; 0: it ends at once."""
    ends: Status = Status(0)  # noqa: RUF009 - frozen
    dumps: bool = False
    """Whether it leaves a core (it ends by a signal that asks for one)."""
    lost: bool = False
    """It is killed, and our side is not told how it ended."""
    on_term: str = "dies"
    """`dies`, `exits` with `code` after `lingers` cells, or `ignores` it."""
    code: int = 0
    lingers: int = 0

    def __str__(self) -> str:
        lasts = "lives on" if self.lasts >= FOREVER else f"after {self.lasts}: {self.ends}"
        core = " with a core" if self.dumps else ""
        lost = ", which is lost on us" if self.lost else ""
        term = f"exits with {self.code} after {self.lingers}" if self.on_term == "exits" else self.on_term
        return f"{lasts}{core}{lost}; on SIGTERM it {term}"


@dataclass(frozen=True)
class Rules:
    """Times in cells."""

    policy: str = "on-failure"
    delay: int = TICK
    steps: int = 0
    max_delay: int = 0
    burst: int = 0
    interval: float = 0.0
    daily: int = 0
    """Our own limit of starts a day, which systemd has not; 0: none."""
    stop_timeout: int = 3 * TICK
    success: tuple[Status, ...] = ()
    prevent: tuple[Status, ...] = ()
    force: tuple[Status, ...] = ()

    @property
    def limited(self) -> bool:
        return self.burst > 0 and self.interval > 0

    def __str__(self) -> str:
        usual = Rules()
        told = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(usual, field.name) or field.name == "policy":
                told.append(f"{field.name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return ", ".join(told)


@dataclass(frozen=True)
class Operation:
    """What is done by hand. `break`: from now on the service cannot be set up; `mend`: it can again."""

    at: int
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} at {self.at}"


@dataclass(frozen=True)
class Scenario:
    """The last of `lives` is lived again and again. It is watched until `until`, a whole number of ticks, in cells."""

    rules: Rules = Rules()  # noqa: RUF009 - frozen
    lives: tuple[Life, ...] = (Life(),)
    operations: tuple[Operation, ...] = (Operation(0, "start"),)
    until: int = LONGEST * TICK

    def life(self, number: int) -> Life:
        return self.lives[min(number, len(self.lives) - 1)]

    @property
    def looks(self) -> list[int]:
        """The cells at whose ends the service is looked at."""
        before = {operation.at - 1 for operation in self.operations if operation.at > 0}
        return sorted(before | set(range(TICK - 1, self.until, TICK)))

    def __str__(self) -> str:
        lives = "\n".join(f"  life {number}: {life}" for number, life in enumerate(self.lives))
        done = ", ".join(map(str, self.operations))
        return f"  rules: {self.rules}\n{lives}\n  by hand: {done}; watched until {self.until}"


def wrong(scenario: Scenario) -> str | None:
    """Why the order of a scenario's moments would be in doubt, or None."""
    rules, operations = scenario.rules, scenario.operations
    if [operation.at for operation in operations] != sorted({operation.at for operation in operations}):
        return "operations in no order"
    if len({operation.at % TICK for operation in operations}) < len(operations):
        return "operations at the same place within their tick"
    if any(operation.at >= scenario.until for operation in operations):
        return "operations after its end"
    if any(life.on_term == "exits" and life.lingers == rules.stop_timeout for life in scenario.lives):
        return "an exit as the stop's patience ends"
    if rules.delay == 0 and not (rules.limited and rules.burst <= 3):
        return "as many restarts as a machine can do"
    if rules.interval % 1 not in {0.0, 0.5} or (rules.interval and not rules.interval % 1):
        return "an interval that ends with a cell"
    return None


def scenario(seed: int) -> Scenario:
    """Make the scenario that `seed` stands for, always the same."""
    dice = random.Random(seed)  # noqa: S311
    for made in _attempts(dice):
        if wrong(made) is None:
            return made
    raise AssertionError


def _attempts(dice: random.Random) -> Iterator[Scenario]:
    while True:
        lives = tuple(_life(dice) for _ in range(dice.choice((1, 1, 2, 2, 3, 4, 5))))
        until = TICK * dice.randint(7, LONGEST)
        yield Scenario(_rules(dice, lives), lives, _operations(dice, until), until)


def _life(dice: random.Random) -> Life:
    ends = _status(dice)
    life = Life(
        lasts=_weighted(dice, {0: 6, TICK: 8, 2 * TICK: 4, 3 * TICK: 2, FOREVER: 4}),
        ends=ends,
        dumps=ends.signalled and ends.number in DUMPING and dice.random() < 0.5,
    )
    if dice.random() < 0.02:
        life = replace(life, ends=Status(signal.SIGKILL, signalled=True), dumps=False, lost=True)
    on_term = _weighted(dice, {"dies": 6, "exits": 5, "ignores": 2})
    if on_term == "exits":
        return replace(life, on_term=on_term, code=dice.choice(CODES), lingers=TICK * dice.choice((0, 0, 1, 2)))
    return replace(life, on_term=on_term)


def _status(dice: random.Random) -> Status:
    if dice.random() < 0.6:
        return Status(dice.choice(CODES))
    return Status(dice.choice(SIGNALS), signalled=True)


def _rules(dice: random.Random, lives: Sequence[Life]) -> Rules:
    burst = _weighted(dice, {0: 2, 1: 2, 2: 5, 3: 5, 4: 2})
    interval = dice.choice((dice.randrange(TICK, 3 * TICK), dice.randrange(3 * TICK, 10 * TICK))) + 0.5
    delay = TICK * _weighted(dice, {0: 1, 1: 6, 2: 3})
    # The steps between are whole ticks.
    steps, growth = dice.choice(((1, 2), (1, 3), (2, 4), (3, 8))) if dice.random() < 0.25 else (0, 0)
    return Rules(
        policy=_weighted(dice, dict.fromkeys(POLICIES, 2) | {"on-failure": 7, "always": 6}),
        delay=delay,
        steps=steps,
        max_delay=delay * growth,
        burst=burst,
        interval=interval if burst or dice.random() < 0.5 else 0.0,
        daily=dice.randint(2, 4) if dice.random() < 0.04 else 0,
        stop_timeout=TICK * dice.randint(1, 3),
        **{name: _listed(dice, lives) for name in ("success", "prevent", "force")},
    )


def _listed(dice: random.Random, lives: Sequence[Life]) -> tuple[Status, ...]:
    """Draw a list of statuses, most of them such as occur."""
    if dice.random() < 0.6:
        return ()
    occurring = [status for life in lives for status in (life.ends, Status(life.code))]
    drawn = [dice.choice(occurring) if dice.random() < 0.8 else _status(dice) for _ in range(dice.randint(1, 2))]
    return tuple(dict.fromkeys(drawn))


def _operations(dice: random.Random, until: int) -> tuple[Operation, ...]:
    places = dice.sample(range(1, TICK), dice.choice((0, 1, 2, 2, 3, 3, 4, 4)))
    moments = sorted(place + TICK * dice.randrange(until // TICK) for place in places)
    weights = {"start": 6, "stop": 4, "restart": 2, "reset-failed": 3, "break": 1, "mend": 1}
    by_hand = tuple(Operation(at, _weighted(dice, weights)) for at in moments)
    return (Operation(0, "start"), *by_hand)


def _weighted(dice: random.Random, weights: dict[T, int]) -> T:
    return dice.choices(list(weights), list(weights.values()))[0]


def without(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """All that one item less makes."""
    for at in range(len(items)):
        yield items[:at] + items[at + 1 :]


def simpler(scenario: Scenario) -> Iterator[Scenario]:
    """All scenarios that are one step simpler, the boldest steps first."""
    if scenario.until > TICK:
        for until in sorted({scenario.until // 2 // TICK * TICK, scenario.until - TICK} - {0}):
            kept = tuple(operation for operation in scenario.operations if operation.at < until)
            yield replace(scenario, operations=kept, until=until)
    for operations in without(scenario.operations):
        yield replace(scenario, operations=operations)
    for lives in without(scenario.lives):
        if lives:
            yield replace(scenario, lives=lives)
    yield from _reset(scenario.rules, Rules(), lambda rules: replace(scenario, rules=rules))
    for name in ("success", "prevent", "force"):
        for fewer in without(getattr(scenario.rules, name)):
            yield replace(scenario, rules=replace(scenario.rules, **{name: fewer}))
    for at, life in enumerate(scenario.lives):
        yield from _reset(life, Life(), lambda life, at=at: _with_life(scenario, at, life))  # type: ignore[misc]


def _reset(value: T, usual: T, use: Callable[[T], Scenario]) -> Iterator[Scenario]:
    for field in fields(value):  # type: ignore[arg-type]
        if getattr(value, field.name) != getattr(usual, field.name):
            yield use(replace(value, **{field.name: getattr(usual, field.name)}))  # type: ignore[type-var]


def _with_life(scenario: Scenario, at: int, life: Life) -> Scenario:
    return replace(scenario, lives=(*scenario.lives[:at], life, *scenario.lives[at + 1 :]))
