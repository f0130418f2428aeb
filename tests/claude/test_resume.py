"""An agent's memory across restarts, as the next request to the API has it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from claude_lab import said
from harness_lab import json_of, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from claude_lab import Lab
    from harness_lab import Json


def session_of(lab: Lab) -> str:
    return (lab.home / ".local/state/forge/launch/scout/session").read_text().strip()


def transcripts(lab: Lab) -> dict[str, Path]:
    return {path.stem: path for path in (lab.home / ".claude/projects").glob("*/*.jsonl")}


def written(lab: Lab) -> str:
    """Give all of the agent's present session that has been written."""
    transcript = transcripts(lab).get(session_of(lab))
    return "" if transcript is None else transcript.read_text()


def tell(lab: Lab, words: str) -> Json:
    """Say it and wait until it has been answered; return the request."""
    lab.idle("scout")
    lab.say("scout", f"[from test] {words}")
    lab.see("scout", f"ECHO [from test] {words}")
    answer = f'"text":"ECHO [from test] {words}"'
    # It writes a little after it shows, and who kills it in between takes what was said with it.
    wait_for(lambda: answer in written(lab), "the answer is not in the transcript")
    lab.idle("scout")
    return lab.request(words)


def kill(lab: Lab, pid: int) -> None:
    # Whoever dies with this lock makes the next one wait for 10 s.
    wait_for(lambda: not (lab.home / ".claude.json.lock").exists(), "claude keeps its lock")
    os.kill(pid, signal.SIGKILL)


def kill_and_spoil(lab: Lab, pid: int, transcript: Path, text: str) -> None:
    """Have it find, at its next start, what it has not written. While it lives it may still have something to add."""
    ended = sum(event["event"] == "agent_exited" for event in lab.events())
    kill(lab, pid)
    lab.event("agent_exited", "scout", ended + 1)
    transcript.write_text(text)


def cleared(lab: Lab) -> tuple[int, str]:
    """Have the agent in a new session after one in which it was told of tulips; return its pid and that one."""
    lab.start({"scout": {}})
    pid = lab.prompt("scout")
    first = session_of(lab)
    tell(lab, "the word is tulip")
    lab.say("scout", "/clear")
    wait_for(lambda: session_of(lab) != first, "it does not tell of its new session")
    return pid, first


def explained(lab: Lab) -> list[str]:
    argv: list[str] = json.loads(lab.command("explain", "scout", "--json").stdout)["argv"]
    return argv


def test_after_a_kill_in_the_middle_of_a_turn_it_remembers(lab: Lab) -> None:
    lab.start({"scout": {}})
    pid = lab.prompt("scout")
    session = session_of(lab)
    tell(lab, "the word is tulip")
    tool = json.dumps({"name": "Bash", "input": {"command": "tail -f /dev/null", "description": "x"}})
    lab.say("scout", f"[from test] wait\nTOOL {tool}")
    lab.request("[from test] wait")
    wait_for(lambda: "tail -f /dev/null" in written(lab), "the turn is not in the transcript")
    kill(lab, pid)
    lab.prompt("scout", 2)
    assert session_of(lab) == session
    assert "the word is tulip" in said(tell(lab, "what was the word"))
    assert [*transcripts(lab)] == [session]


def test_a_stop_in_good_order_is_no_reason_to_forget(lab: Lab) -> None:
    lab.start({"scout": {}})
    os.kill(lab.prompt("scout"), signal.SIGTERM)
    assert lab.event("agent_exited", "scout")["exit_code"] == 143
    pid = lab.prompt("scout", 2)
    tell(lab, "the word is tulip")
    os.kill(pid, signal.SIGTERM)
    lab.prompt("scout", 3)
    assert "the word is tulip" in said(tell(lab, "what was the word"))


def test_what_was_cleared_stays_so(lab: Lab) -> None:
    """Trap: after /clear the newest transcript is the old one, until something is said."""
    pid, first = cleared(lab)
    kill(lab, pid)
    pid = lab.prompt("scout", 2)
    assert session_of(lab) != first
    assert "tulip" not in said(tell(lab, "the word is rose"))
    kill(lab, pid)
    lab.prompt("scout", 3)
    request = said(tell(lab, "what was the word"))
    assert "the word is rose" in request
    assert "tulip" not in request


def test_one_that_is_killed_before_a_word_is_written_just_starts(lab: Lab) -> None:
    lab.start({"scout": {}})
    pid = lab.prompt("scout")
    lab.say("scout", "[from test] the word is tulip")
    lab.request("the word is tulip")
    kill(lab, pid)
    lab.prompt("scout", 2)
    assert "agent_warning" not in {event["event"] for event in lab.events()}


def test_a_session_that_somebody_went_back_to_is_followed(lab: Lab) -> None:
    pid, first = cleared(lab)
    tell(lab, "the word is rose")
    lab.say("scout", f"/resume {first}")
    wait_for(lambda: session_of(lab) == first, "it does not tell that it went back")
    kill(lab, pid)
    lab.prompt("scout", 2)
    request = said(tell(lab, "what was the word"))
    assert "the word is tulip" in request
    assert "rose" not in request


def test_a_session_that_cannot_be_resumed_is_tried_once(lab: Lab) -> None:
    lab.start({"scout": {"restart": {"delay_sec": 2}}})
    pid = lab.prompt("scout")
    first = session_of(lab)
    tell(lab, "the word is tulip")
    kill(lab, pid)
    pid = lab.prompt("scout", 2)
    kill_and_spoil(lab, pid, transcripts(lab)[first], "garbage\n" * 50)
    failed = lab.event("agent_exited", "scout", 3)
    assert (failed["exit_code"], failed["next"]) == (1, "restarting in 2 s")
    warning = lab.event("agent_warning", "scout")
    assert warning["key"] == "agents.scout.resume"
    assert "cannot be resumed" in warning["problem"]
    # The restart is the fourth start, and three are the limit.
    lab.event("agent_failed", "scout")
    assert explained(lab)[-2:] == ["--session-id", "(new at every start)"]


def test_after_the_one_try_it_begins_anew(lab: Lab) -> None:
    lab.start({"scout": {"restart": {"limit_burst": 0, "delay_sec": 2}}})
    pid = lab.prompt("scout")
    first = session_of(lab)
    tell(lab, "the word is tulip")
    kill_and_spoil(lab, pid, transcripts(lab)[first], "")
    lab.event("agent_warning", "scout")
    lab.prompt("scout", 3)
    assert session_of(lab) != first
    assert "tulip" not in said(tell(lab, "what was the word"))
    assert sum(event["event"] == "agent_warning" for event in lab.events()) == 1


def test_one_that_never_resumes(lab: Lab) -> None:
    lab.start({"scout": {"resume": {"policy": "never"}}})
    pid = lab.prompt("scout")
    first = session_of(lab)
    tell(lab, "the word is tulip")
    assert explained(lab)[-2:] == ["--session-id", "(new at every start)"]
    kill(lab, pid)
    lab.prompt("scout", 2)
    assert session_of(lab) != first
    assert "tulip" not in said(tell(lab, "what was the word"))


def test_one_that_resumes_after_a_failure_only(lab: Lab) -> None:
    lab.start({"scout": {"resume": {"policy": "after-failure"}, "restart": {"policy": "always", "limit_burst": 0}}})
    pid = lab.prompt("scout")
    first = session_of(lab)
    tell(lab, "the word is tulip")
    assert first in explained(lab)
    kill(lab, pid)
    lab.prompt("scout", 2)
    assert "the word is tulip" in said(tell(lab, "what was the word"))
    lab.say("scout", "/exit")
    assert lab.event("agent_exited", "scout", 2)["result"] == "success"
    lab.prompt("scout", 3)
    assert session_of(lab) != first
    assert "tulip" not in said(tell(lab, "and what is it now"))


def test_what_is_appended_to_the_instructions_is_as_it_is_now(lab: Lab) -> None:
    """Trap: claude keeps with the transcript what was appended when the session began."""
    source = lab.give(lab.home / "library/whistle/SKILL.md", "---\ndescription: x\n---\nx").parent
    library = {"skills": {"whistle": {"source": str(source), "description": "It is about whistling."}}}
    lab.start({"scout": {"skills": ["whistle"]}}, library)
    lab.prompt("scout")
    request = tell(lab, "the word is tulip")
    assert "It is about whistling." in json.dumps(request["system"])
    lab.configure({"scout": {}}, library)
    lab.reload()
    lab.prompt("scout", 2)
    request = tell(lab, "what was the word")
    assert "the word is tulip" in said(request)
    assert "It is about whistling." not in json.dumps(request["system"])


def test_the_session_file_goes_only_with_an_orderly_end(lab: Lab) -> None:
    """Why it is no help in finding the agent's last session."""
    lab.start({"scout": {}})
    pid = lab.prompt("scout")
    file = lab.home / f".claude/sessions/{pid}.json"
    assert json_of(file)["sessionId"] == session_of(lab)
    os.kill(pid, signal.SIGTERM)
    lab.event("agent_exited", "scout")
    assert not file.exists()
