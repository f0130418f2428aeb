"""The oracle: whether systemd and we make the same of a scenario; and the simplest one of which they do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import oracle_exceptions
import oracle_ours
import oracle_scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from oracle_ours import Look, Start
    from oracle_scenario import Scenario
    from oracle_systemd import Seen, Systemd

STEPS_TO_SHRINK = 40


@dataclass(frozen=True)
class Verdict:
    asked: Scenario
    ours: list[Start | Look]
    """In systemd's words, up to where the two may part."""
    theirs: list[Start | Look]
    applied: frozenset[str]
    seen: Seen

    @property
    def late(self) -> str | None:
        return self.seen.late

    @property
    def differs(self) -> bool:
        return self.ours != self.theirs

    def __str__(self) -> str:
        width = max((len(str(each)) for each in self.ours), default=0)
        rows = [f"{self.asked}"]
        for ours, theirs in _rows(self.ours, self.theirs):
            mark = " " if ours == theirs else "*"
            rows.append(f"{mark} ours {ours or '':<{width}}  systemd {theirs or ''}")
        return "\n".join(rows)


def _rows(ours: Sequence[Start | Look], theirs: Sequence[Start | Look]) -> Iterable[tuple[str, str]]:
    """Both sides, moment by moment."""
    moments = sorted({each.moment for each in (*ours, *theirs)})
    for moment in moments:
        left, right = (
            ", ".join(_words(each) for each in side if each.moment == moment) for side in (ours, theirs)
        )
        yield left, right


def _words(event: Start | Look) -> str:
    if isinstance(event, oracle_ours.Start):
        return f"{event.at}: starts"
    return f"{event.moment}: {event.state} {event.result} {event.n_restarts}"


def judge(systemd: Systemd, scenarios: Sequence[Scenario]) -> list[Verdict]:
    """Ask both of each."""
    asked = [oracle_exceptions.comparable(scenario, systemd.version) for scenario in scenarios]
    verdicts = []
    for (scenario, applied), seen in zip(asked, systemd.ask([each for each, _ in asked]), strict=True):
        ours = oracle_ours.run(scenario)
        expected, more = oracle_exceptions.expected(ours, systemd.version)
        theirs = oracle_exceptions.until(seen.events, ours.parted)
        verdicts.append(Verdict(scenario, expected, theirs, frozenset(applied | more), seen))
    return verdicts


def shrink(systemd: Systemd, verdict: Verdict) -> Verdict:
    """Return the simplest scenario of which the two still differ; greedy, all simpler ones are asked at a time."""
    for _ in range(STEPS_TO_SHRINK):
        candidates = [each for each in oracle_scenario.simpler(verdict.asked) if oracle_scenario.wrong(each) is None]
        differing = [each for each in judge(systemd, candidates) if each.differs and not each.late]
        if not differing:
            break
        verdict = differing[0]
    return verdict


def applied(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Count the scenarios to which each exception applied."""
    return Counter({name: 0 for name in oracle_exceptions.TABLE}) + Counter(
        name for verdict in verdicts for name in verdict.applied
    )
