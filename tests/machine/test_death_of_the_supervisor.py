"""The supervisor killed under its agents: it comes back, and no agent runs twice or unwatched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from booted import Machine

CONFIG = """
[defaults]
run_as = "orphan"
harness = "command"
[agents.calm]
command = ["/bin/sleep", "infinity"]
[agents.stubborn]
command = ["/bin/bash", "-c", "trap '' TERM HUP; setsid sleep 1234 & exec -a stubborn sleep infinity"]
stop_timeout_sec = 0.5
"""


def test_a_killed_supervisor_is_back_with_each_agent_once(machine: Machine) -> None:
    machine.add_user("orphan")
    machine.write("/etc/forge-supervisor/config.toml", CONFIG)
    machine.run("systemctl", "start", "forge-supervisor")
    first = machine.property("forge-supervisor", "MainPID")
    before = machine.processes("orphan")
    begin = int(machine.run("date", "+%s%6N").stdout)
    machine.run("systemctl", "kill", "--signal=KILL", "forge-supervisor")
    machine.wait_for("EVENT=supervisor_ready", until=lambda e: int(e["__REALTIME_TIMESTAMP"]) > begin)
    after = machine.processes("orphan")
    assert machine.property("forge-supervisor", "MainPID") != first
    assert machine.property("forge-supervisor", "NRestarts") == "1"
    assert not before.keys() & after.keys(), "nothing of the first one's agents lives"
    assert sorted(after.values()) == sorted(before.values()), "and all of them run, once"
    machine.run("systemctl", "stop", "forge-supervisor")
    assert machine.processes("orphan") == {}


def test_agents_of_a_user_that_has_left_the_config_end_too(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "leaver", check=False)
    machine.run("useradd", "--create-home", "stayer", check=False)
    agent = '[agents.{0}]\nrun_as = "{0}"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
    machine.write("/etc/forge-supervisor/config.toml", agent.format("leaver") + agent.format("stayer"))
    machine.run("systemctl", "start", "forge-supervisor")
    assert machine.processes("leaver")
    begin = int(machine.run("date", "+%s%6N").stdout)
    machine.write("/etc/forge-supervisor/config.toml", agent.format("stayer"))
    machine.run("systemctl", "kill", "--signal=KILL", "forge-supervisor")
    machine.wait_for("EVENT=supervisor_ready", until=lambda e: int(e["__REALTIME_TIMESTAMP"]) > begin)
    assert machine.processes("leaver") == {}
    assert machine.processes("stayer")
    machine.run("systemctl", "stop", "forge-supervisor")


def test_agents_end_even_if_the_config_has_broken_meanwhile(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "broken", check=False)
    agent = '[agents.a]\nrun_as = "broken"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
    machine.write("/etc/forge-supervisor/config.toml", agent)
    machine.run("systemctl", "start", "forge-supervisor")
    machine.write("/etc/forge-supervisor/config.toml", "broken = =")
    begin = int(machine.run("date", "+%s%6N").stdout)
    machine.run("systemctl", "kill", "--signal=KILL", "forge-supervisor")
    # What PID 1 says when it gives up, systemd.exec(5) EXIT_CONFIG.
    machine.wait_for(
        "UNIT=forge-supervisor.service",
        until=lambda e: int(e["__REALTIME_TIMESTAMP"]) > begin and e.get("EXIT_STATUS") == "78",
    )
    assert machine.processes("broken") == {}
    machine.run("systemctl", "reset-failed", "forge-supervisor")
