"""Secrets on a server: files of root's, credentials of the service, files of the agents' users, and attacks on each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

ROOTS = "of-roots-alone-0123456789"
CREDENTIAL = "of-the-services-credentials-0123"
USERS = "of-the-users-own-file-0123456789"
CONFIG = """
[defaults]
run_as = "keyholder"
harness = "command"
command = ["/bin/sleep", "infinity"]
"""


@pytest.fixture(scope="module")
def holder(machine: Machine) -> Iterator[Machine]:
    machine.add_user("keyholder")
    machine.write("/etc/forge-supervisor/secrets/roots", ROOTS + "\n", mode=0o600)
    machine.run("chmod", "700", "/etc/forge-supervisor/secrets")
    machine.write("/etc/forge-supervisor/secrets/credential", CREDENTIAL + "\n", mode=0o600)
    machine.write("/home/keyholder/secrets/own", USERS + "\n", mode=0o600, owner="keyholder")
    machine.write(
        "/run/systemd/system/forge-supervisor.service.d/credentials.conf",
        "[Service]\nLoadCredential=thing:/etc/forge-supervisor/secrets/credential\n",
    )
    machine.run("systemctl", "daemon-reload")
    yield machine
    machine.run("rm", "-r", "/run/systemd/system/forge-supervisor.service.d/credentials.conf")
    machine.run("systemctl", "daemon-reload")


def start(machine: Machine, agents: str) -> None:
    machine.write("/etc/forge-supervisor/config.toml", CONFIG + agents, mode=0o600)
    machine.run("systemctl", "start", "forge-supervisor")


def environment_of(machine: Machine, agent: str) -> dict[str, str]:
    started = machine.wait_for("EVENT=agent_started", f"AGENT={agent}", until=bool)
    environ = Path(f"/proc/{machine.leader}/root/proc/{started['PID']}/environ").read_text()
    return dict(word.split("=", 1) for word in environ.split("\0") if word)


def test_each_is_read_by_whoever_may_and_found_nowhere_else(holder: Machine) -> None:
    secrets = (
        'ROOTS = "/etc/forge-supervisor/secrets/roots"\n'
        'CREDENTIAL = "$CREDENTIALS_DIRECTORY/thing"\n'
        'OWN = "~/secrets/own"\nABSOLUTE = "/home/keyholder/secrets/own"\n'
    )
    # It shows all of them on its screen and crashes: that screen goes to the journal.
    crasher = 'command = ["/bin/sh", "-c", "env; exit 3"]\nrestart.policy = "no"\n'
    keeper = f"[agents.with-keeper.secrets]\n{secrets}"
    start(holder, f"{keeper}[agents.with-leaker]\n{crasher}[agents.with-leaker.secrets]\n{secrets}")
    environment = environment_of(holder, "with-keeper")
    values = {"ROOTS": ROOTS, "CREDENTIAL": CREDENTIAL, "OWN": USERS, "ABSOLUTE": USERS}
    assert {name: environment[name] for name in values} == values
    ended = holder.wait_for("EVENT=agent_exited", "AGENT=with-leaker", until=bool)
    assert "ROOTS=[secret]" in ended["SCREEN"]
    explained = holder.run("forge-supervisor", "explain", "with-keeper").stdout
    explained += holder.run("forge-supervisor", "explain", "with-keeper", "--json").stdout
    explained += holder.run("forge-supervisor", "--check").stdout
    assert "CREDENTIAL=[secret]" in explained, "root reads the running service's credentials"
    tmux = holder.run("tmux", "-L", "forge", "show-environment", "-g", user="keyholder").stdout
    everywhere = {
        "explain": explained,
        "tmux": tmux,
        "journal": json.dumps(holder.journal()),
        "command lines": holder.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout,
        "files": holder.run("sh", "-c", "cat $(find /home/keyholder/.local /run/forge-supervisor -type f)").stdout,
        "worker": environ_of_worker(holder),
    }
    found = [(place, value) for place, text in everywhere.items() for value in values.values() if value in text]
    assert found == []


def environ_of_worker(machine: Machine) -> str:
    pid = machine.property("forge-worker-keyholder.service", "MainPID")
    return Path(f"/proc/{machine.leader}/root/proc/{pid}/environ").read_text()


def test_a_missing_token_is_an_error_of_that_agent_alone(holder: Machine) -> None:
    without = '[agents.without-one]\nsecrets.TOKEN = "/etc/forge-supervisor/secrets/none"\nrestart.policy = "no"\n'
    start(holder, without + "[agents.with-other]\n")
    failed = holder.wait_for("EVENT=agent_start_failed", "AGENT=without-one", until=bool)
    assert failed["KEY"] == "agents.without-one.secrets.TOKEN"
    assert failed["PROBLEM"].startswith("/etc/forge-supervisor/secrets/none: there is no such file")
    assert environment_of(holder, "with-other")
    status = holder.property("forge-supervisor", "StatusText")
    assert status == "1 running, 1 failed: without-one (resources)"


def test_one_that_everybody_may_read_is_warned_of_and_used(holder: Machine) -> None:
    holder.write("/etc/forge-supervisor/public", "not-so-secret-at-all\n", mode=0o644)
    start(holder, '[agents.with-open]\nsecrets.TOKEN = "/etc/forge-supervisor/public"\n')
    warned = holder.wait_for("EVENT=agent_warning", "AGENT=with-open", until=bool)
    assert warned["KEY"] == "agents.with-open.secrets.TOKEN"
    assert "every user of this machine may read" in warned["PROBLEM"]
    assert environment_of(holder, "with-open")["TOKEN"] == "not-so-secret-at-all"  # noqa: S105


@pytest.mark.parametrize("planted", ["link", "directory"])
def test_root_reads_nothing_that_a_user_could_have_chosen(holder: Machine, planted: str) -> None:
    """Naively read by root, a link in a user's directory gives that user's agent any file of the machine."""
    holder.run("rm", "-rf", "/srv/theirs")
    holder.run("install", "-d", "-o", "keyholder", "/srv/theirs")
    if planted == "link":
        holder.run("ln", "-s", "/etc/shadow", "/srv/theirs/token", user="keyholder")
    else:
        holder.run("ln", "-s", "/etc/forge-supervisor/secrets", "/srv/theirs/sub", user="keyholder")
    path = "/srv/theirs/token" if planted == "link" else "/srv/theirs/sub/roots"
    assert holder.run("cat", path).stdout, "root itself could"
    start(holder, f'[agents.thief-{planted}]\nsecrets.TOKEN = "{path}"\nrestart.policy = "no"\n')
    failed = holder.wait_for("EVENT=agent_start_failed", f"AGENT=thief-{planted}", until=bool)
    assert "cannot be read: Permission denied" in failed["PROBLEM"]


def test_a_secret_of_another_user_is_none_of_this_ones(holder: Machine) -> None:
    holder.add_user("neighbour")
    holder.write("/home/neighbour/token", "of-the-neighbour\n", mode=0o600, owner="neighbour")
    start(holder, '[agents.with-nosy]\nsecrets.TOKEN = "/home/neighbour/token"\nrestart.policy = "no"\n')
    failed = holder.wait_for("EVENT=agent_start_failed", "AGENT=with-nosy", until=bool)
    assert "/home/neighbour/token cannot be read: Permission denied" in failed["PROBLEM"]
