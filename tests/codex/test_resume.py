"""An agent goes on with the session that it was in, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from codex_lab import MODEL
from harness_lab import wait_for

if TYPE_CHECKING:
    from codex_lab import Lab

FAST = {"model": MODEL, "effort": "low", "restart": {"limit_burst": 0}}


def session_of(lab: Lab) -> str:
    """Return the session that is noted as the agent's."""
    return (lab.home / ".local/state/forge/launch/scout/session").read_text().strip()


def explained(lab: Lab) -> list[str]:
    argv: list[str] = json.loads(lab.command("explain", "scout", "--json").stdout)["argv"]
    return argv


def test_after_a_kill_in_the_middle_of_a_turn_it_remembers(lab: Lab) -> None:
    lab.start({"scout": {**FAST, "resume": {"prompt": "[from forge] go on"}}})
    pid = lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    session = session_of(lab)
    lab.say("scout", "the colour is red\nSLOW 60")
    lab.request("SLOW 60")
    wait_for(lambda: "the colour is red" in lab.written("scout"), "the turn is not in the log")
    os.kill(pid, signal.SIGKILL)
    assert lab.event("agent_exited", "scout")["signal"] == 9
    request = lab.said(lab.request("[from forge] go on"))
    assert "the word is tulip" in request
    assert "the colour is red" in request
    assert session_of(lab) == session
    assert len(lab.rollouts("scout")) == 1
    lab.doing("scout", "idle", "working", "idle")


def test_one_that_is_killed_while_it_runs_a_command_is_idle_when_it_is_back(lab: Lab) -> None:
    """Trap: the turn in which it was killed never ends in its log."""
    lab.start({"scout": FAST})
    pid = lab.prompt("scout")
    call = {"name": "exec_command", "arguments": json.dumps({"cmd": "exec tail -f /dev/null"})}
    lab.say("scout", f"TOOL {json.dumps(call)}")
    wait_for(lambda: "tail -f" in lab.written("scout"), "the turn is not in the log")
    lab.doing("scout", "working")
    os.kill(pid, signal.SIGKILL)
    lab.prompt("scout", 2)
    lab.doing("scout", "starting", "idle")


def test_after_the_end_of_the_supervisor_and_of_all_agents(lab: Lab) -> None:
    lab.start({"scout": FAST})
    lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    assert lab.stop() == 0
    lab.start({"scout": FAST})
    lab.prompt("scout", 2)
    assert "the word is tulip" in lab.said(lab.tell("scout", "what was the word"))


def test_instructions_are_as_they_are_now(lab: Lab) -> None:
    lab.start({"scout": {**FAST, "role": "You sing."}})
    lab.prompt("scout")
    assert "You sing." in lab.said(lab.tell("scout", "the word is tulip"))
    lab.configure({"scout": {**FAST, "role": "You whistle."}})
    lab.reload()
    lab.prompt("scout", 2)
    request = lab.said(lab.tell("scout", "what was the word"))
    assert "the word is tulip" in request
    assert "You whistle." in request


def test_model_and_effort_are_as_they_are_now(lab: Lab) -> None:
    """Trap: what config.toml says of them counts for new sessions only."""
    lab.start({"scout": FAST})
    lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    lab.configure({"scout": {**FAST, "effort": "high"}})
    lab.reload()
    lab.prompt("scout", 2)
    request = lab.tell("scout", "and the colour is red")
    assert (request["model"], request["reasoning"]["effort"]) == (MODEL, "high")
    lab.configure({"scout": {**FAST, "model": "gpt-6-luna"}})
    lab.reload()
    lab.prompt("scout", 3)
    request = lab.tell("scout", "what was the word")
    assert request["model"] == "gpt-6-luna"
    assert "the word is tulip" in lab.said(request)


def test_a_session_that_was_begun_by_new_is_followed_from_the_first_words_on(lab: Lab) -> None:
    lab.start({"scout": FAST})
    pid = lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    lab.tmux("send-keys", "-l", "-t", "=agent-scout:", "/new")
    lab.see("scout", "/new")
    lab.tmux("send-keys", "-t", "=agent-scout:", "Enter")
    wait_for(lambda: "tulip" not in lab.tmux("capture-pane", "-p", "-t", "=agent-scout:"), "no new session")
    lab.tell("scout", "the word is rose")
    os.kill(pid, signal.SIGKILL)
    lab.prompt("scout", 2)
    request = lab.said(lab.tell("scout", "what was the word"))
    assert "the word is rose" in request
    assert "tulip" not in request


def test_what_the_agent_has_a_codex_do_is_not_its_session(lab: Lab) -> None:
    """Trap: a codex that it starts has its home, and would be the last session there."""
    lab.start({"scout": FAST})
    pid = lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    settings = f"CODEX_HOME={lab.home_of('scout')} OPENAI_API_KEY=k"
    lab.run("scout", f"{settings} {lab.program} exec --skip-git-repo-check 'the word is rose' </dev/null", "nested")
    lab.request("the word is rose")
    os.kill(pid, signal.SIGKILL)
    lab.prompt("scout", 2)
    request = lab.tell("scout", "what was the word")
    assert "the word is tulip" in lab.said(request)
    first = [item for item in request["input"] if "the word is rose" in lab.said({"input": [item]})]
    assert all("TOOL" in lab.said({"input": [item]}) for item in first)


def test_a_session_that_cannot_be_resumed_is_tried_once(lab: Lab) -> None:
    lab.start({"scout": FAST})
    pid = lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    lab.rollouts("scout")[0].write_text("garbage\n" * 50)
    os.kill(pid, signal.SIGKILL)
    failed = lab.event("agent_exited", "scout", 2)
    assert (failed["exit_code"], failed["next"]) == (1, "restarting in 0.2 s")
    assert lab.event("agent_warning", "scout")["key"] == "agents.scout.resume"
    lab.prompt("scout", 3)
    assert "tulip" not in lab.said(lab.tell("scout", "what was the word"))


def test_one_that_is_to_forget(lab: Lab) -> None:
    lab.start({"scout": FAST})
    lab.prompt("scout")
    lab.tell("scout", "the word is tulip")
    assert explained(lab)[-2:] == ["resume", session_of(lab)]
    lab.forgectl("restart", "--fresh", "scout")
    pid = lab.prompt("scout", 2)
    # Before anything has been said in the new one, the old one is the last that there is.
    os.kill(pid, signal.SIGKILL)
    lab.prompt("scout", 3)
    assert "resume" not in explained(lab)
    assert "tulip" not in lab.said(lab.tell("scout", "what was the word"))
