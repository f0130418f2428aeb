"""The truth about exits, through everything: tmux, worker, supervisor, journal, under the real units."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from booted import Machine

SIGNALS = (1, 2, 3, 6, 9, 11, 14, 15, 31)
AGENTS = 100
RUNS = 3


def ending(kind: str, number: int) -> str:
    """A shell that ends as told, at once or after a burst of output, with a child that swallows nothing."""
    return f"exit {number}" if kind == "EXIT_CODE" else f"ulimit -c 0; kill -{number} $$"


@pytest.fixture
def seed() -> int:
    return random.SystemRandom().randrange(2**32)


def test_300_random_exits_100_at_once_each_reported_exactly(machine: Machine, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    machine.add_user("herd")
    # Each agent ends in three ways in turn, and keeps the tally in its own directory.
    planned: dict[str, list[tuple[str, int]]] = {}
    tables = ['[defaults]\nrun_as = "herd"\nharness = "command"\n']
    for index in range(AGENTS):
        name = f"a{index}"
        ends = [
            ("EXIT_CODE", chance.randrange(256)) if chance.random() < 0.6 else ("SIGNAL", chance.choice(SIGNALS))
            for _ in range(RUNS)
        ]
        planned[name] = ends
        cases = " ".join(f"{run}) {ending(*end)};;" for run, end in enumerate(ends))
        script = f"n=$(cat n 2>/dev/null || echo 0); echo $((n+1)) >n; case $n in {cases} esac"
        tables.append(
            f"[agents.{name}]\ncommand = ['/bin/sh', '-c', '''{script}''']\n"
            "restart = {policy = 'always', delay_sec = 0.1, limit_burst = 3}\n"
        )
    machine.write("/etc/forge-supervisor/config.toml", "\n".join(tables))
    machine.run("systemctl", "start", "forge-supervisor", timeout=120)
    try:
        failed: set[str] = set()

        def all_failed(entry: dict[str, str]) -> bool:
            failed.add(entry["AGENT"])
            return len(failed) == AGENTS

        machine.wait_for("EVENT=agent_failed", "RUN_AS=herd", until=all_failed, timeout=120)
        entries = machine.journal("EVENT=agent_exited", "RUN_AS=herd")
        troubles = [e["MESSAGE"] for e in machine.journal("EVENT=agent_start_failed", "RUN_AS=herd")]
    finally:
        machine.run("systemctl", "stop", "forge-supervisor", timeout=120)
    seen: dict[str, list[tuple[str, int]]] = {name: [] for name in planned}
    for entry in entries:
        (kind,) = {"EXIT_CODE", "SIGNAL"} & entry.keys() or {"LOST"}
        seen[entry["AGENT"]].append((kind, int(entry.get(kind, -1))))
    assert troubles == []
    assert seen == planned, f"seed {seed}"
    assert Counter(entry["N_RESTARTS"] for entry in entries) == {"0": AGENTS, "1": AGENTS, "2": AGENTS}
    assert machine.processes("herd") == {}
