"""systemd's own varlink client on io.forge.Supervisor, where there is one: systemd has it since 255."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
SOCKET = "/run/forge-supervisor/io.forge.Supervisor"
NAME = "io.forge.Supervisor"


@pytest.fixture
def service(machine: Machine) -> Machine:
    if machine.run("sh", "-c", "command -v varlinkctl", check=False).returncode:
        pytest.skip("varlinkctl is not installed (it comes with systemd 255)")
    machine.run("useradd", "--create-home", "team", check=False)
    agent = '[agents.a]\nrun_as = "team"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n'
    machine.write(CONFIG, agent)
    machine.run("systemctl", "start", "forge-supervisor")
    return machine


def test_it_is_introspected(service: Machine) -> None:
    assert NAME in service.run("varlinkctl", "list-interfaces", SOCKET).stdout
    described = service.run("varlinkctl", "introspect", SOCKET, NAME).stdout
    assert "method Monitor(" in described and "type Agent" in described and "error TooSlow" in described
    assert "forge-supervisor" in service.run("varlinkctl", "info", SOCKET).stdout


def test_its_methods_are_listed(service: Machine) -> None:
    listed = service.run("varlinkctl", "list-methods", SOCKET, NAME, check=False)
    if listed.returncode and "nknown" in listed.stderr:
        pytest.skip("this varlinkctl has no list-methods")
    assert f"{NAME}.Start" in listed.stdout


def test_it_is_called(service: Machine) -> None:
    called = service.run("varlinkctl", "call", "--json=short", SOCKET, f"{NAME}.Restart", '{"agents": ["a"]}')
    assert json.loads(called.stdout)["agents"][0]["state"] == "running"
    refused = service.run("varlinkctl", "call", SOCKET, f"{NAME}.Show", '{"agent": "b"}', check=False)
    assert refused.returncode and "NoSuchAgent" in refused.stderr


def test_it_listens(service: Machine) -> None:
    command = service.command("varlinkctl", "call", "--more", "--json=short", SOCKET, f"{NAME}.Monitor", "{}")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        assert '"name":"a"' in listening.stdout.readline().replace("\x1e", "")
        service.run("varlinkctl", "call", SOCKET, f"{NAME}.Restart", '{"agents": ["a"]}')
        while "agent_started" not in listening.stdout.readline():
            pass
        service.run("systemctl", "stop", "forge-supervisor")
        listening.wait(20)
