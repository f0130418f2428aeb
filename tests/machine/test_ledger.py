"""Supervisors come and go while agents crash: what the agents wrote down themselves is what the journal says."""

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

USERS = ("ledger1", "ledger2", "ledger3")
AGENTS = 20
ROUNDS = 50 if "FORGE_TEST_THOROUGH" in os.environ else 8
"""Restarts, and as many SIGKILLs."""
DEFAULTS = f"""
[defaults]
harness = "command"
command = ["/bin/bash", "{SCRIPT}"]
restart = {{delay_sec = 0.2, limit_burst = 100000}}
"""


def config() -> str:
    agents = [f'[agents.ledger-{n}]\nrun_as = "{USERS[n % len(USERS)]}"\n' for n in range(AGENTS)]
    return DEFAULTS + "".join(agents)


def test_every_exit_is_accounted_for(machine: Machine) -> None:
    dice = random.Random(seed := time.time_ns())  # noqa: S311 - for moments, not for secrets
    begin = ledger_lab.begin(machine, USERS, config())
    ways = ["restart", "kill"] * ROUNDS
    dice.shuffle(ways)
    for way in ways:
        time.sleep(dice.uniform(0, 1.5))  # not for anything to happen: to strike at any moment
        if way == "restart":
            machine.run("systemctl", "restart", UNIT, check=False)  # which a kill just before may spoil
        else:
            machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    last = ledger_lab.revive(machine)
    ledger_lab.end(machine, USERS, {f"ledger-{n}": last for n in range(AGENTS)})
    ledger_lab.account(machine, USERS, begin, seed, at_least=4 * AGENTS)
    written, told = ledger_lab.ledger(machine, USERS), ledger_lab.exits(machine, begin)
    others = {invocation: how for invocation, how in told.items() if invocation not in written}
    assert all(how == {"s15, stopped"} for how in others.values()), f"seed {seed}: {others} never began"
