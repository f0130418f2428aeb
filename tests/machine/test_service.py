"""The real service under a real systemd, as an operator and the agents' users meet it."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
ECHO = "while read -r line; do echo heard $line; done"
TWO = f"""
[defaults]
harness = "command"
[agents.left]
run_as = "lefty"
command = ["/bin/sh", "-c", "{ECHO}"]
[agents.right]
run_as = "righty"
command = ["/bin/sh", "-c", "{ECHO}"]
"""
STUBBORN = """
[agents.stubborn]
run_as = "righty"
stop_timeout_sec = 0.5
command = ["bash", "-c", "trap '' TERM HUP; setsid -f sleep 1000; env -i setsid -f sleep 2000; logger armed; sleep 999"]
"""
CRASHER = """
[agents.crasher]
harness = "command"
run_as = "crash"
command = ["/bin/sh", "-c", "echo out of luck; exit 3"]
"""


def now(machine: Machine) -> int:
    """Microseconds on the clock of the journal's __REALTIME_TIMESTAMP."""
    return int(machine.run("date", "+%s%6N").stdout)


@dataclass(frozen=True)
class Terminal:
    """A user at a terminal of the machine."""

    process: subprocess.Popen[bytes]

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def see(self, text: str) -> None:
        """Wait until `text` was shown."""
        assert self.process.stdout is not None
        shown = b""
        deadline = time.monotonic() + 30
        while text.encode() not in shown:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"{text!r} was not shown, but: {shown!r}"
            shown += chunk


@contextlib.contextmanager
def terminal(machine: Machine, command: str) -> Iterator[Terminal]:
    """What `command` shows at a terminal of 80x24 (script(1) makes it, inside the machine)."""
    script = machine.command("script", "-qefc", f"stty rows 24 cols 80; {command}", "/dev/null", env={"TERM": "xterm"})
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield Terminal(process)
            process.wait(20)
        finally:
            process.kill()


@pytest.fixture
def users(machine: Machine) -> Machine:
    for user in ("lefty", "righty"):
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", user, check=False)
    return machine


@pytest.fixture
def two(users: Machine) -> Machine:
    """The service, with one agent under each of two users."""
    users.write(CONFIG, TWO)
    users.run("systemctl", "start", UNIT)
    return users


def test_agents_run_under_their_own_users_outside_the_supervisors_unit(two: Machine) -> None:
    assert two.property(UNIT, "StatusText") == "2 running"
    own = two.read(f"/sys/fs/cgroup{two.property(UNIT, 'ControlGroup')}/cgroup.procs")
    assert own.split() == [two.property(UNIT, "MainPID")]
    for agent, user in (("left", "lefty"), ("right", "righty")):
        (started,) = two.journal(f"_SYSTEMD_UNIT={UNIT}", f"AGENT={agent}", "EVENT=agent_started")[-1:]
        assert started["RUN_AS"] == user
        assert int(started["PID"]) in two.processes(user)


def test_journalctl_shows_one_agents_story(two: Machine) -> None:
    two.run("systemctl", "stop", UNIT)
    begin = now(two)
    two.run("systemctl", "start", UNIT)
    two.run("systemctl", "stop", UNIT)
    two.run("journalctl", "--sync")
    since = f"--since=@{begin // 1_000_000}.{begin % 1_000_000:06}"
    shown = two.run("journalctl", "-u", UNIT, "AGENT=left", "--output=cat", since).stdout
    assert "left started as lefty" in shown
    assert "left stopped" in shown
    assert "right" not in shown


def test_stop_leaves_no_process_of_any_agent(users: Machine) -> None:
    users.write(CONFIG, TWO + STUBBORN)
    users.run("systemctl", "start", UNIT)
    users.wait_for("SYSLOG_IDENTIFIER=righty", until=lambda entry: entry["MESSAGE"] == "armed")
    assert {"sleep 1000 ", "sleep 2000 "} <= set(users.processes("righty").values())
    users.run("systemctl", "stop", UNIT)
    assert users.property(UNIT, "Result") == "success"
    assert users.processes("lefty") == {}
    assert users.processes("righty") == {}, "not even those that ignore SIGTERM and have left the session"
    assert users.run("systemctl", "list-units", "--plain", "--no-legend", "forge-*.service").stdout == ""


def test_a_stop_right_after_the_start_leaves_no_unit_failed(users: Machine) -> None:
    """On a loaded machine /bin/true has not been executed yet, and systemd ends it: for a oneshot no clean end."""
    drop_in = "/run/systemd/system/forge-agents.service.d/slow.conf"
    users.write(CONFIG, TWO)
    users.write(drop_in, "[Service]\nExecStart=\nExecStart=/bin/sleep infinity\n")
    users.run("systemctl", "daemon-reload")
    try:
        users.run("systemctl", "start", UNIT)
        users.wait_for("UNIT=forge-agents.service", until=lambda entry: entry.get("JOB_TYPE") == "start")
        users.run("systemctl", "stop", UNIT)
        assert users.property("forge-agents.service", "ActiveState") == "inactive"
    finally:
        users.run("rm", drop_in)
        users.run("systemctl", "daemon-reload")
        users.run("systemctl", "reset-failed", "forge-agents.service", check=False)


def test_a_user_attaches_types_detaches_and_the_agent_runs_on(two: Machine) -> None:
    before = two.processes("lefty")
    with terminal(two, "sudo -iu lefty tmux -L forge attach -t agent-left") as at:
        at.see("agent-left")
        at.type("hello\r")
        at.see("heard hello")
        # Not by C-b d: keys less than 1 ms apart are pasted text to tmux(1), see assume-paste-time.
        two.run("tmux", "-L", "forge", "detach-client", "-s", "=agent-left", user="lefty")
        at.see("[detached")
    assert at.process.returncode == 0
    agent = {pid: line for pid, line in before.items() if "heard" in line}
    assert agent.items() <= two.processes("lefty").items()


def test_a_crash_loop_ends_after_exactly_three_starts_5_seconds_apart(machine: Machine) -> None:
    machine.add_user("crash")
    machine.write(CONFIG, CRASHER)
    machine.run("systemctl", "start", UNIT)
    failed = machine.wait_for("AGENT=crasher", "EVENT=agent_failed", until=bool)
    assert (failed["RESULT"], failed["START_LIMIT_HIT"]) == ("exit-code", "yes")
    story = machine.journal("AGENT=crasher", f"_SYSTEMD_UNIT={UNIT}")
    starts = [int(entry["__MONOTONIC_TIMESTAMP"]) for entry in story if entry["EVENT"] == "agent_started"]
    exits = [entry for entry in story if entry["EVENT"] == "agent_exited"]
    assert len(starts) == 3
    refused = int(failed["__MONOTONIC_TIMESTAMP"])
    assert all(later - earlier >= 5_000_000 for earlier, later in itertools.pairwise([*starts, refused]))
    assert [(entry["EXIT_CODE"], "SIGNAL" in entry) for entry in exits] == [("3", False)] * 3
    assert all("out of luck" in entry["SCREEN"] for entry in exits)
    assert machine.property(UNIT, "StatusText") == "1 failed: crasher (exit code 3)"
    assert machine.property(UNIT, "ActiveState") == "active"


def test_the_watchdog_ends_a_supervisor_that_hangs_and_no_other(users: Machine) -> None:
    drop_in = f"/run/systemd/system/{UNIT}.d/watchdog.conf"
    users.write(CONFIG, TWO)
    users.write(drop_in, "[Service]\nWatchdogSec=2\n")
    users.run("systemctl", "daemon-reload")
    try:
        users.run("systemctl", "start", UNIT)
        supervisor = users.property(UNIT, "MainPID")
        # Unfed, it would not live for 5 s.
        users.run("timeout", "5", "tail", "--follow", "/dev/null", f"--pid={supervisor}", check=False)
        assert users.property(UNIT, "MainPID") == supervisor
        begin = now(users)
        users.run("kill", "-STOP", supervisor)
        users.wait_for("EVENT=supervisor_ready", until=lambda e: int(e["__REALTIME_TIMESTAMP"]) > begin, timeout=100)
        assert users.property(UNIT, "NRestarts") == "1"
        assert users.property(UNIT, "StatusText") == "2 running"
    finally:
        users.run("rm", drop_in)
        users.run("systemctl", "daemon-reload")
