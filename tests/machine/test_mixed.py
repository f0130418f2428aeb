"""Agents of all harnesses, of two users, are killed while supervisors come and go: each exit is told as it was.

The programs are the real ones. Nobody speaks to them, and their network ends at a port of this machine that is closed.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import ledger_lab
import pytest
from ledger_lab import SCRIPT, UNIT

if TYPE_CHECKING:
    from booted import Machine

pytestmark = pytest.mark.timeout(1800)

USERS = ("mixed1", "mixed2")
EACH = 5
ROUNDS = 12 if "FORGE_TEST_THOROUGH" in os.environ else 3
"""Of a restart, a SIGKILL and a reload, in any order; and as many of two agents that are killed."""
CLOSED = "http://127.0.0.1:9"
VARIABLES = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"), CLOSED)
KEYS = {"claude-code": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY"}
PROGRAMS = {"claude-code": "FORGE_TEST_CLAUDE", "codex": "FORGE_TEST_CODEX"}
KINDS = (*KEYS, "command")


def config(number: int) -> str:
    """Make the configuration of the number-th reload: each has another delay, and every other one more agent."""
    binaries = [f'[harnesses.{kind}]\nbinary = "{os.environ[variable]}"\n' for kind, variable in PROGRAMS.items()]
    agents = [agent(kind, n) for kind in KINDS for n in range(EACH)]
    extra = [f'[agents.extra]\nrun_as = "{USERS[0]}"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n']
    delay = f'[defaults]\nrestart = {{policy = "always", delay_sec = 0.{2 + number % 3}, limit_burst = 100000}}\n'
    return "".join([delay, *binaries, *agents, *extra[: number % 2]])


def agent(kind: str, number: int) -> str:
    lines = [f"[agents.{kind}-{number}]", f'run_as = "{USERS[number % 2]}"', f'harness = "{kind}"']
    if kind == "command":
        lines.append(f'command = ["/bin/bash", "{SCRIPT}"]')
    else:
        env = {**VARIABLES, KEYS[kind]: f"sk-{kind}-{number}"}
        pairs = ", ".join(f'{name} = "{value}"' for name, value in env.items())
        lines += ['role = "You wait."', f"env = {{{pairs}}}"]
    return "\n".join([*lines, ""])


def kill(machine: Machine, name: str, signal: str) -> str | None:
    """Kill the agent's present session; return its invocation, or None if there is none."""
    started = machine.journal("EVENT=agent_started", f"AGENT={name}")[-1]
    killed = machine.run("kill", f"-{signal}", started["PID"], check=False).returncode == 0
    return started["INVOCATION"] if killed else None


def test_every_exit_is_told_as_it_was_whatever_the_harness(machine: Machine) -> None:
    for variable in PROGRAMS.values():
        if not os.access(os.environ.get(variable, ""), os.X_OK):
            pytest.skip(f"{variable} is not set: ./dev test installs the program and sets it")
    dice = random.Random(seed := time.time_ns())  # noqa: S311 - for moments, not for secrets
    begin = ledger_lab.begin(machine, USERS, config(0))
    names = {kind: [f"{kind}-{n}" for n in range(EACH)] for kind in KINDS}
    struck: dict[str, str] = {}
    last: dict[str, int] = {}
    reloads = 0
    ways = ["restart", "kill", "reload"] * ROUNDS
    dice.shuffle(ways)
    for number, way in enumerate(ways):
        time.sleep(dice.uniform(0, 1.5))  # not for anything to happen: to strike at any moment
        if way == "restart":
            machine.run("systemctl", "restart", UNIT, check=False)  # which a kill just before may spoil
        elif way == "kill":
            machine.run("systemctl", "kill", "--signal=KILL", UNIT)
        else:
            reloads += 1
            machine.write("/etc/forge-supervisor/config.toml", config(reloads))
            machine.run("systemctl", "reload", UNIT, check=False)
        kind = dice.choice(tuple(KEYS))
        signal = "KILL" if kind == "claude-code" else ("KILL", "TERM")[number % 2]
        name = dice.choice(names[kind])
        now = int(machine.run("date", "+%s%6N").stdout)
        invocation = kill(machine, name, signal)
        if invocation is not None:
            struck[invocation] = {"KILL": "s9", "TERM": "s15"}[signal]
            last[name] = now
    revived = ledger_lab.revive(machine)
    ledger_lab.end(machine, USERS, last | dict.fromkeys(names["command"], revived))
    ledger_lab.account(machine, USERS, begin, seed, at_least=2 * EACH)

    told = ledger_lab.exits(machine, begin)
    for kind in KEYS:
        for name in names[kind]:
            starts = machine.journal("EVENT=agent_started", f"AGENT={name}")
            sessions = {entry["INVOCATION"] for entry in filter(ledger_lab.since(begin), starts)}
            ends = {invocation: told.get(invocation) for invocation in sessions}
            wanted = {invocation: {struck[invocation]} for invocation in sessions & struck.keys()}
            rest = [invocation for invocation in sessions if invocation not in struck]
            assert len(rest) == 1, f"seed {seed}: {name} was killed {len(wanted)} times, and ended {ends}"
            # Claude ends by itself once it can, with 128 + 15.
            stopped = ({"c143"}, {"s15, stopped"}) if kind == "claude-code" else ({"s15, stopped"},)
            assert ends[rest[0]] in stopped, f"seed {seed}: {name} was stopped, and ended {ends}"
            assert {key: ends[key] for key in wanted} == wanted, f"seed {seed}: {name}"
