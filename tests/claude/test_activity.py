"""What an agent is doing, as it is told, in each situation that claude can be in. Nothing of that restarts it."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from claude_lab import said
from harness_lab import json_of, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from claude_lab import Lab
    from harness_lab import Json

DOWN_SEC = 120.0 if "FORGE_TEST_THOROUGH" in os.environ else 0.5
OVERLOADED: Json = {"status": 529, "error": {"type": "overloaded_error", "message": "Overloaded"}}
NO_CREDIT: Json = {
    "status": 400,
    "error": {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    },
}
EXPIRED: Json = {"status": 401, "error": {"type": "authentication_error", "message": "OAuth token has expired"}}
TOO_MANY: Json = {"status": 429, "error": {"type": "rate_limit_error", "message": "Slow down."}}


def limit(until: float) -> Json:
    """Make the answer of the API to a subscription that is used up."""
    window = {
        "unified-status": "rejected",
        "unified-reset": str(round(until)),
        "unified-representative-claim": "five_hour",
        "unified-5h-utilization": "1.0",
        "unified-5h-reset": str(round(until)),
        "unified-overage-status": "rejected",
    }
    headers = {f"anthropic-ratelimit-{name}": value for name, value in window.items()}
    return {"status": 429, "headers": headers, "error": {"type": "rate_limit_error", "message": "limit"}}


def subscription(lab: Lab, **more: str) -> Json:
    return {"env": lab.variables(CLAUDE_CODE_OAUTH_TOKEN=f"sk-ant-oat01-{'b' * 60}", **more)}


def impatient(lab: Lab) -> Json:
    """Make an agent whose claude tries twice where it would ten times."""
    return {"env": lab.variables(ANTHROPIC_API_KEY=f"sk-ant-api03-{'a' * 40}", CLAUDE_CODE_MAX_RETRIES="1")}


def not_restarted(lab: Lab) -> None:
    names = [event["event"] for event in lab.events() if event.get("agent") == "scout"]
    assert names.count("agent_started") == 1
    assert not {"agent_exited", "agent_failed", "agent_restarting"} & {*names}


def test_from_the_start_to_the_prompt(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "starting", "idle")
    assert lab.event("agent_ready", "scout")["ready_sec"] < 30
    assert lab.doing("scout", "idle")["activity_detail"] is None


def test_it_works_and_is_idle_again(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.say("scout", "SLOW 1")
    lab.doing("scout", "working")
    lab.doing("scout", "idle")
    lab.see("scout", "ECHO SLOW 1")
    wait_for(lambda: lab.show("scout")["context_percent"] is not None, "how full its context is is not told")


def test_one_that_is_interrupted_is_idle(lab: Lab) -> None:
    """Trap: Escape fires no hook."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.say("scout", "SLOW 60")
    lab.doing("scout", "working")
    lab.request("SLOW 60")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Escape")
    lab.doing("scout", "idle")


def test_one_that_has_asked_something_waits(lab: Lab) -> None:
    lab.start({"scout": {"permissions": {"skip_prompts": False, "unlisted": "ask"}}})
    lab.doing("scout", "idle")
    options = [{"label": label, "description": label} for label in ("Red", "Blue")]
    question = {"question": "Which?", "header": "Colour", "options": options, "multiSelect": False}
    lab.say("scout", f"TOOL {json.dumps({'name': 'AskUserQuestion', 'input': {'questions': [question]}})}")
    assert lab.doing("scout", "waiting")["activity_detail"] == "input needed"
    assert "would take a message for an answer" in lab.refused("send", "scout", "hello")
    assert "hello" not in lab.screen("scout")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Escape")
    lab.doing("scout", "idle")


FORGETFUL = """#!/bin/sh
# claude, as it would be had {file} no {key}
sed -i 's/"{key}": *true/"{key}": false/' {file}
exec {claude} "$@"
"""


@pytest.mark.parametrize(
    ("file", "key", "text"),
    [
        (".claude.json", "hasTrustDialogAccepted", "Accessing workspace"),
        (
            ".local/state/forge/launch/scout/settings.json",
            "skipDangerousModePermissionPrompt",
            "Claude Code running in Bypass Permissions mode",
        ),
    ],
    ids=["trust", "bypass"],
)
def test_one_that_stands_at_a_dialog_is_blocked_and_then_recovered(lab: Lab, file: str, key: str, text: str) -> None:
    script = FORGETFUL.format(file=lab.home / file, key=key, claude=lab.claude)
    binary = str(lab.give(lab.home / "forgetful", script, mode="755"))
    lab.start({"scout": {"ready_timeout_sec": 3}}, {"harnesses": {"claude-code": {"binary": binary}}})
    blocked = lab.event("agent_blocked", "scout")
    assert blocked["activity"] == "blocked"
    assert text in blocked["problem"]
    assert "nothing was typed: it is blocked" in lab.refused("send", "scout", "hello")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Down", "Enter")
    assert lab.event("agent_recovered", "scout")["activity"] == "blocked"
    lab.doing("scout", "idle")
    not_restarted(lab)


def test_without_a_login(lab: Lab) -> None:
    lab.start({"scout": {"env": lab.variables(), "resume": {"prompt": "[from forge] go on"}}})
    blocked = lab.event("agent_blocked", "scout")
    assert (blocked["activity"], blocked["fix"]) == ("logged-out", f"sudo -iu {lab.user} claude, then /login")
    lab.doing("scout", "logged-out")
    login = {"accessToken": "sk-ant-oat01-x", "refreshToken": "x", "expiresAt": int(time.time() * 1000) + 10**8}
    credentials = {"claudeAiOauth": {**login, "scopes": ["user:inference"], "subscriptionType": "max"}}
    lab.give(lab.home / ".claude/.credentials.json", json.dumps(credentials))
    assert lab.event("agent_recovered", "scout")["activity"] == "logged-out"
    lab.see("scout", "ECHO [from forge] go on")
    lab.idle("scout")
    lab.say("scout", "are you there")
    lab.see("scout", "ECHO are you there")
    not_restarted(lab)


@pytest.mark.parametrize(
    ("failure", "activity", "said"),
    [
        (EXPIRED, "logged-out", "Please run /login"),
        (OVERLOADED, "unresponsive", "529"),
        (TOO_MANY, "limited", "limiting requests"),
        (NO_CREDIT, "limited", "Credit balance is too low"),
        ({"reset": True}, "unresponsive", "ECONNRESET"),
    ],
    ids=["expired login", "overloaded", "too many requests", "no credit", "API down"],
)
def test_what_the_api_refuses_is_no_crash(lab: Lab, failure: Json, activity: str, said: str) -> None:
    lab.start({"scout": {**subscription(lab, CLAUDE_CODE_MAX_RETRIES="1"), "resume": {"prompt": "[from forge] go on"}}})
    lab.doing("scout", "idle")
    with lab.api_fails(failure):
        lab.say("scout", "one")
        blocked = lab.event("agent_blocked", "scout")
        assert blocked["activity"] == activity
        assert said in blocked["problem"]
        assert blocked["fix"]
        lab.doing("scout", activity)
        lab.say("scout", "two")
        lab.see("scout", " two")
        lab.doing("scout", activity)
    lab.forgectl("send", "scout", "three")
    assert lab.event("agent_recovered", "scout")["activity"] == activity
    # Who has had an answer goes on already.
    lab.forgectl("send", "scout", "four")
    lab.see("scout", "ECHO four")
    assert "[from forge] go on" not in lab.screen("scout")
    assert sum(event["event"] == "agent_blocked" for event in lab.events()) == 1, "it is told once"
    not_restarted(lab)


def test_a_limit_tells_when_it_is_over(lab: Lab) -> None:
    lab.start({"scout": subscription(lab)})
    lab.doing("scout", "idle")
    until = time.time() + 3600
    with lab.api_fails(limit(until)):
        lab.say("scout", "one")
        lab.doing("scout", "limited")
        shown = wait_for(
            lambda: (now := lab.show("scout"))["limited_until_usec"] and now, "it does not tell until when"
        )
    assert shown["limited_until_usec"] == round(until) * 1_000_000
    assert shown["limits"] == [
        {"name": "five_hour", "used_percent": 100.0, "resets_usec": round(until) * 1_000_000}
    ]
    not_restarted(lab)


def test_it_is_all_known_to_the_next_supervisor(lab: Lab) -> None:
    lab.start({"scout": subscription(lab), "idler": {"ready_timeout_sec": 4}})
    late = time.monotonic() + 4
    lab.doing("idler", "idle")
    lab.doing("scout", "idle")
    until = time.time() + 3600
    with lab.api_fails(limit(until)):
        lab.say("scout", "one")
        lab.doing("scout", "limited")
        wait_for(lambda: lab.show("scout")["limited_until_usec"], "it does not tell until when")
        wait_for(lambda: time.monotonic() > late, "time stands still")
        lab.kill_and_replace()
        lab.event("agent_adopted", "scout")
        assert lab.doing("scout", "limited")["limited_until_usec"] == round(until) * 1_000_000
        lab.doing("idler", "idle")
    lab.say("scout", "two")
    # The hooks that it was given by the one before reach this one.
    assert lab.event("agent_recovered", "scout")["activity"] == "limited"
    lab.forgectl("send", "idler", "hello")
    lab.see("idler", "ECHO hello")
    lab.forgectl("stop", "idler")
    # Neither that it is seen for the first time only now, nor that its file goes before it does, means anything.
    assert [event["agent"] for event in lab.events() if event["event"] == "agent_blocked"] == ["scout"]
    assert sum(event["event"] == "agent_ready" for event in lab.events()) == 2


def test_an_api_that_is_back_in_time_is_no_trouble(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    with lab.api_fails({"reset": True}):
        lab.say("scout", "one")
        lab.request("one")
        lab.see("scout", "retrying")
        lab.doing("scout", "working")
        time.sleep(DOWN_SEC)
    # It tries again after twice the time each time.
    lab.see("scout", "ECHO one", patience=30 + 2 * DOWN_SEC)
    lab.doing("scout", "idle")
    assert not [event for event in lab.events() if event["event"] in {"agent_blocked", "agent_recovered"}]


@pytest.mark.parametrize("turn", ["SLOW 60", "TOOL"])
def test_one_that_is_killed_in_a_turn_is_told_to_go_on(lab: Lab, turn: str) -> None:
    lab.start({"scout": {"resume": {"prompt": "[from forge] go on"}}})
    pid = lab.prompt("scout")
    lab.doing("scout", "idle")
    tool = {"name": "Bash", "input": {"command": "tail -f /dev/null", "description": "x"}}
    lab.say("scout", f"the word is tulip\n{turn if turn != 'TOOL' else f'TOOL {json.dumps(tool)}'}")
    lab.doing("scout", "working")
    lab.request("the word is tulip")
    wait_for(lambda: "the word is tulip" in written(lab), "the turn is not in the transcript")
    # Whoever dies with this lock makes the next one wait for 10 s.
    wait_for(lambda: not (lab.home / ".claude.json.lock").exists(), "claude keeps its lock")
    os.kill(pid, signal.SIGKILL)
    request = lab.request("[from forge] go on")
    assert "the word is tulip" in said(request)
    lab.event("agent_started", "scout", 2)
    lab.doing("scout", "idle")


def written(lab: Lab) -> str:
    def text(path: Path) -> str:
        return path.read_text(errors="replace")

    return "".join(map(text, (lab.home / ".claude/projects").glob("*/*.jsonl")))


def test_a_message_is_sent_once_it_is_idle_and_told_to_have_been_taken(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.say("scout", "SLOW 3")
    lab.doing("scout", "working")
    lab.tmux("send-keys", "-l", "-t", "=agent-scout:", "half a thought")
    lab.forgectl("send", "scout", "two\nlines\\")
    assert "half a thought" not in said(lab.request("lines\\"))
    for command in ("/clear", "!ls", "exit"):
        assert "nothing was typed" in lab.refused("send", "scout", command)
    not_restarted(lab)


@pytest.mark.parametrize(
    "text", ["word " * 400 + "zebra", "line\n" * 30 + "zebra", "e\u0301 \U0001f469\u200d\U0001f680\nzebra"]
)
def test_a_message_is_confirmed_whatever_claude_makes_of_it(lab: Lab, text: str) -> None:
    """Trap: of what is long the hook tells with <pasted_content> around it."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.forgectl("send", "scout", text)
    lab.request("zebra")


def test_a_command_in_the_background_keeps_no_message_waiting(lab: Lab) -> None:
    """Trap: claude's status is neither "idle" nor "busy" then, for as long as it runs."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    call = {"command": "tail -f /dev/null", "description": "x", "run_in_background": True}
    lab.say("scout", f"TOOL {json.dumps({'name': 'Bash', 'input': call})}")
    lab.doing("scout", "working", "idle")
    lab.forgectl("send", "scout", "hello")
    lab.see("scout", "ECHO hello")


def test_no_key_leads_to_where_a_message_begins_another_session(lab: Lab) -> None:
    """Trap: Left, at an empty prompt, and claude shows its agents, with another prompt for new ones."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Left")
    lab.forgectl("send", "scout", "hello")
    lab.see("scout", "ECHO hello")
    not_restarted(lab)


def test_a_long_draft_goes_out_with_no_message(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    for number in range(10):
        lab.tmux("send-keys", "-t", "=agent-scout:", "-l", f"draft {number}\\")
        lab.tmux("send-keys", "-t", "=agent-scout:", "Enter")
        lab.see("scout", f"draft {number}")
    lab.forgectl("send", "scout", "hello")
    assert "draft" not in said(lab.request("hello"))


@pytest.mark.parametrize("keys", ["! e c h o", "a b c d Left Left"])
def test_no_draft_becomes_part_of_a_message(lab: Lab, keys: str) -> None:
    """Trap: Ctrl-U takes what is left of the cursor."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.tmux("send-keys", "-t", "=agent-scout:", *keys.split())
    lab.forgectl("send", "scout", "hello there")
    lab.see("scout", "ECHO hello there")


def test_one_that_was_stopped_with_a_key_goes_on(lab: Lab) -> None:
    """Trap: after Ctrl-Z claude reads nothing, and there is no shell to say fg to."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.tmux("send-keys", "-t", "=agent-scout:", "C-z")
    lab.forgectl("send", "scout", "hello")
    lab.see("scout", "ECHO hello")


LEFT_BEHIND = """#!/bin/sh
# As it is where a claude that had this pid was killed.
mkdir -p {sessions} && echo '{{"status": "idle", "procStart": "1"}}' >{sessions}/$$.json
sed -i 's/"hasTrustDialogAccepted": *true/"hasTrustDialogAccepted": false/' {file}
exec {claude} "$@"
"""


def test_what_a_claude_that_was_killed_has_left_is_not_taken_for_this_ones(lab: Lab) -> None:
    sessions, file = lab.home / ".claude/sessions", lab.home / ".claude.json"
    script = LEFT_BEHIND.format(sessions=sessions, file=file, claude=lab.claude)
    binary = str(lab.give(lab.home / "follower", script, mode="755"))
    lab.start({"scout": {"ready_timeout_sec": 3}}, {"harnesses": {"claude-code": {"binary": binary}}})
    assert lab.event("agent_blocked", "scout")["activity"] == "blocked"
    assert "nothing was typed" in lab.refused("send", "scout", "hello")


WITHOUT_HOOKS = """#!/bin/sh
# As managed settings may have it, or a session of a supervisor that had none yet.
sed -i 's/UserPromptSubmit/SubagentStop/; s/"Stop"/"Notification"/; s/statusLine/x/' {settings}
exec {claude} "$@"
"""


def test_without_hooks_a_message_is_confirmed_all_the_same(lab: Lab) -> None:
    settings = lab.home / ".local/state/forge/launch/scout/settings.json"
    script = WITHOUT_HOOKS.format(settings=settings, claude=lab.claude)
    binary = str(lab.give(lab.home / "hookless", script, mode="755"))
    lab.start({"scout": {}}, {"harnesses": {"claude-code": {"binary": binary}}})
    lab.doing("scout", "idle")
    lab.forgectl("send", "scout", "hello")
    lab.see("scout", "ECHO hello")


def test_a_harness_that_is_not_watched_loses_nothing_when_the_supervisor_is_replaced(lab: Lab) -> None:
    lab.start({"scout": {}})
    pid = lab.prompt("scout")
    lab.doing("scout", "idle")
    assert json_of(lab.home / f".claude/sessions/{pid}.json")["status"] == "idle"
    assert "report.py" in (lab.home / ".local/state/forge/launch/scout/settings.json").read_text()


def test_thirty_at_once(lab: Lab) -> None:
    names = [f"scout-{number}" for number in range(30)]
    lab.start({name: {"ready_timeout_sec": 120} for name in names}, patience=120)
    for name in names:
        lab.event("agent_ready", name, patience=120)
        lab.doing(name, "idle")
    assert not [event for event in lab.events() if event["event"] == "agent_blocked"]
