"""Every verb of forgectl against a service that runs, as the people who use it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from pty_lab import read_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

UNIT = "forge-supervisor"
TERMINAL = {"TERM": "xterm"}
CONFIG = "/etc/forge-supervisor/config.toml"
AGENTS = """
[defaults]
run_as = "desk"
harness = "command"
[agents.scout]
command = ["/bin/sh", "-c", "echo here is scout; while read -r line; do echo \\"got $line\\"; done"]
[agents.coder]
command = ["/bin/sh", "-c", "exit 3"]
restart = {delay_sec = 0.1}
[agents.idler]
enabled = false
command = ["/bin/sleep", "1000"]
"""


@pytest.fixture
def desk(machine: Machine) -> Iterator[Machine]:
    machine.run("useradd", "--create-home", "desk", check=False)
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")
    machine.write(CONFIG, AGENTS)
    machine.run("systemctl", "start", UNIT)
    wait_until(machine, "coder", "failed")
    yield machine
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")


def forgectl(machine: Machine, *arguments: str, user: str | None = None) -> tuple[int, str, str]:
    done = machine.run("forgectl", *arguments, user=user, check=False)
    return done.returncode, done.stdout, done.stderr


def shown(machine: Machine, name: str) -> dict[str, Any]:
    (agent,) = json.loads(forgectl(machine, "status", "--json", name)[1])
    assert isinstance(agent, dict)
    return agent


def wait_until(machine: Machine, name: str, state: str) -> None:
    asked = f"forgectl status --json {name} | grep -q '\"state\": \"{state}\"'"
    machine.run("timeout", "30", "sh", "-c", f"until {asked}; do sleep 0.05; done")


def test_status_tells_of_all_and_of_one(desk: Machine) -> None:
    code, said, _ = forgectl(desk, "status")
    assert code == 0
    assert [line.split()[:3] for line in said.splitlines()[1:4]] == [
        ["scout", "desk", "running"],
        ["coder", "desk", "failed"],
        ["idler", "desk", "disabled"],
    ]
    assert said.endswith("1 running, 1 failed, 1 disabled\n")
    code, said, _ = forgectl(desk, "status", "scout")
    assert code == 0
    assert "forge-agent-scout.scope" in said
    assert "    | here is scout" in said
    code, said, _ = forgectl(desk, "status", "coder")
    assert code == 3
    assert "failed (start limit)" in said
    assert "code 3 (result exit-code)" in said
    assert forgectl(desk, "status", "nobody")[0] == 4


def test_status_as_json_has_the_truth_of_the_kernel(desk: Machine) -> None:
    scout = shown(desk, "scout")
    assert desk.processes("desk")[scout["pid"]].startswith("/bin/sh -c echo here is scout")
    assert scout["scope"] in desk.read(f"/proc/{scout['pid']}/cgroup")
    assert abs(scout["started_usec"] / 1e6 - time.time()) < 600
    coder = shown(desk, "coder")
    assert (coder["state"], coder["result"], coder["exit_code"], coder["pid"]) == ("failed", "exit-code", 3, None)
    assert (coder["start_limit_hit"], coder["n_restarts"]) == (True, 3)


def test_stop_start_and_restart_are_done_when_they_return(desk: Machine) -> None:
    first = shown(desk, "scout")["pid"]
    assert forgectl(desk, "restart", "scout")[0] == 0
    second = shown(desk, "scout")["pid"]
    running = desk.processes("desk")
    assert second in running
    assert first not in running
    code, said, _ = forgectl(desk, "stop", "scout")
    assert (code, said) == (0, "scout: inactive\n")
    assert second not in desk.processes("desk")
    assert forgectl(desk, "start", "scout")[:2] == (0, f"scout: running (pid {shown(desk, 'scout')['pid']})\n")


def test_what_was_stopped_stays_so_through_a_restart_of_the_supervisor(desk: Machine) -> None:
    forgectl(desk, "stop", "scout")
    desk.run("systemctl", "restart", UNIT)
    assert shown(desk, "scout")["state"] == "inactive"


def test_a_start_over_the_limit_is_refused_until_it_is_reset(desk: Machine) -> None:
    code, _, complaint = forgectl(desk, "start", "coder")
    assert code == 1
    assert "forgectl reset-failed coder" in complaint
    assert forgectl(desk, "reset-failed", "coder")[:2] == (0, "coder: inactive\n")
    assert shown(desk, "coder")["start_limit_hit"] is False
    forgectl(desk, "start", "coder")
    wait_until(desk, "coder", "failed")
    assert shown(desk, "coder")["n_restarts"] == 3


def test_a_disabled_agent_is_not_started_until_it_is_enabled(desk: Machine) -> None:
    code, _, complaint = forgectl(desk, "start", "idler")
    assert code == 1
    assert "forgectl enable idler" in complaint
    assert "agents.idler.enabled" in forgectl(desk, "enable", "idler")[2]
    assert forgectl(desk, "disable", "scout")[0] == 0
    assert shown(desk, "scout")["enabled"] is False
    assert desk.processes("desk") == {} or "here is scout" not in " ".join(desk.processes("desk").values())
    assert forgectl(desk, "enable", "scout")[0] == 0
    wait_until(desk, "scout", "running")


def test_a_text_is_read_by_the_agent(desk: Machine) -> None:
    assert forgectl(desk, "send", "scout", "look at", "the $HOME; `build`")[0] == 0
    seen = ""
    while "got look at the $HOME; `build`" not in seen:
        seen = forgectl(desk, "screen", "scout")[1]
    code, _, complaint = forgectl(desk, "send", "coder", "hello")
    assert code == 1
    assert "coder is not running, it is failed" in complaint


def test_logs_and_events_are_the_journals(desk: Machine) -> None:
    code, said, _ = forgectl(desk, "logs", "coder")
    assert code == 0
    assert "coder exited with code 3" in said
    assert "scout" not in said
    entries = [json.loads(line) for line in forgectl(desk, "logs", "coder", "-n", "1", "--json")[1].splitlines()]
    assert [entry["AGENT"] for entry in entries] == ["coder"]
    assert "scout started" in forgectl(desk, "events")[1]


def test_a_reload_tells_what_it_does_and_a_broken_one_what_is_wrong(desk: Machine) -> None:
    desk.write(CONFIG, AGENTS.replace("here is scout", "scout anew"))
    code, said, _ = forgectl(desk, "reload", "--dry-run")
    assert code == 0
    assert "scout: restart (changed: command)" in said
    pid = shown(desk, "scout")["pid"]
    assert forgectl(desk, "reload")[0] == 0
    assert shown(desk, "scout")["pid"] != pid
    desk.write(CONFIG, AGENTS + "colour = 1\n")
    code, _, complaint = forgectl(desk, "reload")
    assert code == 1
    assert "agents.idler.colour" in complaint
    assert shown(desk, "scout")["state"] == "running"


def test_explain_and_shell_are_forge_supervisors(desk: Machine) -> None:
    assert "here is scout" in forgectl(desk, "explain", "scout")[1]
    assert forgectl(desk, "shell", "scout", "id", "-un")[:2] == (0, "desk\n")


@pytest.mark.parametrize("user", [None, "desk"], ids=["as root", "as the agent's user"])
def test_attach_is_a_terminal_and_leaves_the_agent_running(desk: Machine, user: str | None) -> None:
    ours, theirs = pty.openpty()
    # The terminal is theirs, so that they end with it.
    command = ["setsid", "--ctty", "--wait", *desk.command("forgectl", "attach", "scout", user=user, env=TERMINAL)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as attached:
        os.close(theirs)
        try:
            read_until(ours, "here is scout")
            os.write(ours, b"typed\r")
            read_until(ours, "got typed")
            # Not by keys: those that come at once are taken for a paste, tmux(1), assume-paste-time.
            desk.run("tmux", "-L", "forge", "detach-client", "-s", "=agent-scout", user="desk")
            read_until(ours, "detached")
            assert attached.wait(20) == 0
        finally:
            # A terminal that is closed ends who is still at it.
            os.close(ours)
    assert shown(desk, "scout")["state"] == "running"


LOOKS: tuple[tuple[str, ...], ...] = (("status",), ("status", "--json", "scout"), ("screen", "scout"))
ACTS: tuple[tuple[str, ...], ...] = (
    *(("stop", "scout"), ("start", "scout"), ("restart", "scout"), ("reset-failed", "coder")),
    ("send", "scout", "x"),
)
OPERATORS: tuple[tuple[str, ...], ...] = (
    *(("reload",), ("reload", "--dry-run")),
    *(("disable", "scout"), ("enable", "scout")),
)


def test_a_user_of_agents_looks_at_its_own_and_does_no_more(desk: Machine) -> None:
    pid = shown(desk, "scout")["pid"]
    for verb in LOOKS:
        assert forgectl(desk, *verb, user="desk")[0] == 0, verb
    assert forgectl(desk, "status", "coder", user="desk")[0] == 3
    for verb in (*ACTS, *OPERATORS[:2]):
        code, said, complaint = forgectl(desk, *verb, user="desk")
        assert (code, said) == (1, ""), verb
        assert "control.users" in complaint, verb
    for verb in OPERATORS[2:]:
        assert forgectl(desk, *verb, user="desk")[0] == 1, verb
    assert shown(desk, "scout")["pid"] == pid


def test_a_user_of_agents_to_whom_it_is_granted_acts_on_its_own(desk: Machine) -> None:
    desk.write(CONFIG, AGENTS + '[control]\nusers = ["desk"]\n')
    forgectl(desk, "reload")
    for verb in ACTS:
        code, _, complaint = forgectl(desk, *verb, user="desk")
        assert code == 0, (verb, complaint)
    for verb in OPERATORS:
        assert forgectl(desk, *verb, user="desk")[0] == 1, verb


def test_members_of_the_group_are_as_root(desk: Machine) -> None:
    desk.run("groupadd", "--force", "forge")
    desk.run("useradd", "--groups", "forge", "oncall", check=False)
    for verb in (*LOOKS, *ACTS, *OPERATORS[:2]):
        code, _, complaint = forgectl(desk, *verb, user="oncall")
        assert code == 0, (verb, complaint)


def test_a_stranger_is_told_no(desk: Machine) -> None:
    desk.run("useradd", "stranger", check=False)
    for arguments in (("status",), ("stop", "scout"), ("send", "scout", "x"), ("attach", "scout"), ("reload",)):
        code, said, complaint = forgectl(desk, *arguments, user="stranger")
        assert (code, said) == (1, ""), arguments
        assert "only root" in complaint, arguments


def test_without_a_supervisor_it_says_so(machine: Machine) -> None:
    code, said, complaint = forgectl(machine, "status")
    assert (code, said) == (1, "")
    assert "systemctl status forge-supervisor" in complaint
