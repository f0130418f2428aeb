"""One agent from its declaration to its end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from claude_lab import said
from harness_lab import RESTART_DELAY_SEC, wait_for

if TYPE_CHECKING:
    from claude_lab import Lab


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_from_a_virgin_home_to_answers_and_back_after_a_kill(lab: Lab) -> None:
    lab.start({"scout": {"role": "You carry the lantern.", "model": "opus", "effort": "low"}})
    pid = lab.prompt("scout")
    assert "LEAK" not in environment_of(pid)

    lab.say("scout", "[from test] what is the word? tulip")
    lab.see("scout", "ECHO [from test] what is the word? tulip")
    request = lab.request("what is the word? tulip")
    assert "# scout\n\nYou carry the lantern." in said(request)
    assert request["output_config"]["effort"] == "low"
    assert "AskUserQuestion" not in {tool["name"] for tool in request["tools"]}
    assert request == lab.requests()[0], "something was asked before anybody said a word"

    # Whoever dies with this lock makes the next one wait for 10 s, which is what a test would do then.
    wait_for(lambda: not (lab.home / ".claude.json.lock").exists(), "claude keeps its lock")
    os.kill(pid, signal.SIGKILL)
    assert lab.event("agent_exited", "scout")["signal"] == signal.SIGKILL
    assert lab.event("agent_restarting", "scout")["delay_sec"] == RESTART_DELAY_SEC
    assert lab.prompt("scout", 2) != pid
    lab.say("scout", "[from test] and now? rose")
    lab.see("scout", "ECHO [from test] and now? rose")

    assert lab.stop() == 0
    ended = lab.event("agent_exited", "scout", 2)
    assert (ended["exit_code"], ended["result"]) == (143, "success")
    assert lab.event("agent_stopped", "scout")["result"] == "success"
