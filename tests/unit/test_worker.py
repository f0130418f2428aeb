"""The supervisor's side of a worker, against workers that do everything wrong; and the real one, asked what it can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from control_lab import no_complaints

from forge_supervisor import units
from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.terminal import Terminal
from forge_supervisor.units import DirectPlacement, Process, User
from forge_supervisor.worker import client
from forge_supervisor.worker.__main__ import serve
from forge_supervisor.worker.actions import Actions
from forge_supervisor.worker.client import Worker, WorkerError, WorkerLostError
from forge_supervisor.worker.messages import (
    LINE_LIMIT,
    AnswerLine,
    Close,
    Collect,
    Collected,
    Finding,
    FindServer,
    Observe,
    Prepare,
    Prepared,
    RequestLine,
    ServerFound,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence


ME = units.lookup(pwd.getpwuid(os.getuid()).pw_name)
PRELUDE = """
import json, os, socket, sys, time
connection = socket.socket(fileno=0)
lines = connection.makefile("rwb", buffering=0)
def ask(): return json.loads(lines.readline())
def say(**words): lines.write(json.dumps(words).encode() + b"\\n")
"""


class Scripted(DirectPlacement):
    """Runs a script of the test's in place of the worker."""

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = script

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        return await super().run(name, user, [sys.executable, "-c", PRELUDE + self._script], env=env, stdin=stdin)


@contextlib.asynccontextmanager
async def worker(placement: DirectPlacement, env: Mapping[str, str]) -> AsyncIterator[Worker]:
    running = await Worker.start(placement, ME, env)
    try:
        yield running
    finally:
        await running.stop()
        await placement.close(leave=False)
        await asyncio.sleep(0.01)  # transports that were closed are gone a turn of the loop later


def ask_scripted(script: str, *requests: Close | FindServer) -> list[Any]:
    """What each request comes to: an answer or an exception."""

    async def scenario() -> list[Any]:
        async with worker(Scripted(script), {}) as running:
            asking = (running.ask(request) for request in requests)
            return list(await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 20))

    return asyncio.run(scenario())


FIND = FindServer(wait=False)


def test_answers_are_told_apart_by_their_ids() -> None:
    script = """
first, second = ask(), ask()
say(id=second["id"], answer={"pid": 22})
say(id=first["id"], answer={"pid": 11})
ask()
"""
    assert [answer.pid for answer in ask_scripted(script, FIND, FIND)] == [11, 22]


def test_the_workers_own_words_are_an_error_and_it_stays() -> None:
    script = """
say(id=ask()["id"], error="tmux: no")
say(id=ask()["id"], answer={"pid": None})
ask()
"""
    error, answer = ask_scripted(script, FIND, FIND)
    assert str(error) == "tmux: no"
    assert type(error) is WorkerError
    assert answer.pid is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("ask()", "it ended"),
        ("ask(); os.abort()", "it ended"),
        ("ask(); lines.write(b'no json\\n'); ask()", "broke the protocol"),
        ("ask(); lines.write(b'[1]\\n'); ask()", "broke the protocol"),
        ("ask(); say(id=1, answer={'pid': 1, 'surplus': 2}); ask()", "answered nonsense"),
        ("ask(); say(id=1, answer={'pid': 1}); ask()", "answered nonsense"),
        ("ask(); say(id=1, answer={'pid': -5}); ask()", "answered nonsense"),
        ("ask(); say(id=1, answer={'pid': 2 ** 40}); ask()", "answered nonsense"),
        ("ask(); say(id=1, answer={'pid': '12'}, error=None, more=1); ask()", "broke the protocol"),
        ("ask(); say(id=1); ask()", "answered nonsense"),
        ("ask(); say(id=77, answer={'pid': 5}); ask()", "broke the protocol"),
        ("ask(); connection.sendall(b'x' * (5 << 20)); ask()", "broke the protocol"),
    ],
)
def test_a_worker_that_ends_or_talks_nonsense_is_lost(script: str, reason: str) -> None:
    (error,) = ask_scripted(script, FIND)
    assert isinstance(error, WorkerLostError)
    assert reason in str(error)


def test_an_answer_that_nobody_waits_for_any_more_is_no_fault() -> None:
    async def scenario() -> int | None:
        script = "first, second = ask(), ask(); say(id=1, answer={}); say(id=second['id'], answer={'pid': 5}); ask()"
        async with worker(Scripted(script), {}) as running:
            given_up = asyncio.create_task(running.ask(FIND))
            await asyncio.sleep(0)
            given_up.cancel()
            return (await running.ask(FIND)).pid

    assert asyncio.run(scenario()) == 5


def test_a_worker_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FindServer, "timeout", 0.2)
    monkeypatch.setattr(client, "STOP_TIMEOUT", 0.2)
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); ask(); time.sleep(1000)"

    async def scenario() -> tuple[str, str]:
        async with worker(Scripted(script), {}) as running:
            with pytest.raises(WorkerLostError) as first:
                await running.ask(FIND)
            with pytest.raises(WorkerLostError) as second:
                await running.ask(FIND)
            assert running.lost is not None
            return str(first.value), str(second.value)

    assert asyncio.run(scenario()) == ("it did not answer within 0.2 s",) * 2


def test_a_worker_that_stops_reading_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Close, "timeout", 0.5)
    # Nor is an answer that nobody has come to wait for complained of.
    with no_complaints():
        (error,) = ask_scripted("time.sleep(1000)", Close(agent="x" * (3 << 20), server=2))
        assert isinstance(error, WorkerLostError)
        del error


def test_a_request_that_is_too_long_costs_nobody_the_worker() -> None:
    script = "say(id=ask()['id'], answer={'pid': 5}); ask()"
    error, answer = ask_scripted(script, Close(agent="x" * (5 << 20), server=2), FIND)
    assert type(error) is WorkerError
    assert "mind role and env" in str(error)
    assert answer.pid == 5


def test_no_program_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ARGV", ("/no/such/python",))

    async def scenario() -> None:
        placement = DirectPlacement()
        with pytest.raises((OSError, units.PlacementError), match="/no/such/python"):
            await Worker.start(placement, ME, {})
        await placement.close(leave=False)

    asyncio.run(scenario())


def test_a_workers_threads_keep_nothing_of_what_they_have_freed() -> None:
    (told,) = ask_scripted("say(id=ask()['id'], error=os.environ['GLIBC_TUNABLES']); ask()", FIND)
    assert str(told) == "glibc.malloc.tcache_count=0"


@pytest.fixture
def real_env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / f"tmux-{os.getuid()}").mkdir(mode=0o700)
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TMUX_TMPDIR": str(tmp_path),
        "FORGE_SOCKET_NAME": "forge-test",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


def agent(**keys: object) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "harness": "command", **keys})


def ask_real(env: Mapping[str, str], request: Prepare) -> Prepared:
    async def scenario() -> Prepared:
        async with worker(DirectPlacement(), env) as running:
            return await running.ask(request)

    return asyncio.run(scenario())


def test_the_real_worker_builds_what_the_plan_needs(real_env: dict[str, str], tmp_path: Path) -> None:
    settings = HarnessSettings()
    declared = agent(command=("echo", "ä", ""), restart={"limit_interval_sec": "infinity"})
    prepared = ask_real(real_env, Prepare.of(declared, settings, Library()))
    state = tmp_path / "state/forge/agents/scout"
    assert prepared.argv == ["/usr/bin/echo", "ä", ""]
    assert prepared.cwd == str(state)
    assert prepared.findings == []
    assert state.stat().st_mode & 0o7777 == 0o700


def test_a_dry_run_writes_nothing(real_env: dict[str, str], tmp_path: Path) -> None:
    prepared = ask_real(real_env, Prepare.of(agent(command=("echo",)), HarnessSettings(), Library(), dry_run=True))
    assert prepared.argv == ["/usr/bin/echo"]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("keys", "key", "text"),
    [
        ({"command": ("no-such-program",)}, "harness", "no-such-program was not found on"),
        ({"command": ("/etc/passwd",)}, "harness", "/etc/passwd is not an executable file"),
        ({"command": ("true",), "cwd": "/no/such"}, "cwd", "/no/such is no directory"),
        ({"command": ("true",), "env": {"XDG_STATE_HOME": "/proc/nowhere"}}, "run_as", "/proc/nowhere"),
        ({"command": ("true",), "harness": "unheard-of"}, "harness", 'no harness "unheard-of"'),
    ],
)
def test_what_keeps_an_agent_from_starting_is_found(
    real_env: dict[str, str], keys: dict[str, object], key: str, text: str
) -> None:
    prepared = ask_real(real_env, Prepare.of(agent(**keys), HarnessSettings(), Library()))
    (finding,) = prepared.findings
    assert (finding.fatal, finding.key) == (True, key)
    assert text in finding.text
    assert prepared.argv == []


def test_another_version_than_was_meant_is_a_warning(real_env: dict[str, str]) -> None:
    settings = HarnessSettings(version="0.0")
    prepared = ask_real(real_env, Prepare.of(agent(command=("bash",)), settings, Library()))
    (finding,) = prepared.findings
    assert (finding.fatal, finding.key) == (False, "harnesses.command.version")
    assert "GNU bash" in finding.text
    assert "0.0 was meant" in finding.text


def program(directory: Path, says: str) -> Path:
    """A program that says that, and notes the arguments that it was run with."""
    path = directory / "program"
    path.write_text(f'#!/bin/sh\necho "$@" >>{directory}/asked\necho "{says}"\n')
    path.chmod(0o755)
    return path


def test_who_is_consulted_tells_its_version_too(real_env: dict[str, str], tmp_path: Path) -> None:
    settings = HarnessSettings(binary=str(program(tmp_path, "9.9.9 (Claude Code)")))
    claude = agent(harness="claude-code", role="x")
    prepared = ask_real(real_env, Prepare.of(claude, settings, Library(), dry_run=True, consult=True))
    assert prepared.version == "9.9.9"
    assert ask_real(real_env, Prepare.of(claude, settings, Library(), dry_run=True)).version == ""


def test_an_agents_own_program_is_not_run_to_ask_it_anything(real_env: dict[str, str], tmp_path: Path) -> None:
    own = agent(command=(str(program(tmp_path, "1.0")),))
    prepared = ask_real(real_env, Prepare.of(own, HarnessSettings(), Library(), dry_run=True, consult=True))
    assert prepared.version == ""
    assert not (tmp_path / "asked").exists()


def test_a_message_about_what_is_no_text_gets_through() -> None:
    finding = Finding(key="run_as", text=os.fsdecode(b"/home/\xff is odd") + "!" * 9999, fatal=True)
    assert finding.text.startswith("/home/\\udcff is odd!!")
    assert len(finding.text) < 5000
    assert Finding.model_validate_json(finding.model_dump_json()) == finding


def test_without_a_server_an_exit_is_lost_and_not_success(real_env: dict[str, str]) -> None:
    async def scenario() -> tuple[ServerFound, Collected]:
        async with worker(DirectPlacement(), real_env) as running:
            found = await running.ask(FIND)
            request = Collect(agent="scout", pane="%0", pid=2**22, invocation="none", server=2**22)
            return found, await running.ask(request)

    found, collected = asyncio.run(scenario())
    assert found.pid is None
    assert (collected.code, collected.signal) == (None, None)


@pytest.mark.parametrize(
    "what", ["concurrent.futures.ThreadPoolExecutor.submit", "forge_supervisor.processes.outsiders"]
)
def test_what_was_left_behind_is_ended_though_nobody_could_look_meanwhile(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: where an agent has filled the machine with processes no thread can be started."""

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    terminal = Terminal("forge", env={"PATH": "/usr/bin:/bin", "TMUX_TMPDIR": str(tmp_path)})
    monkeypatch.setattr(terminal.socket, "server_pid", lambda: 2**22)
    monkeypatch.setattr(what, fails)
    with subprocess.Popen(["/bin/sleep", "300"], env={"INVOCATION_ID": "left"}, start_new_session=True) as left:
        while not Path(f"/proc/{left.pid}/environ").read_bytes():
            time.sleep(0.01)  # exec is no event, and for a moment after it has closed descriptors there is none
        request = Collect(agent="scout", pane="%0", pid=2**22, invocation="left", server=None)
        collected = Actions(terminal, Path("/")).do(request)
        assert isinstance(collected, Collected)
        assert collected.terminated == 1
        assert left.wait(20) == -signal.SIGTERM


def test_an_answer_that_is_too_long_is_an_error_of_that_question_alone() -> None:
    class Talker:
        home = Path("/")

        def do(self, request: object) -> Prepared:
            much = LINE_LIMIT if request == FIND else 1
            return Prepared(argv=["/bin/true"], cwd="/", env={"A": "x" * much}, findings=[])

    async def scenario() -> list[AnswerLine]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        serving = asyncio.create_task(serve(theirs, cast("Actions", Talker())))
        answers = []
        for number, request in enumerate((FIND, FindServer(wait=True))):
            writer.write(encode(RequestLine(id=number, request=request)))
            answers.append(AnswerLine.model_validate_json(await reader.readline()))
        writer.close()
        await serving
        await asyncio.sleep(0)  # in which the sockets are closed
        return answers

    too_long, after = asyncio.run(scenario())
    assert "is the most" in (too_long.error or "")
    assert after.error is None
    assert after.answer is not None
    assert after.answer["env"] == {"A": "x"}


def observe(directory: Path, *, harness: str = "claude-code") -> Observe:
    return Observe.of(agent(harness=harness, env={"CLAUDE_CONFIG_DIR": str(directory)}), (), 7, None)


def test_what_is_given_up_before_it_has_begun_is_answered_all_the_same(
    real_env: dict[str, str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with worker(DirectPlacement(), real_env) as running:
            await running.ask(FIND)
            for _ in range(20):
                asking = asyncio.create_task(running.ask(observe(tmp_path)))
                await asyncio.sleep(0)
                # Both are in the worker's next reading.
                asking.cancel()
            async with asyncio.timeout(20):
                while running._pending:
                    await running.ask(FIND)
            assert running.lost is None

    asyncio.run(scenario())


@pytest.mark.parametrize("content", ["[]", "", None])
def test_session_files_that_never_say_anything_are_a_problem(
    real_env: dict[str, str], tmp_path: Path, content: str | None
) -> None:
    async def scenario() -> None:
        session = tmp_path / "sessions/7.json"
        session.parent.mkdir()
        session.mkdir() if content is None else session.write_text(content)
        async with worker(DirectPlacement(), real_env) as running:
            with pytest.raises(WorkerError, match="say nothing that can be understood.*7.json"):
                await running.ask(observe(tmp_path))
            session.rename(tmp_path / "elsewhere")
            session.write_text('{"status": "idle"}')
            assert (await running.ask(observe(tmp_path))).doing == "idle"

    asyncio.run(scenario())


def test_a_request_is_one_line_whatever_is_in_it() -> None:
    request = Prepare.of(agent(command=("a\nb",), role="x\ny"), HarnessSettings(), Library())
    line = encode(RequestLine(id=1, request=request))
    assert line.count(b"\n") == 1
    assert json.loads(line)["request"]["agent"]["command"] == ["a\nb"]


def test_what_was_said_is_not_kept_by_who_has_read_it() -> None:
    request = Prepare.of(agent(), HarnessSettings(), Library(), secrets={"TOKEN": "hush"})
    line = encode(RequestLine(id=1, request=request))
    first, again = (RequestLine.model_validate_json(line).request for _ in range(2))
    assert isinstance(first, Prepare)
    assert isinstance(again, Prepare)
    assert first.secrets == again.secrets
    assert first.secrets["TOKEN"] is not again.secrets["TOKEN"]
    answer = encode(AnswerLine(id=1, answer={"secrets": first.secrets}))
    told, once_more = (AnswerLine.model_validate_json(answer).answer for _ in range(2))
    assert told is not None
    assert once_more is not None
    assert told["secrets"]["TOKEN"] is not once_more["secrets"]["TOKEN"]
