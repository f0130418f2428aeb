"""What an agent is doing, as it is told, in each situation that codex can be in. Nothing of that restarts it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from codex_lab import MODEL
from harness_lab import wait_for

if TYPE_CHECKING:
    from codex_lab import Lab
    from harness_lab import Json

EXPIRED: Json = {"status": 401, "error": {"type": "invalid_request_error", "message": "Incorrect API key provided"}}
NO_QUOTA: Json = {"status": 429, "error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "x"}}
OVERLOADED: Json = {"status": 503, "error": {"type": "server_error", "message": "Overloaded"}}
NO_MODEL: Json = {"status": 404, "error": {"type": "invalid_request_error", "message": "The model does not exist"}}


def not_restarted(lab: Lab) -> None:
    names = [event["event"] for event in lab.events() if event.get("agent") == "scout"]
    assert names.count("agent_started") == 1
    assert not {"agent_exited", "agent_failed", "agent_restarting"} & {*names}


def test_it_works_and_is_idle_again(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "starting", "idle")
    assert lab.event("agent_ready", "scout")["ready_sec"] < 30
    for turn in ("SLOW 1", "SLOW 1.1"):
        lab.say("scout", turn)
        lab.doing("scout", "working", "idle")
        lab.see("scout", f"ECHO {turn}")
    wait_for(lambda: lab.show("scout")["context_percent"] is not None, "how full its context is is not told")


def test_one_that_is_interrupted_is_idle(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.say("scout", "SLOW 60")
    lab.doing("scout", "working")
    lab.request("SLOW 60")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Escape")
    lab.doing("scout", "idle")
    not_restarted(lab)


def test_one_in_a_new_session_is_still_followed(lab: Lab) -> None:
    """Trap: codex keeps its hold on the session before."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.tell("scout", "the word is tulip")
    lab.doing("scout", "working", "idle")
    lab.tmux("send-keys", "-l", "-t", "=agent-scout:", "/new")
    lab.see("scout", "/new")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Enter")
    wait_for(lambda: "tulip" not in lab.tmux("capture-pane", "-p", "-t", "=agent-scout:"), "no new session")
    lab.say("scout", "SLOW 1")
    lab.doing("scout", "working", "idle")
    assert len(lab.rollouts("scout")) == 2


def test_one_that_has_asked_something_waits(lab: Lab) -> None:
    library = {"mcp_servers": {"tracker": lab.mcp_server("tracker")}}
    permissions = {"skip_prompts": False, "unlisted": "ask"}
    agent = {"model": MODEL, "effort": "low", "mcp_servers": ["tracker"], "permissions": permissions}
    lab.start({"scout": agent}, library)
    lab.doing("scout", "idle")
    for key in ("Escape", "Enter"):
        lab.say("scout", 'TOOL {"name": "alpha", "namespace": "mcp__tracker"}')
        assert "mcp__tracker__alpha" in lab.doing("scout", "working", "waiting")["activity_detail"]
        assert "would take a message for an answer" in lab.refused("send", "scout", "hello")
        lab.tmux("send-keys", "-t", "=agent-scout:", key)
        lab.doing("scout", "idle")


FORGETFUL = """#!/bin/sh
# codex, as it would be had its config.toml no trust in the directory
sed -i '/^trust_level/d; /^\\[projects/d' "$CODEX_HOME/config.toml"
exec {codex} "$@"
"""


def test_one_that_stands_at_a_dialog_is_blocked_and_then_recovered(lab: Lab) -> None:
    binary = str(lab.give(lab.home / "forgetful", FORGETFUL.format(codex=lab.program), mode="755"))
    lab.as_user("git", "init", "-q", str(lab.state_of("scout")))
    lab.start({"scout": {"ready_timeout_sec": 3}}, {"harnesses": {"codex": {"binary": binary}}})
    blocked = lab.event("agent_blocked", "scout")
    assert blocked["activity"] == "blocked"
    assert "Trust this folder?" in blocked["problem"]
    assert "nothing was typed: it is blocked" in lab.refused("send", "scout", "hello")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Enter")
    assert lab.event("agent_recovered", "scout")["activity"] == "blocked"
    lab.doing("scout", "idle")
    not_restarted(lab)


@pytest.mark.parametrize(
    ("failure", "activity", "said"),
    [
        (EXPIRED, "logged-out", "401"),
        (NO_QUOTA, "limited", "Quota exceeded"),
        (OVERLOADED, "unresponsive", ""),
        (NO_MODEL, "unresponsive", "The model does not exist"),
        ({"reset": True}, "unresponsive", "stream disconnected"),
    ],
    ids=["expired login", "no quota", "overloaded", "no such model", "API down"],
)
def test_what_the_api_refuses_is_no_crash(lab: Lab, failure: Json, activity: str, said: str) -> None:
    """Trap: codex fires no hook for a turn that failed."""
    lab.start({"scout": {"resume": {"prompt": "[from forge] go on"}}})
    lab.doing("scout", "idle")
    with lab.api_fails(failure):
        lab.say("scout", "one")
        blocked = lab.event("agent_blocked", "scout", patience=60)
        assert blocked["activity"] == activity
        assert said in blocked["problem"]
        assert blocked["fix"]
        lab.doing("scout", activity)
    lab.forgectl("send", "scout", "three")
    assert lab.event("agent_recovered", "scout")["activity"] == activity
    # Who has had an answer goes on already.
    lab.forgectl("send", "scout", "four")
    lab.see("scout", "ECHO four")
    assert "[from forge] go on" not in lab.screen("scout")
    assert sum(event["event"] == "agent_blocked" for event in lab.events()) == 1, "it is told once"
    not_restarted(lab)


def test_without_any_connection_codex_goes_on_trying(lab: Lab) -> None:
    """Trap: that never ends, and nothing but its screen tells of it; it goes on by itself when there is one again."""
    lab.start({"scout": {"env": {**lab.keyed("scout"), "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}}})
    lab.doing("scout", "idle")
    lab.say("scout", "hello")
    lab.see("scout", "waiting for network", patience=60)
    lab.doing("scout", "working")
    assert lab.show("scout")["activity"] == "working"
    not_restarted(lab)


def test_it_is_all_known_to_the_next_supervisor(lab: Lab) -> None:
    lab.start({"scout": {}, "idler": {}})
    lab.doing("idler", "idle")
    lab.doing("scout", "idle")
    with lab.api_fails(NO_QUOTA):
        lab.say("scout", "one")
        lab.doing("scout", "limited")
        lab.kill_and_replace()
        lab.event("agent_adopted", "scout")
        lab.doing("scout", "limited")
        lab.doing("idler", "idle")
    lab.say("scout", "two")
    assert lab.event("agent_recovered", "scout")["activity"] == "limited"
    lab.doing("scout", "idle")
    lab.forgectl("send", "idler", "hello")
    lab.see("idler", "ECHO hello")


def test_a_message_is_sent_once_it_is_idle_and_told_to_have_been_taken(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    begun = time.monotonic()
    lab.say("scout", "SLOW 3")
    lab.doing("scout", "working")
    lab.tmux("send-keys", "-l", "-t", "=agent-scout:", "half a thought")
    lab.forgectl("send", "scout", "two\nlines\\")
    assert time.monotonic() - begun >= 3, "a message in a turn would steer it"
    assert "half a thought" not in lab.said(lab.request("lines\\"))
    for command in ("/new", "!ls"):
        assert "nothing was typed" in lab.refused("send", "scout", command)
    not_restarted(lab)


def test_a_message_as_soon_as_it_has_started(lab: Lab) -> None:
    """Trap: what is pasted before the prompt is up lands in it, and the Enter after it is lost."""
    lab.start({"scout": {}})
    lab.event("agent_started", "scout")
    lab.forgectl("send", "scout", "hello")
    lab.see("scout", "ECHO hello")


@pytest.mark.parametrize("text", ["look at @README", "use $whistle", "ask @nobody\\"])
def test_no_completion_takes_the_enter_of_a_message(lab: Lab, text: str) -> None:
    """Trap: as long as a name is completed, Enter chooses one."""
    lab.start({"scout": {}})
    lab.give(lab.state_of("scout") / "README.md", "x")
    lab.doing("scout", "idle")
    lab.forgectl("send", "scout", text)
    lab.request(text)


@pytest.mark.parametrize("keys", ["! e c h o", "a b c d Left Left", "o n e C-j t w o Up Left"])
def test_no_draft_becomes_part_of_a_message(lab: Lab, keys: str) -> None:
    """Trap: Ctrl-U takes what is left of the cursor, and leaves the mode in which all is a command."""
    lab.start({"scout": {}})
    lab.doing("scout", "idle")
    lab.tmux("send-keys", "-t", "=agent-scout:", *keys.split())
    lab.forgectl("send", "scout", "hello there")
    lab.see("scout", "ECHO hello there")


def test_near_a_limit_no_other_model_is_offered(lab: Lab) -> None:
    """Trap: a dialog, of which nothing tells, and a message would be the answer to it."""
    lab.start({"scout": {"model": MODEL, "effort": "low"}})
    lab.doing("scout", "idle")
    lab.tell("scout", "NEAR THE LIMIT")
    lab.forgectl("send", "scout", "hello there")
    assert lab.request("hello there")["model"] == MODEL


def test_ten_at_once_have_each_its_own_key(lab: Lab) -> None:
    names = [f"scout-{number}" for number in range(10)]
    lab.start({name: {"ready_timeout_sec": 120} for name in names}, patience=120)
    for name in names:
        lab.event("agent_ready", name, patience=120)
        lab.forgectl("send", name, f"{name} speaking")
    for name in names:
        lab.see(name, f"ECHO {name} speaking")
    said = {lab.said(request).rpartition("\n")[2]: bearer for request, bearer in lab.authorized()}
    for name in names:
        assert said[f"{name} speaking"] == f"Bearer {lab.keyed(name)['OPENAI_API_KEY']}"
    assert not [event for event in lab.events() if event["event"] == "agent_blocked"]
