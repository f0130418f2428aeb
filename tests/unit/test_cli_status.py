"""How agents are, for people: pure."""

from __future__ import annotations

from typing import Any

import pytest
from agents_lab import NOW, agent

from forge_supervisor.cli import status


def test_the_table_has_a_line_for_each_and_no_column_that_says_nothing() -> None:
    agents = [
        agent("scout", memory=123_456_789),
        agent("coordinator", state="failed", result="exit-code", exit_code=3, pid=None, n_restarts=3),
    ]
    lines = [line.split() for line in status.table(agents, now=NOW, coloured=False)]
    assert lines[0] == ["AGENT", "USER", "STATE", "SINCE", "PID", "RESTARTS", "MEMORY"]
    assert lines[1] == ["scout", "team", "running", "3min", "20s", "4711", "0", "117.7M"]
    assert lines[2] == ["coordinator", "team", "failed", "(exit", "code", "3)", "3min", "20s", "-", "3", "-"]


def test_what_one_line_says_stands_below_its_heading() -> None:
    agents = [agent("a", model="opus", activity="working"), agent("a-long-name", memory=1)]
    head, *lines = status.table(agents, now=NOW, coloured=False)
    for heading in ("USER", "STATE", "SINCE", "PID", "RESTARTS", "ACTIVITY", "MEMORY"):
        at = head.index(heading)
        assert all(line[at] != " " and line[at - 1] == " " for line in lines), heading


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "running"),
        ({"enabled": False, "state": "inactive"}, "disabled"),
        ({"enabled": False}, "running"),
        ({"state": "failed", "result": "signal", "signal": 9}, "failed (signal 9)"),
        ({"state": "failed", "result": "lost"}, "failed (lost)"),
        ({"state": "failed", "result": "oom-kill", "signal": 9}, "failed (oom-kill)"),
        ({"state": "failed", "result": "exit-code", "exit_code": 1, "start_limit_hit": True}, "failed (start limit)"),
        ({"state": "failed", "result": "exit-code", "exit_code": 1, "daily_limit_hit": True}, "failed (daily limit)"),
        ({"state": "auto-restart", "result": "exit-code", "exit_code": 1}, "auto-restart (exit code 1)"),
        ({"state": "inactive"}, "inactive"),
    ],
)
def test_a_state_is_told_with_its_why(keys: dict[str, Any], told: str) -> None:
    assert status.state(agent("a", **keys)) == told


@pytest.mark.parametrize(
    ("size", "told"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1536, "1.5K"), (5 * 2**30, "5.0G"), (2**50, "1024.0T")],
)
def test_memory_is_written_as_systemctl_writes_it(size: int | None, told: str) -> None:
    assert status.memory(size) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0s"), (-5, "0s"), (59.9, "59s"), (60, "1min"), (3661, "1h 1min"), (86400 * 3 + 3700, "3d 1h")],
)
def test_a_time_span_is_told_by_its_two_largest_units(seconds: float, told: str) -> None:
    assert status.span(seconds) == told


def test_the_detail_tells_what_it_is_doing() -> None:
    limited = agent(
        "scout",
        activity="limited",
        activity_detail="You've hit your limit",
        activity_since_usec=int((NOW - 300) * 1e6),
        limited_until_usec=int((NOW + 7200) * 1e6),
        context_percent=42.4,
        limits=[{"name": "five_hour", "used_percent": 100.0, "resets_usec": int((NOW + 7200) * 1e6)}],
    )
    text = "\n".join(status.detail(limited, [], now=NOW, coloured=False))
    assert "Activity: limited (You've hit your limit) since " in text
    assert "; 5min ago, until " in text
    assert "Context: 42% of the model's window" in text
    assert "Limits: five_hour 100% until " in text
    assert "in 2h" in text


def test_the_detail_of_an_earlier_supervisor_has_the_word_alone() -> None:
    text = "\n".join(status.detail(agent("scout", activity="idle"), [], now=NOW, coloured=False))
    assert "Activity: idle" in text.splitlines()[2]
    assert "Context" not in text


def test_the_detail_tells_what_there_is_to_know() -> None:
    waiting = agent(
        "scout",
        state="auto-restart",
        result="exit-code",
        exit_code=3,
        pid=None,
        n_restarts=2,
        restart_usec=int((NOW + 4) * 1e6),
        declared_otherwise=True,
        model="opus",
    )
    text = "\n".join(status.detail(waiting, ["the last line"], now=NOW, coloured=False))
    for words in (
        *("● scout - claude-code (opus)", "State: auto-restart (exit code 3) since ", "; 3min 20s ago"),
        *("Restarts: 2", "Last exit: code 3 (result exit-code)", "; in 4s", "otherwise now", "    | the last line"),
    ):
        assert words in text
    assert "Main PID" not in text
    assert "Attach" not in text


def test_what_is_lost_is_told_as_lost() -> None:
    lost = agent("a", state="failed", result="lost", pid=None)
    assert "Last exit: not known (result lost)" in "\n".join(status.detail(lost, [], now=NOW, coloured=False))


def test_the_summary_counts_states() -> None:
    agents = [agent("a"), agent("b"), agent("c", state="failed"), agent("d", enabled=False, state="inactive")]
    assert status.summary(agents) == "2 running, 1 failed, 1 disabled"
    assert status.summary([]) == "no agents"


def test_colours_are_for_states_and_only_when_asked_for() -> None:
    agents = [agent("a"), agent("b", state="failed")]
    assert "\033" not in "".join(status.table(agents, now=NOW, coloured=False))
    _, running, failed = status.table(agents, now=NOW, coloured=True)
    assert running.startswith("\033[32m")
    assert failed.startswith("\033[31m")
