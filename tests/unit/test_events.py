from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from forge_supervisor import events
from forge_supervisor.events import AgentExited, Event, duration

WHO: dict[str, Any] = {"agent": "scout", "run_as": "team"}
OF_THE_DAY: dict[str, Any] = {"daily_limit_hit": False, "limit_daily": 200}
LIMIT: dict[str, Any] = {"limit_burst": 3, "limit_interval_sec": 60.0, **OF_THE_DAY}
RUN: dict[str, Any] = {**WHO, "pid": 42, "invocation": "c0ffee", "n_restarts": 1}
EXIT: dict[str, Any] = {
    **RUN,
    "exit_code": None,
    "signal": None,
    "uptime_sec": 12.5,
    "result": "exit-code",
    "next": "restarting in 5 s",
    "screen": "one\ntwo",
}

# The interface: name, level, every field, the sentence.
EVENTS: list[tuple[Event, str, str, str]] = [
    (events.AgentStarted(**{**RUN, "n_restarts": 0}), "agent_started", "info", "scout started as team (pid 42)"),
    (events.AgentStarted(**RUN), "agent_started", "info", "scout started as team (pid 42, restart 1)"),
    (
        events.AgentStartFailed(
            **WHO, key="agents.scout.run_as", problem="no such user", n_restarts=0, next="restarting in 5 s"
        ),
        "agent_start_failed",
        "warning",
        "scout could not be started: agents.scout.run_as: no such user; restarting in 5 s",
    ),
    (
        AgentExited(**{**EXIT, "exit_code": 3}),
        "agent_exited",
        "warning",
        "scout exited with code 3 after 12.5 s; restarting in 5 s",
    ),
    (
        AgentExited(**{**EXIT, "exit_code": 0, "result": "success", "next": "stopped as requested"}),
        "agent_exited",
        "info",
        "scout exited with code 0 after 12.5 s; stopped as requested",
    ),
    (
        AgentExited(**{**EXIT, "signal": 9, "result": "signal", "uptime_sec": 7500.0}),
        "agent_exited",
        "warning",
        "scout was ended by signal 9 (SIGKILL) after 2 h 5 min; restarting in 5 s",
    ),
    (
        AgentExited(**{**EXIT, "result": "lost"}),
        "agent_exited",
        "warning",
        "scout was lost, its exit status cannot be known, after 12.5 s; restarting in 5 s",
    ),
    (events.AgentReady(**WHO, ready_sec=1.25), "agent_ready", "info", "scout is at its prompt (1.2 s)"),
    (
        events.AgentTooLarge(**WHO, memory=3 * 2**30 + 2**29, restart_above=3 * 2**30),
        "agent_too_large",
        "warning",
        "scout uses 3.5 GiB, more than 3.0 GiB: it is restarted while it is idle",
    ),
    (
        events.BudgetExceeded(**WHO, tokens=1_234_567, cost_usd=12.3, stopped=True),
        "budget_exceeded",
        "warning",
        "scout has used 1,234,567 tokens today ($12.30), more than its budget; it is stopped (forgectl start scout)",
    ),
    (
        events.AgentBlocked(**WHO, activity="limited", problem="resets 3pm", fix="wait"),
        "agent_blocked",
        "warning",
        "scout is limited: resets 3pm (wait)",
    ),
    (
        events.AgentRecovered(**WHO, activity="limited", blocked_sec=200),
        "agent_recovered",
        "info",
        "scout is no longer limited, after 3 min 20 s",
    ),
    (
        events.AgentRestarting(**WHO, delay_sec=5, n_restarts=2),
        "agent_restarting",
        "info",
        "scout will be restarted in 5 s",
    ),
    (
        events.AgentFailed(**WHO, result="exit-code", start_limit_hit=False, n_restarts=0, **LIMIT),
        "agent_failed",
        "error",
        "scout failed with result exit-code",
    ),
    (
        events.AgentFailed(**WHO, result="signal", start_limit_hit=True, n_restarts=3, **LIMIT),
        "agent_failed",
        "error",
        "scout failed with result signal; start limit hit: 3 starts in 60 s; forgectl reset-failed scout",
    ),
    (
        events.AgentFailed(
            **WHO, result="signal", start_limit_hit=False, n_restarts=3, **{**LIMIT, "daily_limit_hit": True}
        ),
        "agent_failed",
        "error",
        "scout failed with result signal; daily limit hit: 200 starts in a day; forgectl reset-failed scout",
    ),
    (events.AgentStopped(**WHO, result="success", n_restarts=0), "agent_stopped", "info", "scout stopped"),
    (
        events.AgentStopped(**WHO, result="timeout", n_restarts=0),
        "agent_stopped",
        "info",
        "scout stopped with result timeout",
    ),
    (
        events.AgentWarning(**WHO, key="agents.scout.harness", problem="not logged in"),
        "agent_warning",
        "warning",
        "scout: agents.scout.harness: not logged in",
    ),
    (
        events.LeftoversCleared(**WHO, terminated=2, killed=1),
        "leftovers_cleared",
        "warning",
        "scout left processes behind: 2 terminated, 1 killed",
    ),
    (
        events.ConfigError(file="/etc/x.toml", key="colour", problem="unknown key"),
        "config_error",
        "error",
        "/etc/x.toml: colour: unknown key",
    ),
    (
        events.ConfigWarning(file="/etc/x.toml", key="agents.scout.run_as", problem="team is in group sudo"),
        "config_warning",
        "warning",
        "/etc/x.toml: agents.scout.run_as: team is in group sudo",
    ),
    (events.SupervisorReady(running=3, failed=1), "supervisor_ready", "info", "ready: 3 running, 1 failed"),
    (
        events.SupervisorReloaded(agents=4),
        "supervisor_reloaded",
        "info",
        "configuration reloaded, agents declared: 4",
    ),
    (
        events.SupervisorReloadFailed(problem="x.toml: agents: what is this?"),
        "supervisor_reload_failed",
        "error",
        "the configuration was not reloaded, the last good one stays in force: x.toml: agents: what is this?",
    ),
    (
        events.SupervisorStopping(reason="SIGTERM", leaves_agents=False),
        "supervisor_stopping",
        "info",
        "stopping on SIGTERM",
    ),
    (
        events.SupervisorStopping(reason="SIGTERM", leaves_agents=True),
        "supervisor_stopping",
        "info",
        "stopping on SIGTERM, agents run on",
    ),
    (
        events.AgentAdopted(
            agent="scout", run_as="team", pid=7, invocation="c0ffee", uptime_sec=60.04, n_restarts=2
        ),
        "agent_adopted",
        "info",
        "scout runs on as team (pid 7, up 60 s)",
    ),
    (
        events.WithoutSystemd(),
        "without_systemd",
        "warning",
        (
            "no systemd: agents have no limits, what they leave behind is ended as far as it is found, "
            "and they outlive a supervisor only if that is killed"
        ),
    ),
    (
        events.AgentsUnwatched(agents="a, b"),
        "agents_unwatched",
        "error",
        "agents run on, watched by nobody: a, b (systemctl stop forge-supervisor would end them)",
    ),
    (events.StateProblem(problem="no space"), "state_problem", "error", "no space"),
    (events.SupervisorStopped(), "supervisor_stopped", "info", "stopped"),
    (
        events.TmuxServerStarted(run_as="team", pid=7),
        "tmux_server_started",
        "info",
        "tmux server of team started (pid 7)",
    ),
    (
        events.TmuxServerShared(run_as="team", pid=7),
        "tmux_server_shared",
        "warning",
        "the tmux server of team (pid 7) was running already: agents join it",
    ),
    (
        events.AgentSwept(**WHO),
        "agent_swept",
        "warning",
        "a process of scout that nobody knew of has been ended",
    ),
    (
        events.TmuxServerLost(run_as="team", pid=7),
        "tmux_server_lost",
        "error",
        "tmux server of team (pid 7) is gone, and its agents' terminals with it",
    ),
    (
        events.WorkerLost(run_as="team", reason="no answer in 10 s"),
        "worker_lost",
        "warning",
        "worker of team was lost: no answer in 10 s",
    ),
    (
        events.HookFailed(**WHO, hook="/bin/page", hook_user="pager", hook_event="failed", problem="exit code 1"),
        "hook_failed",
        "warning",
        "the hook /bin/page (failed of scout, as pager) failed: exit code 1",
    ),
    (
        events.HooksDropped(most=100),
        "hooks_dropped",
        "error",
        "hooks are too slow: more than 100 wait to be run, and the oldest are dropped",
    ),
    (
        events.UsageProblem(problem="what scout uses is not counted for now: no"),
        "usage_problem",
        "warning",
        "what scout uses is not counted for now: no",
    ),
]


@pytest.mark.parametrize(("event", "name", "level", "sentence"), EVENTS)
def test_names_levels_and_sentences_are_an_interface(event: Event, name: str, level: str, sentence: str) -> None:
    assert (event.name, event.level, event.sentence()) == (name, level, sentence)


def test_fields_are_an_interface() -> None:
    fields = {event.name: {field.name for field in dataclasses.fields(event)} for event, *_ in EVENTS}
    agent = {"agent", "run_as"}
    run = agent | {"pid", "invocation", "n_restarts"}
    assert fields == {
        "agent_ready": agent | {"ready_sec"},
        "agent_blocked": agent | {"activity", "problem", "fix"},
        "agent_too_large": agent | {"memory", "restart_above"},
        "budget_exceeded": agent | {"tokens", "cost_usd", "stopped"},
        "agent_recovered": agent | {"activity", "blocked_sec"},
        "agent_started": run,
        "agent_start_failed": agent | {"key", "problem", "n_restarts", "next"},
        "agent_exited": run | {"exit_code", "signal", "uptime_sec", "result", "next", "screen"},
        "agent_restarting": agent | {"delay_sec", "n_restarts"},
        "agent_failed": agent | {"result", "start_limit_hit", "n_restarts", *LIMIT},
        "agent_swept": agent,
        "agent_adopted": run | {"uptime_sec"},
        "state_problem": {"problem"},
        "agents_unwatched": {"agents"},
        "without_systemd": set(),
        "tmux_server_shared": {"run_as", "pid"},
        "agent_stopped": agent | {"result", "n_restarts"},
        "agent_warning": agent | {"key", "problem"},
        "leftovers_cleared": agent | {"terminated", "killed"},
        "config_warning": {"file", "key", "problem"},
        "config_error": {"file", "key", "problem"},
        "supervisor_ready": {"running", "failed"},
        "supervisor_reloaded": {"agents"},
        "supervisor_reload_failed": {"problem"},
        "supervisor_stopping": {"reason", "leaves_agents"},
        "supervisor_stopped": set(),
        "tmux_server_started": {"run_as", "pid"},
        "tmux_server_lost": {"run_as", "pid"},
        "worker_lost": {"run_as", "reason"},
        "hook_failed": agent | {"hook", "hook_user", "hook_event", "problem"},
        "hooks_dropped": {"most"},
        "usage_problem": {"problem"},
    }


def all_events() -> list[type[Event]]:
    classes = [thing for thing in vars(events).values() if isinstance(thing, type) and issubclass(thing, Event)]
    return [event for event in classes if "name" in vars(event)]


def test_every_event_is_in_the_tables_above() -> None:
    assert {type(event) for event, *_ in EVENTS} == set(all_events())


@pytest.mark.parametrize("event", all_events())
def test_fields_can_be_journal_fields_and_clash_with_none_of_the_logs_own(event: type[Event]) -> None:
    taken = {"event", "message", "level", "timestamp", "logger", "exception", "priority", "syslog_identifier"}
    for field in dataclasses.fields(event):
        assert re.fullmatch("[A-Z0-9][A-Z0-9_]{0,63}", field.name.upper())  # systemd.journal-fields(7)
        assert field.name not in taken


def test_what_is_none_is_absent_and_seconds_are_rounded() -> None:
    fields = AgentExited(**{**EXIT, "exit_code": 0, "uptime_sec": 1.23456}).fields()
    assert fields["exit_code"] == 0
    assert "signal" not in fields
    assert fields["uptime_sec"] == 1.235
    assert fields["n_restarts"] == 1


def test_infinity_is_spelt_as_in_the_configuration() -> None:
    failed = events.AgentFailed(
        **WHO, result="signal", start_limit_hit=True, n_restarts=3, **{**LIMIT, "limit_interval_sec": math.inf}
    )
    assert failed.fields()["limit_interval_sec"] == "infinity"
    assert "3 starts in infinity" in failed.sentence()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0123, "0.012 s"),
        (5, "5 s"),
        (12.54, "12.5 s"),
        (60, "60 s"),
        (119.94, "119.9 s"),
        (120, "2 min"),
        (200.4, "3 min 20 s"),
        (3599.7, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (86400 * 3 + 3600 * 4 + 59, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
