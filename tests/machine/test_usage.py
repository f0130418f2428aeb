"""What agents use is counted by the service in its sandbox, kept across its restarts, and told to who may see it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from harness_lab import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
STORE = "/var/lib/forge-supervisor/usage.db"
AGENTS = """
[harnesses.claude-code]
binary = "/usr/local/bin/claude-stand-in"
[defaults]
restart.policy = "no"
[agents.spender]
run_as = "spender"
role = "Spend."
[agents.miser]
run_as = "miser"
role = "Save."
"""
STAND_IN = "#!/bin/sh\nexec sleep infinity\n"
PRICES = """
date = 2027-01-01
source = "a test"
[[prices]]
models = ["unheard-of"]
input = 1000000
output = 0
cache_read = 0
cache_write_5m = 0
cache_write_1h = 0
"""


def entry(message: str, model: str) -> str:
    usage = {"input_tokens": 3, "output_tokens": 1000, "cache_read_input_tokens": 0}
    said = {"id": message, "model": model, "usage": usage}
    return json.dumps({"type": "assistant", "sessionId": "s1", "timestamp": "2026-11-25T03:36:55Z", "message": said})


def transcript(user: str) -> str:
    return f"/home/{user}/.claude/projects/-home-{user}--local-state-forge-agents-{user}/s1.jsonl"


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    machine.write("/usr/local/bin/claude-stand-in", STAND_IN, mode=0o755)
    for user in ("spender", "miser"):
        machine.run("useradd", "--create-home", "--user-group", user, check=False)
        machine.run("sh", "-c", f'mkdir -p "$(dirname {transcript(user)})"', user=user)
        machine.write(transcript(user), entry(f"msg_{user}", "unheard-of") + "\n", owner=user)
    left = ("/etc/forge-supervisor/conf.d", "/etc/forge-supervisor/prices.toml", "/var/lib/forge-supervisor")
    machine.run("rm", "-rf", *left)
    machine.write(CONFIG, AGENTS)
    machine.run("systemctl", "start", "forge-supervisor")
    yield machine
    machine.run("rm", "-f", "/etc/forge-supervisor/prices.toml")


def rows(machine: Machine, *arguments: str, user: str | None = None) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(machine.run("forgectl", "usage", "--json", *arguments, user=user).stdout)
    return told


def names(machine: Machine, user: str | None = None) -> set[str]:
    return {row["agent"] for row in rows(machine, user=user)}


def test_each_user_sees_its_own_and_root_sees_all_across_restarts(service: Machine) -> None:
    wait_for(lambda: names(service) == {"spender", "miser"}, "not all is counted")
    assert names(service, user="miser") == {"miser"}
    assert service.run("stat", "-c", "%a %U", STORE).stdout == "600 root\n"
    for user in ("spender", "miser"):
        service.run("rm", transcript(user))
    service.run("systemctl", "kill", "--signal", "KILL", "forge-supervisor")
    wait_for(lambda: service.property("forge-supervisor", "NRestarts") == "1", "it is not restarted")
    wait_for(lambda: service.property("forge-supervisor", "ActiveState") == "active", "it is not up")
    assert names(service) == {"spender", "miser"}
    invocation = service.property("forge-supervisor", "InvocationID")
    assert service.journal("EVENT=usage_problem", f"_SYSTEMD_INVOCATION_ID={invocation}") == []


def test_what_an_agent_used_last_is_read_when_it_ends_with_the_service(service: Machine) -> None:
    wait_for(lambda: names(service) == {"spender", "miser"}, "not all is counted")
    service.run("sh", "-c", f"echo '{entry('msg_last', 'unheard-of')}' >>{transcript('spender')}", user="spender")
    service.run("systemctl", "stop", "forge-supervisor")
    service.run("rm", transcript("spender"))
    service.run("systemctl", "start", "forge-supervisor")
    assert {row["agent"]: row["messages"] for row in rows(service)} == {"spender": 2, "miser": 1}


def test_a_price_that_the_operator_adds_counts_from_the_next_reload_on(service: Machine) -> None:
    wait_for(lambda: names(service) == {"spender", "miser"}, "not all is counted")
    (row,) = rows(service, "--by", "model")
    assert (row["cost_usd"], row["unpriced_models"]) == (None, ["unheard-of"])
    service.write("/etc/forge-supervisor/prices.toml", PRICES)
    service.run("forgectl", "reload")
    (row,) = rows(service, "--by", "model")
    assert (row["cost_usd"], row["unpriced_models"]) == (6.0, [])


def test_a_spoilt_file_is_moved_aside_and_the_agents_run_on(service: Machine) -> None:
    wait_for(lambda: names(service) == {"spender", "miser"}, "not all is counted")
    service.run("systemctl", "stop", "forge-supervisor")
    service.write(STORE, "no database " * 1000)
    service.run("systemctl", "start", "forge-supervisor")
    wait_for(lambda: names(service) == {"spender", "miser"}, "not all is counted")
    assert "usage.db.broken" in service.journal("EVENT=usage_problem")[-1]["MESSAGE"]
    agents = json.loads(service.run("forgectl", "status", "--json").stdout)
    assert [agent["state"] for agent in agents] == ["running", "running"]
