"""The supervisor is killed at every single step of a start, of a restart and of a stop: nothing comes of it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from booted import Machine

pytestmark = pytest.mark.timeout(900)

UNIT = "forge-supervisor.service"
CONFIG = "/etc/forge-supervisor/config.toml"
DROP_IN = f"/run/systemd/system/{UNIT}.d/kill-points.conf"
MARK = "/run/forge-test-killed"
LEDGER = "/home/pointer/ledger"
MOST_STEPS = 200
NEVER = 10 * MOST_STEPS
THOROUGH = "FORGE_TEST_THOROUGH" in os.environ
now_and_then = time.time_ns() // 1_000_000_000
# Writes down each of its starts; ends with code 3 on SIGUSR1.
AGENT = """
[defaults]
run_as = "pointer"
harness = "command"
[agents.pointer]
command = ["/bin/bash", "-c", '''echo $INVOCATION_ID $$ >>~/ledger
trap "exit 3" USR1; trap "exit 4" TERM
while :; do sleep 0.05; done''']
restart = {delay_sec = 0.05, limit_burst = 10000}
"""


def now(machine: Machine) -> int:
    return int(machine.run("date", "+%s%6N").stdout)


def since(begin: int) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= begin


def arm(machine: Machine, number: int) -> None:
    """Have the supervisors that come be killed at that step, but only the first of them."""
    program = f"/opt/forge-supervisor/bin/python3 /opt/forge-tests/kill_points.py {number} {MARK}"
    machine.run("rm", "-f", MARK)
    machine.write(DROP_IN, f"[Service]\nExecStart=\nExecStart={program}\nRestartSec=50ms\nReadWritePaths=/run\n")
    machine.run("systemctl", "daemon-reload")


@pytest.fixture
def pointed(machine: Machine) -> Iterator[Machine]:
    machine.run("useradd", "--create-home", "pointer", check=False)
    machine.write(CONFIG, AGENT)
    yield machine
    machine.write(MARK, "no more")
    machine.run("rm", "-f", DROP_IN)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", UNIT)
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("pointer") == {}


def ledger(machine: Machine, *, after: int = 0) -> list[tuple[str, int]]:
    """The starts that the agent has written down: invocation and pid; waits until there are more than `after`."""
    until = f'until [ "$(cat {LEDGER} 2>/dev/null | wc -l)" -gt {after} ]; do sleep 0.02; done'
    machine.run("timeout", "20", "sh", "-c", until)
    lines = [line.split() for line in machine.run("cat", LEDGER, check=False).stdout.splitlines()]
    return [(invocation, int(pid)) for invocation, pid in lines]


def saved(machine: Machine) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(machine.read("/run/forge-supervisor/agents/pointer.json"))
    return state


def exits(machine: Machine, begin: int) -> dict[str, tuple[str | None, str | None]]:
    """Each exit that was told, by invocation: code and result. One may be told twice, but not in two ways."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for entry in filter(since(begin), machine.journal("EVENT=agent_exited", "AGENT=pointer")):
        told = (entry.get("EXIT_CODE"), entry.get("RESULT"))
        assert found.setdefault(entry["INVOCATION"], told) == told
    return found


def runs(machine: Machine) -> list[int]:
    """The starts that live."""
    processes = machine.processes("pointer")
    return [pid for _, pid in ledger(machine) if pid in processes]


def wait_until_it_stands(machine: Machine, begin: int) -> str:
    """Wait for a supervisor that is ready and has the agent running; the step at which the one before was killed."""
    machine.wait_for("EVENT=supervisor_ready", until=since(begin))
    killed = machine.run("cat", MARK, check=False).stdout
    if killed:
        # The one that was killed may have been ready already.
        ended = machine.wait_for(f"UNIT={UNIT}", "EXIT_STATUS=9", until=since(begin))
        after = int(ended["__REALTIME_TIMESTAMP"])
        machine.wait_for("EVENT=supervisor_ready", until=since(after))
    return killed


def steps() -> Iterator[int]:
    """All steps for ./dev soak; some, each time others, for ./dev test."""
    stride = 1 if THOROUGH else 10
    return iter(range(1 + now_and_then % stride, MOST_STEPS, stride))


def test_a_start(pointed: Machine) -> None:
    seen = []
    for number in steps():
        pointed.run("rm", "-f", LEDGER)
        arm(pointed, number)
        begin = now(pointed)
        pointed.run("systemctl", "start", UNIT, check=False)
        step = wait_until_it_stands(pointed, begin)
        if not step:
            break
        seen.append(step)
        started = ledger(pointed)
        assert [pid for _, pid in started] == runs(pointed), f"{step}: it was started once, and lives"
        state = saved(pointed)
        assert (state["life"]["state"], state["life"]["window"][1]) == ("running", 1), step
        assert (state["life"]["invocation"], state["session"]["pid"]) == started[0], step
        assert exits(pointed, begin) == {}, step
        pointed.run("systemctl", "stop", UNIT)
        assert pointed.processes("pointer") == {}, step
    assert len(seen) > (30 if THOROUGH else 2), seen


def test_a_crash_and_the_restart_that_follows(pointed: Machine) -> None:
    seen = []
    arm(pointed, NEVER)
    pointed.run("systemctl", "start", UNIT)
    for number in steps():
        # The new one is killed while it adopts the agent, or later, when that crashes.
        arm(pointed, number)
        begin = now(pointed)
        pointed.run("systemctl", "restart", UNIT, check=False)
        before = ledger(pointed)[-1]
        pointed.run("kill", "-USR1", str(before[1]))
        again = pointed.wait_for("EVENT=agent_started", "AGENT=pointer", until=since(begin))
        step = wait_until_it_stands(pointed, begin)
        after = ledger(pointed)
        assert exits(pointed, begin) == {before[0]: ("3", "exit-code")}, step
        assert after[-1] == (again["INVOCATION"], int(again["PID"])), step
        assert runs(pointed) == [after[-1][1]], step
        if not step:
            break
        seen.append(step)
    starts = [invocation for invocation, _ in ledger(pointed)]
    assert len(starts) == len(set(starts)), "no session was begun twice"
    assert len(seen) > (30 if THOROUGH else 2), seen


def test_a_reload_that_changes_the_agent(pointed: Machine) -> None:
    seen = []
    arm(pointed, NEVER)
    pointed.run("systemctl", "start", UNIT)
    for number in steps():
        arm(pointed, number)
        begin = now(pointed)
        # The new one is killed while it adopts the agent, or later, when that is replaced.
        pointed.run("systemctl", "restart", UNIT, check=False)
        wait_until_it_stands(pointed, begin)
        before, begin = ledger(pointed)[-1], now(pointed)
        pointed.write(CONFIG, AGENT.replace("while :", f"CHANGED={number}; while :"))
        pointed.run("systemctl", "reload", UNIT, check=False)
        again = pointed.wait_for("EVENT=agent_started", "AGENT=pointer", until=since(begin))
        step = pointed.run("cat", MARK, check=False).stdout
        pointed.run("sh", "-c", f"until systemctl --quiet is-active {UNIT}; do sleep 0.05; done")
        assert f"CHANGED={number};" in pointed.processes("pointer")[int(again["PID"])], step
        assert runs(pointed) == [int(again["PID"])], step
        assert exits(pointed, begin) == {before[0]: ("4", "exit-code")}, step
        if not step:
            break
        seen.append(step)
    assert len(seen) > (30 if THOROUGH else 2), seen


def test_a_stop(pointed: Machine) -> None:
    seen = []
    for number in steps():
        pointed.write(MARK, "not before the stop")
        pointed.run("systemctl", "start", UNIT)
        before = ledger(pointed)[-1]
        begin = now(pointed)
        arm(pointed, number)
        # Adopts the agent, which takes some steps, and is told to go on from there.
        pointed.run("systemctl", "restart", UNIT, check=False)
        wait_until_it_stands(pointed, begin)
        if pointed.run("cat", MARK, check=False).stdout:
            continue
        pointed.run("systemctl", "stop", UNIT, check=False)
        assert pointed.processes("pointer") == {}, "whoever had to see to that"
        step = pointed.run("cat", MARK, check=False).stdout
        told = exits(pointed, begin)
        assert told in ({}, {before[0]: ("4", "exit-code")}), step
        pointed.write(MARK, "no more")
        pointed.run("systemctl", "start", UNIT)
        assert runs(pointed) == [ledger(pointed)[-1][1]], f"{step}: stopped for the supervisor's sake, it starts again"
        if not step:
            assert told, "a stop that is not disturbed tells everything"
            break
        seen.append(step)
    assert len(seen) > (10 if THOROUGH else 1), seen
