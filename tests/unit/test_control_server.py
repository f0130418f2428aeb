"""What each method of io.forge.Supervisor answers, on a real socket, from a supervisor of fake sessions."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import control_lab
import pytest
from control_lab import Baseline, Caller, Lab
from supervisor_lab import config

from forge_supervisor import events, journal, version
from forge_supervisor.cli import client
from forge_supervisor.config import ConfigError, Problem
from forge_supervisor.control import LONGEST_TEXT, NAME, desk
from forge_supervisor.control.interface import Agent, UsageRow
from forge_supervisor.control.rights import Rights
from forge_supervisor.control.server import Server
from forge_supervisor.policy import Exit
from forge_supervisor.spend.store import StoreError
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import Capture, Captured, Done, Send

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Play = Any
ONCE: dict[str, Any] = {"restart": {"policy": "no"}}
SLOW: dict[str, Any] = {"model": "obstinate", "stop_timeout_sec": "infinity"}
TEAM = Rights(user="team", refusal="team may look at its agents only")
MASTER = Rights(user="team", acts=True, refusal="only root may do that")
STRANGER = Rights(refusal="strangers may not")


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return functools.partial(control_lab.play, tmp_path, monkeypatch)


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {agent["name"]: agent["state"] for agent in answer["parameters"]["agents"]}


def error(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return answer["error"].removeprefix(f"{NAME}."), answer.get("parameters", {})


async def begun(lab: Lab, condition: Callable[[], bool]) -> None:
    await lab.bench.supervisor.fleet.until(condition)


# What is told of agents.


def test_list_tells_of_all_that_may_be_seen_those_that_are_disabled_too(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        assert states(await lab.ask("List")) == {"a": "running", "off": "inactive", "theirs": "running"}
        lab.rights = TEAM
        assert states(await lab.ask("List")) == {"a": "running", "off": "inactive"}

    play(config(a={}, off={"enabled": False}, theirs={"run_as": "other"}), scene)


def test_every_field_of_an_agent_that_runs_and_of_one_that_has_failed(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        lab.bench.sessions["b"][0].end(Exit(code=3))
        await lab.bench.until("1 running, 1 failed: b (exit code 3)")
        a, b = (await lab.ask("List"))["parameters"]["agents"]
        assert (a["pid"], a["result"], a["exit_code"], a["n_restarts"]) == (4711, "success", None, 0)
        assert a["enabled"] and not a["declared_otherwise"]
        assert a["invocation"] == lab.bench.supervisor.lives["a"].invocation
        assert b["pid"] is None and b["started_usec"] is None
        assert (b["state"], b["result"], b["exit_code"], b["signal"]) == ("failed", "exit-code", 3, None)
        assert set(a) == set(Agent.__dataclass_fields__)

    play(config(a={}, b=ONCE), scene)


def test_times_are_of_the_clock_that_people_read(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        agent = (await lab.ask("Show", agent="a"))["parameters"]["agent"]
        now = (await lab.ask("Show", agent="a"))["parameters"]["agent"]
        assert abs(agent["started_usec"] - now["started_usec"]) < 1_000_000
        assert agent["since_usec"] <= agent["started_usec"] + 1_000_000
        lab.bench.sessions["a"][0].end(Exit(code=1))
        await begun(lab, lambda: lab.bench.supervisor.lives["a"].state == "auto-restart")
        agent = (await lab.ask("Show", agent="a"))["parameters"]["agent"]
        assert 8_000_000 < agent["restart_usec"] - agent["since_usec"] < 10_000_000

    play(config(a={"restart": {"delay_sec": 9}}), scene)


def test_of_others_agents_one_is_told_as_if_there_were_none(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        lab.rights = MASTER
        nothing = ("NoSuchAgent", {"agent": "theirs", "hint": ""})
        for method in ("Show", "Capture"):
            assert error(await lab.ask(method, agent="theirs")) == nothing
        for method in ("Start", "Stop", "Restart", "ResetFailed"):
            assert error(await lab.ask(method, agents=["a", "theirs"])) == nothing
        assert error(await lab.ask("Send", agent="theirs", text="x")) == nothing
        assert error(await lab.ask("Show", agent="nobody")) == ("NoSuchAgent", {"agent": "nobody", "hint": ""})
        assert lab.bench.supervisor.status() == "2 running"

    play(config(a={}, theirs={"run_as": "other"}), scene)


def test_who_means_another_is_told_so(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        assert error(await lab.ask("Show", agent="scuot"))[1]["hint"] == '(did you mean "scout"?)'

    play(config(scout={}), scene)


# Who may not.


@pytest.mark.parametrize("method", ["Start", "Stop", "Restart", "ResetFailed"])
def test_who_may_look_only_does_nothing(play: Play, method: str) -> None:
    async def scene(lab: Lab) -> None:
        lab.rights = TEAM
        assert error(await lab.ask(method, agents=["a"])) == ("NotPermitted", {"reason": TEAM.refusal})
        assert error(await lab.ask("Send", agent="a", text="x")) == ("NotPermitted", {"reason": TEAM.refusal})
        assert lab.bench.supervisor.status() == "1 running"

    play(config(a={}), scene)


def test_a_stranger_may_ping_and_is_refused_all_else_in_clear_words(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        lab.rights = STRANGER
        refused = ("NotPermitted", {"reason": STRANGER.refusal})
        assert (await lab.ask("Ping"))["parameters"] == {"version": version(), "pid": os.getpid()}
        assert error(await lab.ask("List")) == refused
        for method in ("Show", "Capture"):
            assert error(await lab.ask(method, agent="a")) == refused
        for method in ("Start", "Stop", "Restart", "ResetFailed"):
            assert error(await lab.ask(method, agents=["a"])) == refused
            assert error(await lab.ask(method, agents=[])) == refused
        assert error(await lab.ask("Send", agent="a", text="x")) == refused
        assert error(await lab.ask("Reload")) == refused
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            assert error(await caller.answer()) == refused

    play(config(a={}), scene)


def test_reload_is_for_operators(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        for rights in (TEAM, MASTER, STRANGER):
            lab.rights = rights
            assert error(await lab.ask("Reload")) == ("NotPermitted", {"reason": rights.refusal})
        assert lab.reloaded == []
        lab.rights = control_lab.ROOT
        assert (await lab.ask("Reload", dry_run=True))["parameters"] == {"plan": ["a: is started"]}
        await lab.ask("Reload")
        assert lab.reloaded == [True, False]

    play(config(a={}), scene)


def test_a_broken_configuration_is_told_problem_by_problem(play: Play) -> None:
    async def broken(_dry_run: bool) -> list[str]:
        raise ConfigError([Problem("agents.a", "is broken"), Problem("agents.b", "too")])

    async def scene(lab: Lab) -> None:
        lab.reload = broken
        name, parameters = error(await lab.ask("Reload"))
        assert name == "BadConfiguration" and len(parameters["problems"]) == 2

    play(config(a={}), scene)


# What is done to agents, and until when it is waited for.


def test_start_returns_when_all_run_or_have_failed_to(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        await lab.ask("Stop", agents=["a", "b"])
        lab.bench.sessions.clear()
        assert states(await lab.ask("Start", agents=["a", "b"])) == {"a": "running", "b": "failed"}

    play(config(a={}, b={"model": "broken", **ONCE}), scene)


def test_a_restart_goes_on_or_begins_anew_as_it_is_asked_to(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        for fresh in ({}, {"fresh": True}, {"fresh": False}, {"fresh": None}):
            assert states(await lab.ask("Restart", agents=["a"], **fresh)) == {"a": "running"}
        assert [session.fresh for session in lab.bench.sessions["a"]] == [False, False, True, False, False]

    play(config(a={"restart": {"limit_burst": 0}}), scene)


def test_start_returns_although_those_that_it_starts_crash_for_ever(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        names = [f"a{n}" for n in range(12)]
        answer = await lab.ask("Restart", agents=names)
        assert len(answer["parameters"]["agents"]) == 12
        await lab.ask("Stop", agents=names)

    loop: dict[str, Any] = {"model": "crasher", "restart": {"delay_sec": 0, "limit_burst": 0}}
    play(config(None, **{f"a{n}": loop for n in range(12)}), scene)


def test_a_start_that_hits_the_start_limit_says_so(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        await lab.ask("Stop", agents=["a"])
        (agent,) = (await lab.ask("Start", agents=["a"]))["parameters"]["agents"]
        assert (agent["state"], agent["start_limit_hit"]) == ("failed", True)
        (agent,) = (await lab.ask("ResetFailed", agents=["a"]))["parameters"]["agents"]
        assert (agent["state"], agent["start_limit_hit"]) == ("inactive", False)
        assert states(await lab.ask("Start", agents=["a"])) == {"a": "running"}

    play(config(a={"restart": {"limit_burst": 1}}), scene)


def test_one_that_is_disabled_is_not_started_nor_are_those_beside_it(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        await lab.ask("Stop", agents=["a"])
        for method in ("Start", "Restart"):
            assert error(await lab.ask(method, agents=["a", "off"])) == ("Disabled", {"agent": "off"})
        assert states(await lab.ask("Stop", agents=["off"])) == {"off": "inactive"}
        assert states(await lab.ask("ResetFailed", agents=["off"])) == {"off": "inactive"}
        assert lab.bench.supervisor.status() == "1 inactive"

    play(config(a={}, off={"enabled": False}), scene)


def test_stop_returns_when_nothing_is_left(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Stop", {"agents": ["slow"]})
            await lab.bench.until("1 stopping")
            await lab.is_well()
            lab.bench.sessions["slow"][0].kill()
            assert states(await caller.answer()) == {"slow": "failed"}

    play(config(slow=SLOW), scene)


def test_a_restart_waits_for_the_stop_and_for_the_start(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Restart", {"agents": ["slow"]})
            await lab.bench.until("1 stopping")
            lab.bench.sessions["slow"][0].kill()
            assert states(await caller.answer()) == {"slow": "running"}
            assert len(lab.bench.sessions["slow"]) == 2

    play(config(slow=SLOW), scene)


def test_a_stop_in_the_middle_of_a_start_ends_both_calls(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        await lab.ask("Stop", agents=["a"])
        async with lab.calling() as starter, lab.calling() as stopper:
            life = lab.bench.supervisor.lives["a"]
            await starter.send("Start", {"agents": ["a"]})
            await begun(lab, lambda: life.state == "starting")
            # Before it has started: slow ones take fifty rounds of the loop.
            await stopper.send("Stop", {"agents": ["a"]})
            assert states(await stopper.answer()) == {"a": "inactive"}
            # How it is by now, be that still on its way down.
            assert states(await starter.answer())["a"] in {"running", "stopping", "inactive"}

    play(config(a={"model": None}), scene)


def test_who_waits_for_one_that_a_reload_removes_is_answered_without_it(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Restart", {"agents": ["a", "slow"]})
            await begun(lab, lambda: lab.bench.supervisor.lives["slow"].state == "stopping")
            reloading = asyncio.create_task(lab.bench.supervisor.reload(config(a={})))
            await begun(lab, lambda: not lab.bench.supervisor.lives["slow"].start_again)
            lab.bench.sessions["slow"][0].kill()
            assert states(await caller.answer())["a"] == "running"
            await reloading
            assert states(await lab.ask("List")) == {"a": "running"}

    play(config(a={}, slow=SLOW), scene)


@pytest.mark.parametrize("after", [{}, {"slow": {"enabled": False}}, {"slow": {"run_as": "other"}}])
def test_what_a_reload_stops_nobody_starts_meanwhile(play: Play, after: dict[str, Any]) -> None:
    async def scene(lab: Lab) -> None:
        reloading = asyncio.create_task(lab.bench.supervisor.reload(config(None, **after)))
        await begun(lab, lambda: lab.bench.supervisor.lives["slow"].state == "stopping")
        for method in ("Start", "Restart"):
            name, parameters = error(await lab.ask(method, agents=["slow"]))
            assert name == "Failed" and "reload" in parameters["reason"]
        lab.bench.sessions["slow"][0].kill()
        await reloading
        assert len(lab.bench.sessions["slow"]) == (2 if after.get("slow", {}).get("run_as") else 1)

    play(config(slow=SLOW), scene)


@pytest.mark.parametrize("leaves", [False, True])
def test_nothing_is_begun_once_the_supervisor_ends(play: Play, leaves: bool) -> None:
    async def scene(lab: Lab) -> None:
        await lab.ask("Stop", agents=["a"])
        supervisor = lab.bench.supervisor
        ending = asyncio.create_task(supervisor.leave() if leaves else supervisor.stop())
        await asyncio.sleep(0)
        for method in ("Start", "Restart", "Stop", "ResetFailed"):
            name, parameters = error(await lab.ask(method, agents=["a"]))
            assert name == "Failed" and "being stopped" in parameters["reason"]
        assert error(await lab.ask("Reload"))[0] == "Failed"
        assert (await lab.ask("Reload", dry_run=True))["parameters"]
        assert lab.reloaded == [True]
        assert states(await lab.ask("List"))["a"] == "inactive"
        lab.bench.sessions["slow"][0].kill()
        await ending
        assert len(lab.bench.sessions["a"]) == 1

    play(config(a={}, slow=SLOW), scene)


def test_who_comes_early_waits_until_something_true_can_be_told(play: Play, tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        (tmp_path / "early").mkdir()
        early = Server(tmp_path / "early", lab.server._office)
        early.start()
        lab.path = tmp_path / "early" / NAME
        async with lab.calling() as caller:
            await caller.send("Ping")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.answer(), 0.1)
            early.serve()
            assert "parameters" in await caller.answer()
        await early.close()

    play(config(a={}), scene)


# Screens, and what is typed.


class Realm:
    """Answers for a worker."""

    server_pid: int | None = 42

    def __init__(self, answer: Any) -> None:
        self.asked: list[Any] = []
        self.answer = answer

    async def ask(self, request: Any) -> Any:
        self.asked.append(request)
        answer = self.answer() if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer


def give(lab: Lab, answer: Any) -> Realm:
    realm = Realm(answer)
    lab.bench.supervisor.fleet.realm_of = lambda _user: realm  # type: ignore[method-assign, assignment, return-value]
    return realm


def test_a_screen_is_masked_also_where_a_line_was_broken(play: Play) -> None:
    secret = "sk-" + "0123456789" * 5

    async def scene(lab: Lab) -> None:
        journal.conceal("a", {"KEY": secret}, "team")
        screen = ["", f"key: {secret}", f"wrapped {secret[:30]}", f"{secret[30:]} on", "\x1b[2J", "end"]
        realm = give(lab, Captured(screen=screen))
        shown = (await lab.ask("Capture", agent="a"))["parameters"]["screen"]
        assert len(shown) >= 5 and shown[0] == "" and shown[-1] == "end"
        assert "sk-" not in "".join(shown) and secret[30:] not in "".join(shown)
        assert not any(char < " " for line in shown for char in line)
        assert isinstance(realm.asked[0], Capture)

    try:
        play(config(a={}), scene)
    finally:
        journal._secrets.clear()
        journal._parts.clear()


def test_a_screen_that_cannot_be_had_is_an_error_in_words(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        realm = give(lab, WorkerError("it is gone"))
        assert error(await lab.ask("Capture", agent="a")) == ("Failed", {"reason": "it is gone"})
        realm.answer = Captured(screen=[])
        assert (await lab.ask("Capture", agent="a"))["parameters"] == {"screen": []}
        realm.server_pid = None
        assert error(await lab.ask("Capture", agent="a")) == ("Failed", {"reason": "a has no terminal yet"})

    play(config(a={}), scene)


def test_a_text_goes_to_the_process_that_runs(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        realm = give(lab, Done())
        answer = await lab.ask("Send", agent="a", text="half \ud800 a character\n")
        assert answer["parameters"]["agent"]["name"] == "a"
        assert realm.asked == [Send(agent="a", server=42, pid=4711, text="half  a character\n")]

    play(config(a={}), scene)


def test_what_cannot_be_typed_is_an_error_in_words(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        realm = give(lab, WorkerError("nobody reads"))
        assert error(await lab.ask("Send", agent="a", text="x")) == ("Failed", {"reason": "nobody reads"})
        assert error(await lab.ask("Send", agent="a", text="x" * 100_001))[0] == "Failed"
        assert error(await lab.ask("Send", agent="off", text="x")) == (
            "NotRunning",
            {"agent": "off", "state": "inactive"},
        )
        await lab.ask("Stop", agents=["a"])
        assert error(await lab.ask("Send", agent="a", text="x"))[0] == "NotRunning"
        assert len(realm.asked) == 1

    play(config(a={}, off={"enabled": False}), scene)


def test_an_agent_that_is_removed_while_one_types_is_an_error_in_words(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        def answer() -> Done:
            lab.bench.supervisor.fleet._lives.clear()
            lab.bench.supervisor._config.agents.clear()
            return Done()

        give(lab, answer)
        assert error(await lab.ask("Send", agent="a", text="x")) == ("NoSuchAgent", {"agent": "a", "hint": ""})

    play(config(a={}), scene)


def test_one_types_at_a_time_to_an_agent_so_that_one_that_reads_nothing_takes_up_one_thread(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        free = asyncio.Event()
        at_once = [0, 0]

        class Slow(Realm):
            async def ask(self, request: Any) -> Any:
                at_once[0] += 1
                at_once[1] = max(at_once)
                self.asked.append(request.text)
                await free.wait()
                at_once[0] -= 1
                return Done()

        realm = Slow(None)
        lab.bench.supervisor.fleet.realm_of = lambda _user: realm  # type: ignore[method-assign, assignment, return-value]
        callers = [await lab.caller() for _ in range(5)]
        for n, caller in enumerate(callers):
            await caller.send("Send", {"agent": "a", "text": f"{n}"})
            await lab.is_well()
        callers.pop().hang_up()
        await lab.is_well()
        free.set()
        for caller in callers:
            assert "parameters" in await caller.answer()
            caller.hang_up()
        assert (at_once[1], realm.asked) == (1, ["0", "1", "2", "3"])

    play(config(a={}), scene)


# Monitor.


async def read(caller: Caller, number: int) -> list[tuple[str | None, str | None]]:
    """Read answers: the name of the event, and of the agent."""
    got = []
    for _ in range(number):
        answer = await caller.answer()
        assert answer["continues"]
        event, agent = answer["parameters"]["event"], answer["parameters"]["agent"]
        got.append((event and event["name"], agent and agent["name"]))
    return got


async def read_until(caller: Caller, event: str) -> list[tuple[str | None, str | None]]:
    got: list[tuple[str | None, str | None]] = []
    while not got or got[-1][0] != event:
        got += await read(caller, 1)
    return got


def test_monitor_tells_how_all_are_then_what_happens(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            assert await read(caller, 2) == [(None, "a"), (None, "b")]
            await lab.ask("Stop", agents=["a"])
            told = await read_until(caller, "agent_stopped")
            assert {name for _, name in told} == {"a"} and ("agent_exited", "a") in told
            lab.bench.feed.emit(events.SupervisorReloaded(agents=2))
            assert (await read_until(caller, "supervisor_reloaded"))[-1] == ("supervisor_reloaded", None)

    play(config(a={}, b={}), scene)


def test_monitor_is_silent_of_others_agents_and_of_the_house(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            lab.rights = TEAM
            await caller.send("Monitor", more=True)
            assert await read(caller, 1) == [(None, "a")]
            lab.rights = control_lab.ROOT
            await lab.ask("Restart", agents=["theirs"])
            lab.bench.feed.emit(events.WorkerLost(run_as="other", reason="x"))
            lab.bench.feed.emit(events.StateProblem(problem="x"))
            lab.bench.feed.emit(events.WorkerLost(run_as="team", reason="x"))
            assert await read(caller, 1) == [("worker_lost", None)]

    play(config(a={}, theirs={"run_as": "other"}), scene)


def test_monitor_masks_secrets(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        journal.conceal("a", {"KEY": "hunter2-hunter2"}, "team")
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            await read(caller, 1)
            lab.bench.feed.emit(events.WorkerLost(run_as="team", reason="it said hunter2-hunter2"))
            answer = await caller.answer()
            assert answer["parameters"]["event"]["name"] == "worker_lost"
            assert "hunter2" not in str(answer)

    try:
        play(config(a={}), scene)
    finally:
        journal._secrets.clear()
        journal._parts.clear()


def test_monitor_goes_on_when_a_reload_removes_and_adds_agents(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            await read(caller, 2)
            await lab.bench.supervisor.reload(config(a={}, c={}))
            told = await read_until(caller, "supervisor_reloaded")
            assert {"b", "c"} <= {name for _, name in told}

    play(config(a={}, b={}), scene)


def test_an_agent_that_is_removed_before_its_state_was_told_is_left_out(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            await asyncio.sleep(0.1)  # until it cannot be sent any more
            kept = {name: agent for name, agent in lots.items() if name != "a599"}
            await lab.bench.supervisor.reload(config(None, **kept))
            told = await read_until(caller, "supervisor_reloaded")
            assert len({name for _, name in told}) > 590
            assert (None, "a599") not in told[:590]

    lots: dict[str, Any] = {f"a{n}": {"command": ["x" * 100]} for n in range(600)}
    play(config(None, **lots), scene)


def test_rights_are_not_looked_up_for_each_event_and_yet_are_not_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            await read(caller, 1)
            before = lab.looked_up
            for _ in range(400):
                lab.bench.feed.emit(events.WorkerLost(run_as="team", reason="x"))
            await read(caller, 400)
            assert lab.looked_up - before < 40
            monkeypatch.setattr(desk, "RIGHTS_KEPT", -1.0)
            lab._rights = dict.fromkeys(lab._rights, STRANGER)
            lab.bench.feed.emit(events.WorkerLost(run_as="team", reason="x"))
            lab._rights = dict.fromkeys(lab._rights, control_lab.ROOT)
            lab.bench.feed.emit(events.SupervisorReloaded(agents=1))
            assert await read(caller, 1) == [("supervisor_reloaded", None)]

    play(config(a={}), scene)


def test_monitor_ends_for_who_is_too_slow(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        async with lab.calling() as caller:
            await caller.send("Monitor", more=True)
            await read(caller, 1)
            for n in range(5000):
                lab.bench.feed.emit(events.WorkerLost(run_as="team", reason=f"{n}" * 100))
                if n % 100 == 0:
                    await asyncio.sleep(0)
            while "error" not in (answer := await caller.answer()):
                assert answer["continues"]
            assert error(answer) == ("TooSlow", {})
            assert "parameters" in await caller.ask("Ping")

    play(config(a={}), scene)


# Introspection.


def test_the_interface_describes_itself(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        info = (await lab.ask("org.varlink.service.GetInfo"))["parameters"]
        assert info["interfaces"] == sorted(["org.varlink.service", NAME])
        assert info["product"] == "forge-supervisor"
        described = await lab.ask("org.varlink.service.GetInterfaceDescription", interface=NAME)
        text = described["parameters"]["description"]
        check_idl(text)
        methods = {"Ping", "List", "Show", "Start", "Stop", "Restart", "ResetFailed", "Reload", "Usage"}
        assert set(re.findall(r"^method (\w+)", text, re.MULTILINE)) == methods | {"Capture", "Send", "Monitor"}
        assert set(re.findall(r"^type (\w+)", text, re.MULTILINE)) == {"Agent", "Event", "Limit", "UsageRow"}
        assert set(re.findall(r"^error (\w+)", text, re.MULTILINE)) == {each.__name__ for each in desk.Desk.errors}

    play(config(a={}), scene)


def check_idl(text: str) -> None:
    """See that it is in the grammar of varlink.org/Interface-Definition."""
    text = re.sub(r"#[^\n]*", "", text)
    token = re.compile(r"\s*(->|\[\]|\[string\]|[A-Za-z][\w.]*|[?(),:])")
    tokens: list[str] = []
    position = 0
    while text[position:].strip():
        match = token.match(text, position)
        assert match, text[position : position + 60]
        tokens.append(match[1])
        position = match.end()
    tokens.reverse()
    assert tokens.pop() == "interface" and tokens.pop() == NAME

    def kind() -> None:
        word = tokens.pop()
        if word in {"?", "[]", "[string]"}:
            kind()
        elif word == "(":
            tokens.append(word)
            struct()
        else:
            assert word in {"bool", "int", "float", "string", "object"} or word[0].isupper(), word

    def struct() -> None:
        assert tokens.pop() == "("
        while tokens[-1] != ")":
            assert re.fullmatch(r"[a-z]\w*", tokens.pop())
            assert tokens.pop() == ":"
            kind()
            if tokens[-1] == ",":
                tokens.pop()
                assert tokens[-1] != ")"
        tokens.pop()

    while tokens:
        what, name = tokens.pop(), tokens.pop()
        assert what in {"method", "type", "error"} and re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)
        struct()
        if what == "method":
            assert tokens.pop() == "->"
            struct()


# The client.


def test_the_client_of_forgectl_asks_listens_and_is_told_errors_as_sentences(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_a_thread(first: threading.Event) -> list[Any]:
        told: list[Any] = [client.call("Ping")["pid"]]
        for method, parameters in (
            ("Show", {"agent": "b"}),
            ("Start", {"agents": ["off"]}),
            ("Send", {"agent": "off", "text": "x"}),
            ("Show", {}),
            ("Explode", {}),
        ):
            with pytest.raises(client.CallError) as caught:
                client.call(method, parameters)
            told.append(str(caught.value))
        stream = client.stream("Monitor")
        told += [next(stream)["agent"]["name"], next(stream)["agent"]["name"]]
        first.set()
        told.append(next(stream)["event"]["name"])
        del stream
        return told

    async def scene(lab: Lab) -> None:
        monkeypatch.setenv("FORGE_SOCKET", os.fspath(lab.path))
        baseline = Baseline()
        first = threading.Event()
        thread = asyncio.ensure_future(asyncio.to_thread(in_a_thread, first))
        await asyncio.to_thread(first.wait, 20)
        lab.bench.feed.emit(events.WorkerLost(run_as="team", reason="x"))
        assert await thread == [
            os.getpid(),
            'there is no agent "b"',
            "off is disabled (forgectl enable off)",
            "off is not running, it is inactive (forgectl start off)",
            'org.varlink.service.InvalidParameter: {"parameter": "agent"}',
            'org.varlink.service.MethodNotFound: {"method": "Explode"}',
            "a",
            "off",
            "worker_lost",
        ]
        await lab.quiet(baseline)

    play(config(a={}, off={"enabled": False}), scene)


def test_the_client_sends_the_longest_text_in_any_script(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(lab: Lab) -> None:
        monkeypatch.setenv("FORGE_SOCKET", os.fspath(lab.path))
        realm = give(lab, Done())
        for text in ("\N{CJK UNIFIED IDEOGRAPH-4E00}" * LONGEST_TEXT, "\N{GRINNING FACE}" * LONGEST_TEXT):
            await asyncio.to_thread(client.call, "Send", {"agent": "a", "text": text})
            assert realm.asked.pop().text == text
        # As the arguments of a program are where they are no UTF-8.
        await asyncio.to_thread(client.call, "Send", {"agent": "a", "text": "caf\udce9 x"})
        assert realm.asked.pop().text.startswith("caf")

    play(config(a={}), scene)


def test_the_client_says_what_to_do_where_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_SOCKET", os.fspath(tmp_path / "none"))
    with pytest.raises(client.NotThereError, match="systemctl status forge-supervisor"):
        client.call("Ping")


def test_the_client_says_so_if_the_supervisor_hangs_up(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(lab: Lab) -> None:
        monkeypatch.setenv("FORGE_SOCKET", os.fspath(lab.path))
        thread = asyncio.ensure_future(asyncio.to_thread(client.call, "Stop", {"agents": ["slow"]}))
        await lab.bench.until("1 stopping")
        await lab.server.close()
        with pytest.raises(client.NotThereError, match="hung up"):
            await thread

    play(config(slow=SLOW), scene)


# What agents have used.


def counted(lab: Lab) -> list[tuple[Any, ...]]:
    """Have the supervisor count, and tell what it is asked for."""
    asked: list[tuple[Any, ...]] = []

    async def usage(by: str, since: int, run_as: str | None) -> list[UsageRow]:
        asked.append((by, since, run_as))
        if since == 13:
            raise StoreError("the disk is gone")
        return [UsageRow("2026-11-25", None, None, None, None, 1, 2, 3, 4, 5, 6, None, ["mystery"])]

    object.__setattr__(lab.server._office, "usage", usage)
    return asked


def test_usage_is_told_to_everybody_who_sees_agents_and_to_each_user_of_its_own(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        asked = counted(lab)
        (row,) = (await lab.ask("Usage", by="day"))["parameters"]["rows"]
        assert (row["day"], row["agent"], row["cost_usd"], row["unpriced_models"]) == (
            "2026-11-25", None, None, ["mystery"],
        )  # fmt: skip
        lab.rights = TEAM
        await lab.ask("Usage", by="session", since_usec=5)
        await lab.ask("Usage", by="agent", since_usec=-(10**30))
        await lab.ask("Usage", by="agent", since_usec=10**30)
        assert asked == [("day", 0, None), ("session", 5, "team"), ("agent", 0, "team"), ("agent", 2**62, "team")]
        lab.rights = STRANGER
        assert error(await lab.ask("Usage", by="day")) == ("NotPermitted", {"reason": "strangers may not"})
        assert len(asked) == 4

    play(config(a={}), scene)


def test_usage_that_cannot_be_told_is_refused_with_the_reason(play: Play) -> None:
    async def scene(lab: Lab) -> None:
        assert error(await lab.ask("Usage", by="day"))[0] == "Failed"
        asked = counted(lab)
        name, parameters = error(await lab.ask("Usage", by="day; DROP TABLE"))
        assert (name, asked) == ("Failed", [])
        assert "one of: day, model, agent, session" in parameters["reason"]
        assert error(await lab.ask("Usage", by="day", since_usec=13)) == ("Failed", {"reason": "the disk is gone"})

    play(config(a={}), scene)
