"""Whatever happens in whatever order, and whenever a supervisor is killed: the next one goes on, and tells the truth.

No agent ever has two sessions, none that was stopped is started, each exit is told once and as it was, no start and no
restart is forgotten in the counting, and all come to what they were asked to be. Supervisor, realm, runner, session and
life of an agent are the real ones; the world around them is played (model_world.py), and its time is a number.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from model_daemon import Variant
from model_lab import Lab

from forge_supervisor.agent import _TRANSITIONS
from forge_supervisor.memory import State
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

THOROUGH = "FORGE_TEST_THOROUGH" in os.environ

NAMES = st.sampled_from(["a", "b"])
POLICIES = st.sampled_from(["on-failure", "always", "no"])
VARIANTS = st.builds(
    Variant,
    policy=POLICIES,
    command=st.sampled_from(["x", "y"]),
    stop_timeout_sec=st.sampled_from([3, float("inf")]),
    run_as=st.sampled_from(["team", "team", "other"]),
    enabled=st.sampled_from([True, True, True, False]),
)
EXITS = st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=9), Exit(signal=15)])
SECONDS = st.sampled_from([0.01, 0.5, 1, 2.5, 4, 12, 25])
ROUNDS = st.sampled_from([None, None, 1, 2, 3, 5, 8, 13])
"""Of the loop, in which what was begun need not come to its end; None: until nothing more is to be done now."""
SLOW = st.sampled_from(["prepare", "open", "connect", "exec", "collect", "find-server", "linger", "enclose", "run"])
ENDS = st.integers(1, 30) | st.integers(1, 30) | st.sampled_from(["kill", "kill", "leave", "stop"])
AWAY = st.sampled_from([0, 0, 1, 2, 3])
VERBS = st.sampled_from(["start", "start", "stop", "restart", "reset_failed", "reset_failed", "kill"])
TEMPERS = st.sampled_from(["dies", "exits", "ignores"])
TROUBLES = st.sampled_from(["", "broken", "unready", "early", "exec", "no scope"])
CHANGES = st.one_of(
    st.tuples(st.just("slow"), SLOW, st.sampled_from([0, 0.5, 4])),
    st.tuples(st.just("trouble"), NAMES, TROUBLES),
    st.tuples(st.just("temper"), TEMPERS, st.booleans()),
)

supervised = precondition(lambda self: self.lab.daemon is not None)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab()
        self.begun = False
        self.away = 0
        """For how many steps there will be no supervisor after the next one that ends."""
        self.lifelines: list[int] = []
        """Of the next supervisors."""

    def teardown(self) -> None:
        try:
            if not self.lab.world.faults and self.begun:
                self.lab.calm()
                self.lab.account()
        finally:
            self.lab.close()

    def go(self, rounds: int | None = None, seconds: float = 0.0) -> None:
        self.lab.check(idle=self.lab.run(seconds, rounds=rounds))
        if self.lab.daemon is None and self.away:
            self.away -= 1
        elif self.lab.daemon is None:
            self.lab.boot(self.lifelines.pop() if self.lifelines else None)

    @initialize(a=VARIANTS, b=VARIANTS)
    def begin(self, a: Variant, b: Variant) -> None:
        self.begun = True
        self.lab.variants = {"a": a, "b": b}
        self.go()

    @supervised
    @rule(name=NAMES, verb=VERBS, rounds=ROUNDS)
    def ask(self, name: str, verb: str, rounds: int | None) -> None:
        self.lab.ask(name, verb)
        self.go(rounds)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.go(None, seconds)

    @rule(name=NAMES, exit_=EXITS, seconds=st.sampled_from([0, 0, 1.5]))
    def end(self, name: str, exit_: Exit, seconds: float) -> None:
        for process in self.lab.harnesses(name):
            self.lab.world.die(process, exit_)
        self.go(None, seconds)

    @rule(name=NAMES, variant=st.none() | VARIANTS, rounds=ROUNDS)
    def declare(self, name: str, variant: Variant | None, rounds: int | None) -> None:
        self.lab.variants.pop(name, None)
        if variant is not None:
            self.lab.variants[name] = variant
        if self.lab.daemon is not None:
            self.lab.reload()
        self.go(rounds)

    @supervised
    @rule(end=ENDS, rounds=ROUNDS, away=AWAY, lifelines=st.lists(st.integers(1, 20), max_size=2))
    def end_supervisor(self, end: int | str, rounds: int | None, away: int, lifelines: list[int]) -> None:
        """Have it end at one of its next acts, or at once, in this or that way; and those that follow at theirs."""
        self.away, self.lifelines = away, lifelines
        if isinstance(end, int):
            self.lab.present.hand.lifeline = end
        elif end == "kill":
            self.lab.end()
            self.go()
        else:
            self.lab.finish(leave=end == "leave")
            self.go(rounds)

    @rule(change=CHANGES)
    def change_the_world(self, change: tuple[str, Any, Any]) -> None:
        self.lab.change_the_world(*change)
        self.go()

    @rule(what=st.sampled_from(["server", "server", "pane", "workers"]), name=NAMES, rounds=ROUNDS)
    def lose(self, what: str, name: str, rounds: int | None) -> None:
        world = self.lab.world
        for uid, agent in [key for key in world.panes if key[1] == name]:
            if what == "server" and uid in world.servers:
                world.die(world.servers[uid], Exit(signal=9))
            elif what == "pane" and (uid, agent) in world.panes:
                world.hang_up((uid, agent), excuse=True)
        if what == "workers":
            self.lab.lose_workers()
        self.go(rounds)


@pytest.mark.timeout(3600 if THOROUGH else 180)
def test_whatever_happens() -> None:
    examples, steps = (5000, 60) if THOROUGH else (150, 40)
    # What it says of a fault is read as it is: to make an example of so many steps shorter takes minutes.
    once = settings(max_examples=examples, stateful_step_count=steps, phases=[Phase.generate])
    run_state_machine_as_test(Life, settings=once)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_every_state_is_reached_and_left_by_every_way(lab: Lab) -> None:
    """Which chance alone need not do."""

    def pass_(seconds: float = 0.0) -> None:
        lab.check(idle=lab.run(seconds))

    def ask(*verbs: str) -> None:
        for verb in verbs:
            lab.ask("a", verb)
            pass_()

    def end(exit_: Exit) -> None:
        [process] = lab.harnesses("a")
        lab.world.die(process, exit_)
        pass_()

    lab.variants = {"a": Variant(policy="on-failure")}
    lab.boot()
    pass_()
    ask("stop", "start")
    end(Exit(code=1))
    pass_(1)
    ask("stop", "start")  # the fourth start in its window
    ask("start", "reset_failed")
    lab.world.troubles["a"] = "broken"
    ask("start", "stop", "start")
    pass_(2)  # the fourth, once more
    ask("reset_failed")
    lab.variants = {"a": Variant(policy="no")}
    lab.reload()
    pass_()
    ask("reset_failed", "start")
    lab.world.troubles.clear()
    ask("start")
    end(Exit(code=1))
    lab.world.lags["open"] = 0.5
    ask("reset_failed", "start", "stop")
    pass_(0.5)
    lab.calm()
    lab.account()
    declared = {(one, other) for one, others in _TRANSITIONS.items() for other in others}
    assert set(lab.transitions) == declared
    assert {one for one, _ in declared} == {other for _, other in declared} == set(State)
