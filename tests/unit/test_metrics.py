"""Metrics as whoever scrapes them finds them: on a real socket, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from forge_supervisor import events, metrics, metrics_server, version
from forge_supervisor.activity import Doing
from forge_supervisor.control.interface import Agent
from forge_supervisor.counts import Counts
from forge_supervisor.memory import State
from forge_supervisor.metrics_server import LONGEST_HEAD, MOST_CLIENTS, NAME, MetricsServer
from forge_supervisor.policy import Result
from forge_supervisor.spend.prices import Tokens
from forge_supervisor.spend.totals import Total

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.core import Metric

CHECKOUT = Path(__file__).parents[2]
MONITORING = CHECKOUT / "monitoring"
TIMEOUT = 30
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
WHO: dict[str, Any] = {"agent": "scout", "run_as": "team"}
RUN: dict[str, Any] = {**WHO, "pid": 7, "invocation": "c0ffee"}
SCOUT = Agent(
    name="scout",
    run_as="team",
    harness="command",
    model=None,
    enabled=True,
    state="running",
    since_usec=1,
    activity=None,
    activity_detail=None,
    activity_since_usec=None,
    limited_until_usec=None,
    context_percent=None,
    limits=[],
    result="success",
    exit_code=3,
    signal=None,
    start_limit_hit=False,
    daily_limit_hit=False,
    n_restarts=0,
    pid=7,
    invocation="c0ffee",
    started_usec=1_700_000_000_250_000,
    restart_usec=None,
    memory=123_456_789_012,
    scope=None,
    socket_name="forge",
    declared_otherwise=False,
)
IDLE = replace(SCOUT, name="idle", enabled=False, state="inactive", exit_code=None, started_usec=None, memory=None)


def exited(result: str) -> events.AgentExited:
    return events.AgentExited(
        **RUN, exit_code=1, signal=None, uptime_sec=1.0, result=result, n_restarts=0, next="", screen=""
    )


def failed(*, limit: bool) -> events.AgentFailed:
    return events.AgentFailed(
        **WHO,
        result="exit-code",
        start_limit_hit=limit,
        n_restarts=0,
        limit_burst=3,
        limit_interval_sec=60.0,
        daily_limit_hit=False,
        limit_daily=200,
    )


USED = {("scout", "team"): Total(Tokens(1, 2, 3, 4, 5), 0.25, 7)}

HISTORY = [
    events.AgentStarted(**RUN, n_restarts=0),
    exited("exit-code"),
    events.AgentRestarting(**WHO, delay_sec=5, n_restarts=0),
    events.AgentStarted(**RUN, n_restarts=1),
    exited("exit-code"),
    events.AgentStartFailed(**WHO, key="", problem="", n_restarts=2, next=""),
    failed(limit=True),
    events.AgentAdopted(**RUN, uptime_sec=1.0, n_restarts=1),
    exited("lost"),
    failed(limit=False),
]


def parsed(text: str) -> Iterator[Metric]:
    parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families
    return parse(text)


def families(*agents: Agent, history: list[Any] | None = None) -> dict[str, Metric]:
    counts = Counts()
    for event in HISTORY if history is None else history:
        counts.heard("scout", event)
    text = metrics.exposed(agents, counts, USED.get).decode()
    return {family.name: family for family in parsed(text)}


def values(family: Metric, **labels: str) -> dict[str, float]:
    """Of samples with these labels, by what the others say."""
    found = {}
    for sample in family.samples:
        if labels.items() <= sample.labels.items():
            rest = {key: value for key, value in sample.labels.items() if key not in labels}
            found["".join(rest.values())] = sample.value
    return found


TEAM = {"agent": "scout", "user": "team"}


def test_names_types_units_and_labels_are_an_interface() -> None:
    told = {
        name: (family.type, family.unit, tuple(sorted(family.samples[0].labels)))
        for name, family in families(replace(SCOUT, activity="idle")).items()
    }
    who = ("agent", "user")
    assert told == {
        "forge_up": ("gauge", "", ()),
        "forge": ("info", "", ("version",)),
        "forge_agent_state": ("gauge", "", ("agent", "state", "user")),
        "forge_agent_activity": ("gauge", "", ("activity", "agent", "user")),
        "forge_agent_up": ("gauge", "", who),
        "forge_agent_enabled": ("gauge", "", who),
        "forge_agent_memory_bytes": ("gauge", "bytes", who),
        "forge_agent_started_timestamp_seconds": ("gauge", "seconds", who),
        "forge_agent_last_exit_code": ("gauge", "", who),
        "forge_agent_starts": ("counter", "", who),
        "forge_agent_start_failures": ("counter", "", who),
        "forge_agent_restarts": ("counter", "", who),
        "forge_agent_start_limit_hits": ("counter", "", who),
        "forge_agent_exits": ("counter", "", ("agent", "result", "user")),
        "forge_agent_tokens": ("counter", "", ("agent", "kind", "user")),
        "forge_agent_cost_usd": ("counter", "", who),
        "forge_agent_unpriced_tokens": ("counter", "", who),
    }


def test_the_supervisor_is_up_and_tells_its_version() -> None:
    told = families()
    assert values(told["forge_up"]) == {"": 1}
    assert values(told["forge"]) == {version(): 1}


@pytest.mark.parametrize("state", State)
def test_an_agent_is_in_one_state_of_all(state: State) -> None:
    told = families(replace(SCOUT, state=state))
    assert values(told["forge_agent_state"], **TEAM) == {**dict.fromkeys(State, 0.0), state: 1.0}
    assert values(told["forge_agent_up"], **TEAM) == {"": float(state is State.RUNNING)}


def test_an_agent_does_one_thing_of_all_or_nothing_that_is_known() -> None:
    told = families(replace(SCOUT, activity="limited"))
    wanted: dict[str, float] = {**dict.fromkeys(map(str, Doing), 0.0), "limited": 1.0}
    assert values(told["forge_agent_activity"], **TEAM) == wanted
    assert not families(SCOUT)["forge_agent_activity"].samples


def test_what_is_known_of_an_agent_is_told_and_nothing_else() -> None:
    told = families(SCOUT, IDLE)
    for name, of_scout, of_idle in (
        ("enabled", {"": 1}, {"": 0}),
        ("memory_bytes", {"": 123_456_789_012}, {}),
        ("started_timestamp_seconds", {"": 1_700_000_000.2}, {}),
        ("last_exit_code", {"": 3}, {}),
    ):
        family = told[f"forge_agent_{name}"]
        assert values(family, **TEAM) == of_scout, name
        assert values(family, agent="idle", user="team") == of_idle, name


def test_what_happens_is_counted() -> None:
    told = families(SCOUT, IDLE)
    for name, count in (("starts", 2), ("start_failures", 1), ("restarts", 2), ("start_limit_hits", 1)):
        family = told[f"forge_agent_{name}"]
        assert values(family, **TEAM) == {"": count}, name
        assert values(family, agent="idle", user="team") == {"": 0}, "a counter begins at 0, so that rises are seen"
    exits = {**dict.fromkeys(Result, 0), Result.EXIT_CODE: 2, Result.LOST: 1}
    assert values(told["forge_agent_exits"], **TEAM) == exits
    assert {sample.name for sample in told["forge_agent_exits"].samples} == {"forge_agent_exits_total"}


def test_who_is_gone_is_dropped_and_forgotten() -> None:
    counts = Counts()
    counts.heard("scout", events.AgentStarted(**RUN, n_restarts=0))
    assert b'forge_agent_starts_total{agent="scout",user="team"} 1.0' in metrics.exposed([SCOUT], counts)
    others = replace(SCOUT, run_as="other")
    assert b'forge_agent_starts_total{agent="scout",user="other"} 0.0' in metrics.exposed([others], counts)
    assert b"team" not in metrics.exposed([others], counts)
    assert b'forge_agent_starts_total{agent="scout",user="team"} 0.0' in metrics.exposed([SCOUT], counts)


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    """It would take a megabyte of every supervisor."""
    script = (
        "import sys, forge_supervisor.daemon as daemon; assert 'prometheus_client' not in sys.modules; "
        "import forge_supervisor.metrics; assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# Over the socket


def serving(
    directory: Path, client: Callable[[Path], Awaitable[None]], scrape: Callable[[], tuple[str, bytes]] | None = None
) -> None:
    def usual() -> tuple[str, bytes]:
        return metrics.CONTENT_TYPE, metrics.exposed([SCOUT], Counts())

    async def run() -> None:
        server = MetricsServer(directory, scrape or usual)
        await server.start()
        try:
            async with asyncio.timeout(TIMEOUT):
                await client(directory / NAME)
        finally:
            await server.close()
        assert not (directory / NAME).exists()

    asyncio.run(run())


async def ask(path: Path, request: bytes = GET) -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def is_served(path: Path) -> bool:
    return (await ask(path))[0] == "HTTP/1.1 200 OK"


def test_a_scrape(tmp_path: Path) -> None:
    async def client(path: Path) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666  # noqa: PTH116
        for request in (GET, GET.replace(b"/metrics", b"/metrics?name[]=forge_up")):
            status, headers, body = await ask(path, request)
            assert status == "HTTP/1.1 200 OK"
            assert headers == {
                "Content-Type": "application/openmetrics-text; version=1.0.0; charset=utf-8",
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
            assert "forge_up" in {family.name for family in parsed(body.decode())}

    serving(tmp_path, client)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\xff\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * LONGEST_HEAD + b"\r\n\r\n", "431 Request Header Fields Too Large"),
    ],
)
def test_what_is_no_scrape(tmp_path: Path, request_: bytes, status: str) -> None:
    async def client(path: Path) -> None:
        told, headers, _ = await ask(path, request_)
        assert told == f"HTTP/1.1 {status}"
        assert headers.get("Allow") == ("GET" if status.startswith("405") else None)
        assert await is_served(path)

    serving(tmp_path, client)


def test_a_head_without_an_end_is_read_no_further(tmp_path: Path) -> None:
    async def client(path: Path) -> None:
        with connected(path) as connection, pytest.raises(ConnectionError):
            await asyncio.to_thread(connection.sendall, b"x" * (64 << 20))
        assert await is_served(path)

    serving(tmp_path, client)


def test_who_asks_for_nothing_is_cut_off_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.2)

    async def client(path: Path) -> None:
        for begun in (b"", b"GET /metrics HTTP/1.1\r\nHost"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(begun)
            assert await reader.read() == b""
            writer.transport.abort()
        assert await is_served(path)

    serving(tmp_path, client)


def test_who_does_not_read_is_cut_off_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT", 0.2)
    content = b"x" * (8 << 20)

    async def client(path: Path) -> None:
        with connected(path) as connection:
            connection.sendall(GET)
            await asyncio.to_thread(until_hung_up, connection)
            received = b""
            while more := connection.recv(1 << 20):
                received += more
            assert len(received) < len(content)

    serving(tmp_path, client, lambda: ("text/plain", content))


def test_a_large_answer_is_whole(tmp_path: Path) -> None:
    content = b"x" * (8 << 20)

    async def client(path: Path) -> None:
        assert (await ask(path))[2] == content

    serving(tmp_path, client, lambda: ("text/plain", content))


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    connection.connect(os.fspath(path))
    return connection


def until_hung_up(connection: socket.socket) -> None:
    look = select.poll()
    look.register(connection, 0)  # POLLHUP alone
    assert look.poll(TIMEOUT * 1000)


def test_a_user_of_many_connections_keeps_out_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = iter([1, *[2] * 50, 3, *[2] * 50])
    monkeypatch.setattr(metrics_server, "_uid_of", lambda _: next(uids))

    async def client(path: Path) -> None:
        opened = []
        for _ in range(102):
            opened.append(await asyncio.open_unix_connection(path))
            await asyncio.sleep(0.001)  # the queue of those that are yet to be accepted is short
        for reader, writer in (opened[0], opened[51]):
            writer.write(GET)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        for _, writer in opened:
            writer.transport.abort()

    serving(tmp_path, client)


def test_a_hundred_connections_leave_it_standing(tmp_path: Path) -> None:
    async def client(path: Path) -> None:
        many: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        while len(many) < 100:
            try:
                many.append(await asyncio.open_unix_connection(path))
            except BlockingIOError:  # the queue of those that are yet to be accepted is full
                await asyncio.sleep(0)
        dropped = [asyncio.create_task(reader.read()) for reader, _ in many[:-MOST_CLIENTS]]
        for task in dropped:
            assert await task == b""
        # Those that came last are served: who comes now is not to be kept out by who came before.
        reader, writer = many[-1]
        writer.write(GET)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        for _, writer in many:
            writer.transport.abort()
        while not await is_served_if_let_in(path):
            pass

    serving(tmp_path, client)


async def is_served_if_let_in(path: Path) -> bool:
    try:
        return await is_served(path)
    except (ConnectionError, ValueError):
        return False


def test_a_fault_of_ours_is_an_answer_too(tmp_path: Path) -> None:
    def faulty() -> tuple[str, bytes]:
        raise ZeroDivisionError

    async def client(path: Path) -> None:
        assert (await ask(path))[0] == "HTTP/1.1 500 Internal Server Error"

    serving(tmp_path, client, faulty)


def test_a_socket_that_was_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")

    async def client(path: Path) -> None:
        assert await is_served(path)

    serving(tmp_path, client)


def test_who_is_being_served_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT", TIMEOUT)
    held = []
    begun = time.monotonic()

    async def client(path: Path) -> None:
        held.append(connected(path))
        assert await is_served(path)

    serving(tmp_path, client)
    with held[0] as connection:
        assert connection.recv(1) == b""
    assert time.monotonic() - begun < TIMEOUT / 2


# What is made of them


def exported() -> set[str]:
    return {sample.name for family in families(SCOUT).values() for sample in family.samples}


def named(expression: str) -> set[str]:
    """The metrics in an expression: what is no function, no label and no word of PromQL's."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\b(?:on|by|without|ignoring|group_left)\s*\([^)]*\)|\[[^\]]*\]', " ", expression)
    words = re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "bool", "offset", "by", "on"}


def rules() -> dict[str, str]:
    """The alerts and their expressions. Each is on one line, which takes no YAML to be read."""
    text = (MONITORING / "forge.rules.yml").read_text()
    return dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", text))


def test_the_rules_name_what_is_exported() -> None:
    text = (MONITORING / "forge.rules.yml").read_text()
    assert len(rules()) == text.count("alert:") == text.count("expr:") == 5
    for alert, expression in rules().items():
        # `up` is Prometheus's own word on a scrape.
        assert named(expression) <= exported() | {"up"}, alert
        assert named(expression), alert
    assert set(re.findall(r"\bforge_\w+", text)) <= exported()


def queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.sub(r"label_values\((\w+), \w+\)", r"\1", variable["definition"])


def test_the_dashboard_names_what_is_exported() -> None:
    assert len(list(queries())) >= 5
    for title, expression in queries():
        assert named(expression) <= exported(), title
        assert named(expression), title


def test_states_and_results_in_rules_and_dashboard_are_ours() -> None:
    for _, expression in [*rules().items(), *queries()]:
        for label, known in (("state", State), ("result", Result)):
            for value in re.findall(rf'\b{label}!?=~?"([^"$]*)"', expression):
                assert set(value.split("|")) <= set(known), expression


def test_what_was_used_is_told_of_agents_of_which_something_is_known() -> None:
    found = families(SCOUT, IDLE)
    tokens = {sample.labels["kind"]: sample.value for sample in found["forge_agent_tokens"].samples}
    assert tokens == {"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5}
    for name, value in (("cost_usd", 0.25), ("unpriced_tokens", 7)):
        (sample,) = found[f"forge_agent_{name}"].samples
        assert (sample.name, sample.labels, sample.value) == (
            f"forge_agent_{name}_total", {"agent": "scout", "user": "team"}, value,
        )  # fmt: skip
