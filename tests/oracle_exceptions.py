"""Where systemd and we are known to differ, by choice or because one of us cannot know: all that may differ at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from oracle_ours import Look, Ours, Start
from oracle_scenario import Rules, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oracle_ours import Context


@dataclass(frozen=True)
class Exception_:
    """`when` it applies, and `why` it is one. `below`: the first version of systemd that it does not apply to."""

    when: str
    why: str
    below: int | None = None


STEPS = 254
FORGETS = 258

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
        why="systemd forgot n_restarts at the end of a run that no restart followed; now it does so at each start by hand",
        below=FORGETS,
    ),
    "no-steps": Exception_(
        when="the delay is to grow in steps",
        why="systemd before 254 does not know them: both are asked without",
        below=STEPS,
    ),
}


def comparable(scenario: Scenario, version: int) -> tuple[Scenario, set[str]]:
    """Return what a systemd of that version can be asked, and the exceptions that it took."""
    if not scenario.rules.steps or version >= STEPS:
        return scenario, set()
    usual = Rules()
    return replace(scenario, rules=replace(scenario.rules, steps=usual.steps, max_delay=usual.max_delay)), {"no-steps"}


def expected(ours: Ours, version: int) -> tuple[list[Start | Look], set[str]]:
    """Return what systemd is to show if our rules are its own, and the exceptions that applied."""
    applied = set(ours.applied)
    events: list[Start | Look] = list(ours.starts)
    for look, context in ours.looks:
        if ours.parted is None or look.moment < ours.parted:
            events.append(_seen(look, context, version, applied))
    return until(events, ours.parted), applied


def until(events: list[Start | Look], parted: float | None) -> list[Start | Look]:
    """Return the events before that moment, in their order."""
    return sorted((each for each in events if parted is None or each.moment < parted), key=lambda each: each.moment)


def _seen(look: Look, context: Context, version: int, applied: set[str]) -> Look:
    for name, words in _renamed(look, context):
        applied.add(name)
        look = replace(look, result=words)
    if context.kept and version < FORGETS:
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
