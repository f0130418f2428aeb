"""./dev install and ./dev uninstall on a machine of their own kind. The machine fixture has installed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
OWN = '[agents.own]\nrun_as = "keeper"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
PLACES = (
    "/opt/forge-supervisor",
    "/usr/local/bin/forge-supervisor",
    "/etc/systemd/system/forge-supervisor.service",
    "/etc/systemd/system/forge.slice",
    "/etc/systemd/user/forge-supervisor.service",
    "/etc/forge-supervisor",
)


@pytest.fixture
def installer(machine: Machine) -> Iterator[Machine]:
    """The machine as it was before any installation, and with one again afterwards."""
    machine.run("rm", "-rf", "/etc/forge-supervisor")
    machine.dev("uninstall")
    yield machine
    machine.run("rm", "-rf", "/etc/forge-supervisor")
    machine.dev("install")


def present(machine: Machine) -> set[str]:
    return {place for place in PLACES if machine.run("test", "-e", place, check=False).returncode == 0}


def test_uninstall_undoes_install(installer: Machine) -> None:
    assert present(installer) == set()
    assert "systemctl enable --now forge-supervisor" in installer.dev("install")
    assert present(installer) == set(PLACES)
    installer.run("systemctl", "enable", "--now", "forge-supervisor")
    installer.dev("uninstall")
    assert present(installer) == set()
    assert installer.property("forge-supervisor", "LoadState") == "not-found"
    assert installer.property("forge.slice", "ActiveState") == "inactive"


def test_what_agents_users_execute_is_roots_own_and_readable_to_all(installer: Machine) -> None:
    installer.dev("install")
    wrong = ("(", "!", "-user", "root", "-o", "-perm", "/022", "-o", "!", "-perm", "-004", ")", "!", "-type", "l")
    assert installer.run("find", "/opt/forge-supervisor", *wrong).stdout == ""
    shown = installer.run("/usr/local/bin/forge-supervisor", "--version", user="nobody").stdout
    assert shown.startswith("forge-supervisor ")


def test_the_installed_config_starts_no_agent(installer: Machine) -> None:
    installer.dev("install")
    installer.run("systemctl", "start", "forge-supervisor")
    assert installer.run("systemctl", "--quiet", "is-active", "forge-tmux-*", check=False).returncode != 0


def test_the_operators_config_survives(installer: Machine) -> None:
    installer.add_user("keeper")
    installer.write(CONFIG, OWN)
    installer.dev("install")
    assert installer.read(CONFIG) == OWN
    installer.run("systemctl", "start", "forge-supervisor")
    assert "/bin/sleep infinity " in installer.processes("keeper").values()
    assert "kept /etc/forge-supervisor" in installer.dev("uninstall")
    assert installer.read(CONFIG) == OWN
    assert installer.processes("keeper") == {}
