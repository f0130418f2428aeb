"""What the real systemd makes of scenarios: each is a service of its own in a booted machine, all at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from booted import CHECKOUT
from oracle_ours import LOOK, Look, Start
from oracle_scenario import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from booted import Machine
    from oracle_scenario import Life, Scenario, Status

CELL = 200_000_000
"""Nanoseconds. Half a cell is what a moment may be late before the order of two is in doubt. With 60 scenarios at a
time on two cores with other work, half of the programs run 14 ms after they should, and 95 of 100 after 25 ms."""
LATE = 0.4
LATE_LOOK = 0.2
"""In cells: what is later is asked again. A look is near the end of its cell."""
PARALLEL = 60

EARLY = 15_000
"""Microseconds that each restart is asked for early, about what it takes from there to a program that runs. The program
lives from the moment at which it should have begun, so that neither this nor a delay adds up from one life to the next.
They would where no program runs at all, so that no service is out of order for long."""

PLACE = "/run/oracle"
UNIT = """
[Unit]
DefaultDependencies=no
StartLimitIntervalSec={interval}us
StartLimitBurst={burst}
[Service]
ExecStart={place}/life {directory} {cell}
EnvironmentFile={directory}/environment
StandardInput=null
StandardOutput=null
StandardError=null
Restart={policy}
RestartSec={delay}us
TimeoutStopSec={stop_timeout}us
SuccessExitStatus={success}
RestartPreventExitStatus={prevent}
RestartForceExitStatus={force}
"""
STEPS = """
RestartSteps={steps}
RestartMaxDelaySec={max_delay}us
"""
STATES = {"active": "running", "activating": "auto-restart", "deactivating": "stopping"}
"""Our names of ActiveState= where they are not systemd's."""


@dataclass(frozen=True)
class Seen:
    events: list[Start | Look]
    """In the order of their moments."""
    late: str | None
    """What was so late that all may have been otherwise."""
    latest: dict[str, float]
    """In cells, by kind of moment."""


class Systemd:
    """The systemd of a machine, asked about scenarios."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._root = Path(f"/proc/{machine.leader}/root{PLACE}")
        self._batches = itertools.count()
        words = machine.run("systemctl", "--version").stdout.split()
        self.version = int(words[1])
        self._root.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O1", "-o", self._root / "life", CHECKOUT / "tests/oracle_life.c"], check=True)
        shutil.copy(CHECKOUT / "tests/oracle_inside.py", self._root / "inside.py")

    def ask(self, scenarios: Sequence[Scenario], *, parallel: int = PARALLEL, hurry: bool = True) -> list[Seen]:
        """Return what it does.

        `hurry`: whether it is asked for a restart where a start would have to wait (see oracle_exceptions).
        """
        batch = next(self._batches)
        services = [
            _service(scenario, f"oracle-{batch}-{number}", hurry=hurry) for number, scenario in enumerate(scenarios)
        ]
        asked, answered = f"{PLACE}/asked.json", f"{PLACE}/answered.json"
        (self._root / "asked.json").write_text(json.dumps({"parallel": parallel, "services": services}))
        longest = max((service["until"] for service in services), default=0) / 1e9
        patience = 60 + 3 * longest * (1 + len(services) / parallel)
        with self._punctual():
            self._machine.run("python3", "-B", f"{PLACE}/inside.py", asked, answered, timeout=patience)
        answers = {answer["name"]: answer for answer in json.loads((self._root / "answered.json").read_text())}
        for service in services:
            shutil.rmtree(self._root / service["name"])
        return [
            _seen(answers[service["name"]], scenario) for service, scenario in zip(services, scenarios, strict=True)
        ]

    @contextlib.contextmanager
    def _punctual(self) -> Iterator[None]:
        """Let it, and the services that it starts, run before all else; and be spared most of its log."""
        before = self._machine.run("systemctl", "log-level").stdout.strip()
        self._machine.run("systemctl", "log-level", "err")
        _schedule(self._machine.leader, os.SCHED_RR, 1)
        try:
            yield
        finally:
            _schedule(self._machine.leader, os.SCHED_OTHER, 0)
            self._machine.run("systemctl", "log-level", before)


def _schedule(pid: int, policy: int, priority: int) -> None:
    # Not every container may, and it does without.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(pid, policy, os.sched_param(priority))


def _service(scenario: Scenario, name: str, *, hurry: bool) -> dict[str, Any]:
    directory = f"{PLACE}/{name}"
    timetable = [
        *((operation.at * CELL, operation.verb) for operation in scenario.operations),
        *((int((look + LOOK) * CELL), "look") for look in scenario.looks),
    ]
    return {
        "name": name,
        "directory": directory,
        "text": _unit(scenario, directory),
        "lives": "".join(f"{_line(life)}\n" for life in scenario.lives),
        "timetable": timetable,
        "until": scenario.until * CELL,
        "hurry": hurry,
    }


def _unit(scenario: Scenario, directory: str) -> str:
    rules = scenario.rules
    text = UNIT + (STEPS if rules.steps else "")
    return text.format(
        place=PLACE,
        directory=directory,
        cell=CELL,
        burst=rules.burst,
        policy=rules.policy,
        steps=rules.steps,
        interval=int(rules.interval * CELL / 1000),
        delay=_wait(rules.delay),
        stop_timeout=rules.stop_timeout * CELL // 1000,
        max_delay=_wait(rules.max_delay),
        success=_statuses(rules.success),
        prevent=_statuses(rules.prevent),
        force=_statuses(rules.force),
    )


def _wait(cells: int) -> int:
    return max(0, cells * CELL // 1000 - EARLY)


def _statuses(statuses: tuple[Status, ...]) -> str:
    return " ".join(map(str, statuses))


def _line(life: Life) -> str:
    lasts = -1 if life.lasts >= FOREVER else life.lasts * CELL
    ends = f"{'s' if life.ends.signalled else 'c'}{life.ends.number}"
    return f"{lasts} {ends} {int(life.dumps)} {life.on_term[0]}{life.code} {life.lingers * CELL}"


def _seen(answer: dict[str, Any], scenario: Scenario) -> Seen:
    starts = [Start(round(moment / CELL)) for moment in answer["starts"]]
    looks = [
        Look(look["moment"] // CELL, STATES.get(look["state"], look["state"]), look["result"], look["n_restarts"])
        for look in answer["looks"]
    ]
    latest = {
        "start": max((abs(moment / CELL - round(moment / CELL)) for moment in answer["starts"]), default=0.0),
        "end": max((abs(moment / CELL - round(moment / CELL)) for moment in answer["ends"]), default=0.0),
        **{kind: late / CELL for kind, late in answer["late"].items()},
    }
    late = [f"{kind} by {much:.2f}" for kind, much in latest.items() if much > (LATE_LOOK if kind == "look" else LATE)]
    events: list[Start | Look] = [*(start for start in starts if start.at < scenario.until), *looks]
    return Seen(sorted(events, key=lambda each: each.moment), ", ".join(late) or None, latest)
