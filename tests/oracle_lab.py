"""The oracle: whether systemd and we make the same of a scenario; and the simplest one of which they do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import oracle_exceptions
import oracle_ours
import oracle_scenario
from oracle_systemd import PARALLEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from oracle_exceptions import Expected
    from oracle_ours import Look, Start
    from oracle_scenario import Scenario
    from oracle_systemd import Seen

TRIES = 4
"""A difference that comes of the machine's being late does not come again, with half as many scenarios at a time. One
of the rules does: that all of a history agrees once with what it should not be is nothing that a delay brings about."""
STEPS_TO_SHRINK = 40


class Systemd(Protocol):
    """An `oracle_systemd.Systemd`."""

    version: int

    def ask(self, scenarios: Sequence[Scenario], *, parallel: int, hurry: bool) -> list[Seen]: ...


@dataclass(frozen=True)
class Verdict:
    scenario: Scenario
    asked: Scenario
    """What a systemd of that version can be asked of it."""
    expected: Expected
    seen: Seen
    applied: frozenset[str]
    """The exceptions that it took."""
    tries: int = 1
    """How often it was asked."""

    @property
    def theirs(self) -> list[Start | Look]:
        return self.expected.of(self.seen.events)

    @property
    def differs(self) -> bool:
        return self.expected.events != self.theirs

    @property
    def settled(self) -> bool:
        return not self.differs and self.seen.late is None

    def __str__(self) -> str:
        rows = [str(self.asked), *(f"  systemd was late: {late}" for late in [self.seen.late] if late)]
        for moment, ours, theirs in _rows(self.expected.events, self.theirs):
            mark = " " if ours == theirs else "*"
            rows.append(f"{mark} {moment:6g}  ours {ours:<32} systemd {theirs}")
        return "\n".join(rows)


def _rows(ours: Sequence[Start | Look], theirs: Sequence[Start | Look]) -> Iterator[tuple[float, str, str]]:
    """Both sides, moment by moment."""
    for moment in sorted({each.moment for each in (*ours, *theirs)}):
        left, right = (", ".join(_words(each) for each in side if each.moment == moment) for side in (ours, theirs))
        yield moment, left, right


def _words(event: Start | Look) -> str:
    if isinstance(event, oracle_ours.Start):
        return "starts"
    return f"{event.state} {event.result} {event.n_restarts}"


def judge(
    systemd: Systemd,
    scenarios: Sequence[Scenario],
    *,
    without: frozenset[str] = oracle_exceptions.NONE,
    tries: int = TRIES,
) -> list[Verdict]:
    """Ask both of each; `without` some exceptions."""
    verdicts = _judge(systemd, scenarios, PARALLEL, without)
    for attempt in range(1, tries):
        again = [number for number, verdict in enumerate(verdicts) if not verdict.settled]
        if not again:
            break
        anew = _judge(systemd, [scenarios[number] for number in again], PARALLEL >> attempt, without)
        for number, verdict in zip(again, anew, strict=True):
            kept = verdict if verdicts[number].differs or not verdict.differs else verdicts[number]
            verdicts[number] = replace(kept, tries=attempt + 1)
    return verdicts


def _judge(systemd: Systemd, scenarios: Sequence[Scenario], parallel: int, without: frozenset[str]) -> list[Verdict]:
    asked = [oracle_exceptions.comparable(scenario, systemd.version, without=without)[0] for scenario in scenarios]
    hurry = not without & {"start-while-waiting", "start-while-stopping"}
    seen = systemd.ask(asked, parallel=parallel, hurry=hurry)
    return [verdict(*each, systemd.version, without) for each in zip(scenarios, seen, strict=True)]


def verdict(scenario: Scenario, seen: Seen, version: int, without: frozenset[str] = oracle_exceptions.NONE) -> Verdict:
    """Judge what a systemd of that version has been seen to make of it."""
    asked, took = oracle_exceptions.comparable(scenario, version, without=without)
    expected = oracle_exceptions.expected(oracle_ours.run(asked), version, without=without)
    return Verdict(scenario, asked, expected, seen, expected.applied | took)


def shrink(systemd: Systemd, verdict: Verdict) -> Verdict:
    """Return the simplest scenario of which the two still differ. Greedy: all simpler ones are asked at once."""
    for _ in range(STEPS_TO_SHRINK):
        candidates = [each for each in oracle_scenario.simpler(verdict.asked) if oracle_scenario.wrong(each) is None]
        judged = judge(systemd, candidates, tries=1)
        differing = [each for each in judged if each.differs and each.seen.late is None]
        if not differing:
            break
        verdict = differing[0]
    return verdict


def applied(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Count the scenarios that took each exception."""
    counts = Counter(dict.fromkeys(oracle_exceptions.TABLE, 0))
    for verdict in verdicts:
        counts.update(verdict.applied)
    return counts
