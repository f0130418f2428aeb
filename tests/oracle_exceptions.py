"""Where systemd and we are known to differ, by choice or because one of us cannot know: all that may differ at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from oracle_scenario import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from oracle_ours import Context, Look, Ours, Start
    from oracle_scenario import Scenario


@dataclass(frozen=True)
class Exception_:
    """`when` it applies, and `why` it is one. `below`: the first version of systemd that it does not apply to."""

    when: str
    why: str
    below: int | None = None


STEPS = 254
FORGETS = 257

TABLE = {
    "start-limit-hit": Exception_(
        when="a start is refused, and the last run was a success or none",
        why="systemd's Result= has start-limit-hit in the place of success; ours stays, and a flag of its own tells it",
    ),
    "core-dump": Exception_(
        when="a program ends by a signal and leaves a core",
        why=(
            "tmux does not tell it, so that systemd's core-dump is our signal; and a signal of SuccessExitStatus= is "
            "no success for systemd then, which is where the comparison ends"
        ),
    ),
    "lost": Exception_(
        when="we are not told how a program ended that was killed",
        why=(
            "systemd's signal is our lost, which is no signal: where a list holds the signal, or Restart= is on-abort, "
            "the comparison ends"
        ),
    ),
    "daily-limit": Exception_(
        when="a start is one too many of the day",
        why="systemd has no second limit, and starts it: the comparison ends",
    ),
    "start-while-waiting": Exception_(
        when="a start is asked for while a restart is waited for",
        why=(
            "it comes at once, as a new beginning. systemd before 256 lets it wait for the restart, later ones hurry "
            "the restart, and all count it twice in the limit, so that systemd is asked for a restart instead"
        ),
    ),
    "start-while-stopping": Exception_(
        when="a start is asked for while a stop is under way",
        why=(
            "it waits for the stop, and is one start. systemd before 256 counts it in the limit each time that it "
            "finds it cannot come yet, so that systemd is asked for a restart instead"
        ),
    ),
    "n-restarts-kept": Exception_(
        when="a start by hand follows a restart that was waited for and then was not wanted any more",
        why="a start by hand clears n_restarts; systemd before 257 clears it only if no restart followed the last run",
        below=FORGETS,
    ),
    "no-steps": Exception_(
        when="the delay is to grow in steps",
        why="systemd before 254 does not know them: both are asked without",
        below=STEPS,
    ),
}


NONE: frozenset[str] = frozenset()


def comparable(scenario: Scenario, version: int, *, without: frozenset[str] = NONE) -> tuple[Scenario, set[str]]:
    """Return what a systemd of that version can be asked, and the exceptions that it took.

    `without`: exceptions that are not made, here and below.
    """
    if not scenario.rules.steps or version >= STEPS or "no-steps" in without:
        return scenario, set()
    usual = Rules()
    return replace(scenario, rules=replace(scenario.rules, steps=usual.steps, max_delay=usual.max_delay)), {"no-steps"}


@dataclass(frozen=True)
class Expected:
    """What systemd is to show if our rules are its own: all events before `until`, a moment in cells."""

    events: list[Start | Look]
    until: float
    applied: frozenset[str]

    def of(self, events: list[Start | Look]) -> list[Start | Look]:
        """Return those of systemd's that are to be compared."""
        return _ordered(each for each in events if each.moment < self.until)


def expected(ours: Ours, version: int, *, without: frozenset[str] = NONE) -> Expected:
    until, parting = min((each for each in ours.partings if each[1] not in without), default=(math.inf, ""))
    applied = {*ours.met, parting} - {"", *without}
    events: list[Start | Look] = [start for start in ours.starts if start.moment < until]
    for look, context in ours.looks:
        if look.moment < until:
            events.append(_seen(look, context, version, without, applied))
    return Expected(_ordered(events), until, frozenset(applied))


def _ordered(events: Iterable[Start | Look]) -> list[Start | Look]:
    return sorted(events, key=lambda each: each.moment)


def _seen(look: Look, context: Context, version: int, without: frozenset[str], applied: set[str]) -> Look:
    for name, words in _renamed(look, context):
        if name not in without:
            applied.add(name)
            look = replace(look, result=words)
    if context.kept and version < FORGETS and "n-restarts-kept" not in without:
        applied.add("n-restarts-kept")
        look = replace(look, n_restarts=look.n_restarts + context.kept)
    return look


def _renamed(look: Look, context: Context) -> Iterator[tuple[str, str]]:
    if context.start_limit_hit and look.state == "failed" and look.result == "success":
        yield "start-limit-hit", "start-limit-hit"
    elif context.dumped and look.result == "signal":
        yield "core-dump", "core-dump"
    elif context.lost and look.result == "lost":
        yield "lost", "signal"
