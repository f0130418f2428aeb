"""The rules that are the state machine's, instant: time is a number, the world a list of what was asked of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from clock_lab import FakeClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import TypeAdapter

from forge_supervisor import events, policy
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Agent, Problem, Restart
from forge_supervisor.memory import AT_REST, Memory, State
from forge_supervisor.policy import Exit, Result

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeRunner:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def launch(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        self.asked.append("launch")

    def resume(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        self.asked.append("resume")

    def terminate(self) -> None:
        self.asked.append("terminate")

    def kill(self) -> None:
        self.asked.append("kill")


class Desk:
    """One agent, and everything that it sees of the world."""

    def __init__(self, *, stop_exit_status: frozenset[int] = frozenset(), **keys: Any) -> None:
        self.clock = FakeClock()
        self.runner = FakeRunner()
        self.events: list[events.Event] = []
        self.life = Lifecycle(
            Agent.model_validate({"name": "scout", "run_as": "team", "role": "Look around.", **keys}),
            self.runner,
            clock=self.clock,
            emit=self.events.append,
            stop_exit_status=stop_exit_status,
        )

    def state(self) -> State:
        # A call: mypy takes an attribute to stay what it was once seen to be.
        return self.life.state

    def anew(self) -> bool:
        return self.life.begins_anew

    @property
    def launches(self) -> int:
        return self.runner.asked.count("launch")

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def run(self) -> None:
        self.life.start()
        self.life.launched(4711)

    def end(self, exit_: Exit, screen: tuple[str, ...] = ()) -> None:
        self.life.died()
        self.life.exited(exit_, screen)

    def last(self, kind: type[events.Event]) -> Any:
        return next(event for event in reversed(self.events) if isinstance(event, kind))


def test_three_starts_in_a_minute_then_failed_at_15_seconds() -> None:
    desk = Desk()
    begin = desk.clock.now
    starts = []
    desk.life.start()
    while desk.state() is State.STARTING:
        starts.append(desk.clock.now - begin)
        desk.life.launched(4711)
        desk.end(Exit(code=1))
        assert desk.state() is State.AUTO_RESTART
        desk.clock.advance(5)
    assert starts == [0, 5, 10]
    assert desk.clock.now - begin == 15
    assert (desk.state(), desk.life.result) == (State.FAILED, Result.EXIT_CODE)
    assert desk.life.start_limit_hit
    assert desk.life.n_restarts == 3, "counted when it came due, before it was refused"
    assert desk.clock.pending == 0
    failed = desk.last(events.AgentFailed)
    assert failed.start_limit_hit
    assert "start limit hit: 3 starts in 60 s; forgectl reset-failed scout" in failed.sentence()


def test_an_agent_that_lives_long_enough_is_restarted_for_ever() -> None:
    desk = Desk()
    desk.life.start()
    for _ in range(20):
        desk.life.launched(4711)
        desk.clock.advance(15.5)
        desk.end(Exit(code=1))
        desk.clock.advance(5)
        assert desk.state() is State.STARTING
    assert desk.life.n_restarts == 20


def test_so_many_starts_a_day_and_no_more_however_far_apart() -> None:
    desk = Desk(restart={"delay_sec": 600, "limit_daily": 20})
    begin = desk.clock.now
    desk.life.start()
    while desk.state() is State.STARTING:
        desk.life.launched(4711)
        desk.end(Exit(code=1))
        desk.clock.advance(600)
    assert (desk.state(), desk.launches) == (State.FAILED, 20)
    assert (desk.life.start_limit_hit, desk.life.daily_limit_hit) == (False, True)
    sentence = desk.last(events.AgentFailed).sentence()
    assert sentence == (
        "scout failed with result exit-code; daily limit hit: 20 starts in a day; forgectl reset-failed scout"
    )
    desk.clock.advance(policy.DAY - (desk.clock.now - begin))
    desk.life.start()
    assert desk.state() is State.FAILED, "the day is not over"
    desk.clock.advance(0.001)
    desk.life.start()
    assert (desk.state(), desk.life.daily_limit_hit) == (State.STARTING, False)


def test_who_was_to_be_started_is_not_one_that_was_stopped() -> None:
    desk = Desk(restart={"policy": "no", "limit_burst": 1})
    desk.run()
    desk.end(Exit(code=0))
    seen = []
    for ask in (desk.life.stop, desk.life.restart):
        ask()
        seen.append((desk.life.state, desk.life.stays_down))
    assert seen == [(State.INACTIVE, True), (State.FAILED, False)]


def test_the_daily_limit_is_forgotten_on_request_and_may_be_none() -> None:
    desk = Desk(restart={"policy": "no", "limit_burst": 0, "limit_daily": 1})
    desk.run()
    desk.end(Exit(code=0))
    desk.life.start()
    assert desk.life.daily_limit_hit
    desk.life.reset_failed()
    assert (desk.state(), desk.life.daily_limit_hit) == (State.INACTIVE, False)
    desk.run()
    without = Restart(policy="no", limit_burst=0, limit_daily=0)
    desk.life.reconfigure(desk.life.agent.model_copy(update={"restart": without}))
    for _ in range(300):
        desk.end(Exit(code=0))
        desk.run()
    assert not desk.life.daily_limit_hit


def test_a_start_that_the_start_limit_refuses_is_none_of_the_day() -> None:
    desk = Desk(restart={"policy": "no", "limit_burst": 1, "limit_daily": 2})
    desk.run()
    desk.end(Exit(code=0))
    for _ in range(5):
        desk.life.start()
        assert (desk.life.start_limit_hit, desk.life.daily_limit_hit) == (True, False)
    desk.clock.advance(60.001)
    desk.life.start()
    assert desk.state() is State.STARTING


def test_another_supervisor_goes_on_counting_the_day() -> None:
    desk = Desk(restart={"policy": "no", "limit_daily": 2})
    for _ in range(2):
        desk.run()
        desk.end(Exit(code=0))
    after = Desk(restart={"policy": "no", "limit_daily": 2})
    after.life.resume(desk.life.memory())
    after.life.start()
    assert (after.state(), after.life.daily_limit_hit) == (State.FAILED, True)


# What it remembers of earlier sessions.


@pytest.mark.parametrize(
    ("keys", "after_failure", "after_success"), [
        ({}, False, False),
        ({"resume": {"policy": "after-failure"}}, False, True),
        ({"resume": {"policy": "never"}}, True, True),
    ],
)
def test_a_session_begins_anew_as_its_policy_has_it(
    keys: dict[str, Any], *, after_failure: bool, after_success: bool
) -> None:
    desk = Desk(restart={"policy": "always"}, **keys)
    desk.run()
    desk.end(Exit(signal=9))
    assert desk.anew() is after_failure
    desk.clock.advance(5)
    desk.life.launch_failed(Problem("run_as", "no such user"))
    assert desk.anew() is after_failure, "nothing ran that could have ended in another way"
    desk.clock.advance(5)
    desk.life.launched(4711)
    desk.end(Exit(code=0))
    assert desk.anew() is after_success


def test_a_requested_stop_is_a_clean_end_and_one_that_took_a_kill_is_none() -> None:
    desk = Desk(stop_exit_status=frozenset({143}), resume={"policy": "after-failure"})
    desk.run()
    desk.life.stop()
    desk.end(Exit(code=143))
    assert desk.anew()
    desk.run()
    desk.life.stop()
    desk.clock.advance(30)
    desk.end(Exit(signal=9))
    assert not desk.anew()


def test_of_a_session_that_nobody_knows_it_is_not_said_that_it_failed() -> None:
    assert Desk(resume={"policy": "after-failure"}).anew()
    assert not Desk().anew()


def test_a_session_that_cannot_be_resumed_is_tried_once() -> None:
    desk = Desk(restart={"limit_burst": 0})
    desk.run()
    desk.life.died()
    desk.life.exited(Exit(code=1), (), unresumable=True)
    assert desk.state() is State.AUTO_RESTART, "it is an exit like any other"
    assert desk.last(events.AgentWarning).sentence() == (
        "scout: agents.scout.resume: its last session cannot be resumed, so the next start begins a new one"
    )
    after = Desk(restart={"limit_burst": 0})
    after.life.resume(desk.life.memory())
    assert after.anew(), "another supervisor knows"
    after.clock.now = desk.clock.now
    after.clock.advance(5)
    after.life.launch_failed(Problem("", "no worker"))
    after.clock.advance(5)
    assert after.anew(), "it has not begun anew yet"
    after.life.launched(4711)
    after.end(Exit(code=1))
    assert not after.anew()


def test_a_restart_may_be_asked_to_begin_anew() -> None:
    desk = Desk()
    desk.run()
    desk.life.restart(fresh=True)
    desk.end(Exit(signal=15))
    assert desk.state() is State.STARTING
    assert desk.anew()
    desk.life.launched(4711)
    assert not desk.anew()
    desk.life.restart()
    desk.end(Exit(signal=15))
    assert not desk.anew()


def test_asked_for_in_the_middle_of_a_start_it_is_for_the_next_one() -> None:
    desk = Desk()
    desk.life.start()
    desk.life.restart(fresh=True)
    desk.life.launched(4711)
    desk.end(Exit(signal=15))
    assert desk.state() is State.STARTING
    assert desk.anew()


def test_the_limit_counts_starts_by_hand_too() -> None:
    desk = Desk(restart={"policy": "no"})
    for _ in range(3):
        desk.run()
        desk.end(Exit(code=0))
    desk.life.start()
    assert (desk.state(), desk.life.start_limit_hit) == (State.FAILED, True)
    assert desk.life.result is Result.SUCCESS, "it ended well every time; the flag says the rest"
    sentence = desk.last(events.AgentFailed).sentence()
    assert sentence == "scout failed; start limit hit: 3 starts in 60 s; forgectl reset-failed scout"
    desk.life.start()
    assert desk.launches == 3
    desk.clock.advance(60.001)
    desk.life.start()
    assert desk.state() is State.STARTING
    assert not desk.life.start_limit_hit


def test_reset_failed_forgets_the_limit_the_restarts_and_the_result() -> None:
    desk = Desk()
    desk.life.start()
    while desk.state() is State.STARTING:
        desk.life.launch_failed(Problem(key="harness", text="claude was not found"))
        desk.clock.advance(5)
    desk.life.reset_failed()
    assert desk.state() is State.INACTIVE
    assert (desk.life.result, desk.life.n_restarts, desk.life.start_limit_hit) == (Result.SUCCESS, 0, False)
    desk.life.start()
    assert desk.state() is State.STARTING


def test_reset_failed_forgets_the_result_of_one_that_waits_for_its_restart_too() -> None:
    # service_reset_failed() does so in every state.
    desk = Desk()
    desk.run()
    desk.end(Exit(code=1))
    desk.life.reset_failed()
    assert (desk.state(), desk.life.result) == (State.AUTO_RESTART, Result.SUCCESS)
    desk.life.stop()
    assert (desk.state(), desk.life.result) == (State.INACTIVE, Result.SUCCESS)


def test_a_start_by_hand_that_is_refused_does_not_clear_the_restarts() -> None:
    desk = Desk()
    desk.life.start()
    while desk.state() is State.STARTING:
        desk.life.launched(4711)
        desk.end(Exit(code=1))
        desk.clock.advance(5)
    desk.life.start()
    assert (desk.state(), desk.life.n_restarts) == (State.FAILED, 3)
    assert desk.last(events.AgentFailed).n_restarts == 3
    desk.clock.advance(60)
    desk.life.start()
    assert (desk.state(), desk.life.n_restarts) == (State.STARTING, 0)


def test_a_failed_launch_follows_the_restart_policy() -> None:
    desk = Desk()
    desk.life.start()
    desk.life.launch_failed(Problem(key="cwd", text="/gone is no directory"))
    assert (desk.state(), desk.life.result, desk.life.exit) == (State.AUTO_RESTART, Result.RESOURCES, None)
    failure = desk.last(events.AgentStartFailed)
    assert (failure.key, failure.next) == ("agents.scout.cwd", "restarting in 5 s")
    never = Desk(restart={"policy": "no"})
    never.life.start()
    never.life.launch_failed(Problem(key="cwd", text="/gone is no directory"))
    assert never.state() is State.FAILED


def test_a_stop_waits_for_the_launch_and_then_terminates() -> None:
    desk = Desk()
    desk.life.start()
    desk.life.stop()
    assert desk.state() is State.STOPPING
    assert desk.runner.asked == ["launch"]
    desk.life.launched(4711)
    assert desk.runner.asked == ["launch", "terminate"]
    desk.end(Exit(signal=15))
    assert (desk.state(), desk.life.result) == (State.INACTIVE, Result.SUCCESS)
    assert desk.clock.pending == 0


def test_a_stop_while_the_launch_fails() -> None:
    desk = Desk()
    desk.life.start()
    desk.life.stop()
    desk.life.launch_failed(Problem(key="", text="no tmux"))
    assert (desk.state(), desk.clock.pending) == (State.FAILED, 0)


def test_a_stop_that_is_not_heeded_kills_and_is_a_timeout() -> None:
    desk = Desk(stop_timeout_sec=7)
    desk.run()
    desk.life.stop()
    desk.clock.advance(6.9)
    assert desk.runner.asked == ["launch", "terminate"]
    desk.clock.advance(0.2)
    assert desk.runner.asked == ["launch", "terminate", "kill"]
    desk.end(Exit(signal=9))
    assert (desk.state(), desk.life.result) == (State.FAILED, Result.TIMEOUT)
    assert desk.clock.pending == 0, "a manual stop is never undone"


def test_a_stop_without_a_timeout_waits_for_ever() -> None:
    desk = Desk(stop_timeout_sec="infinity")
    desk.run()
    desk.life.stop()
    assert desk.clock.pending == 0


def test_a_hurried_stop_kills_now_but_never_what_has_died() -> None:
    desk = Desk()
    desk.run()
    desk.life.kill()
    assert desk.runner.asked == ["launch"], "nobody asked for a stop"
    desk.life.stop()
    desk.life.kill()
    assert desk.runner.asked == ["launch", "terminate", "kill"]
    desk.life.died()
    desk.life.kill()
    desk.life.exited(Exit(signal=9))
    assert desk.runner.asked == ["launch", "terminate", "kill"]


@pytest.mark.parametrize(("requested", "state"), [(True, State.INACTIVE), (False, State.AUTO_RESTART)])
def test_143_is_clean_only_while_a_requested_stop_is_under_way(requested: bool, state: State) -> None:
    desk = Desk(stop_exit_status=frozenset({143}))
    desk.run()
    if requested:
        desk.life.stop()
    desk.end(Exit(code=143))
    assert desk.state() is state


@pytest.mark.parametrize(
    ("exit_", "state", "result"),
    [
        (Exit(code=0), State.INACTIVE, Result.SUCCESS),
        (Exit(signal=15), State.INACTIVE, Result.SUCCESS),
        (Exit(code=3), State.FAILED, Result.EXIT_CODE),
        (Exit(signal=9), State.FAILED, Result.SIGNAL),
        (Exit(lost=True), State.FAILED, Result.LOST),
    ],
)
def test_a_manual_stop_is_never_undone_by_a_restart(exit_: Exit, state: State, result: Result) -> None:
    desk = Desk(restart={"policy": "always"})
    desk.run()
    desk.life.stop()
    desk.end(exit_)
    assert (desk.state(), desk.life.result) == (state, result)
    desk.clock.advance(3600)
    assert desk.launches == 1


def test_a_stop_while_waiting_cancels_the_restart() -> None:
    desk = Desk()
    desk.run()
    desk.end(Exit(code=1))
    desk.life.stop()
    assert (desk.state(), desk.clock.pending) == (State.INACTIVE, 0)
    assert desk.names[-1] == "agent_stopped"


def test_a_stop_while_leftovers_are_cleared_prevents_the_restart() -> None:
    desk = Desk()
    desk.run()
    desk.life.died()
    assert desk.state() is State.STOPPING, "running means running"
    desk.life.stop()
    desk.life.exited(Exit(code=1))
    assert (desk.state(), desk.clock.pending) == (State.FAILED, 0)


def test_a_start_while_waiting_starts_at_once_and_clears_the_restarts() -> None:
    desk = Desk()
    desk.run()
    desk.end(Exit(code=1))
    desk.clock.advance(5)
    desk.life.launched(4712)
    desk.end(Exit(code=1))
    assert desk.life.n_restarts == 1
    desk.life.start()
    assert (desk.state(), desk.life.n_restarts, desk.launches, desk.clock.pending) == (State.STARTING, 0, 3, 0)


def test_a_start_while_stopping_waits_for_the_stop() -> None:
    desk = Desk()
    desk.run()
    desk.life.restart()
    assert desk.launches == 1
    desk.end(Exit(signal=15))
    assert (desk.state(), desk.launches) == (State.STARTING, 2)
    assert desk.last(events.AgentExited).next == "starting again as requested"


def test_the_last_word_of_stop_and_start_counts() -> None:
    desk = Desk()
    desk.run()
    desk.life.restart()
    desk.life.stop()
    desk.end(Exit(signal=15))
    assert (desk.state(), desk.launches) == (State.INACTIVE, 1)


def test_an_exit_is_reported_whole() -> None:
    desk = Desk()
    desk.run()
    desk.clock.advance(12.5)
    desk.end(Exit(code=3), ("Traceback", "ValueError: 3"))
    exited = desk.last(events.AgentExited)
    assert (exited.agent, exited.run_as, exited.pid) == ("scout", "team", 4711)
    assert (exited.exit_code, exited.signal, exited.uptime_sec) == (3, None, 12.5)
    assert (exited.result, exited.n_restarts, exited.next) == (Result.EXIT_CODE, 0, "restarting in 5 s")
    assert exited.screen == "Traceback\nValueError: 3"
    assert desk.names == ["agent_started", "agent_exited", "agent_restarting"]


def test_the_time_that_clearing_leftovers_takes_is_no_uptime() -> None:
    desk = Desk()
    desk.run()
    desk.clock.advance(3)
    desk.life.died()
    desk.clock.advance(2)
    desk.life.exited(Exit(code=0))
    assert desk.last(events.AgentExited).uptime_sec == 3


def test_every_session_has_its_own_invocation() -> None:
    desk = Desk()
    desk.run()
    first = desk.life.invocation
    desk.end(Exit(code=1))
    desk.clock.advance(5)
    assert first != desk.life.invocation


def test_new_restart_rules_hold_from_now_on_and_keep_the_window() -> None:
    desk = Desk()
    desk.run()
    desk.end(Exit(code=1))
    desk.clock.advance(5)
    desk.life.launched(4711)
    desk.life.reconfigure(Desk(restart={"limit_burst": 2}).life.agent)
    desk.end(Exit(code=1))
    desk.clock.advance(5)
    assert desk.state() is State.FAILED
    assert desk.life.start_limit_hit


def test_a_replaced_agents_last_session_is_judged_and_told_as_what_it_was() -> None:
    desk = Desk(run_as="old", stop_exit_status=frozenset({143}), restart={"success_exit_status": [7]})
    desk.run()
    new = Desk(run_as="new").life.agent
    desk.life.replace(new, frozenset())
    assert (desk.life.agent.run_as, desk.life.declared.run_as) == ("old", "new")
    desk.end(Exit(code=143))
    exited = desk.last(events.AgentExited)
    assert (exited.run_as, exited.result, exited.next) == ("old", Result.SUCCESS, "starting again as requested")
    assert desk.state() is State.STARTING
    desk.life.launched(4712)
    assert desk.last(events.AgentStarted).run_as == "new"
    desk.end(Exit(code=7))
    assert desk.life.result is Result.EXIT_CODE


def test_restart_rules_that_come_while_a_replacement_is_due_are_the_replacements() -> None:
    desk = Desk()
    desk.run()
    desk.life.replace(Desk(env={"A": "1"}).life.agent, frozenset())
    desk.life.reconfigure(Desk(env={"A": "1"}, restart={"policy": "no"}).life.agent)
    desk.end(Exit(code=0))
    desk.life.launched(4712)
    assert (desk.life.agent.env, desk.life.agent.restart.policy) == ({"A": "1"}, "no")


MEMORY = TypeAdapter(Memory)


def successor(desk: Desk, *, alive: bool) -> Desk:
    """Have another supervisor go on where this one stood, knowing no more than what could be written down."""
    for _, _, timer in desk.clock.timers:
        timer.cancel()
    memory = MEMORY.validate_json(MEMORY.dump_json(desk.life.memory()))
    other = Desk(stop_exit_status=desk.life.stop_exit_status)
    other.clock = desk.clock
    other.life = Lifecycle(desk.life.agent, other.runner, clock=desk.clock, emit=other.events.append)
    other.life.resume(memory)
    if alive:
        other.life.found()
    return other


def test_another_supervisor_goes_on_with_a_session_that_runs() -> None:
    desk = Desk()
    desk.run()
    desk.clock.advance(60)
    other = successor(desk, alive=True)
    assert (other.state(), other.runner.asked) == (State.RUNNING, ["resume"])
    adopted = other.last(events.AgentAdopted)
    assert (adopted.pid, adopted.invocation, adopted.uptime_sec) == (4711, desk.life.invocation, 60)
    other.end(Exit(code=3))
    exited = other.last(events.AgentExited)
    assert (exited.exit_code, exited.uptime_sec, exited.pid) == (3, 60, 4711)


@pytest.mark.parametrize(("ends", "since"), [(False, 60), (True, 20)])
def test_of_what_an_older_supervisor_has_left_the_state_is_as_old_as_it_can_be(ends: bool, since: int) -> None:
    desk = Desk(restart={"policy": "no"})
    desk.run()
    desk.clock.advance(40)
    if ends:
        desk.end(Exit(code=1))
    desk.clock.advance(20)
    desk.life.since = 0.0  # as Memory has it of what says nothing of it
    other = successor(desk, alive=not ends)
    assert desk.clock.now - other.life.since == since


def test_another_supervisor_waits_for_what_is_left_of_a_delay() -> None:
    desk = Desk(restart={"delay_sec": 10})
    desk.run()
    desk.end(Exit(code=1))
    desk.clock.advance(7)
    other = successor(desk, alive=False)
    desk.clock.advance(2.9)
    assert other.state() is State.AUTO_RESTART
    desk.clock.advance(0.2)
    assert (other.state(), other.life.n_restarts) == (State.STARTING, 1)


def test_a_delay_that_has_passed_meanwhile_is_over() -> None:
    desk = Desk()
    desk.run()
    desk.end(Exit(code=1))
    desk.clock.now += 1000
    other = successor(desk, alive=False)
    desk.clock.advance(0)
    assert other.state() is State.STARTING


def test_another_supervisor_goes_on_with_a_stop_and_its_deadline() -> None:
    desk = Desk(stop_timeout_sec=30)
    desk.run()
    desk.life.stop()
    desk.clock.advance(20)
    other = successor(desk, alive=True)
    assert other.runner.asked == ["resume", "terminate"]
    desk.clock.advance(10)
    assert other.runner.asked == ["resume", "terminate", "kill"]
    other.end(Exit(signal=9))
    assert (other.state(), other.life.result) == (State.FAILED, Result.TIMEOUT)
    assert other.last(events.AgentExited).next == "stopped as requested"


def test_the_start_limit_outlives_the_supervisor() -> None:
    desk = Desk()
    for _ in range(3):
        desk.run()
        desk.end(Exit(code=0))
    other = successor(desk, alive=False)
    assert other.state() is State.INACTIVE, "nobody has asked for a start"
    other.life.start()
    assert (other.state(), other.life.start_limit_hit) == (State.FAILED, True)


def test_whatever_is_done_is_known_before_it_is_done() -> None:
    """A supervisor that is killed right after a signal, or a launch, has written down why."""
    desk = Desk()
    known: list[Memory] = []
    desk.life.changed = lambda: known.append(desk.life.memory())

    def seen(what: str) -> Callable[..., None]:
        return lambda *_: at.append((what, known[-1]))

    at: list[tuple[str, Memory]] = []
    for method in ("launch", "terminate", "kill"):
        setattr(desk.runner, method, seen(method))
    desk.run()
    desk.life.stop()
    desk.clock.advance(30)
    (_, launch), (_, terminate), (_, kill) = at
    assert (launch.state, launch.launching, launch.window[1]) == (State.STARTING, True, 1)
    assert (terminate.state, terminate.stop_requested) == (State.STOPPING, True)
    assert kill.stop_timed_out
    assert known[-1] == desk.life.memory()


class Anything(RuleBasedStateMachine):
    """Whatever happens in whatever order: no transition is refused, no timer is left behind, no agent runs twice.

    And it makes no difference whether one supervisor sees it all, or one after the other: the twin has only one.
    """

    def __init__(self) -> None:
        super().__init__()
        rules: dict[str, Any] = {"stop_timeout_sec": 3, "restart": {"delay_sec": 1, "limit_interval_sec": 10}}
        self.desk, self.twin = Desk(**rules), Desk(**rules)
        self.launching = self.alive = self.dying = False

    def tell(self, what: Callable[[Lifecycle], None]) -> None:
        for desk in (self.desk, self.twin):
            before = desk.launches
            what(desk.life)
            self.launching |= desk.launches > before

    @rule()
    def start(self) -> None:
        self.tell(Lifecycle.start)

    @rule()
    def stop(self) -> None:
        self.tell(Lifecycle.stop)

    @rule()
    def restart(self) -> None:
        self.tell(Lifecycle.restart)

    @rule()
    def reset_failed(self) -> None:
        self.tell(Lifecycle.reset_failed)

    @rule()
    def hurry(self) -> None:
        self.tell(Lifecycle.kill)

    @rule(seconds=st.floats(0, 20))
    def advance(self, seconds: float) -> None:
        for desk in (self.desk, self.twin):
            before = desk.launches
            desk.clock.advance(seconds)
            self.launching |= desk.launches > before

    @rule()
    def succeed(self) -> None:
        self.desk = successor(self.desk, alive=self.alive)

    @precondition(lambda self: self.launching)
    @rule()
    def launch(self) -> None:
        self.launching, self.alive = False, True
        self.tell(lambda life: life.launched(4711))

    @precondition(lambda self: self.launching)
    @rule()
    def fail(self) -> None:
        self.launching = False
        self.tell(lambda life: life.launch_failed(Problem(key="", text="no")))

    @precondition(lambda self: self.alive)
    @rule()
    def die(self) -> None:
        self.alive, self.dying = False, True
        self.tell(Lifecycle.died)

    @precondition(lambda self: self.dying)
    @rule(exit_=st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=9), Exit(lost=True)]))
    def report(self, exit_: Exit) -> None:
        self.dying = False
        self.tell(lambda life: life.exited(exit_))

    @invariant()
    def state_is_true(self) -> None:
        state = self.desk.state()
        assert (state is State.RUNNING) <= self.alive
        assert not (self.launching and (self.alive or self.dying)), "two sessions at once"
        assert self.desk.clock.pending <= 1
        if state in AT_REST:
            assert not (self.alive or self.dying or self.launching)
            assert self.desk.clock.pending == 0
        if state is State.AUTO_RESTART:
            assert self.desk.clock.pending == 1

    @invariant()
    def successors_make_no_difference(self) -> None:
        ours, theirs = (dataclasses.replace(desk.life.memory(), invocation="") for desk in (self.desk, self.twin))
        assert ours == theirs


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
