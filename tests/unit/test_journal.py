from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor import journal
from forge_supervisor.events import AgentExited, AgentFailed, AgentWarning, SupervisorReady

if TYPE_CHECKING:
    from collections.abc import Iterator

WHO: dict[str, Any] = {"agent": "scout", "run_as": "team"}
LIMIT: dict[str, Any] = {"limit_burst": 3, "limit_interval_sec": 60.0, "daily_limit_hit": False, "limit_daily": 200}
EXIT: dict[str, Any] = {
    **WHO,
    "pid": 42,
    "invocation": "c0ffee",
    "exit_code": 3,
    "signal": None,
    "uptime_sec": 12.5,
    "result": "exit-code",
    "n_restarts": 1,
    "next": "restarting in 5 s",
    "screen": "one\ntwo",
}
READY = SupervisorReady(running=3, failed=1)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    structlog.reset_defaults()
    root.setLevel(level)
    root.handlers[:] = handlers


class Journald:
    """A stand-in at the other end of a real datagram socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def receive(self) -> dict[str, str]:
        data, fds, _flags, _address = socket.recv_fds(self.socket, 1 << 20, 4)
        if fds:
            assert data == b""
            (memfd,) = fds
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            assert fcntl.fcntl(memfd, fcntl.F_GET_SEALS) == seals
            data = os.pread(memfd, 1 << 24, 0)
            os.close(memfd)
        return decode(data)


def decode(data: bytes) -> dict[str, str]:
    """Read an entry as https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ describes it."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
            assert end == b"\n"
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    monkeypatch.setattr(journal, "JOURNAL_SOCKET", str(tmp_path / "journal"))
    stand_in = Journald(tmp_path / "journal")
    yield stand_in
    stand_in.socket.close()


# The journal.


def test_an_event_in_the_journal_has_native_fields(journald: Journald) -> None:
    journal.configure("journal")
    journal.log(AgentExited(**EXIT))
    assert journald.receive() == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "forge-supervisor",
        "EVENT": "agent_exited",
        "MESSAGE": "scout exited with code 3 after 12.5 s; restarting in 5 s",
        "AGENT": "scout",
        "RUN_AS": "team",
        "PID": "42",
        "INVOCATION": "c0ffee",
        "EXIT_CODE": "3",
        "UPTIME_SEC": "12.5",
        "RESULT": "exit-code",
        "N_RESTARTS": "1",
        "NEXT": "restarting in 5 s",
        "SCREEN": "one\ntwo",
    }


def test_a_signal_and_a_truth_value_in_the_journal(journald: Journald) -> None:
    journal.configure("journal")
    journal.log(AgentExited(**{**EXIT, "exit_code": None, "signal": 9}))
    entry = journald.receive()
    assert entry["SIGNAL"] == "9"
    assert "EXIT_CODE" not in entry
    journal.log(AgentFailed(**WHO, **LIMIT, result="signal", start_limit_hit=True, n_restarts=3))
    entry = journald.receive()
    assert (entry["PRIORITY"], entry["START_LIMIT_HIT"]) == ("3", "yes")


def test_an_entry_over_the_size_limit_goes_by_a_sealed_memfd(journald: Journald) -> None:
    screen = "\n".join("x" * 199 for _ in range(5000))
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    journal.configure("journal")
    journal.log(AgentExited(**{**EXIT, "screen": screen}))
    entry = journald.receive()
    assert entry["SCREEN"] == screen
    assert entry["AGENT"] == "scout"
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@given(st.text(), st.text())
def test_any_text_survives_the_protocol(first: str, second: str) -> None:
    data = journal._field("FIRST", first) + journal._field("SECOND", second) + journal._field("THIRD", 3)
    decoded = decode(data)
    assert decoded["THIRD"] == "3"
    for name, text in (("FIRST", first), ("SECOND", second)):
        assert decoded[name] == text.encode(errors="backslashreplace").decode()


def test_without_journald_sentences_go_to_stderr_with_their_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr(journal, "JOURNAL_SOCKET", str(path))
    journal.configure("journal")
    journal.log(READY)
    assert capfd.readouterr().err == "<6>ready: 3 running, 1 failed\n"
    gone = Journald(path)
    gone.socket.close()
    journal.log(AgentExited(**EXIT))
    assert capfd.readouterr().err == "<4>scout exited with code 3 after 12.5 s; restarting in 5 s\n"
    path.unlink()
    back = Journald(path)
    journal.log(READY)
    assert back.receive()["EVENT"] == "supervisor_ready"
    assert capfd.readouterr().err == ""
    back.socket.close()


def test_a_stuck_journald_does_not_stick_us(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "_JOURNAL_TIMEOUT", 0.01)
    journal.configure("journal")
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for _ in range(queue + 10):
        journal.log(READY)
    assert capfd.readouterr().err.startswith("<6>ready: ")
    assert journald.receive()["EVENT"] == "supervisor_ready"


# Lines for people.


def test_a_console_line_and_the_screen_below_it(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("console")
    journal.log(READY)
    journal.log(AgentExited(**EXIT))
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d info    ready: 3 running, 1 failed\n"
        r"\d\d:\d\d:\d\d warning scout exited with code 3 after 12\.5 s; restarting in 5 s\n"
        r"    \| one\n    \| two\n",
        err,
    )


HOSTILE = "a\x1b]0;owned\x07b\x9bc\r\ud800d\u202ee\u2028f\x00g\n12:00:00 error   forged\tx"


@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_control_characters_of_agents_and_users_never_get_out(
    log_format: journal.LogFormat, journald: Journald, capfd: pytest.CaptureFixture[str]
) -> None:
    journal.configure(log_format)
    journal.log(AgentExited(**{**EXIT, "screen": HOSTILE, "next": HOSTILE}))
    journal.log(AgentWarning(**WHO, key="", problem=HOSTILE))
    err = capfd.readouterr().err
    shown: list[str] = err.splitlines()
    if log_format == "json":
        shown = [text for line in err.splitlines() for text in json.loads(line).values() if isinstance(text, str)]
    elif log_format == "journal":
        shown = [*journald.receive().values(), *journald.receive().values()]
    assert any("a]0;ownedbcdefg" in text for text in shown)
    assert all(char == "\n" or char.isprintable() for text in shown for char in text)
    # A newline within a sentence does not begin a line of its own.
    assert not any(line.startswith("12:00:00 error   forged") for line in err.splitlines())


SECRET = "hunter2-correct-horse\nsecond line of it"  # noqa: S105


@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_a_known_secret_never_gets_out_wherever_it_comes_from(
    log_format: journal.LogFormat, journald: Journald, capfd: pytest.CaptureFixture[str]
) -> None:
    journal.configure(log_format)
    journal.conceal("scout", {"A": SECRET}, None)
    journal.log(AgentExited(**{**EXIT, "screen": f"$ env\nTOKEN={SECRET}", "next": "hunter2-correct-horse"}))
    try:
        int(SECRET)
    except ValueError:
        logging.getLogger("asyncio").exception("with second line of it")
    shown = capfd.readouterr().err
    if log_format == "journal":
        shown = json.dumps([journald.receive(), journald.receive()])
    assert "[secret]" in shown
    assert "TOKEN=[secret]" in shown
    for part in ("hunter2", "second line"):
        assert part not in shown


def test_what_a_users_child_writes_is_masked_as_what_is_said_of_its_agents(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("json")
    journal.conceal("scout", {"A": "users-secret"}, "team")
    for extra in ({"run_as": "team"}, {"run_as": "neighbour"}):
        logging.getLogger("x").warning("worker: %s", "users-secret", extra=extra)
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(entry["run_as"], entry["message"]) for entry in entries] == [
        ("team", "worker: [secret]"),
        ("neighbour", "worker: users-secret"),
    ]


def test_an_entry_is_found_whatever_word_is_a_secret(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("json")
    journal.conceal("a", {"A": "scout", "B": "team", "C": "agent_warning", "D": "warning"}, None)
    journal.log(AgentWarning(**WHO, key="agents.scout.role", problem="scout"))
    entry = json.loads(capfd.readouterr().err)
    assert (entry["event"], entry["agent"], entry["run_as"]) == ("agent_warning", "scout", "team")
    assert (entry["key"], entry["problem"]) == ("agents.scout.role", "[secret]")


def test_more_secrets_may_come_to_be_known(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("console")
    for value in ("first-secret", "second-secret", "third-secret"):
        journal.conceal("scout", {"A": value}, None)
    journal.conceal("herald", {"A": "heralds-secret"}, None)
    journal.log(AgentWarning(**WHO, key="", problem="second-secret third-secret heralds-secret"))
    assert "[secret] [secret] [secret]" in capfd.readouterr().err


def test_those_of_an_agents_present_and_last_start_are_masked_and_no_older_ones() -> None:
    """Else an agent whose secrets change at every start would make each entry slower than the one before."""
    journal.configure("console")
    for number in range(5):
        journal.conceal("scout", {"A": f"secret-{number}"}, "team")
    assert sorted(journal._parts["team"]) == ["secret-3", "secret-4"]


def test_what_a_user_chose_is_masked_in_what_is_said_of_its_agents_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """A secret may be any word: one user's must not blot out what is logged of another's agents."""
    journal.configure("console")
    journal.conceal("scout", {"A": "warning sign"}, WHO["run_as"])
    for user in (WHO["run_as"], "neighbour"):
        journal.log(AgentWarning(agent="a", run_as=user, key="", problem="a warning sign"))
    journal.log(READY)
    assert [line.partition(": ")[2] for line in capfd.readouterr().err.splitlines()] == [
        "a [secret]",
        "a warning sign",
        "3 running, 1 failed",
    ]


@given(st.text())
def test_what_is_left_is_printable_lines(text: str) -> None:
    left = journal.printable(text)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", left)
    left.encode()


# JSON lines.


def test_json_lines_have_lower_case_keys(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("json")
    journal.log(AgentExited(**EXIT))
    journal.log(AgentFailed(**WHO, **LIMIT, result="exit-code", start_limit_hit=True, n_restarts=3))
    out, err = capfd.readouterr()
    assert out == ""
    exited, failed = (json.loads(line) for line in err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", exited.pop("timestamp"))
    assert exited == {
        "level": "warning",
        "event": "agent_exited",
        "message": "scout exited with code 3 after 12.5 s; restarting in 5 s",
        **{name: value for name, value in EXIT.items() if value is not None},
    }
    assert list(failed)[:4] == ["timestamp", "level", "event", "message"]
    assert failed["start_limit_hit"] is True


# What others log.


def test_libtmux_debug_records_with_argument_lists_stay_out(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("json")
    logger = logging.getLogger("libtmux.common")
    logger.debug("tmux command dispatched", extra={"tmux_cmd": "tmux -e SECRET"})
    logger.info("session created")
    assert capfd.readouterr().err == ""
    logger.warning("odd answer: %s", "SEEN")
    (entry,) = map(json.loads, capfd.readouterr().err.splitlines())
    del entry["timestamp"]
    assert entry == {
        "level": "warning",
        "event": "log",
        "message": "odd answer: SEEN",
        "logger": "libtmux.common",
    }


@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_an_exception_comes_with_its_traceback(
    log_format: journal.LogFormat, journald: Journald, capfd: pytest.CaptureFixture[str]
) -> None:
    journal.configure(log_format)
    try:
        int("the cause")
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    if log_format == "journal":
        entry = journald.receive()
        assert (entry["MESSAGE"], entry["LOGGER"]) == ("Task exception was never retrieved", "asyncio")
        assert entry["EXCEPTION"].endswith("base 10: 'the cause'")
    else:
        err = capfd.readouterr().err
        assert "Task exception was never retrieved" in err
        assert "ValueError: invalid literal" in err


def test_a_broken_record_is_reported_and_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("console")
    logging.getLogger("x").warning("%d", "no number")
    journal.log(READY)
    err = capfd.readouterr().err
    assert "--- Logging error ---" in err
    assert "ready: 3 running" in err


# Which of them, in a process of its own.

PROGRAM = """
import sys
from forge_supervisor import journal
from forge_supervisor.events import SupervisorReady
journal.JOURNAL_SOCKET = sys.argv[1]
journal.configure()
journal.log(SupervisorReady(running=3, failed=1))
"""


def run(path: Path, stderr: int, **env: str) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path / "journal")],
        stderr=stderr,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | env,
        timeout=60,
        check=True,
    )


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_the_journal_is_used_iff_stderr_is_the_stream_that_systemd_named(journald: Journald, tmp_path: Path) -> None:
    with pipe() as (reader, writer):
        status = os.fstat(writer)
        run(tmp_path, writer, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
        assert journald.receive()["EVENT"] == "supervisor_ready"
        run(tmp_path, writer, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino + 1}")
        assert re.fullmatch(rb"\d\d:\d\d:\d\d info    ready: 3 running, 1 failed\n", os.read(reader, 1000))


def test_colours_on_a_terminal_only(tmp_path: Path) -> None:
    terminal, child = os.openpty()
    run(tmp_path, child)
    assert re.fullmatch(
        rb"\d\d:\d\d:\d\d \x1b\[32minfo   \x1b\[0m ready: 3 running, 1 failed\r\n", os.read(terminal, 1000)
    )
    os.close(terminal)
    os.close(child)


def test_a_reader_of_stderr_that_went_away_does_not_bring_us_down(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run(tmp_path, writer)
    os.close(writer)
