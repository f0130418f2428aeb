"""Metrics by way of systemd's port, as a Prometheus on the machine scrapes them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from booted import Machine
    from prometheus_client.core import Metric

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
AGENTS = """
[defaults]
run_as = "measured"
harness = "command"
[agents.runs]
command = ["/bin/sleep", "1000"]
[agents.crashes]
command = ["/bin/sh", "-c", "exit 3"]
restart = {delay_sec = 0}
[agents.rests]
enabled = false
command = ["/bin/true"]
"""
GET = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer:
    print(answer.headers["Content-Type"])
    print(answer.read().decode(), end="")
"""


PORT = "[Socket]\nListenStream=\nListenStream=127.0.0.1:{}\n"
OWN = """
[[on_event]]
events = ["failed"]
command = ["/usr/bin/logger", "--tag", "told-own", "--file", "/dev/stdin"]
user = "gauger"
[agents.ends]
harness = "command"
command = ["/bin/sh", "-c", "exit 4"]
restart.policy = "no"
"""


class Service(NamedTuple):
    machine: Machine
    port: int

    def get(self, path: str = "/metrics", user: str | None = None) -> str:
        return self.machine.run("python3", "-c", GET, f"http://127.0.0.1:{self.port}{path}", user=user).stdout


@pytest.fixture
def port() -> int:
    """A free one: the machine shares our network, where the usual one may be somebody's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
        return number


@pytest.fixture
def service(machine: Machine, port: int) -> Iterator[Service]:
    machine.run("useradd", "--create-home", "measured", check=False)
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")
    machine.write(CONFIG, AGENTS)
    drop_in = "/etc/systemd/system/forge-metrics.socket.d/port.conf"
    machine.write(drop_in, PORT.format(port))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", UNIT, "forge-metrics.socket")
    yield Service(machine, port)
    machine.run("systemctl", "stop", "forge-metrics.socket", "forge-metrics.service")
    machine.run("rm", "-r", drop_in)
    machine.run("systemctl", "daemon-reload")


def samples(text: str) -> dict[str, float]:
    parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families
    kind, _, body = text.partition("\n")
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return {
        "|".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): sample.value
        for family in parse(body)
        for sample in family.samples
    }


def test_a_scrape_by_the_port_tells_how_agents_are(service: Service) -> None:
    machine = service.machine
    failed = machine.wait_for("EVENT=agent_failed", "AGENT=crashes", until=bool)
    told = samples(service.get(user="measured"))
    assert told["forge_up"] == 1
    assert {agent: told[f"forge_agent_up|{agent}|measured"] for agent in ("runs", "crashes", "rests")} == {
        "runs": 1,
        "crashes": 0,
        "rests": 0,
    }
    assert told["forge_agent_state|crashes|failed|measured"] == 1
    assert told["forge_agent_state|rests|inactive|measured"] == 1
    assert told["forge_agent_enabled|rests|measured"] == 0
    assert failed["START_LIMIT_HIT"] == "yes"
    assert told["forge_agent_start_limit_hits_total|crashes|measured"] == 1
    assert told["forge_agent_starts_total|crashes|measured"] == 3
    assert told["forge_agent_restarts_total|crashes|measured"] == 2
    assert told["forge_agent_exits_total|crashes|exit-code|measured"] == 3
    assert told["forge_agent_last_exit_code|crashes|measured"] == 3
    scope = f"/sys/fs/cgroup{machine.property('forge-agent-runs.scope', 'ControlGroup')}/memory.current"
    if machine.run("test", "-e", scope, check=False).returncode == 0:
        assert told["forge_agent_memory_bytes|runs|measured"] > 0
    started = int(machine.journal("EVENT=agent_started", "AGENT=runs")[-1]["__REALTIME_TIMESTAMP"]) / 1_000_000
    assert abs(told["forge_agent_started_timestamp_seconds|runs|measured"] - started) < 2


def test_it_is_gone_with_the_supervisor_and_comes_again_with_it(service: Service) -> None:
    machine = service.machine
    assert "forge_up 1.0" in service.get()
    machine.run("systemctl", "restart", UNIT)
    assert samples(service.get())["forge_agent_starts_total|runs|measured"] == 0, "it was adopted"
    machine.run("systemctl", "stop", UNIT)
    asked = machine.run("python3", "-c", GET, f"http://127.0.0.1:{service.port}/metrics", check=False)
    assert asked.returncode != 0, "the port is open, and hangs up"
    machine.run("systemctl", "start", UNIT)
    assert "forge_up 1.0" in service.get()


def test_a_scrape_takes_little_memory(service: Service) -> None:
    pid = service.machine.property(UNIT, "MainPID")

    def resident() -> int:
        status = Path(f"/proc/{service.machine.leader}/root/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    before = resident()
    service.get()
    once = resident()
    for _ in range(100):
        service.get()
    print(f"RSS: {before} kB, after a scrape {once} kB, after 101 {resident()} kB")  # noqa: T201
    # Most of it is OpenSSL, which the client library loads and nothing else does.
    assert once - before < 8_000
    assert resident() - once < 1_000


def test_what_serves_the_port_is_held_back(service: Service) -> None:
    service.get()
    machine = service.machine
    # Else systemd waits for it to say that it has started, which it never says, and ends it.
    assert machine.property("forge-metrics.service", "SubState") == "running"
    shown = machine.run("systemd-analyze", "security", "--no-pager", "forge-metrics.service").stdout
    assert float(shown.split("exposure level for forge-metrics.service: ")[1].split()[0]) < 1.5
    pid = machine.property("forge-metrics.service", "MainPID")
    uid = machine.run("stat", "--format=%u", f"/proc/{pid}").stdout.strip()
    assert int(uid) >= 61184, "a dynamic user, systemd.exec(5)"


def test_an_ordinary_users_own_hooks_and_metrics(machine: Machine, port: int) -> None:
    uid = machine.add_user("gauger")
    machine.run("loginctl", "enable-linger", "gauger")
    machine.run("systemctl", "start", f"user@{uid}.service")
    home, env = "/home/gauger/.config", {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    for path, text in (
        ("forge-supervisor/config.toml", OWN),
        ("systemd/user/forge-metrics.socket.d/port.conf", PORT.format(port)),
    ):
        machine.write("/tmp/gauger", text)
        machine.run("install", "-D", "/tmp/gauger", f"{home}/{path}", user="gauger")
    machine.run("systemctl", "--user", "daemon-reload", user="gauger", env=env)
    machine.run("systemctl", "--user", "start", "forge-supervisor", "forge-metrics.socket", user="gauger", env=env)
    told = machine.wait_for("SYSLOG_IDENTIFIER=told-own", until=bool)
    assert json.loads(told["MESSAGE"])["agent"] == "ends"
    scraped = samples(Service(machine, port).get(user="gauger"))
    assert scraped["forge_agent_last_exit_code|ends|gauger"] == 4
    assert machine.journal(f"_UID={uid}", "EVENT=hook_failed") == []
    machine.run("systemctl", "--user", "stop", "forge-supervisor", "forge-metrics.socket", user="gauger", env=env)
    machine.run("loginctl", "disable-linger", "gauger")
