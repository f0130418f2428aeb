"""Harnesses from elsewhere, as packages of their own, under a real supervisor: one that is well, and all that are not.

They are installed into a venv beside the supervisor's, and all run at once, so that each could harm all others.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from booted import MODULES
from forge_harness_broken import MADE, NAMES, WAYS, attribute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

# Some of what is tried takes its time to be given up.
pytestmark = pytest.mark.timeout(400)

UNIT = "forge-supervisor.service"
CONFIG = "/etc/forge-supervisor/config.toml"
KEY = "/etc/forge-supervisor/key"
VENV = "/opt/forge-harnesses"
WHEELS = os.environ.get("FORGE_TEST_WHEELS") or f"{sys.prefix}/wheels"
CHECKED = "/etc/forge-supervisor/checked.toml"
DROP_IN = f"/run/systemd/system/{UNIT}.d/venv.conf"
IMPORTED = {
    "raises-import": ("forge_harness_import", "cannot be loaded: ImportError: no module of that kind ("),
    "hangs-import": ("forge_harness_slow", "could not be loaded within 8 s"),
    "none-import": ("no_such_module", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
}
# Each that is not loaded in time keeps the supervisor waiting, and hangs-import shows what comes of it.
MADE_AT_ONCE = {name: told for name, (_, told) in MADE.items() if name not in {"hangs-made", "spins-made"}}
BROKEN = {name: told for name, (_, _, told) in WAYS.items()} | MADE_AT_ONCE
BROKEN |= {name: told for name, (_, told) in IMPORTED.items()}
METHOD = {name: method for name, (method, _, _) in WAYS.items()}
WORDS = {"unresumable": "end", "reported": "hello", "unsendable": "hello"}
"""What brings an agent to where that method is asked."""
RUN = {"consult", "version", "unresumable", "watched", "observe", "reported", "unsendable", "transcripts", "usage_in"}
"""Methods without which an agent can be started."""


def runs(name: str) -> bool:
    return METHOD.get(name) in RUN


def pyproject() -> str:
    entries = [f'{name} = "forge_harness_broken:{attribute(name)}"' for name in NAMES]
    entries += [f'{name} = "{module}:Harness"' for name, (module, _) in IMPORTED.items()]
    return "\n".join(
        [
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"',
            '[project]\nname = "forge-harness-broken"\nversion = "1"\ndependencies = ["forge-supervisor"]',
            '[project.entry-points."forge_supervisor.harnesses"]',
            *entries,
            '[tool.setuptools]\npy-modules = ["forge_harness_broken", "forge_harness_import", "forge_harness_slow"]',
        ]
    )


def config(*names: str) -> str:
    agents = [
        '[defaults]\nrole = "You are tried."\nrun_as = "strangers"\nrestart = {policy = "no"}',
        f'[agents.example]\nrun_as = "apart"\nharness = "example"\nsecrets = {{EXAMPLE_KEY = "{KEY}"}}',
        '[agents.keyless]\nharness = "example"',
    ]
    return "\n".join([*agents, *(f'[agents.{agent_of(name)}]\nharness = "{name}"' for name in names)])


def agent_of(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True)
class Trial:
    """What came of it: the journal, what --check said, and what forgectl send said, by agent."""

    journal: list[dict[str, Any]]
    checked: str
    sent: dict[str, str]
    before: dict[str, dict[str, Any]]
    """Status of each agent when all have been started."""
    after: dict[str, dict[str, Any]]
    screen: str
    """Of the example, in the end."""

    def of(self, name: str, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.journal if entry.get("AGENT") == agent_of(name) and entry.get("EVENT") == event]


@pytest.fixture(scope="module")
def strangers(machine: Machine) -> Iterator[Machine]:
    """A machine whose supervisor runs from a venv with both packages."""
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    packages = ("forge-harness-example", "forge-harness-broken")
    machine.run("mkdir", "-p", "/var/lib/packages")
    # A build writes beside what it builds.
    machine.run("cp", "-R", *(f"{MODULES}/packages/{package}" for package in packages), "/var/lib/packages")
    machine.write("/var/lib/packages/forge-harness-broken/pyproject.toml", pyproject())
    machine.run("/usr/bin/python3", "-m", "venv", VENV)
    pip = (f"{VENV}/bin/pip", "install", "--quiet")
    machine.run(*pip, "setuptools", "wheel", "forge-supervisor", env=env, timeout=170)
    built = (f"/var/lib/packages/{package}" for package in packages)
    machine.run(*pip, "--no-build-isolation", *built, env=env, timeout=170)
    machine.add_user("strangers")
    machine.add_user("apart")
    program = (Path(__file__).parents[1] / "packages/example-agent").read_text()
    for user in ("strangers", "apart"):
        machine.write(f"/home/{user}/.local/bin/example-agent", program, mode=0o755)
        machine.run("chown", "-R", f"{user}:", f"/home/{user}/.local")
    machine.write(KEY, "sesame-open\n", mode=0o600)
    machine.write(DROP_IN, f"[Service]\nExecStart=\nExecStart={VENV}/bin/forge-supervisor\n")
    machine.run("systemctl", "daemon-reload")
    yield machine
    machine.run("systemctl", "stop", UNIT, timeout=120)
    machine.run("rm", DROP_IN)
    machine.run("systemctl", "daemon-reload")


@pytest.fixture(scope="module")
def trial(strangers: Machine) -> Trial:
    """Start all agents at once, and have each that runs come to where it is broken."""
    machine = strangers
    machine.write(CONFIG, config("well", *BROKEN))
    # It takes one after the other.
    machine.write(CHECKED, config(*(name for name in WAYS if METHOD[name] in {"consult", "version"})))
    # While methods do not return there are things to wait for.
    with ThreadPoolExecutor(8) as pool:
        check = (f"{VENV}/bin/forge-supervisor", "--config", CHECKED, "--check")
        checking = pool.submit(partial(machine.run, *check, check=False, timeout=170))
        machine.run("systemctl", "start", UNIT, timeout=170)
        began = statuses(machine)
        messages = {name: WORDS[METHOD[name]] for name in WAYS if METHOD[name] in WORDS} | {"well": "hello"}
        sending = {name: pool.submit(send, machine, name, words) for name, words in messages.items()}
        sent = {name: each.result() for name, each in sending.items()}
        for name, told in BROKEN.items():
            if METHOD.get(name) == "unresumable":
                machine.wait_for(f"AGENT={agent_of(name)}", until=partial(says, told))
            if METHOD.get(name) in {"transcripts", "usage_in"}:
                machine.wait_for(f"_SYSTEMD_UNIT={UNIT}", until=partial(says, f'the harness "{name}" {told}'))
        checked = checking.result().stdout
    sent["example"] = send(machine, "example", "hello to you")
    screen = machine.run(f"{VENV}/bin/forgectl", "screen", "example").stdout
    return Trial(machine.journal(f"_SYSTEMD_UNIT={UNIT}"), checked, sent, began, statuses(machine), screen)


def says(told: str, entry: dict[str, Any]) -> bool:
    return told in entry["MESSAGE"]


def send(machine: Machine, name: str, words: str) -> str:
    """What is said against it."""
    return machine.run(f"{VENV}/bin/forgectl", "send", agent_of(name), words, check=False).stderr


def statuses(machine: Machine) -> dict[str, dict[str, Any]]:
    told = json.loads(machine.run(f"{VENV}/bin/forgectl", "status", "--json").stdout)
    return {agent["name"]: agent for agent in told}


def test_the_example_tells_what_it_is_doing_and_takes_messages(trial: Trial) -> None:
    assert trial.sent["example"] == ""
    assert trial.before["example"]["activity"] == "idle"
    assert "You are tried." in trial.screen
    assert "you said: hello to you" in trial.screen


def test_the_examples_preflight_keeps_one_without_a_key_from_starting(trial: Trial) -> None:
    (failed,) = trial.of("keyless", "agent_start_failed")
    assert failed["PROBLEM"] == 'has no EXAMPLE_KEY (add secrets = {EXAMPLE_KEY = "FILE"})'


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_harness_fails_its_agent_with_its_name_and_the_method(name: str, trial: Trial) -> None:
    failed = trial.of(name, "agent_start_failed")
    if not runs(name):
        (entry,) = failed
        assert entry["PROBLEM"].startswith(f'the harness "{name}" ')
        assert entry["KEY"] == f"agents.{agent_of(name)}.harness"
        assert BROKEN[name] in entry["PROBLEM"] or "is asked no more" in entry["PROBLEM"]
        assert trial.before[agent_of(name)]["result"] == "resources"
        return
    assert failed == []
    match METHOD[name]:
        case "consult" | "version":
            told = trial.checked
        case "unsendable":
            told = trial.sent[name]
        case "transcripts" | "usage_in":
            told = "\n".join(entry["MESSAGE"] for entry in trial.journal if entry.get("EVENT") == "usage_problem")
        case _:
            told = "\n".join(entry["MESSAGE"] for entry in trial.journal if entry.get("AGENT") == agent_of(name))
    assert f'the harness "{name}" ' in told
    assert BROKEN[name] in told


def test_no_fault_is_the_supervisors(trial: Trial) -> None:
    assert [entry for entry in trial.journal if entry.get("EVENT") == "supervisor_fault"] == []
    assert [entry for entry in trial.journal if entry.get("EVENT") == "worker_lost"] == []


@pytest.mark.parametrize("name", ["example", "well"])
def test_those_beside_them_are_not_touched(name: str, trial: Trial) -> None:
    (started,) = trial.of(name, "agent_started")
    assert trial.after[name]["pid"] == trial.before[name]["pid"] == int(started["PID"])
    assert trial.of(name, "agent_warning") == []
    assert trial.sent[name] == ""
