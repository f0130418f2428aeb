"""What an agent is given is what was declared, and nobody else sees it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from booted import Machine

SECRET = "hunter2-correct-horse-battery"  # noqa: S105
CONFIG = f"""
[defaults]
run_as = "keeper"
harness = "command"
restart = {{policy = "always", delay_sec = 0.05, limit_burst = 0}}

[agents.still]
command = ["/bin/sleep", "infinity"]
env = {{TOKEN = "{SECRET}", LANG = "de_DE.UTF-8"}}

[agents.busy]
command = ["/bin/true"]
env = {{TOKEN = "{SECRET}"}}
"""


def proc(machine: Machine) -> Path:
    return Path(f"/proc/{machine.leader}/root/proc")


def test_an_agents_environment_is_exactly_what_was_declared(machine: Machine) -> None:
    uid = machine.add_user("keeper")
    machine.write("/etc/forge-supervisor/config.toml", CONFIG, mode=0o600)
    machine.run("mkdir", "-p", "/run/systemd/system/forge-supervisor.service.d")
    machine.write(
        "/run/systemd/system/forge-supervisor.service.d/leak.conf", "[Service]\nEnvironment=DAEMON_LEAK=1 EDITOR=ed\n"
    )
    machine.run("systemctl", "daemon-reload")
    commands = CommandLines(proc(machine))
    with commands:
        machine.run("systemctl", "start", "forge-supervisor")
        try:
            started = machine.wait_for("EVENT=agent_started", "AGENT=still", until=bool)
            # A human in the same tmux server, with an environment of their own.
            machine.run(
                "tmux", "-L", "forge", "new-session", "-d", "-s", "human",
                user="keeper", env={"SSH_AUTH_SOCK": "/human/agent", "HUMAN_LEAK": "1"},
            )  # fmt: skip
            machine.run("tmux", "-L", "forge", "set-environment", "-g", "SERVER_LEAK", "1", user="keeper")
            after = machine.wait_for("EVENT=agent_started", "AGENT=busy", until=lambda e: int(e["N_RESTARTS"]) > 20)
            assert int(after["N_RESTARTS"]) > 20
            environment = read_environment(proc(machine) / started["PID"])
            show = ("tmux", "-L", "forge", "show-environment")
            tmux_environment = machine.run(*show, "-g", user="keeper").stdout
            tmux_environment += machine.run(*show, "-t", "=agent-still:", user="keeper").stdout
        finally:
            machine.run("systemctl", "stop", "forge-supervisor")
    pane = environment.pop("TMUX_PANE")
    assert pane.startswith("%")
    assert environment.pop("TMUX").startswith(f"/tmp/tmux-{uid}/forge,")
    assert environment.pop("INVOCATION_ID") == started["INVOCATION"]
    environment.pop("XDG_RUNTIME_DIR", None)  # there iff the user is logged in
    assert environment == {
        "HOME": "/home/keeper",
        "USER": "keeper",
        "LOGNAME": "keeper",
        "SHELL": "/bin/bash",
        "PATH": "/home/keeper/.local/bin:/usr/local/bin:/usr/bin:/bin",
        "LANG": "de_DE.UTF-8",
        "TERM": "tmux-256color",
        "TOKEN": SECRET,
        "FORGE_AGENT": "still",
    }
    assert SECRET not in tmux_environment
    assert commands.rounds > 20
    assert commands.with_secret == set()
    messages = [str(entry) for entry in machine.journal("_SYSTEMD_UNIT=forge-supervisor.service")]
    assert not [message for message in messages if SECRET in message]


def test_nobody_else_can_connect_to_an_agents_launch(machine: Machine) -> None:
    keeper = machine.add_user("keeper2")
    machine.add_user("stranger2")
    config = '[agents.a]\nrun_as = "keeper2"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
    machine.write("/etc/forge-supervisor/config.toml", config)
    machine.run("systemctl", "start", "forge-supervisor")
    try:
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('/run/forge-supervisor/launch-{keeper}.sock')"
        machine.run("/usr/bin/python3", "-c", connect, user="keeper2")
        refused = machine.run("/usr/bin/python3", "-c", connect, user="stranger2", check=False)
    finally:
        machine.run("systemctl", "stop", "forge-supervisor")
    assert "PermissionError" in refused.stderr


def read_environment(process: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in (process / "environ").read_text().split("\0") if word)


class CommandLines(threading.Thread):
    """Reads every command line of the machine, over and over."""

    def __init__(self, proc: Path) -> None:
        super().__init__()
        self.rounds = 0
        self.with_secret: set[str] = set()
        self._proc = proc
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.is_set():
            # Not by glob, which looks into each directory and falls over one whose process has just ended.
            for process in self._proc.iterdir():
                with contextlib.suppress(OSError):
                    line = (process / "cmdline").read_bytes().decode(errors="replace")
                    if SECRET in line:
                        self.with_secret.add(line)
            self.rounds += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()
