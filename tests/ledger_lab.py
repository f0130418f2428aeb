"""Agents that write down themselves how they begin and end, and what the journal says of that."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from booted import Machine

UNIT = "forge-supervisor.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d/ledger.conf"
SCRIPT = "/opt/forge-ledger-agent"
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


def since(begin: int) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= begin


def ledger(machine: Machine, users: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """What the agents wrote down: by invocation, what happened and how."""
    found: dict[str, list[tuple[str, str]]] = {}
    for user in users:
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


def account(machine: Machine, users: Iterable[str], begin: int, seed: int, *, at_least: int) -> None:
    """Assert that what the agents wrote down since then is what the journal says; they must have begun so often."""
    written, told = ledger(machine, users), exits(machine, begin)
    began = Counter(what for notes in written.values() for what, _ in notes)
    assert began["began"] > at_least, f"seed {seed}: they crash"
    wrong = {
        invocation: (notes, told.get(invocation))
        for invocation, notes in written.items()
        if [what for what, _ in notes] != ["began", "ended"] or told.get(invocation) != {notes[1][1]}
    }
    assert wrong == {}, f"seed {seed}: began once, ended once, and is told to have ended in just that way"


def begin(machine: Machine, users: Iterable[str], config: str) -> int:
    """Have the service started on that configuration, and be there again soon whatever ends it; return when."""
    for user in users:
        machine.run("useradd", "--create-home", user, check=False)
    machine.write(SCRIPT, AGENT)
    machine.write("/etc/forge-supervisor/config.toml", config)
    machine.write(DROP_IN, "[Service]\nRestartSec=50ms\n")
    machine.run("systemctl", "daemon-reload")
    now = int(machine.run("date", "+%s%6N").stdout)
    machine.run("systemctl", "start", UNIT)
    return now


def revive(machine: Machine) -> int:
    """Have the service run, and return when it was told to."""
    now = int(machine.run("date", "+%s%6N").stdout)
    # A start that a kill just before has spoilt is followed by another.
    machine.run("sh", "-c", f"until systemctl start {UNIT}; do :; done")
    return now


def end(machine: Machine, users: Iterable[str], started: Mapping[str, int]) -> None:
    """Have the service stopped once each of these agents has been started since that time."""
    for agent, when in started.items():
        machine.wait_for("EVENT=agent_started", f"AGENT={agent}", until=since(when))
    machine.run("systemctl", "stop", UNIT)
    machine.run("rm", DROP_IN)
    machine.run("systemctl", "daemon-reload")
    assert all(machine.processes(user) == {} for user in users)
