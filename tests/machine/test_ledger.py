"""Supervisors come and go while agents crash: what the agents wrote down themselves is what the journal says."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from booted import Machine

pytestmark = pytest.mark.timeout(1800)

UNIT = "forge-supervisor.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d/ledger.conf"
USERS = ("ledger1", "ledger2", "ledger3")
AGENTS = 20
ROUNDS = 50 if "FORGE_TEST_THOROUGH" in os.environ else 8
"""Restarts, and as many SIGKILLs."""
# Writes down that it began, lives for up to a second or much longer, and writes down how it is going to end just
# before it does: with a code, or by a signal that nobody else sends.
AGENT = r"""
note() { echo "$1 $INVOCATION_ID $$ $2" >>~/ledger; }
note began -
trap 'note ended "s15, stopped"; trap - TERM; kill -TERM $$' TERM
sleep "$((RANDOM % 5)).$((RANDOM % 10))" & wait $!
code=$((RANDOM % 200 + 1))
if [ $((RANDOM % 4)) = 0 ]; then note ended s12; kill -USR2 $$; fi
note ended "c$code"
exit "$code"
"""
SCRIPT = "/opt/forge-ledger-agent"
DEFAULTS = f"""
[defaults]
harness = "command"
command = ["/bin/bash", "{SCRIPT}"]
restart = {{delay_sec = 0.2, limit_burst = 100000}}
"""


def config() -> str:
    agents = [f'[agents.ledger-{n}]\nrun_as = "{USERS[n % len(USERS)]}"\n' for n in range(AGENTS)]
    return DEFAULTS + "".join(agents)


def since(begin: int) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= begin


def ledger(machine: Machine) -> dict[str, list[tuple[str, str]]]:
    """What the agents wrote down: by invocation, what happened and how."""
    found: dict[str, list[tuple[str, str]]] = {}
    for user in USERS:
        for line in machine.read(f"/home/{user}/ledger").splitlines():
            what, invocation, _pid, how = line.split(maxsplit=3)
            found.setdefault(invocation, []).append((what, how))
    return found


def exits(machine: Machine, begin: int) -> dict[str, set[str]]:
    """What the journal says: by invocation, each way in which it is said to have ended."""
    found: dict[str, set[str]] = {}
    for entry in filter(since(begin), machine.journal("EVENT=agent_exited")):
        how = f"c{entry['EXIT_CODE']}" if "EXIT_CODE" in entry else f"s{entry.get('SIGNAL')}"
        # The last stop may come before its shell has got to the first line.
        how += ", stopped" if how == "s15" and entry["NEXT"] == "stopped as requested" else ""
        found.setdefault(entry["INVOCATION"], set()).add(how)
    return found


def test_every_exit_is_accounted_for(machine: Machine) -> None:
    for user in USERS:
        machine.run("useradd", "--create-home", user, check=False)
    machine.write(SCRIPT, AGENT)
    machine.write("/etc/forge-supervisor/config.toml", config())
    machine.write(DROP_IN, "[Service]\nRestartSec=50ms\n")
    machine.run("systemctl", "daemon-reload")
    dice = random.Random(seed := time.time_ns())  # noqa: S311 - for moments, not for secrets
    begin = int(machine.run("date", "+%s%6N").stdout)
    machine.run("systemctl", "start", UNIT)
    ways = ["restart", "kill"] * ROUNDS
    dice.shuffle(ways)
    for way in ways:
        time.sleep(dice.uniform(0, 1.5))  # not for anything to happen: to strike at any moment
        if way == "restart":
            machine.run("systemctl", "restart", UNIT, check=False)  # which a kill just before may spoil
        else:
            machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    last = int(machine.run("date", "+%s%6N").stdout)
    # A start that a kill just before has spoilt is followed by another.
    machine.run("sh", "-c", f"until systemctl start {UNIT}; do :; done")
    for n in range(AGENTS):
        machine.wait_for("EVENT=agent_started", f"AGENT=ledger-{n}", until=since(last))
    machine.run("systemctl", "stop", UNIT)
    machine.run("rm", DROP_IN)
    machine.run("systemctl", "daemon-reload")
    assert all(machine.processes(user) == {} for user in USERS)

    written, told = ledger(machine), exits(machine, begin)
    began = Counter(what for notes in written.values() for what, _ in notes)
    assert began["began"] > 4 * AGENTS, f"seed {seed}: they crash"
    wrong = {
        invocation: (notes, told.get(invocation))
        for invocation, notes in written.items()
        if [what for what, _ in notes] != ["began", "ended"] or told.get(invocation) != {notes[1][1]}
    }
    assert wrong == {}, f"seed {seed}: began once, ended once, and is told to have ended in just that way"
    others = {invocation: how for invocation, how in told.items() if invocation not in written}
    assert all(how == {"s15, stopped"} for how in others.values()), f"seed {seed}: {others} never began"
