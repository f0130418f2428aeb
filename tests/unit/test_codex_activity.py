"""What codex is doing and has used, as its logs, its locks and its hooks tell."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from codex_plan_lab import home_of, plan_of
from hypothesis import given
from hypothesis import strategies as st
from plan_lab import json_in, subject_of, write

from forge_supervisor.activity import Activity, Doing, Reported, Window
from forge_supervisor.harness.codex import Codex, rollouts
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.activity import Seen
    from forge_supervisor.harness import Paths

ID = "01a21f4d-156e-7c52-a46d-445d50fec4cf"
OTHER = "01a21f4e-156e-7c52-a46d-445d50fec4cf"
BEGIN = 1_795_821_000.0
LIMIT = {"message": "Quota\n exceeded.", "codex_error_info": "usage_limit_exceeded"}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


class Scene:
    """A process that holds what codex's holds open: this one."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._held: list[int] = []

    def enter(self, session: str = ID, at: float = BEGIN) -> None:
        lock = write(self.paths.state / f".codex/thread-writer-locks/{session}.lock", "")
        os.utime(lock, (at, at))
        self._held.append(os.open(lock, os.O_RDONLY))

    def log(self, *entries: dict[str, Any], session: str = ID) -> Path:
        path = self.paths.state / f".codex/sessions/2026/11/27/rollout-2026-11-27T23-17-55-{session}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries))
        self._held.append(os.open(path, os.O_RDONLY))
        return path

    def seen(self, **keys: Any) -> Seen:
        seen = Codex().observe(subject_of(**{"env": {"OPENAI_API_KEY": "k"}, **keys}), self.paths, os.getpid())
        assert seen is not None
        return seen

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)


@pytest.fixture
def scene(paths: Paths) -> Iterator[Scene]:
    made = Scene(paths)
    yield made
    made.close()


def entry(kind: str, after: float, **payload: Any) -> dict[str, Any]:
    timestamp = datetime.fromtimestamp(BEGIN + after, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": timestamp, "ordinal": 1, "type": kind, "payload": payload}


def event(kind: str, after: float, **payload: Any) -> dict[str, Any]:
    return entry("event_msg", after, type=kind, **payload)


def test_without_a_lock_it_is_not_at_its_prompt(scene: Scene) -> None:
    assert scene.seen().doing is Doing.STARTING


def test_turns_begin_and_end(scene: Scene) -> None:
    scene.enter()
    assert scene.seen().doing is Doing.IDLE
    for after, kind, doing in (
        (1, "task_started", Doing.WORKING),
        (2, "task_complete", Doing.IDLE),
        (3, "task_started", Doing.WORKING),
        (4, "turn_aborted", Doing.IDLE),
    ):
        scene.log(event(kind, after))
        assert scene.seen().doing is doing


def test_a_turn_in_which_an_earlier_process_was_killed_is_over(scene: Scene) -> None:
    """Trap: it never ends in the log of a session that is gone on with."""
    scene.enter(at=BEGIN + 10)
    scene.log(event("task_started", 1))
    assert scene.seen().doing is Doing.IDLE
    scene.log(event("task_started", 11))
    assert scene.seen().doing is Doing.WORKING


def test_it_works_if_it_does_in_any_session_that_it_holds(scene: Scene) -> None:
    scene.enter()
    scene.enter(OTHER)
    scene.log(event("task_started", 1), event("task_complete", 2))
    scene.log(event("task_started", 3), session=OTHER)
    assert scene.seen().doing is Doing.WORKING


def test_half_a_line_says_nothing_yet(scene: Scene) -> None:
    scene.enter()
    path = scene.log(event("task_started", 1))
    line = json.dumps(event("task_complete", 2), separators=(",", ":"))
    with path.open("a") as file:
        file.write(line)
        file.flush()
        assert scene.seen().doing is Doing.WORKING
        file.write("\n")
    assert scene.seen().doing is Doing.IDLE


def test_a_log_that_is_written_anew_is_read_anew(scene: Scene) -> None:
    scene.enter()
    path = scene.log(event("task_started", 1), event("task_complete", 2))
    assert scene.seen().doing is Doing.IDLE
    path.write_text("")
    scene.log(event("task_started", 1))
    assert scene.seen().doing is Doing.WORKING


@pytest.mark.parametrize(
    ("info", "doing"),
    [
        ("usage_limit_exceeded", Doing.LIMITED),
        ("unauthorized", Doing.LOGGED_OUT),
        ("server_overloaded", Doing.UNRESPONSIVE),
        ("other", Doing.UNRESPONSIVE),
        ({"http_connection_failed": {"http_status_code": 401}}, Doing.LOGGED_OUT),
        ({"http_connection_failed": {"http_status_code": 429}}, Doing.LIMITED),
        ({"response_stream_disconnected": {"http_status_code": None}}, Doing.UNRESPONSIVE),
        ({"response_too_many_failed_attempts": {"http_status_code": 503}}, Doing.UNRESPONSIVE),
        ({"http_connection_failed": {"http_status_code": 404}}, Doing.UNRESPONSIVE),
        ("context_window_exceeded", None),
        ({"unheard_of": 3}, None),
        (None, None),
    ],
)
def test_what_a_turn_has_failed_of(scene: Scene, info: Any, doing: Doing | None) -> None:
    scene.enter()
    scene.log(event("task_started", 1), event("task_complete", 2, error={"message": "x", "codex_error_info": info}))
    seen = scene.seen()
    assert (seen.doing, seen.failed and seen.failed.doing) == (Doing.IDLE, doing)


def test_a_failure_stays_while_the_next_turn_runs_and_not_longer(scene: Scene) -> None:
    scene.enter()
    scene.log(event("task_started", 1), event("task_complete", 2, error=LIMIT), event("task_started", 3))
    failed = scene.seen().failed
    assert failed is not None
    assert failed == Activity(Doing.LIMITED, "Quota exceeded.", failed.fix)
    scene.log(event("task_complete", 4))
    assert scene.seen().failed is None


def test_a_failure_of_before_this_process_is_none_of_its_own(scene: Scene) -> None:
    scene.enter(at=BEGIN + 10)
    scene.log(event("task_started", 1), event("task_complete", 2, error=LIMIT))
    assert scene.seen().failed is None


def test_a_failure_of_a_sub_agent_is_none_of_its_own(scene: Scene) -> None:
    scene.enter()
    scene.enter(OTHER)
    meta = entry("session_meta", 0, source={"subagent": {}}, id=OTHER)
    scene.log(meta, event("task_started", 1), event("task_complete", 2, error=LIMIT), session=OTHER)
    assert scene.seen().failed is None


def test_gauges(scene: Scene) -> None:
    scene.enter()
    usage = {"last_token_usage": {"total_tokens": 64600}, "model_context_window": 258400}
    limits = {"primary": {"used_percent": 100.0, "resets_at": 1795829999}, "secondary": None}
    scene.log(event("token_count", 1, info=usage, rate_limits=limits))
    gauges = scene.seen().gauges
    assert gauges is not None
    assert (gauges.context_percent, gauges.windows) == (25.0, (Window("primary", 100.0, 1795829999.0),))


def test_what_it_asks_is_waited_for_until_something_comes_of_it(scene: Scene) -> None:
    scene.enter()
    path = scene.log(event("task_started", 1))
    os.utime(path, (BEGIN + 2, BEGIN + 2))
    asked = write(scene.paths.launch / "asked", {"tool_name": "Bash"})
    os.utime(asked, (BEGIN + 3, BEGIN + 3))
    seen = scene.seen()
    assert (seen.doing, seen.detail) == (Doing.WAITING, "it asks whether it may use Bash")
    os.utime(path, (BEGIN + 4, BEGIN + 4))
    assert scene.seen().doing is Doing.WORKING


def test_the_login_stands_for_itself(scene: Scene) -> None:
    assert scene.seen().login == "key"
    assert scene.seen(env={}).login == ""
    file = write(scene.paths.home / ".codex/auth.json", {"tokens": {}})
    before = scene.seen(env={}).login
    os.utime(file, (1, 1))
    assert before != scene.seen(env={}).login != ""


def test_what_is_watched(scene: Scene) -> None:
    scene.enter()
    path = scene.log(event("task_started", 1))
    watched = Codex().watched(subject_of(), scene.paths, os.getpid())
    assert path in watched
    assert scene.paths.state / ".codex/thread-writer-locks/.coordination.lock" in watched
    assert scene.paths.launch / "asked" in watched


def test_hooks() -> None:
    reported = Codex().reported
    assert reported({"hook_event_name": "UserPromptSubmit", "prompt": "x"}) == Reported("began", words="x")
    assert reported({"hook_event_name": "Stop"}) == Reported("ended")
    assert reported({"hook_event_name": "SessionEnd"}) == Reported()
    assert reported({}) == Reported()


def test_the_hook_notes_the_session_whatever_was_said(paths: Paths) -> None:
    paths.launch.mkdir(parents=True)
    hooks = json_in(plan_of(paths), paths.state / ".codex/hooks.json")["hooks"]["UserPromptSubmit"][0]["hooks"]
    said = {"session_id": ID, "prompt": f'"session_id":"{OTHER}"\n{{"session_id":"{OTHER}"'}
    for told in (json.dumps(said, separators=(",", ":")), "nonsense", ""):
        subprocess.run(["sh", "-c", hooks[0]["command"]], input=told, text=True, check=True)
        assert (paths.launch / "session").read_text().strip() == ID


def test_unsendable() -> None:
    assert Codex().unsendable("look at /etc") is None
    assert Codex().unsendable(" /quit")
    assert Codex().unsendable("!ls")


def test_unresumable() -> None:
    screen = [f"ERROR: No saved session found with ID {ID[:20]}", f"{ID[20:]}. Run `codex resume`"]
    assert Codex().unresumable(Exit(code=1), screen)
    assert not Codex().unresumable(Exit(code=0), screen)
    assert not Codex().unresumable(Exit(code=1), ["Error: something else"])


USAGE = {"input_tokens": 139, "cached_input_tokens": 130, "cache_write_input_tokens": 4, "output_tokens": 113}


class TestUsage:
    def record(self, after: float, **more: Any) -> dict[str, Any]:
        payload = {"response_id": "resp_1", "session_id": ID, "turn_id": "t", "usage": USAGE, **more}
        return entry("token_usage_record", after, **payload)

    def test_an_answer(self, scene: Scene) -> None:
        record = self.record(3)
        path = scene.log(entry("turn_context", 1, model="gpt-new", turn_id="t"), record)
        used = Codex().usage_in(path.read_bytes().splitlines(keepends=True)[-1], path)
        assert used is not None
        assert (used.message, used.session, used.model) == ("resp_1", ID, "gpt-new")
        assert used.time_usec == (BEGIN + 3) * 1_000_000
        counts = (used.input, used.output, used.cache_read, used.cache_write_5m, used.cache_write_1h)
        assert counts == (5, 113, 130, 4, 0)

    def test_the_model_is_the_one_of_then(self, scene: Scene) -> None:
        """Trap: a new model's first turn begins with the old one's summing up."""
        path = scene.log(entry("turn_context", 1, model="old"), self.record(3), entry("turn_context", 4, model="new"))
        line = json.dumps(self.record(3), separators=(",", ":")).encode()
        later = json.dumps(self.record(5), separators=(",", ":")).encode()
        models = [used.model for one in (line, later) if (used := Codex().usage_in(one, path))]
        assert models == ["old", "new"]

    def test_where_no_model_is_told(self, paths: Paths) -> None:
        line = json.dumps(self.record(3), separators=(",", ":")).encode()
        used = Codex().usage_in(line, paths.home / "gone.jsonl")
        assert used is not None
        assert used.model == "unknown"

    def test_transcripts_are_the_agents_own(self, scene: Scene) -> None:
        path = scene.log(event("task_started", 1))
        assert list(Codex().transcripts(subject_of().agent, scene.paths)) == [path]

    @given(st.binary() | st.builds(lambda rest: b'{"type":"token_usage_record",' + rest, st.binary()))
    def test_nothing_in_a_line_is_a_fault(self, line: bytes) -> None:
        Codex().usage_in(line, Path("/no/such"))
        rollouts.Rollout(1).take(line)


def test_ids_are_as_codex_has_them() -> None:
    assert re.fullmatch(rollouts.ID, ID)
