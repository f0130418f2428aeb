"""./dev install, which the machine fixture has run, and ./dev uninstall."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import booted
import pytest

if TYPE_CHECKING:
    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
PRISTINE = "/opt/forge-supervisor/config.toml"
OWN = '[agents.own]\nrun_as = "holder"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
PLACES = {
    "/opt/forge-supervisor",
    "/usr/local/bin/forge-supervisor",
    "/etc/systemd/system/forge-supervisor.service",
    "/etc/systemd/system/forge-agents.service",
    "/etc/systemd/system/forge-metrics.service",
    "/etc/systemd/system/forge-metrics.socket",
    "/etc/systemd/system/forge.slice",
    "/etc/systemd/user/forge-agents.service",
    "/etc/systemd/user/forge-metrics.service",
    "/etc/systemd/user/forge-metrics.socket",
    "/etc/systemd/user/forge-supervisor.service",
    "/etc/forge-supervisor",
}


def present(machine: Machine) -> set[str]:
    return {place for place in PLACES if machine.run("test", "-e", place, check=False).returncode == 0}


def test_what_agents_users_execute_is_roots_own_and_readable_to_all(machine: Machine) -> None:
    machine.add_user("reader")
    wrong = ("(", "!", "-user", "root", "-o", "-perm", "/022", "-o", "!", "-perm", "-004", ")", "!", "-type", "l")
    assert machine.run("find", "/opt/forge-supervisor", *wrong).stdout == ""
    shown = machine.run("/usr/local/bin/forge-supervisor", "--version", user="reader").stdout
    assert shown.startswith("forge-supervisor ")


def test_the_installed_config_starts_no_agent(machine: Machine) -> None:
    machine.run("sh", "-c", f"rm -rf /etc/forge-supervisor/*; cp {PRISTINE} {CONFIG}")
    machine.run("systemctl", "start", "forge-supervisor")
    assert machine.run("systemctl", "--quiet", "is-active", "forge-tmux-*", check=False).returncode != 0


def test_the_service_is_held_back_as_the_documentation_says(machine: Machine) -> None:
    said = machine.run("systemd-analyze", "security", "--no-pager", "forge-supervisor.service").stdout
    exposure = re.search(r"Overall exposure level for forge-supervisor.service: ([\d.]+)", said)
    assert exposure is not None
    assert float(exposure[1]) <= 2.5
    document = (booted.CHECKOUT / "docs/security.md").read_text()
    claimed = re.search(r"Overall exposure level for forge-supervisor.service: ([\d.]+)", document)
    assert claimed is not None
    assert abs(float(claimed[1]) - float(exposure[1])) <= 0.2, "it differs a little from version to version"


def test_of_all_control_groups_the_service_may_write_who_is_in_its_own_alone(machine: Machine) -> None:
    """Without it each restart takes ten milliseconds longer, and nothing is said."""
    machine.run("systemctl", "start", "forge-supervisor")
    within = ("nsenter", f"--target={machine.property('forge-supervisor', 'MainPID')}", "--mount", "test", "-w")
    group = machine.property("forge-supervisor", "ControlGroup")
    assert machine.run(*within, f"/sys/fs/cgroup{group}/cgroup.procs", check=False).returncode == 0
    others = ("/cgroup.procs", "/system.slice/cgroup.procs", f"{group}/cgroup.freeze", f"{group}/memory.max", group)
    for other in others:
        assert machine.run(*within, f"/sys/fs/cgroup{other}", check=False).returncode == 1, other


def test_uninstall_undoes_install(machine: Machine) -> None:
    machine.run("sh", "-c", f"rm -rf /etc/forge-supervisor/*; cp {PRISTINE} {CONFIG}")
    machine.run("systemctl", "enable", "--now", "forge-supervisor")
    for verb in ("disable", "enable"):
        machine.run("forgectl", verb, "scout")
    try:
        machine.dev("uninstall")
        assert present(machine) == set()
        for unit in ("forge-supervisor.service", "forge.slice"):
            assert machine.property(unit, "ActiveState") == "inactive"
        assert machine.run("systemctl", "is-enabled", "forge-supervisor", check=False).returncode != 0
    finally:
        assert "systemctl enable --now forge-supervisor" in machine.dev("install")
    assert present(machine) == PLACES
    assert machine.read(CONFIG) == machine.read(PRISTINE)


def test_the_operators_config_outlives_install_and_uninstall(machine: Machine) -> None:
    machine.add_user("holder")
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")
    machine.write(CONFIG, OWN)
    machine.run("systemctl", "start", "forge-supervisor")
    assert list(machine.processes("holder").values()).count("/bin/sleep infinity ") == 1
    try:
        assert "kept /etc/forge-supervisor" in machine.dev("uninstall")
        assert present(machine) == {"/etc/forge-supervisor"}
        assert machine.processes("holder") == {}
    finally:
        machine.dev("install")
    assert machine.read(CONFIG) == OWN


@pytest.mark.skipif(not booted.IS_CHECKOUT, reason="it is ./dev that looks")
def test_what_is_not_ours_is_neither_written_over_nor_removed(machine: Machine) -> None:
    machine.run("mv", "/opt/forge-supervisor", "/opt/away")
    machine.write("/opt/forge-supervisor/precious", "mine\n")
    try:
        for verb in ("install", "uninstall"):
            done = machine.run(booted.CHECKOUT / "dev", verb, check=False)
            assert done.returncode == 1
            assert "/opt/forge-supervisor is there and is not ours" in done.stderr
        assert machine.read("/opt/forge-supervisor/precious") == "mine\n"
    finally:
        machine.run("sh", "-c", "rm -r /opt/forge-supervisor && mv /opt/away /opt/forge-supervisor")
