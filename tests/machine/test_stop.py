"""A stop ends in bounded time, and with the truth, whatever else is going on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

UNIT = "forge-supervisor.service"
CONFIG = """
[defaults]
run_as = "stopper"
harness = "command"
[agents.trapper]
command = ["/bin/bash", "-c", "trap 'exit 42' TERM; while :; do sleep 0.1; done"]
[agents.sleeper]
command = ["/bin/sleep", "infinity"]
"""


@pytest.fixture
def stopper(machine: Machine) -> Iterator[Machine]:
    machine.run("useradd", "--create-home", "stopper", check=False)
    machine.write("/etc/forge-supervisor/config.toml", CONFIG)
    yield machine
    machine.run("systemctl", "stop", UNIT)


def stopped(machine: Machine) -> list[dict[str, str]]:
    """Stop the service; the exits that it told."""
    begin = int(machine.run("date", "+%s%6N").stdout)
    machine.run("systemctl", "stop", UNIT, timeout=100)
    assert machine.property(UNIT, "Result") == "success"
    assert machine.processes("stopper") == {}
    exits = machine.journal("EVENT=agent_exited", "RUN_AS=stopper")
    return [entry for entry in exits if int(entry["__REALTIME_TIMESTAMP"]) >= begin]


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_worker_that_is_gone_or_stuck_when_the_stop_comes(
    stopper: Machine, signal: str, request: pytest.FixtureRequest
) -> None:
    if signal == "STOP":
        request.node.add_marker(pytest.mark.timeout(120))
    stopper.run("systemctl", "start", UNIT)
    stopper.run("systemctl", "kill", f"--signal={signal}", "forge-worker-stopper.service")
    exits = {entry["AGENT"]: entry for entry in stopped(stopper)}
    assert exits["trapper"]["EXIT_CODE"] == "42", "another worker was asked"
    assert exits["sleeper"]["SIGNAL"] == "15"


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3, 0.4, 0.6])
def test_a_stop_in_the_middle_of_the_start(stopper: Machine, seconds: float) -> None:
    stopper.run("systemctl", "start", "--no-block", UNIT)
    time.sleep(seconds)  # not for anything to happen: to stop at different points
    stopped(stopper)


def test_a_lost_tmux_server_costs_no_descriptor(stopper: Machine) -> None:
    config = CONFIG + "restart = {policy = 'always', delay_sec = 0.05, limit_burst = 0}\n"
    stopper.write("/etc/forge-supervisor/config.toml", config)
    stopper.run("systemctl", "start", UNIT)
    descriptors = []
    for _ in range(8):
        begin = int(stopper.run("date", "+%s%6N").stdout)
        stopper.run("tmux", "-L", "forge", "kill-server", user="stopper")
        stopper.wait_for(
            "EVENT=agent_started",
            "AGENT=sleeper",
            until=lambda entry, begin=begin: int(entry["__REALTIME_TIMESTAMP"]) > begin,  # type: ignore[misc]
        )
        pid = stopper.property(UNIT, "MainPID")
        descriptors.append(len(list(Path(f"/proc/{stopper.leader}/root/proc/{pid}/fd").iterdir())))
    # One or two come and go: the other agent is starting, or has not yet been collected.
    assert max(descriptors) <= min(descriptors) + 3, descriptors
    lost = stopper.journal("EVENT=agent_exited", "AGENT=sleeper", "RESULT=lost")
    assert len(lost) >= 8


def test_a_removed_tmux_socket_costs_no_exit_status(stopper: Machine) -> None:
    stopper.run("systemctl", "start", UNIT)
    uid = stopper.run("id", "-u", "stopper").stdout.strip()
    stopper.run("rm", "-r", f"/tmp/tmux-{uid}")
    exits = {entry["AGENT"]: entry for entry in stopped(stopper)}
    assert exits["trapper"]["EXIT_CODE"] == "42"
