"""``forgectl doctor``: looks at everything that keeps agents from working, and says what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import journal
from forge_supervisor.cli import doctor_agents, doctor_service, doctor_system, doctor_users
from forge_supervisor.cli.client import socket_path
from forge_supervisor.cli.doctor_scene import Finding, Scene
from forge_supervisor.main import default_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from forge_supervisor.config import Config

SYSTEM_CONFIG = Path("/etc/forge-supervisor/config.toml")
_SYSTEM_SOCKETS = "/run/forge-supervisor/"

_SYSTEM = (
    ("tmux", doctor_system.tmux),
    ("systemd", doctor_system.systemd),
    ("limits", doctor_system.limits),
    ("bus", doctor_system.bus),
    ("unit forge-supervisor.service", doctor_service.unit),
    ("unit forge-agents.service", doctor_service.agents_unit),
    ("supervisor", doctor_service.supervisor),
    ("forgectl", doctor_service.operators),
    ("journal", doctor_system.journal),
    ("space", doctor_system.space),
)
_COLOURS = {"ok": "32", "warning": "33", "problem": "31", "skipped": "2"}


def run(config: Path | None, *, as_json: bool) -> int:
    """Print what is found, as it is found; return 1 if there is a problem, else 0. `config`: None for the usual one."""
    journal.configure("console")
    scene, path = scene_of(config)
    found = (_clean(finding) for finding in examine(scene, path))
    if as_json:
        findings = list(found)
        _say(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        findings = list(_shown(found))
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def scene_of(config: Path | None) -> tuple[Scene, Path]:
    """Tell whose supervisor is meant, and its configuration: an ordinary user may have one, or look at the system's."""
    is_root = os.geteuid() == 0
    usual = default_config()
    if not is_root and not os.path.exists(usual) and _has_system_one():
        usual = SYSTEM_CONFIG
    path = config or usual
    return Scene(system=is_root or path == SYSTEM_CONFIG, is_root=is_root), path


def _has_system_one() -> bool:
    return socket_path().startswith(_SYSTEM_SOCKETS) and os.path.exists(SYSTEM_CONFIG.parent)


def examine(scene: Scene, path: Path) -> Iterator[Finding]:
    """Find everything, in the order in which one thing rests on another."""
    loaded: list[Config] = []

    def configuration() -> Iterator[Finding]:
        config, findings = doctor_agents.configuration(scene, path)
        loaded.extend([config] if config is not None else [])
        yield from findings

    yield from guarded(doctor_agents.CONFIGURATION, configuration)
    for name, look in _SYSTEM:
        yield from guarded(name, partial(look, scene))
    if not loaded:
        yield Finding("agents", "skipped", "no agent and no user is known without the configuration")
        return
    config = loaded[0]
    for user in doctor_agents.users(config):
        for check in doctor_users.checks(scene, user):
            yield from guarded(doctor_users.check_name(user), check)
    for agent in config.agents.values():
        if agent.enabled:
            check = partial(doctor_agents.agent, scene, config, agent.name)
            yield from guarded(doctor_agents.check_name(agent.name), check)


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Have a check that fails be a finding itself: what could not be looked at may be what is wrong."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - the other checks are to be told whatever becomes of this one
        why = str(error) or type(error).__name__
        yield Finding(name, "problem", f"could not be looked at: {why}", "see to that, and run forgectl doctor again")


def _clean(finding: Finding) -> Finding:
    """Make what users' programs and files say fit for a line of a terminal."""
    words = {name: " ".join(journal.printable(text).split()) for name, text in dataclasses.asdict(finding).items()}
    return Finding(words["check"], finding.status, words["text"], words["fix"])


def _shown(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Print each as it comes: some take seconds to find."""
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.status] += 1
        _say(line(finding, coloured=sys.stdout.isatty()))
        yield finding
    _say(f"{_counted(counts['problem'], 'problem')}, {_counted(counts['warning'], 'warning')}")


def line(finding: Finding, *, coloured: bool = False) -> str:
    status = f"{finding.status:7}"
    if coloured:
        status = f"\033[{_COLOURS[finding.status]}m{status}\033[0m"
    fix = f" → {finding.fix}" if finding.fix else ""
    return f"{status} {finding.check}: {finding.text}{fix}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number or 'no'} {noun}s"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
