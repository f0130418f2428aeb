from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from plan_lab import subject_of

from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Window
from forge_supervisor.harness import Paths
from forge_supervisor.harness.claude_code import activity
from forge_supervisor.pidfd import birth

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("told", "reported"),
    [
        ({"hook_event_name": "UserPromptSubmit", "prompt": "hello"}, Reported("began", words="hello")),
        ({"hook_event_name": "Stop"}, Reported("ended")),
        ({"hook_event_name": "Notification"}, Reported()),
        ({"hook_event_name": ["Stop"]}, Reported()),
        ({}, Reported()),
        ({"context_window": 7}, Reported()),
        ({"context_window": {"used_percentage": None}}, Reported(gauges=Gauges())),
        (
            {
                "context_window": {"used_percentage": 12.5},
                "rate_limits": {
                    "five_hour": {"used_percentage": 100, "resets_at": 1000},
                    "seven_day": {"used_percentage": True},
                    "other": {"used_percentage": 1, "resets_at": "soon"},
                    "none": 7,
                },
            },
            Reported(gauges=Gauges(12.5, (Window("five_hour", 100, 1000), Window("other", 1, None)))),
        ),
    ],
)
def test_what_hooks_report(told: dict[str, Any], reported: Reported) -> None:
    assert activity.reported(told) == reported


@pytest.mark.parametrize(
    ("error", "doing"),
    [
        ("authentication_failed", Doing.LOGGED_OUT),
        ("billing_error", Doing.LIMITED),
        ("rate_limit", Doing.LIMITED),
        ("server_error", Doing.UNRESPONSIVE),
        ("unknown", Doing.UNRESPONSIVE),
        ("invalid_request", None),
        (None, None),
        ({}, None),
    ],
)
def test_why_a_turn_failed(error: object, doing: Doing | None) -> None:
    told = {"hook_event_name": "StopFailure", "error": error, "last_assistant_message": "so  it\nis" + "!" * 1000}
    trouble = activity.reported(told).trouble
    assert (trouble and trouble.doing) == doing
    if trouble is not None:
        assert trouble.detail.startswith("so it is!")
        assert len(trouble.detail) == 300
        assert trouble.fix


@pytest.mark.parametrize("text", ["/clear", " !ls", "exit", "quit\n"])
def test_what_would_not_be_a_message(text: str) -> None:
    assert activity.unsendable(text) is not None


@pytest.mark.parametrize("text", ["hello", "and/or", "exit the room", "# heading", "-x"])
def test_what_is_a_message(text: str) -> None:
    assert activity.unsendable(text) is None


def observed(home: Path, content: str | None, **env: str) -> Any:
    paths, subject = Paths(home, home / ".local/state/forge", "scout", ()), subject_of(env=env)
    sessions = home / ".claude/sessions"
    sessions.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (sessions / "7.json").write_text(content)
    return activity.observe(subject, paths, 7)


@pytest.mark.parametrize(
    ("session", "doing"),
    [
        (None, Doing.STARTING),
        ("{}", Doing.STARTING),
        ('{"status": "idle"}', Doing.IDLE),
        ('{"status": "busy"}', Doing.WORKING),
        ('{"status": "waiting"}', Doing.WAITING),
        ('{"status": "thinking of something new"}', Doing.WORKING),
        # A command that it has begun runs in the background, and its turn is over.
        ('{"status": "shell"}', Doing.IDLE),
        # It shows other sessions, and what is typed begins one more.
        ('{"status": "idle", "parkedJobId": "4d579848"}', Doing.WAITING),
        # Of a claude that was killed, and had this pid before.
        ('{"status": "idle", "procStart": "1"}', Doing.STARTING),
    ],
)
def test_what_its_session_file_says(tmp_path: Path, session: str | None, doing: Doing) -> None:
    assert observed(tmp_path, session).doing is doing


@pytest.mark.parametrize("session", ["", '{"status": "id', "[]", "7", "[" * 100_000, '{"status": []}'])
def test_half_a_session_file_says_nothing(tmp_path: Path, session: str) -> None:
    assert observed(tmp_path, session) is None


def test_a_session_file_of_this_very_process_is_believed(tmp_path: Path) -> None:
    pid = os.getpid()
    observed(tmp_path, None)
    session = {"status": "idle", "procStart": str(birth(pid))}
    (tmp_path / f".claude/sessions/{pid}.json").write_text(json.dumps(session))
    paths, subject = Paths(tmp_path, tmp_path / ".local/state/forge", "scout", ()), subject_of(env={})
    seen = activity.observe(subject, paths, pid)
    assert seen is not None
    assert seen.doing is Doing.IDLE


def test_what_it_waits_for(tmp_path: Path) -> None:
    assert observed(tmp_path, '{"status": "waiting", "waitingFor": "input needed"}').detail == "input needed"


def test_each_login_is_another(tmp_path: Path) -> None:
    logins = [observed(tmp_path, None).login, observed(tmp_path, None, ANTHROPIC_API_KEY="x").login]
    file = tmp_path / ".claude/.credentials.json"
    # The first is an MCP server's.
    for key, token in (("mcpOAuth", "a"), ("claudeAiOauth", "a"), ("claudeAiOauth", "b")):
        file.unlink(missing_ok=True)
        file.write_text(json.dumps({key: {"accessToken": token}}))
        logins.append(observed(tmp_path, None).login)
    assert logins.pop(2) == ""
    assert logins[0] == ""
    assert len({*logins}) == 4


def test_the_trouble_is_for_people() -> None:
    told = {"hook_event_name": "StopFailure", "error": "rate_limit", "last_assistant_message": "Your limit is reached"}
    wanted = Activity(Doing.LIMITED, "Your limit is reached", "wait until the limit is over")
    assert activity.reported(told).trouble == wanted


def test_a_session_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    observed(tmp_path, "{}")
    with (tmp_path / ".claude/sessions/7.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert observed(tmp_path, None) is None
