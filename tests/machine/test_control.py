"""Who may do what by io.forge.Supervisor on a booted machine, from wherever an agent can call."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
PLACE = "/opt/forge-control"
CLIENT = f"{PLACE}/client.py"
# What it calls, with what, and whether to leave its parents first; says the error, or "ok" and the agents' states.
CLIENT_TEXT = """#!/usr/bin/python3
import json, os, socket, sys
if sys.argv[3:]:
    gone, alive = os.pipe()
    if os.fork():
        os._exit(0)
    os.setsid()
    os.close(alive)
    os.read(gone, 1)
    sys.stdout = open(sys.argv[3], "w")
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.connect("/run/forge-supervisor/io.forge.Supervisor")
call = {"method": "io.forge.Supervisor." + sys.argv[1], "parameters": json.loads(sys.argv[2])}
s.sendall(json.dumps({**call, "more": sys.argv[1] == "Monitor"}).encode() + b"\\0")
answer = b""
while b"\\0" not in answer:
    chunk = s.recv(65536)
    if not chunk:
        sys.exit("hung up")
    answer += chunk
answer = json.loads(answer.partition(b"\\0")[0])
if "error" in answer:
    print(answer["error"].rpartition(".")[2], answer["parameters"].get("reason", ""))
else:
    print("ok", *(f"{each['name']}={each['state']}" for each in answer["parameters"].get("agents", [])))
"""
# An agent that does as it is told.
AGENT_TEXT = """#!/bin/sh
cat </dev/tty >/dev/null &
while :; do
    while read -r line; do eval "$line"; done <"$1"
done
"""
REPLY = f"{PLACE}/reply"
AGENTS = {"chief": "team", "scout": "team", "lord": "master", "alien": "other"}
SETTINGS = """
[control]
users = ["master"]
agents = ["chief"]
[defaults]
harness = "command"
restart = {policy = "no"}
"""
ALL = [
    ("Ping", {}),
    ("List", {}),
    ("Show", {"agent": "scout"}),
    ("Monitor", {}),
    ("Capture", {"agent": "scout"}),
    ("Send", {"agent": "scout", "text": "true"}),
    ("ResetFailed", {"agents": ["scout"]}),
    ("Start", {"agents": ["scout"]}),
    ("Restart", {"agents": ["scout"]}),
    ("Stop", {"agents": ["scout"]}),
    ("Start", {"agents": ["scout"]}),
    ("Reload", {"dry_run": True}),
    ("Reload", {}),
]
LOOKING = {"Ping", "List", "Show", "Monitor", "Capture"}


class House:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def call(self, user: str | None, method: str, parameters: dict[str, Any]) -> str:
        return self.machine.run(CLIENT, method, json.dumps(parameters), user=user).stdout.strip()

    def within(self, agent: str, command: str) -> str:
        """Have the agent do something that writes one reply; the reply."""
        script = f'printf "%s\\n" "$1" >{PLACE}/{agent}; timeout 30 cat {REPLY}'
        return self.machine.run("sh", "-euc", script, "sh", command).stdout.strip()

    def all_of(self, call: Any) -> dict[str, str]:
        """Try all that there is."""
        return {f"{n} {method}": call(method, parameters) for n, (method, parameters) in enumerate(ALL)}


def said(method: str, parameters: dict[str, Any]) -> str:
    return shlex.join([CLIENT, method, json.dumps(parameters)])


WAYS = {
    "by itself": "{call} >{reply}",
    "from a window": "tmux new-window -d {quoted}",
    "from a session": "tmux new-session -d {quoted}",
    "by what tmux runs": "tmux run-shell -b {quoted}",
    "by setsid": "setsid sh -c {quoted}",
    "by a daemon": "{call} {reply}",
}


def way(how: str, method: str, parameters: dict[str, Any]) -> str:
    call = said(method, parameters)
    return WAYS[how].format(call=call, reply=REPLY, quoted=shlex.quote(f"{call} >{REPLY}"))


@pytest.fixture
def house(machine: Machine) -> Iterator[House]:
    for user in ("team", "master", "other", "foreman", "stranger"):
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", user, check=False)
    machine.run("groupadd", "--system", "--force", "forge")
    machine.run("usermod", "--append", "--groups", "forge", "foreman")
    machine.write(CLIENT, CLIENT_TEXT, mode=0o755)
    machine.write(f"{PLACE}/agent", AGENT_TEXT, mode=0o755)
    for name in ("reply", *AGENTS):
        machine.run("sh", "-c", 'rm -f "$1" && mkfifo "$1" && chmod 666 "$1"', "sh", f"{PLACE}/{name}")
    declared = (
        f'[agents.{name}]\nrun_as = "{user}"\ncommand = ["{PLACE}/agent", "{PLACE}/{name}"]\n'
        for name, user in AGENTS.items()
    )
    machine.write(CONFIG, SETTINGS + "".join(declared))
    machine.run("systemctl", "start", UNIT)
    yield House(machine)
    machine.run("systemctl", "stop", UNIT, timeout=100)


@pytest.mark.parametrize("user", [None, "foreman"])
def test_root_and_members_of_the_group_may_do_everything(house: House, user: str | None) -> None:
    answers = house.all_of(lambda *call: house.call(user, *call))
    assert all(answer.startswith("ok") for answer in answers.values()), answers
    assert answers["1 List"] == "ok " + " ".join(f"{name}=running" for name in AGENTS)
    assert answers["9 Stop"] in {"ok scout=inactive", "ok scout=failed"}
    assert answers["10 Start"] == "ok scout=running"


def test_a_user_of_agents_may_look_at_its_own(house: House) -> None:
    answers = house.all_of(lambda *call: house.call("team", *call))
    for call, answer in answers.items():
        assert answer.startswith("ok" if call.split()[1] in LOOKING else "NotPermitted team may look"), answers
    assert answers["1 List"] == "ok chief=running scout=running"
    assert house.call("team", "Show", {"agent": "alien"}) == "NoSuchAgent"
    assert house.call("team", "Stop", {"agents": ["alien"]}) == "NoSuchAgent"


def test_a_user_whom_the_config_names_acts_on_its_own(house: House) -> None:
    assert house.call("master", "List", {}) == "ok lord=running"
    assert house.call("master", "Restart", {"agents": ["lord"]}) == "ok lord=running"
    for method, parameters in (("Stop", {"agents": ["scout"]}), ("Capture", {"agent": "scout"})):
        assert house.call("master", method, parameters) == "NoSuchAgent"
    assert house.call("master", "Reload", {"dry_run": True}).startswith("NotPermitted only root")


def test_a_stranger_may_ping(house: House) -> None:
    answers = house.all_of(lambda *call: house.call("stranger", *call))
    assert answers.pop("0 Ping") == "ok"
    assert all(answer.startswith("NotPermitted only root, members of") for answer in answers.values()), answers


def test_an_agent_is_refused(house: House) -> None:
    answers = house.all_of(lambda *call: house.within("lord", way("by itself", *call)))
    assert answers.pop("0 Ping") == "ok"
    refusal = "NotPermitted this comes from within agent lord (control.agents grants it to an agent)"
    assert set(answers.values()) == {refusal}


def test_an_agent_that_the_config_names_acts_on_those_of_its_user(house: House) -> None:
    answers = house.all_of(lambda *call: house.within("chief", way("by itself", *call)))
    refused = {call: answers.pop(call) for call in list(answers) if "Reload" in call}
    assert set(refused.values()) == {"NotPermitted this is for operators, not for agents"}
    assert all(answer.startswith("ok") for answer in answers.values()), answers
    assert answers["1 List"] == "ok chief=running scout=running"
    assert house.within("chief", way("by itself", "Stop", {"agents": ["lord"]})) == "NoSuchAgent"


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("agent", ["lord", "chief"])
def test_there_is_no_way_out_of_an_agent(house: House, agent: str, how: str) -> None:
    # The user of lord may act when it comes from outside.
    answer = house.within(agent, way(how, "List", {}))
    if "tmux" in WAYS[how]:
        assert answer.startswith("NotPermitted this comes from within what agents can start"), answer
    elif agent == "lord":
        assert answer.startswith("NotPermitted this comes from within agent lord"), answer
    else:
        assert answer == "ok chief=running scout=running"


def test_nobody_becomes_an_agent_by_a_control_group_of_its_own(house: House) -> None:
    script = f"""
        own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
        mkdir -p "$own/forge.slice/forge-agent-chief.scope"
        echo 0 >"$own/forge.slice/forge-agent-chief.scope/cgroup.procs"
        grep -q forge-agent-chief /proc/self/cgroup
        {said("Stop", {"agents": ["scout"]})}
    """
    run = ("systemd-run", "--quiet", "--wait", "--pipe", "--property=User=team", "--property=Delegate=yes")
    answer = house.machine.run(*run, "sh", "-euc", script).stdout
    assert answer.startswith("NotPermitted team may look at its agents only"), answer
    assert house.call("team", "List", {}) == "ok chief=running scout=running"


def test_the_supervisor_that_is_next_answers_and_knows_its_agents(house: House) -> None:
    house.machine.run("systemctl", "restart", UNIT)
    assert house.call(None, "List", {}) == "ok " + " ".join(f"{name}=running" for name in AGENTS)
    for how in ("by itself", "by a daemon"):
        answer = house.within("lord", way(how, "List", {}))
        assert answer.startswith("NotPermitted this comes from within agent lord"), answer


def test_the_socket_is_there_for_all_and_gone_with_the_supervisor(house: House) -> None:
    path = "/run/forge-supervisor/io.forge.Supervisor"
    assert house.machine.run("stat", "--format=%A %U", path).stdout == "srw-rw-rw- root\n"
    house.machine.run("systemctl", "stop", UNIT)
    assert house.machine.run("test", "-e", path, check=False).returncode == 1
    complaints = house.machine.journal(f"_SYSTEMD_UNIT={UNIT}", "PRIORITY=3")
    assert not [entry["MESSAGE"] for entry in complaints if entry.get("EVENT") in {"log", "supervisor_fault"}]
