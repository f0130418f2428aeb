"""[[on_event]] with the real service: who runs what, told what, and for how long."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
AGENTS = """
[defaults]
run_as = "hooked"
harness = "command"
"""
# It waits until the test says how to end.
SCOUT = """
[agents.scout]
command = ["/bin/sh", "-c", "read -r code </srv/hooks/code; exit $code"]
restart.policy = "no"
"""
SLEEPER = """
[agents.dozer]
command = ["/bin/sleep", "1000"]
"""
# The journal is where a test can wait for it.
SAY = "tr -d '\\\\n' | logger --tag told-$0 --size 9999; logger --tag who-$0 $(id -un) $HOME $PATH $(env | wc -l)"


def hook(name: str, events: str, script: str = SAY, user: str = "pager", more: str = "") -> str:
    command = json.dumps(["/bin/sh", "-c", script.replace("\\\\", "\\"), name])
    return f"[[on_event]]\nevents = {events}\ncommand = {command}\nuser = {json.dumps(user)}\n{more}\n"


@pytest.fixture
def users(machine: Machine) -> Iterator[Machine]:
    for user in ("hooked", "pager"):
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", user, check=False)
    machine.run("sh", "-c", "mkdir -p /srv/hooks && rm -f /srv/hooks/code && mkfifo -m 666 /srv/hooks/code")
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")
    yield machine
    machine.run("systemctl", "stop", UNIT)


def start(machine: Machine, config: str) -> str:
    """Start the service with that; the time before, as the journal has it."""
    machine.write(CONFIG, config)
    since = machine.run("date", "+%s%6N").stdout.strip()
    machine.run("systemctl", "start", UNIT)
    return since


def said(machine: Machine, tag: str, since: str, *matches: str) -> str:
    """The first that was logged under that tag since then."""
    entry = machine.wait_for(
        f"SYSLOG_IDENTIFIER={tag}", *matches, until=lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= int(since)
    )
    return str(entry["MESSAGE"])


def are_gone(machine: Machine) -> None:
    """Wait until no hook is left, not even as a unit that has failed."""
    deadline = time.monotonic() + 30
    while shown := machine.run("systemctl", "list-units", "--all", "--no-legend", "forge-hook-*").stdout:
        assert time.monotonic() < deadline, shown


def end(machine: Machine, code: int) -> None:
    machine.run("sh", "-c", f"echo {code} >/srv/hooks/code")


def test_a_failure_and_the_recovery_are_told_as_that_user(users: Machine) -> None:
    config = AGENTS + SCOUT + hook("bad", '["failed"]') + hook("good", '["recovered"]', user="root")
    since = start(users, config)
    end(users, 3)
    told = json.loads(said(users, "told-bad", since))
    failed = users.wait_for("EVENT=agent_failed", "AGENT=scout", until=bool)
    assert int(since) <= told.pop("time_usec")
    assert told == {
        "event": "failed",
        "agent": "scout",
        "run_as": "hooked",
        "message": failed["MESSAGE"],
        "fields": {
            "event": "agent_failed",
            "agent": "scout",
            "run_as": "hooked",
            "result": "exit-code",
            "start_limit_hit": False,
            "daily_limit_hit": False,
            "limit_daily": 200,
            "n_restarts": 0,
            "limit_burst": 3,
            "limit_interval_sec": 60.0,
        },
        "host": users.run("uname", "-n").stdout.strip(),
    }
    user, home, path, variables = said(users, "who-bad", since).split()
    assert (user, home, path) == ("pager", "/home/pager", "/usr/local/bin:/usr/bin:/bin")
    # HOME USER LOGNAME SHELL LANG PATH, and PWD, which is the shell's
    assert int(variables) <= 7

    # Another supervisor knows that it had failed.
    users.run("systemctl", "restart", UNIT)
    assert users.property(UNIT, "StatusText") == "1 failed: scout (exit code 3)"
    for enabled in ("false", "true"):
        users.write(CONFIG, config.replace("[agents.scout]", f"[agents.scout]\nenabled = {enabled}"))
        users.run("systemctl", "reload", UNIT)
    recovered = json.loads(said(users, "told-good", since))
    assert (recovered["event"], recovered["fields"]["event"]) == ("recovered", "agent_started")
    assert said(users, "who-good", since).startswith("root /root ")
    assert users.journal(f"--since=@{int(since) // 1_000_000}", "EVENT=hook_failed") == []
    are_gone(users)


def test_a_reload_brings_other_hooks_and_touches_no_agent(users: Machine) -> None:
    since = start(users, AGENTS + SCOUT + SLEEPER + hook("before", '["failed"]'))
    pids = {pid for pid, line in users.processes("hooked").items() if "sleep" in line}
    users.write(CONFIG, AGENTS + SCOUT + SLEEPER + hook("after", '["failed"]'))
    users.run("systemctl", "reload", UNIT)
    end(users, 1)
    assert json.loads(said(users, "told-after", since))["agent"] == "scout"
    assert users.journal("SYSLOG_IDENTIFIER=told-before") == []
    assert {pid for pid, line in users.processes("hooked").items() if "sleep" in line} == pids


def test_a_start_limit_is_told_as_that(users: Machine) -> None:
    bouncer = '[agents.bouncer]\ncommand = ["/bin/false"]\nrestart = {delay_sec = 0, limit_burst = 2}\n'
    since = start(users, AGENTS + bouncer + hook("limit", '["start-limit"]') + hook("never", '["failed"]'))
    told = json.loads(said(users, "told-limit", since))
    assert (told["event"], told["fields"]["start_limit_hit"]) == ("start-limit", True)
    assert users.journal("SYSLOG_IDENTIFIER=told-never") == []


def test_hooks_that_hang_or_fail_are_told_and_leave_nothing(users: Machine) -> None:
    hangs = "trap '' TERM; setsid -f sleep 2000; sleep 3000"
    config = (
        AGENTS
        + SCOUT
        + hook("hangs", '["failed"]', hangs, more="timeout_sec = 1")
        + hook("fails", '["failed"]', "exit 7")
        + hook("nobody", '["failed"]', user="not-there")
        + '[[on_event]]\nevents = ["failed"]\ncommand = ["/nowhere/program"]\nuser = "pager"\n'
    )
    since = start(users, config)
    warning = said(users, "forge-supervisor", since, "EVENT=config_warning")
    assert warning.endswith('on_event[2].user: no such user "not-there" (create it: useradd -m not-there)')
    end(users, 1)
    for problem in (
        "it had not ended after 1 s, and was ended (journalctl -u forge-hook-1-pager.service)",
        "exit code 7 (journalctl -u forge-hook-2-pager.service)",
        'no such user "not-there" (create it: useradd -m not-there)',
        "/nowhere/program is missing, or that user may not execute it (journalctl -u forge-hook-3-pager.service)",
    ):
        entry = users.wait_for("EVENT=hook_failed", "AGENT=scout", until=lambda e, p=problem: e["PROBLEM"] == p)  # type: ignore[misc]
        assert entry["HOOK_EVENT"] == "failed"
    assert users.processes("pager") == {}
    are_gone(users)


def test_a_hook_outlives_a_restart_of_the_supervisor_which_does_not_wait_for_it(users: Machine) -> None:
    slow = "logger -t $0 up; read -r word </srv/hooks/code; logger -t $0-end $word"
    since = start(users, AGENTS + SCOUT + hook("slow", '["failed"]', slow))
    end(users, 1)
    assert said(users, "slow", since) == "up"
    users.run("systemctl", "restart", UNIT, timeout=20)
    assert users.property("forge-hook-1-pager.service", "ActiveState") == "activating"
    users.run("sh", "-c", "echo through >/srv/hooks/code")
    assert said(users, "slow-end", since) == "through"


def test_what_happens_while_everything_is_stopped_is_told_too(users: Machine) -> None:
    reluctant = """
[agents.reluctant]
stop_timeout_sec = 0.5
command = ["/bin/sh", "-c", "trap '' TERM; logger -t reluctant armed; while :; do sleep 1; done"]
"""
    since = start(users, AGENTS + reluctant + hook("late", '["failed"]'))
    assert said(users, "reluctant", since) == "armed"
    users.run("systemctl", "stop", UNIT)
    assert json.loads(said(users, "told-late", since))["fields"]["result"] == "timeout"
    assert users.journal(f"--since=@{int(since) // 1_000_000}", "EVENT=hook_failed") == []
    are_gone(users)
