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
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICK = 5
"""Cells; one more than the operations that may follow the first start."""
FOREVER = 1000
"""Cells, of a life that outlasts its scenario."""
LONGEST = 12
"""Ticks that a scenario takes at most."""
BROKEN = 2 * TICK
"""Cells that a service is out of order at most; see oracle_systemd.EARLY."""

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
    ends: Status = Status(0)
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

    rules: Rules = Rules()
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
    """Tell why the order of a scenario's moments would be in doubt, or None."""
    return next(_wrongs(scenario), None)


def _wrongs(scenario: Scenario) -> Iterator[str]:
    rules = scenario.rules
    moments = [operation.at for operation in scenario.operations]
    if moments != sorted(set(moments)):
        yield "operations in no order"
    if len({at % TICK for at in moments}) < len(moments):
        yield "operations at the same place within their tick"
    if moments and moments[-1] >= scenario.until:
        yield "operations after its end"
    if _broken(scenario) > BROKEN:
        yield "broken for so long that what each attempt is early by adds up"
    if any(life.on_term == "exits" and life.lingers == rules.stop_timeout for life in scenario.lives):
        yield "an exit as the stop's patience ends"
    if rules.delay == 0 and not (rules.limited and rules.burst <= 3):
        yield "as many restarts as a machine can do"
    if rules.interval and rules.interval % 1 != 0.5:
        yield "an interval that ends with a cell"


def _broken(scenario: Scenario) -> int:
    """Tell how many cells it is out of order at a time, at most."""
    longest, since = 0, None
    for operation in (*scenario.operations, Operation(scenario.until, "mend")):
        if operation.verb == "break" and since is None:
            since = operation.at
        elif operation.verb == "mend" and since is not None:
            longest, since = max(longest, operation.at - since), None
    return longest


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
        # Some meet with much at a time, some are out of order for a while.
        hectic, broken = dice.random() < 0.1, dice.random() < 0.3
        if hectic:
            lives = tuple(replace(life, lasts=FOREVER, on_term="exits", lingers=2 * TICK) for life in lives)
        rules = _rules(dice, lives, often=0.7 if broken else 0.3)
        yield Scenario(rules, lives, _operations(dice, until, hectic=hectic, broken=broken), until)


def _life(dice: random.Random) -> Life:
    ends = _status(dice)
    life = Life(
        lasts=_weighted(dice, {0: 6, TICK: 8, 2 * TICK: 4, 3 * TICK: 2, FOREVER: 3}),
        ends=ends,
        dumps=ends.signalled and ends.number in DUMPING and dice.random() < 0.5,
    )
    if dice.random() < 0.03:
        life = replace(life, ends=Status(signal.SIGKILL, signalled=True), dumps=False, lost=True)
    on_term = _weighted(dice, {"dies": 4, "exits": 5, "ignores": 4})
    if on_term == "exits":
        return replace(life, on_term=on_term, code=dice.choice(CODES), lingers=TICK * dice.choice((0, 1, 1, 2)))
    return replace(life, on_term=on_term)


def _status(dice: random.Random) -> Status:
    if dice.random() < 0.6:
        return Status(dice.choice(CODES))
    return Status(dice.choice(SIGNALS), signalled=True)


def _rules(dice: random.Random, lives: Sequence[Life], often: float) -> Rules:
    """`often`: how likely each list is to hold anything."""
    burst = _weighted(dice, {0: 2, 1: 2, 2: 5, 3: 5, 4: 2, 6: 1})
    interval = dice.choice((dice.randrange(TICK, 4 * TICK), dice.randrange(4 * TICK, 12 * TICK))) + 0.5
    delay = TICK * _weighted(dice, {0: 1, 1: 6, 2: 3})
    # The steps between are whole ticks.
    steps, growth = dice.choice(((1, 2), (1, 3), (2, 4), (3, 8))) if dice.random() < 0.25 else (0, 0)
    names = ("success", "prevent", "force")
    lists = {name: _listed(dice, lives) if dice.random() < often else () for name in names}
    if dice.random() < 0.3:
        lists["force"] += lists["prevent"]
    return Rules(
        policy=_weighted(dice, dict.fromkeys(POLICIES, 2) | {"no": 1, "on-failure": 8, "always": 9}),
        delay=delay,
        steps=steps,
        max_delay=delay * growth,
        burst=burst,
        interval=interval if dice.random() < 0.95 else 0.0,
        daily=dice.randint(1, 3) if dice.random() < 0.05 else 0,
        stop_timeout=TICK * dice.randint(1, 3),
        **lists,
    )


def _listed(dice: random.Random, lives: Sequence[Life]) -> tuple[Status, ...]:
    """Draw a list of statuses, most of them such as occur."""
    occurring = [status for life in lives for status in (life.ends, Status(life.code))]
    drawn = [dice.choice(occurring) if dice.random() < 0.8 else _status(dice) for _ in range(dice.randint(1, 2))]
    return tuple(dict.fromkeys(drawn))


def _operations(dice: random.Random, until: int, *, hectic: bool, broken: bool) -> tuple[Operation, ...]:
    places = dice.sample(range(1, TICK), TICK - 1 if hectic else dice.choice((0, 1, 2, 3, 3, 4, 4, 4)))
    moments = []
    tick = 0
    for place in places:
        # Half of them close to one before: what is under way then is what they are to meet.
        close = dice.random() < (0.9 if hectic else 0.5)
        tick = min(tick + dice.randint(0, 1), until // TICK - 1) if close else dice.randrange(until // TICK)
        moments.append(place + TICK * tick)
    weights = {"start": 6, "stop": 6} if hectic else {"start": 6, "stop": 4, "restart": 2, "reset-failed": 6}
    by_hand = [Operation(at, _weighted(dice, weights)) for at in moments]
    if broken and len(moments) > 1:
        # Early, while it is still being restarted.
        tick = dice.randint(0, 3)
        first, second = places[:2]
        by_hand[:2] = Operation(first + TICK * tick, "break"), Operation(second + TICK * (tick + 1), "mend")
    return (Operation(0, "start"), *sorted(by_hand, key=lambda operation: operation.at))


def _weighted(dice: random.Random, weights: dict[T, int]) -> T:
    return dice.choices(list(weights), list(weights.values()))[0]


def without(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """All that one item less makes."""
    for at in range(len(items)):
        yield items[:at] + items[at + 1 :]


def simpler(scenario: Scenario) -> Iterator[Scenario]:
    """All scenarios that are one step simpler, the boldest steps first."""
    yield from _sooner_over(scenario)
    for operations in without(scenario.operations):
        yield replace(scenario, operations=operations)
    for lives in without(scenario.lives):
        if lives:
            yield replace(scenario, lives=lives)
    yield from _reset(scenario.rules, Rules(), lambda rules: replace(scenario, rules=rules))
    for name in ("success", "prevent", "force"):
        for fewer in without(getattr(scenario.rules, name)):
            changed: dict[str, Any] = {name: fewer}
            yield replace(scenario, rules=replace(scenario.rules, **changed))
    for at, life in enumerate(scenario.lives):
        for lasts in (0, TICK):
            if lasts < life.lasts < FOREVER:
                yield _with_life(scenario, at, replace(life, lasts=lasts))
        yield from _reset(life, Life(), lambda life, at=at: _with_life(scenario, at, life))  # type: ignore[misc]


def _sooner_over(scenario: Scenario) -> Iterator[Scenario]:
    for until in sorted({scenario.until // 2 // TICK * TICK, scenario.until - TICK} - {0}):
        kept = tuple(operation for operation in scenario.operations if operation.at < until)
        yield replace(scenario, operations=kept, until=until)
    if idle := min((operation.at for operation in scenario.operations), default=0):
        sooner = tuple(replace(operation, at=operation.at - idle) for operation in scenario.operations)
        yield replace(scenario, operations=sooner)


def _reset(value: T, usual: T, use: Callable[[T], Scenario]) -> Iterator[Scenario]:
    for field in fields(value):  # type: ignore[arg-type]
        if getattr(value, field.name) != getattr(usual, field.name):
            yield use(replace(value, **{field.name: getattr(usual, field.name)}))  # type: ignore[type-var]


def _with_life(scenario: Scenario, at: int, life: Life) -> Scenario:
    return replace(scenario, lives=(*scenario.lives[:at], life, *scenario.lives[at + 1 :]))
