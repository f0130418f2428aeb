"""Callers that mean harm: whatever they send, or leave unread, others are answered, and nothing is left of them."""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import json
import os
import resource
import socket
from typing import TYPE_CHECKING, Any

import control_lab
import pytest
from control_lab import Baseline, Lab, frame
from supervisor_lab import config

from forge_supervisor.control import NAME, server
from forge_supervisor.control.peer import Peer
from forge_supervisor.control.rights import Rights

if TYPE_CHECKING:
    from pathlib import Path

Play = Any
STRANGER = Rights(refusal="no")
SLOW: dict[str, Any] = {"model": "obstinate", "stop_timeout_sec": "infinity"}


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return functools.partial(control_lab.play, tmp_path, monkeypatch)


NONSENSE = {
    "a nesting bomb": b"[" * 100_000 + b"\0",
    "a nesting bomb of objects": b'{"a":' * 50_000 + b"\0",
    "invalid JSON": b"{]\0",
    "no UTF-8": b'{"method": "\xff\xfe"}\0',
    "a number of many digits": b'{"method": ' + b"9" * 10_000 + b"}\0",
    "nothing": b"\0",
    "much of nothing": b"\0" * 10_000,
    "a list": b"[]\0",
    "a string": b'"io.forge.Supervisor.Ping"\0',
    "null": b"null\0",
    "not a number": b"NaN\0",
}


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("passed", [0, 200])
def test_nonsense_ends_the_connection_and_leaves_nothing(play: Play, what: str, passed: int) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        async with lab.calling() as caller:
            with contextlib.suppress(ConnectionError):
                if passed:
                    pass_descriptors(caller.connection, NONSENSE[what][:20_000], passed)
                else:
                    await caller.say(NONSENSE[what])
                if what.startswith("a nesting") and passed:
                    await caller.say(NONSENSE[what][20_000:])
            await caller.is_dropped()
            await lab.is_well()
        await lab.quiet(baseline)

    play(config(), scene)


def pass_descriptors(connection: socket.socket, data: bytes, number: int) -> None:
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(open(os.devnull, "rb")).fileno() for _ in range(number)]  # noqa: PTH123
        connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", ends))])


@pytest.mark.parametrize("end", [b"\0", b""])
def test_descriptors_that_come_along_are_closed(play: Play, end: bytes) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.ask("Ping")
            baseline = Baseline()
            call = frame("Ping").removesuffix(b"\0")
            pass_descriptors(caller.connection, call + end, 200)
            if not end:
                pass_descriptors(caller.connection, b"\0", 100)
            assert "parameters" in await caller.answer()
            await lab.quiet(baseline)

    play(config(), scene)


def test_descriptors_are_closed_while_a_call_waits(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        lab.bench.supervisor.lives["slow"].stop()
        async with lab.calling() as caller:
            await caller.ask("Ping")
            before = Baseline().descriptors
            pass_descriptors(caller.connection, frame("Start", {"agents": ["slow"]}), 200)
            await lab.bench.supervisor.fleet.until(lambda: lab.bench.supervisor.lives["slow"].start_again)
            assert Baseline().descriptors <= before + 1
            lab.bench.sessions["slow"][0].kill()
            await caller.answer()

    play(config(slow=SLOW), scene)


@pytest.mark.parametrize("data", [b'"' + b"x" * 2_000_000, b"x" * 1_000_000 + b"\0"])
def test_a_huge_call_ends_the_connection(play: Play, data: bytes) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        async with lab.calling() as caller:
            with contextlib.suppress(ConnectionError):
                await caller.say(data)
            await caller.is_dropped()
        await lab.is_well()
        await lab.quiet(baseline)

    play(config(), scene)


def test_a_large_call_is_taken(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        answer = await lab.ask("Start", agents=[f"{n:x}" for n in range(10_000)], unknown="x" * 300_000)
        assert answer["error"]

    play(config(), scene)


@pytest.mark.parametrize("word", [b"\0", b" ", b"{}\0", frame("Ping")])
def test_who_never_stops_talking_lets_others_speak(play: Play, word: bytes) -> None:
    async def scene(lab: Lab) -> None:
        talking = [asyncio.to_thread(talk, os.fspath(lab.path), word) for _ in range(2)]
        talkers = asyncio.gather(*talking)
        for _ in range(20):
            await lab.is_well()
        lab.server.hang_up()
        await talkers

    play(config(), scene)


def talk(path: str, word: bytes) -> None:
    """Talk without a pause and without listening, until nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(word * (65536 // len(word)))


def test_who_never_reads_is_dropped_and_costs_next_to_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_TIMEOUT", 0.5)

    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with lab.calling() as caller:
            with pytest.raises(ConnectionError):
                await caller.say(frame("List") * 100_000)
        await lab.is_well()
        await lab.quiet(baseline)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000

    play(config(None, **{f"a{n}": {} for n in range(20)}), scene)


def test_the_connections_of_a_user_are_bounded_and_those_of_operators_are_not(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        lab.peer, lab.rights = Peer(4711, frozenset(), None), STRANGER
        callers = [await lab.caller() for _ in range(100)]
        answered = 0
        for caller in callers:
            with contextlib.suppress(ConnectionError):
                await caller.ask("Ping")
                answered += 1
        assert answered == server.MOST_OF_ONE_USER
        await lab.is_well()
        lab.peer = Peer(4712, frozenset(), None)
        assert "parameters" in await lab.ask("Ping")
        # A member of the group, whose uid is any.
        lab.rights = control_lab.ROOT
        operators = [await lab.caller() for _ in range(100)]
        for operator in operators:
            assert "parameters" in await operator.ask("Ping")
        for caller in callers + operators:
            caller.hang_up()
        await lab.quiet(baseline)
        lab.peer, lab.rights = Peer(4711, frozenset(), None), STRANGER
        assert "parameters" in await lab.ask("Ping")

    play(config(), scene)


def test_many_users_do_not_keep_an_operator_out(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CALLERS", 10)

    async def scene(lab: Lab) -> None:
        lab.rights = STRANGER
        callers = []
        for uid in range(1000, 1020):
            lab.peer = Peer(uid, frozenset(), None)
            callers.append(await lab.caller())
        with pytest.raises(ConnectionError):
            await callers[-1].ask("Ping")
        lab.rights = control_lab.ROOT
        assert "parameters" in await lab.ask("Ping")
        await lab.is_well()
        for caller in callers:
            caller.hang_up()

    play(config(), scene)


HANG_UPS = {
    "Monitor": frame("Monitor", more=True),
    "Monitor and more": frame("Monitor", more=True) + b"x",
    "Monitor and another call": frame("Monitor", more=True) + frame("Ping"),
    "Start": frame("Start", {"agents": ["slow"]}),
    "Stop": frame("Stop", {"agents": ["slow"]}),
    "Stop and more": frame("Stop", {"agents": ["slow"]}) + b"x" * 4000,
    "oneway Stop": frame("Stop", {"agents": ["slow"]}, oneway=True),
    "half a call": b'{"method',
    "nothing": b"",
}


@pytest.mark.parametrize("what", HANG_UPS)
def test_of_a_thousand_that_hang_up_nothing_is_left_although_nothing_happens(play: Play, what: str) -> None:
    async def scene(lab: Lab) -> None:
        lab.bench.supervisor.lives["slow"].stop()
        baseline = Baseline()
        listeners = len(lab.bench.feed._listeners)
        for n in range(1000):
            caller = await lab.caller()
            await caller.say(HANG_UPS[what])
            if what.startswith("Monitor") and n % 2:
                await caller.answer()
            elif n % 3 == 0:
                await lab.is_well()
            caller.hang_up()
        await lab.quiet(baseline)
        assert len(lab.bench.feed._listeners) == listeners
        assert not lab.server._callers and not +lab.server._of_user
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert sum(not timer.cancelled() for timer in timers) < 10

    play(config(slow=SLOW), scene)


def test_a_oneway_call_is_done_although_its_caller_does_not_stay(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            calls = (frame("Stop", {"agents": [name]}, oneway=True) for name in "ab")
            await caller.say(b"".join(calls))
        await lab.bench.until("2 inactive")

    play(config(a={}, b={}), scene)


def test_who_half_closes_is_answered_all_the_same(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        lab.bench.supervisor.lives["slow"].stop()
        async with lab.calling() as caller:
            await caller.say(frame("Ping") + frame("Start", {"agents": ["slow"]}) + frame("Ping"))
            caller.connection.shutdown(socket.SHUT_WR)
            assert "parameters" in await caller.answer()
            lab.bench.sessions["slow"][0].kill()
            assert (await caller.answer())["parameters"]["agents"][0]["state"] == "running"
            assert "parameters" in await caller.answer()
            await caller.is_dropped()
        await lab.quiet(baseline)

    play(config(slow=SLOW), scene)


def test_who_listens_no_more_is_not_waited_for(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()
        async with lab.calling() as caller:
            caller.connection.shutdown(socket.SHUT_RD)
            with contextlib.suppress(ConnectionError):
                await caller.send("List")
            await caller.is_dropped()
        await lab.quiet(baseline)

    play(config(a={}), scene)


ODD = {
    "no more on Monitor": (frame("Monitor"), "org.varlink.service.ExpectedMore"),
    "an unknown interface": (frame("io.forge.Nothing.Ping"), "org.varlink.service.InterfaceNotFound"),
    "an unknown method": (frame("Explode"), "org.varlink.service.MethodNotFound"),
    "an attribute": (frame("hung_up"), "invalid.asyncvarlink.ProtocolViolation"),
    "a private attribute": (frame("_office"), "invalid.asyncvarlink.ProtocolViolation"),
    "a magic attribute": (frame("__class__"), "invalid.asyncvarlink.ProtocolViolation"),
    "no interface": (b'{"method": "Ping"}\0', "invalid.asyncvarlink.ProtocolViolation"),
    "no method": (b"{}\0", "invalid.asyncvarlink.ProtocolViolation"),
    "more and oneway": (frame("Monitor", more=True, upgrade=True), "invalid.asyncvarlink.ProtocolViolation"),
    "an unknown field": (frame("List", {"colour": "red"}), "org.varlink.service.InvalidParameter"),
    "a missing field": (frame("Show"), "org.varlink.service.InvalidParameter"),
    "no list": (frame("Start", {"agents": "a"}), "org.varlink.service.InvalidParameter"),
    "a list of numbers": (frame("Start", {"agents": [1]}), "org.varlink.service.InvalidParameter"),
    "a list of lists": (frame("Start", {"agents": [["a"]]}), "org.varlink.service.InvalidParameter"),
    "null": (frame("Start", {"agents": None}), "org.varlink.service.InvalidParameter"),
    "an object": (frame("Start", {"agents": {"a": {}}}), "org.varlink.service.InvalidParameter"),
    "a word for a boolean": (frame("Reload", {"dry_run": "no"}), "org.varlink.service.InvalidParameter"),
    "10,000 names": (frame("Start", {"agents": [f"x{n}" for n in range(10_000)]}), f"{NAME}.NoSuchAgent"),
    "a huge name": (frame("Show", {"agent": "x" * 400_000}), f"{NAME}.NoSuchAgent"),
    "half a character": (frame("Show", {"agent": "\ud800"}), f"{NAME}.NoSuchAgent"),
    "NUL": (frame("Show", {"agent": "a\0"}), f"{NAME}.NoSuchAgent"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_call_is_answered_by_a_clear_error_and_the_next_one_too(play: Play, what: str) -> None:
    async def scene(lab: Lab) -> None:
        call, error = ODD[what]
        async with lab.calling() as caller:
            await caller.say(call)
            assert (await caller.answer())["error"] == error
            assert "parameters" in await caller.ask("Ping")

    play(config(a={}), scene)


@pytest.mark.parametrize(
    "call",
    [
        frame("List", more=True),
        frame("List", upgrade=True),
        json.dumps({"method": f"{NAME}.List"}).encode() + b"\0",
        frame("List", whatever=1),
        frame("Start", {"agents": []}),
        frame("Start", {"agents": ["a", "a"]}),
        frame("Reload", {"dry_run": None}),
    ],
)
def test_a_harmless_oddity_is_answered_once(play: Play, call: bytes) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.say(call)
            answer = await caller.answer()
            assert "error" not in answer and not answer.get("continues")
            assert len(answer["parameters"].get("agents", [1])) == (0 if b"[]" in call else 1)
            assert "version" in (await caller.ask("Ping"))["parameters"]

    play(config(a={}), scene)


@pytest.mark.parametrize("method", ["Explode", "Monitor", "List", "Show"])
def test_a_oneway_call_is_never_answered(play: Play, method: str) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send(method, oneway=True)
            assert "version" in (await caller.ask("Ping"))["parameters"]

    play(config(a={}), scene)


def test_the_server_can_be_closed_in_the_middle_of_everything(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        baseline = Baseline()

        async def reload(_dry_run: bool) -> list[str]:
            await asyncio.sleep(0.05)
            return []

        lab.reload = reload
        callers = [await lab.caller() for _ in range(40)]
        calls = [*HANG_UPS.values(), frame("Reload"), frame("Reload", oneway=True), frame("List") * 50]
        for n, caller in enumerate(callers):
            await caller.say(calls[n % len(calls)])
        await lab.is_well()
        await lab.server.close()
        for caller in callers:
            await caller.is_dropped()
            caller.hang_up()
        baseline.descriptors -= 2  # what it listens on, and what tells it of hang-ups
        await lab.quiet(baseline)
        assert not lab.path.exists()

    play(config(slow=SLOW), scene)


def test_where_no_descriptor_is_left_callers_wait_until_there_is(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.01)

    async def scene(lab: Lab) -> None:
        tried_again = asyncio.Event()
        serve = lab.server.serve

        def try_again() -> None:
            tried_again.set()
            serve()

        monkeypatch.setattr(lab.server, "serve", try_again)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with lab.calling() as caller:
            await caller.send("Ping")
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                await tried_again.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert "parameters" in await caller.answer()

    play(config(), scene)


def test_a_socket_that_was_left_behind_is_replaced_and_all_may_connect(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        await lab.server.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
            left.bind(os.fspath(lab.path))
        lab.server.start()
        lab.server.serve()
        assert lab.path.stat().st_mode & 0o777 == 0o666
        await lab.is_well()

    play(config(), scene)
