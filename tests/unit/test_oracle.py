"""The oracle's own parts, without a systemd: it is our rules that stand in for it, made to differ."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import oracle_exceptions
import oracle_lab
import oracle_ours
import oracle_scenario
import pytest
from oracle_ours import Look
from oracle_scenario import BROKEN, POLICIES, TICK, VERBS, Life, Operation, Rules, Scenario, Status
from oracle_systemd import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIGPIPE = Status(signal.SIGPIPE, signalled=True)


@dataclass
class StandIn:
    """A systemd that does as we do, but for what `otherwise` does to its answers."""

    otherwise: Callable[[Scenario, Seen], Seen]
    version: int = 300
    asked: int = 0

    def ask(self, scenarios: Sequence[Scenario], *, parallel: int = 1, hurry: bool = True) -> list[Seen]:
        self.asked += len(scenarios)
        return [self.otherwise(scenario, self._seen(scenario)) for scenario in scenarios]

    def _seen(self, scenario: Scenario) -> Seen:
        return Seen(oracle_exceptions.expected(oracle_ours.run(scenario), self.version).events, None, {})


def no_pipes(scenario: Scenario, seen: Seen) -> Seen:
    """SIGPIPE is a failure."""
    if not any(life.ends == SIGPIPE for life in scenario.lives):
        return seen
    events = [replace(each, result="signal") if isinstance(each, Look) else each for each in seen.events]
    return replace(seen, events=events)


def as_it_is(_: Scenario, seen: Seen) -> Seen:
    return seen


def in_turn(*answers: Callable[[Scenario, Seen], Seen]) -> Callable[[Scenario, Seen], Seen]:
    left = list(answers)

    def answer(scenario: Scenario, seen: Seen) -> Seen:
        return left.pop(0)(scenario, seen)

    return answer


def test_a_seed_is_always_the_same_scenario_and_none_is_in_doubt() -> None:
    for seed in range(500):
        scenario = oracle_scenario.scenario(seed)
        assert scenario == oracle_scenario.scenario(seed)
        assert oracle_scenario.wrong(scenario) is None


def test_all_that_there_is_occurs() -> None:
    scenarios = [oracle_scenario.scenario(seed) for seed in range(500)]
    assert {scenario.rules.policy for scenario in scenarios} == set(POLICIES)
    assert {operation.verb for scenario in scenarios for operation in scenario.operations} == set(VERBS)
    ours = [oracle_ours.run(scenario) for scenario in scenarios]
    assert {look.state for each in ours for look, _ in each.looks} == {
        "running", "stopping", "auto-restart", "failed", "inactive"
    }  # fmt: skip
    results = {"success", "exit-code", "signal", "timeout", "resources", "lost"}
    assert {look.result for each in ours for look, _ in each.looks} == results
    taken = [oracle_exceptions.comparable(scenario, 252)[1] for scenario in scenarios]
    applied = {name for each in ours for name in oracle_exceptions.expected(each, 252).applied}
    assert applied.union(*taken) == set(oracle_exceptions.TABLE)


def test_it_makes_no_difference_how_often_the_supervisor_is_replaced() -> None:
    for seed in range(300):
        scenario = oracle_scenario.scenario(seed)
        assert oracle_ours.run(scenario, handed_over=True) == oracle_ours.run(scenario), scenario


START = Operation(0, "start")


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        (Scenario(operations=(START, Operation(5, "stop"))), "same place"),
        (Scenario(operations=(Operation(6, "stop"), START)), "no order"),
        (Scenario(until=TICK, operations=(START, Operation(6, "stop"))), "after its end"),
        (Scenario(lives=(Life(on_term="exits", lingers=15),)), "patience"),
        (Scenario(Rules(delay=0)), "as many restarts"),
        (Scenario(Rules(interval=7.0)), "ends with a cell"),
        (Scenario(operations=(START, Operation(1, "break"), Operation(BROKEN + 2, "mend"))), "broken for so long"),
    ],
)
def test_what_is_in_doubt_is_no_scenario(scenario: Scenario, why: str) -> None:
    assert why in (oracle_scenario.wrong(scenario) or "")


def test_what_agrees_is_asked_once() -> None:
    systemd = StandIn(as_it_is)
    scenarios = [oracle_scenario.scenario(seed) for seed in range(20)]
    assert not any(verdict.differs for verdict in oracle_lab.judge(systemd, scenarios))
    assert systemd.asked == 20


def test_what_differs_is_asked_again_and_may_then_agree() -> None:
    systemd = StandIn(in_turn(no_pipes, as_it_is))
    (verdict,) = oracle_lab.judge(systemd, [Scenario(lives=(Life(lasts=0, ends=SIGPIPE),))])
    assert not verdict.differs
    assert systemd.asked == 2


def test_what_was_late_is_asked_again_and_never_for_the_worse() -> None:
    systemd = StandIn(in_turn(lambda _, seen: replace(seen, late="start by 0.41"), no_pipes, no_pipes, no_pipes))
    (verdict,) = oracle_lab.judge(systemd, [Scenario(lives=(Life(lasts=0, ends=SIGPIPE),))])
    assert not verdict.differs


def test_a_difference_is_brought_down_to_what_it_is_of() -> None:
    systemd = StandIn(no_pipes)
    seeds = [seed for seed in range(200) if SIGPIPE in [life.ends for life in oracle_scenario.scenario(seed).lives]]
    for verdict in oracle_lab.judge(systemd, [oracle_scenario.scenario(seed) for seed in seeds[:5]]):
        simplest = oracle_lab.shrink(systemd, verdict)
        assert simplest.asked == Scenario(lives=(Life(ends=SIGPIPE),), operations=(), until=TICK)
        assert "* " in str(simplest)


def test_what_it_is_of_may_need_a_start_and_an_end() -> None:
    def no_failure(_: Scenario, seen: Seen) -> Seen:
        kept = [each for each in seen.events if not isinstance(each, Look) or each.result == "success"]
        return replace(seen, events=kept)

    operations = (START, Operation(7, "reset-failed"), Operation(33, "restart"))
    lives = (Life(), Life(lasts=10, ends=Status(1)))
    (verdict,) = oracle_lab.judge(StandIn(no_failure), [Scenario(Rules(policy="always"), lives, operations)])
    simplest = oracle_lab.shrink(StandIn(no_failure), verdict).asked
    assert simplest == Scenario(lives=(Life(lasts=0, ends=Status(1)),), until=TICK)


def test_a_difference_is_told_side_by_side() -> None:
    scenario = Scenario(Rules(policy="no"), (Life(lasts=0, ends=SIGPIPE),), until=TICK)
    (verdict,) = oracle_lab.judge(StandIn(no_pipes), [scenario])
    assert str(verdict).splitlines() == [
        "  rules: policy no",
        "  life 0: after 0: SIGPIPE; on SIGTERM it dies",
        "  by hand: start at 0; watched until 5",
        f"       0  ours {'starts':<32} systemd starts",
        f"*    4.6  ours {'inactive success 0':<32} systemd inactive signal 0",
    ]
