"""The supervisor without systemd's help: in a container's foreground, and as an ordinary user's own."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from booted import Machine

SUPERVISOR = "/opt/forge-supervisor/bin/forge-supervisor"
WITHOUT_SYSTEMD = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run/systemd && exec "$@"', "sh")
TIMEOUT_SEC = 30


class Foreground:
    """A supervisor whose JSON lines are read as they come."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.entries: list[dict[str, Any]] = []
        self._rest = b""

    def wait_for(self, event: str, until: Callable[[dict[str, Any]], object] = bool) -> dict[str, Any]:
        """The next entry of that name, not counting those that were waited for before."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while True:
            for entry in self._read(deadline):
                if entry["event"] == event and until(entry):
                    return entry

    def _read(self, deadline: float) -> Iterator[dict[str, Any]]:
        assert self.process.stderr is not None
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self.process.stderr], [], [], left)
            chunk = self.process.stderr.read1() if readable else b""  # type: ignore[attr-defined]
            assert chunk, f"it ended or says no more: {self.entries}"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        self.entries.append(json.loads(line))
        yield self.entries[-1]


@contextlib.contextmanager
def foreground(machine: Machine, *prefix: str, user: str | None = None, config: str) -> Iterator[Foreground]:
    path = f"/home/{user}/config.toml" if user else "/etc/forge-supervisor/direct.toml"
    machine.write(path, config, owner=user or "root")
    argv = [*prefix, SUPERVISOR, "--config", path, "--log-format", "json"]
    command = machine.command(*argv, user=user)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    supervisor = Foreground(process)
    try:
        yield supervisor
    finally:
        # What was signalled is nsenter; the supervisor gets it as its child (--pdeathsig) or by exec.
        machine.run("pkill", "-KILL", "-f", f"{SUPERVISOR} --config {path}", check=False)
        process.wait(TIMEOUT_SEC)
        assert process.stderr is not None
        process.stderr.close()


def stop(machine: Machine, number: signal.Signals) -> None:
    machine.run("pkill", f"-{int(number)}", "-f", f"python3 {SUPERVISOR}")


def agents(user: str) -> str:
    return f"""
[defaults]
run_as = "{user}"
harness = "command"
[agents.calm]
command = ["/bin/sleep", "infinity"]
[agents.stubborn]
command = ["/bin/bash", "-c", "trap '' TERM HUP; setsid sleep infinity & while :; do sleep 1; done"]
stop_timeout_sec = 0.5
[agents.crash]
command = ["/bin/sh", "-c", "echo last words; exit 7"]
restart = {{delay_sec = 0.1}}
"""


@pytest.fixture(scope="module")
def pet(machine: Machine) -> str:
    machine.add_user("pet")
    machine.run("usermod", "--append", "--groups", "audio", "pet")
    return "pet"


def test_root_without_systemd(machine: Machine, pet: str) -> None:
    with foreground(machine, *WITHOUT_SYSTEMD, config=agents(pet)) as supervisor:
        supervisor.wait_for("supervisor_ready")
        supervisor.wait_for("agent_failed")
        calm = next(e for e in supervisor.entries if e["event"] == "agent_started" and e["agent"] == "calm")
        status = Path(f"/proc/{machine.leader}/root/proc/{calm['pid']}/status").read_text()
        stop(machine, signal.SIGTERM)
        supervisor.wait_for("supervisor_stopped")
        assert supervisor.process.wait(TIMEOUT_SEC) == 0
        exits = {e["agent"]: e for e in supervisor.entries if e["event"] == "agent_exited"}
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = machine.run("id", "-u", pet).stdout.strip()
    assert fields["Uid"].split() == [uid] * 4
    assert sorted(fields["Groups"].split()) == sorted(machine.run("id", "-G", pet).stdout.split())
    assert int(fields["CapEff"], 16) == 0
    assert int(fields["CapPrm"], 16) == 0
    assert (exits["calm"]["signal"], exits["calm"]["result"]) == (15, "success")
    assert (exits["stubborn"]["signal"], exits["stubborn"]["result"]) == (9, "timeout")
    crash = exits["crash"]
    assert (crash["exit_code"], crash.get("signal"), crash["result"], crash["n_restarts"]) == (7, None, "exit-code", 2)
    assert crash["screen"] == "last words"
    assert machine.processes(pet) == {}, "the whole tree of each agent, workers and tmux servers"


def test_a_killed_supervisor_leaves_agents_that_the_next_one_adopts(machine: Machine, pet: str) -> None:
    # Found by nothing but their descent: another session, and nothing in their environment.
    config = agents(pet).replace("setsid sleep infinity &", "(setsid env -i sleep infinity &);")
    with foreground(machine, *WITHOUT_SYSTEMD, config=config) as first:
        first.wait_for("supervisor_ready")
        left = {e["agent"]: e["pid"] for e in first.entries if e["event"] == "agent_started"}
        stop(machine, signal.SIGKILL)
        first.process.wait(TIMEOUT_SEC)
    assert left["calm"] in machine.processes(pet)
    with foreground(machine, *WITHOUT_SYSTEMD, config=config) as second:
        second.wait_for("supervisor_ready")
        adopted = {e["agent"]: e["pid"] for e in second.entries if e["event"] == "agent_adopted"}
        assert (adopted["calm"], adopted["stubborn"]) == (left["calm"], left["stubborn"])
        assert not [e for e in second.entries if e["event"] == "tmux_server_shared"], "it is known to be ours"
        stop(machine, signal.SIGINT)
        second.wait_for("supervisor_stopped")
    # The orphan was made under the first supervisor, and has become init's when that was killed.
    machine.run("pkill", "-KILL", "-u", pet, check=False)


def test_orphans_end_with_the_supervisor_that_took_them_in(machine: Machine, pet: str) -> None:
    config = agents(pet).replace("setsid sleep infinity &", "(setsid env -i sleep infinity &);")
    with foreground(machine, *WITHOUT_SYSTEMD, config=config) as supervisor:
        supervisor.wait_for("supervisor_ready")
        stop(machine, signal.SIGTERM)
        supervisor.wait_for("supervisor_stopped")
    assert machine.processes(pet) == {}


def test_limits_that_nothing_can_hold_are_said_to_be_none(machine: Machine, pet: str) -> None:
    config = agents(pet) + "[agents.calm.resources]\ntasks_max = 10\n"
    with foreground(machine, *WITHOUT_SYSTEMD, config=config) as supervisor:
        warned = supervisor.wait_for("agent_warning", lambda entry: entry["key"] == "agents.calm.resources")
        assert "systemd" in warned["problem"]
        stop(machine, signal.SIGTERM)
        supervisor.wait_for("supervisor_stopped")


def test_a_second_signal_stops_waiting(machine: Machine, pet: str) -> None:
    config = agents(pet).replace("stop_timeout_sec = 0.5", "stop_timeout_sec = 'infinity'")
    with foreground(machine, *WITHOUT_SYSTEMD, config=config) as supervisor:
        supervisor.wait_for("supervisor_ready")
        stop(machine, signal.SIGINT)
        supervisor.wait_for("agent_stopped", lambda entry: entry["agent"] == "calm")
        stop(machine, signal.SIGINT)
        exited = supervisor.wait_for("agent_exited", lambda entry: entry["agent"] == "stubborn")
        supervisor.wait_for("supervisor_stopped")
    assert (exited["signal"], exited["result"]) == (9, "timeout")
    assert machine.processes(pet) == {}


AT_A_TERMINAL = """
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
while b"ready: " not in seen:
    seen += os.read(terminal, 65536)
os.kill(child, 1)
while b"configuration reloaded" not in seen:
    seen += os.read(terminal, 65536)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_closed_terminal_stops_it_and_a_mere_hangup_signal_does_not(machine: Machine, pet: str) -> None:
    machine.write("/etc/forge-supervisor/direct.toml", agents(pet))
    supervisor = (*WITHOUT_SYSTEMD, SUPERVISOR, "--config", "/etc/forge-supervisor/direct.toml")
    machine.run("/usr/bin/python3", "-c", AT_A_TERMINAL, *supervisor)
    assert machine.processes(pet) == {}


def test_an_ordinary_user_without_systemd(machine: Machine, pet: str) -> None:
    with foreground(machine, user=pet, config=agents(pet).replace(f'run_as = "{pet}"', "")) as supervisor:
        supervisor.wait_for("supervisor_ready")
        assert machine.run("tmux", "-L", "forge", "has-session", "-t", "=agent-calm", user=pet).returncode == 0
        stop(machine, signal.SIGTERM)
        supervisor.wait_for("supervisor_stopped")
        assert supervisor.process.wait(TIMEOUT_SEC) == 0
    assert machine.processes(pet) == {}


def test_an_ordinary_users_own_service(machine: Machine) -> None:
    uid = machine.add_user("owner")
    machine.run("loginctl", "enable-linger", "owner")
    machine.run("systemctl", "start", f"user@{uid}.service")
    env = {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    machine.write("/tmp/owner.toml", agents("owner"))
    machine.run("install", "-D", "/tmp/owner.toml", "/home/owner/.config/forge-supervisor/config.toml", user="owner")
    machine.run("systemctl", "--user", "start", "forge-supervisor", user="owner", env=env)
    started = machine.wait_for("EVENT=agent_started", "AGENT=calm", f"_UID={uid}", until=bool)
    cgroup = Path(f"/proc/{machine.leader}/root/proc/{started['PID']}/cgroup").read_text()
    assert cgroup.strip().endswith("/forge.slice/forge-agent-calm.scope")
    machine.run("systemctl", "--user", "restart", "forge-supervisor", user="owner", env=env)
    adopted = machine.wait_for("EVENT=agent_adopted", "AGENT=calm", f"_UID={uid}", until=bool)
    assert adopted["PID"] == started["PID"]
    machine.run("systemctl", "--user", "stop", "forge-supervisor", user="owner", env=env)
    left = "".join(machine.processes("owner").values())
    machine.run("loginctl", "disable-linger", "owner")
    assert "tmux" not in left
    assert "sleep" not in left
    assert "forge" not in left
