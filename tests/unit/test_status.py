from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from forge_supervisor.activity import Doing
from forge_supervisor.memory import State
from forge_supervisor.policy import Exit, Result
from forge_supervisor.status import summed_up


def life(name: str, state: State, result: Result = Result.SUCCESS, exit_: Exit | None = None) -> Any:
    return SimpleNamespace(
        agent=SimpleNamespace(name=name),
        state=state,
        result=result,
        exit=exit_,
        start_limit_hit=False,
        daily_limit_hit=False,
    )


RUNNING = [life(name, State.RUNNING) for name in ("a", "b", "c")]


def test_nobody() -> None:
    assert summed_up([], []) == "no agents"


def test_states_are_counted_and_failures_explained() -> None:
    failed = life("d", State.FAILED, Result.EXIT_CODE, Exit(code=3))
    assert summed_up([*RUNNING, failed], []) == "3 running, 1 failed: d (exit code 3)"


def test_those_that_run_and_cannot_work_are_named() -> None:
    troubles = {"b": Doing.LIMITED, "c": Doing.LOGGED_OUT, "gone": Doing.BLOCKED}
    assert summed_up(RUNNING, [], troubles) == "3 running, 2 of them stuck: b (limited), c (logged-out)"


def test_those_that_are_as_before_a_reload_are_named() -> None:
    assert summed_up(RUNNING, ["b"]) == "3 running; as before the reload: b"


def test_it_stays_short_enough_for_systemd() -> None:
    many = [life(f"agent-{number:040}", State.RUNNING) for number in range(300)]
    assert len(summed_up(many, [], dict.fromkeys((one.agent.name for one in many), Doing.LIMITED))) < 4096
