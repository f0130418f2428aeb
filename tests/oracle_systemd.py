"""What the real systemd makes of scenarios: each is a service of its own in a booted machine, all at once."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from booted import CHECKOUT
from oracle_ours import LOOK, Look, Start
from oracle_scenario import FOREVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from booted import Machine
    from oracle_scenario import Life, Scenario, Status

CELL = 200_000_000
"""Nanoseconds. Half a cell is what a moment may be late before the order of two is in doubt; on two cores, 60 scenarios
at a time are late by a tenth of that."""
LATE = 0.4
"""In cells: what is later than that is asked again. A look may be later by the fifth of a cell, when the next begins."""
LATE_LOOK = 0.2
PARALLEL = 60

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
STATES = {
    "active/running": "running",
    "activating/auto-restart": "auto-restart",
    "inactive/dead": "inactive",
    "failed/failed": "failed",
    "deactivating/stop-sigterm": "stopping",
}


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
        self._machine.run("python3", "-B", f"{PLACE}/inside.py", asked, answered, timeout=patience)
        answers = {answer["name"]: answer for answer in json.loads((self._root / "answered.json").read_text())}
        for service in services:
            shutil.rmtree(self._root / service["name"])
        return [_seen(answers[service["name"]]) for service in services]


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
        delay=rules.delay * CELL // 1000,
        stop_timeout=rules.stop_timeout * CELL // 1000,
        max_delay=rules.max_delay * CELL // 1000,
        success=_statuses(rules.success),
        prevent=_statuses(rules.prevent),
        force=_statuses(rules.force),
    )


def _statuses(statuses: tuple[Status, ...]) -> str:
    return " ".join(map(str, statuses))


def _line(life: Life) -> str:
    lasts = -1 if life.lasts >= FOREVER else life.lasts * CELL
    ends = f"{'s' if life.ends.signalled else 'c'}{life.ends.number}"
    return f"{lasts} {ends} {int(life.dumps)} {life.on_term[0]}{life.code} {life.lingers * CELL}"


def _seen(answer: dict[str, Any]) -> Seen:
    starts = [Start(round(moment / CELL)) for moment in answer["starts"]]
    looks = [
        Look(look["moment"] // CELL, _state(*look["words"][:2]), look["words"][2], look["n_restarts"])
        for look in answer["looks"]
    ]
    latest = {
        "start": max((abs(moment / CELL - round(moment / CELL)) for moment in answer["starts"]), default=0.0),
        "end": max((abs(moment / CELL - round(moment / CELL)) for moment in answer["ends"]), default=0.0),
        **{kind: late / CELL for kind, late in answer["late"].items()},
    }
    late = [f"{kind} by {much:.2f}" for kind, much in latest.items() if much > (LATE_LOOK if kind == "look" else LATE)]
    events: list[Start | Look] = [*starts, *looks]
    return Seen(sorted(events, key=lambda each: each.moment), ", ".join(late) or None, latest)


def _state(active: str, sub: str) -> str:
    return STATES.get(f"{active}/{sub}", f"{active}/{sub}")
