"""All agents together; their sessions are the test's, and end when it says so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from supervisor_lab import CAME_TO_NOTHING, Bench, FakeSession, config

from forge_supervisor import events, fleet, keeper, supervisor
from forge_supervisor.config import Config, HarnessSettings, Library
from forge_supervisor.memory import State
from forge_supervisor.policy import Exit
from forge_supervisor.realms import Realms
from forge_supervisor.saved import SavedSession, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from supervisor_lab import FakeSession


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Config, Callable[[Bench], Awaitable[None]]], Bench]:
    def run(first: Config, scene: Callable[[Bench], Awaitable[None]]) -> Bench:
        async def scenario() -> Bench:
            bench = Bench(first, Store(tmp_path))
            bench.monkeypatch = monkeypatch
            monkeypatch.setattr(fleet, "Session", bench.make)
            monkeypatch.setattr(Realms, "find_server", lambda *_: asyncio.sleep(0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await bench.supervisor.start({})
                    await scene(bench)
                    return bench
            raise AssertionError(bench.supervisor.status())

        return asyncio.run(scenario())

    return run


Play = Any


def test_ready_comes_once_every_enabled_agent_was_started_or_has_failed_to(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        assert bench.supervisor.status() == "1 running, 1 failed: scout (resources)"

    declared = config(good={}, scout={"model": "broken", "restart": {"policy": "no"}}, off={"enabled": False})
    bench = play(declared, scene)
    assert bench.names()[-1] == ("supervisor_ready", "")
    assert (bench.events[-1].running, bench.events[-1].failed) == (1, 1)
    assert "off" not in bench.sessions


def test_the_status_is_one_line_that_names_who_failed_and_how(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["scout"][0].end(Exit(code=1))
        await bench.until("3 running, 1 failed: scout (exit code 1)")
        bench.sessions["b"][0].end(Exit(signal=9))
        await bench.until("2 running, 2 failed: b (signal 9 (SIGKILL)), scout (exit code 1)")
        bench.sessions["c"][0].end(Exit(code=0))
        await bench.until("1 running, 1 inactive, 2 failed: b (signal 9 (SIGKILL)), scout (exit code 1)")

    play(config(a={}, b={"restart": {"policy": "no"}}, c={}, scout={"restart": {"policy": "no"}}), scene)


def test_a_status_with_many_names_stays_short(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        status = bench.supervisor.status()
        assert status.startswith("80 failed: a0 (resources), a1 (resources), ")
        assert status.endswith(", a9 (resources) and 70 more")

    broken: dict[str, Any] = {"model": "broken", "restart": {"policy": "no"}}
    play(config(None, **{f"a{n}": broken for n in range(80)}), scene)


def test_ready_comes_although_somebody_is_always_starting_again(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        assert len(bench.sessions) == 12

    loop: dict[str, Any] = {"model": "crasher", "restart": {"delay_sec": 0, "limit_burst": 0}}
    bench = play(config(None, **{f"a{n}": loop for n in range(12)}), scene)
    assert bench.names()[-1] == ("supervisor_ready", "")


def test_who_ended_well_too_often_is_no_success(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["a"][0].end(Exit(code=0))
        await bench.until("1 failed: a (start limit hit)")

    play(config(a={"restart": {"policy": "always", "delay_sec": 0, "limit_burst": 1}}), scene)


def test_one_that_could_not_resume_its_session_is_told_of_and_begins_anew_once(play: Play) -> None:
    """By what its harness makes of its last words; there is nothing to resume for the others."""
    words = ["No conversation found with session ID: 3d8599b1-7c17-4064-8c1e-6f1fcbe060f3", ""]

    async def scene(bench: Bench) -> None:
        for number in range(2):
            for name in ("a", "b"):
                session = bench.sessions[name][number]
                session.screen = words if number == 0 else []
                session.end(Exit(code=1))
            while [*map(len, bench.sessions.values())] != [number + 2] * 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert [session.fresh for session in bench.sessions["a"]] == [False, True, False]
        assert [session.fresh for session in bench.sessions["b"]] == [False, False, False]

    at_once: dict[str, Any] = {"restart": {"delay_sec": 0}}
    claude: dict[str, Any] = {"harness": "claude-code", "role": "x", "command": None}
    bench = play(config(a={**claude, **at_once}, b=at_once), scene)
    assert [event.agent for event in bench.events if isinstance(event, events.AgentWarning)] == ["a"]


def test_who_was_started_too_often_in_a_day_is_no_success(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["a"][0].end(Exit(code=0))
        await bench.until("1 failed: a (daily limit hit)")

    play(config(a={"restart": {"policy": "always", "delay_sec": 0, "limit_daily": 1}}), scene)


def test_no_agents_is_a_status_too(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        assert bench.supervisor.status() == "no agents"
        await bench.supervisor.stop()

    play(config(), scene)


def test_a_stop_ends_all_and_waits_for_the_slowest(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        stopping = asyncio.create_task(bench.supervisor.stop())
        await bench.until("1 stopping, 1 inactive")
        assert not stopping.done()
        bench.supervisor.hurry()
        await stopping
        assert bench.supervisor.status() == "1 inactive, 1 failed: slow (timeout)"

    play(config(a={}, slow={"model": "obstinate", "stop_timeout_sec": "infinity"}), scene)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_reload_that_comes_too_late_begins_nothing(play: Play, leaves: bool) -> None:
    async def scene(bench: Bench) -> None:
        ending = asyncio.create_task(bench.supervisor.leave() if leaves else bench.supervisor.stop())
        await asyncio.sleep(0)
        await bench.supervisor.reload(config(a={}, b={}))
        await ending
        assert list(bench.sessions) == ["a"]

    play(config(a={}), scene)


def test_a_reload_starts_stops_and_restarts_only_what_has_to_be(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(
            config(
                same={"restart": {"delay_sec": 9}, "stop_timeout_sec": 1},
                changed={"env": {"A": "1"}},
                off={"enabled": False},
                new={},
            )
        )
        await bench.until("3 running")

    bench = play(config(same={}, changed={}, removed={}, off={}), scene)
    assert {name: len(sessions) for name, sessions in bench.sessions.items()} == {
        "same": 1,
        "changed": 2,
        "removed": 1,
        "off": 1,
        "new": 1,
    }
    assert bench.sessions["changed"][1].agent.env == {"A": "1"}


def test_new_settings_of_a_harness_restart_its_agents_alone(play: Play) -> None:
    new = {"command": HarnessSettings(version="2")}

    async def scene(bench: Bench) -> None:
        claude = {"harness": "claude-code", "command": None, "role": "r"}
        await bench.supervisor.reload(config(new, a={}, b=claude))
        await bench.until("2 running")

    bench = play(config(a={}, b={"harness": "claude-code", "command": None, "role": "r"}), scene)
    assert [session.declared.settings.version for session in bench.sessions["a"]] == [None, "2"]
    assert len(bench.sessions["b"]) == 1


def test_a_changed_entry_of_the_library_restarts_the_agents_that_have_it(play: Play) -> None:
    def declared(source: str) -> Config:
        skills = {"review": {"source": source}, "other": {"source": "/srv/other"}}
        agents = config(has={"skills": ("review",)}, other={"skills": ("other",)}, none={})
        return dataclasses.replace(agents, library=Library.model_validate({"skills": skills}))

    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(declared("/srv/new"))
        await bench.until("3 running")

    bench = play(declared("/srv/old"), scene)
    assert {name: len(sessions) for name, sessions in bench.sessions.items()} == {"has": 2, "other": 1, "none": 1}
    assert bench.sessions["has"][1].declared.granted.skills["review"].source == "/srv/new"


def test_one_that_could_not_be_started_again_runs_on_as_it_was_until_it_can(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(config(a={"model": "broken"}, b={}))
        assert bench.supervisor.status() == "2 running; as before the reload: a"
        bench.sessions["a"][0].end(Exit(code=1))
        await bench.until("1 running, 1 auto-restart: a (exit code 1); as before the reload: a")
        await bench.until("2 running; as before the reload: a")
        assert bench.sessions["a"][-1].agent.model is None, "it is the old one that is restarted"
        await bench.supervisor.reload(config(a={"model": "mended"}, b={}))
        await bench.until("2 running")

    bench = play(config(a={"restart": {"delay_sec": 0.01}}, b={}), scene)
    warnings = [event for event in bench.events if isinstance(event, events.AgentWarning)]
    assert [(event.key, event.problem) for event in warnings] == [
        (
            "agents.a.model",
            "runs on as it was, for as it is declared now it could not be started: is broken",
        )
    ]
    assert [session.agent.model for session in bench.sessions["a"]] == [None, None, "mended"]
    assert len(bench.sessions["b"]) == 1


def test_nor_does_another_user_who_cannot_be_become_the_end_of_it(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(config(a={"model": "broken", "run_as": "taem"}))
        assert bench.supervisor.status() == "1 running; as before the reload: a"

    assert len(play(config(a={}), scene).sessions["a"]) == 1


def test_one_whose_bot_is_anothers_now_is_not_kept_with_it(play: Play) -> None:
    bots = Library.model_validate({"discord": {"bots": {"team": {"token_file": "/s/team"}}}})

    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(
            dataclasses.replace(config(a={"model": "broken"}, b={"discord_bot": "team"}), library=bots)
        )
        await bench.until("1 running, 1 auto-restart: a (resources)")

    play(dataclasses.replace(config(a={"discord_bot": "team"}, b={}), library=bots), scene)


def test_one_that_ends_while_it_is_examined_is_not_kept(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["a"][0].end(Exit(code=1))
        await bench.supervisor.reload(config(a={"model": "broken", "restart": {"policy": "no"}}))
        await bench.until("1 failed: a (resources)")

    play(config(a={"restart": {"policy": "no"}}), scene)


def test_a_failed_agent_that_was_changed_gets_a_new_chance(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.until("1 failed: a (resources)")
        await bench.supervisor.reload(config(a={"restart": {"delay_sec": 0, "limit_burst": 1}}))
        await bench.until("1 running")

    play(config(a={"model": "broken", "restart": {"delay_sec": 0, "limit_burst": 1}}), scene)


def test_a_failed_agent_that_was_not_changed_stays_failed(play: Play) -> None:
    declared = config(a={"model": "broken", "restart": {"policy": "no"}})

    async def scene(bench: Bench) -> None:
        await bench.supervisor.reload(declared)
        assert bench.supervisor.status() == "1 failed: a (resources)"

    play(declared, scene)


def test_the_next_supervisor_goes_on_where_this_one_stood(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["failed"][0].end(Exit(code=1))
        bench.sessions["done"][0].end(Exit(code=0))
        bench.sessions["waits"][0].end(Exit(code=1))
        status = "1 running, 1 auto-restart: waits (exit code 1), 1 inactive, 1 failed: failed (exit code 1)"
        await bench.until(status)
        other = await bench.successor(declared)
        assert other.supervisor.status() == status
        assert ("agent_adopted", "runs") in other.names()
        assert set(other.sessions) == {"runs"}
        other.sessions["runs"][0].end(Exit(signal=9))
        await other.until(status.replace("1 running, 1 auto-restart: ", "2 auto-restart: runs (signal 9 (SIGKILL)), "))

    declared = config(failed={"restart": {"policy": "no"}}, done={}, waits={}, runs={})
    play(declared, scene)


def test_the_next_supervisor_makes_its_configuration_true(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        same, changed, tuned, gone = (bench.sessions[name][0] for name in ("same", "changed", "tuned", "gone"))
        other = await bench.successor(
            config(same={}, changed={"command": ("y",)}, tuned={"resources": {"tasks_max": 5}}, new={})
        )
        await other.until("4 running")
        assert [len(other.sessions[name]) for name in ("same", "changed", "tuned", "gone", "new")] == [1, 2, 1, 1, 1]
        assert not (same.ended.done() or changed.ended.done() or tuned.ended.done() or gone.ended.done())
        limited = other.sessions["tuned"][0].limited
        assert limited is not None
        assert limited.tasks_max == 5
        assert set(other.saved()) == {"same", "changed", "tuned", "new"}

    play(config(same={}, changed={}, tuned={}, gone={}), scene)


def test_an_agent_of_another_user_is_another_agent(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        other = await bench.successor(config(a={"run_as": "somebody"}))
        old, new = other.sessions["a"]
        assert old.ended.done()
        assert (old.agent.run_as, new.agent.run_as) == ("team", "somebody")

    play(config(a={}), scene)


def test_a_launch_that_another_supervisor_had_only_begun_is_begun_anew_and_not_counted(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        left = bench.saved()["a"]
        begun = left.model_copy(
            update={
                "life": dataclasses.replace(left.life, state=State.STARTING, launching=True, alive=False, pid=None),
                "session": None,
            }
        )
        bench.store.write("a", begun)
        await bench.supervisor.leave()
        bench.store.write("a", begun)
        other = Bench(declared, bench.store)
        bench.monkeypatch.setattr(fleet, "Session", other.make)
        await other.supervisor.start(other.saved())
        assert other.supervisor.status() == "1 running"
        life = other.saved()["a"].life
        assert (life.invocation, life.window[1]) == (left.life.invocation, 1)
        assert len(other.sessions["a"]) == 2, "the one that came to nothing, and its successor"

    declared = config(a={})
    play(declared, scene)


def test_of_a_launch_that_is_begun_anew_nothing_old_is_on_disk_when_its_pane_is_used_again(play: Play) -> None:
    """What has been in the pane before would otherwise be looked for there, and be an exit that was lost."""

    async def scene(bench: Bench) -> None:
        left = bench.saved()["a"]
        assert left.session is not None
        begun = left.model_copy(
            update={
                "life": dataclasses.replace(left.life, state=State.STARTING, launching=True, alive=False, pid=None),
                "session": left.session.model_copy(update={"pid": CAME_TO_NOTHING}),
            }
        )
        await bench.supervisor.leave()
        bench.store.write("a", begun)
        other = Bench(declared, bench.store)
        on_disk: list[SavedSession | None] = []

        def make(*args: Any, **rest: Any) -> FakeSession:
            made = other.make(*args, **rest)
            made.begun = lambda: on_disk.append(other.saved()["a"].session)
            return made

        bench.monkeypatch.setattr(fleet, "Session", make)
        await other.supervisor.start(other.saved())
        assert on_disk == [None]
        assert other.saved()["a"].session == left.session

    declared = config(a={})
    play(declared, scene)


def test_a_socket_name_is_kept_as_long_as_agents_are_on_it(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        other = await bench.successor(dataclasses.replace(declared, socket_name="other"))
        assert other.saved()["a"].socket_name == "forge"
        assert 'stays "forge" until the supervisor' in "".join(event.sentence() for event in other.events)

    declared = config(a={})
    play(declared, scene)


def test_after_a_stop_nothing_is_left_to_adopt(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        assert set(bench.saved()) == {"a", "b"}
        await bench.supervisor.stop()
        assert bench.saved() == {}

    play(config(a={}, b={}), scene)


@pytest.mark.parametrize("seconds", [0.05, 60])
def test_a_state_that_could_not_be_written_is_written_later_though_nothing_changes(play: Play, seconds: float) -> None:
    """After a while, or else when another supervisor is to follow."""

    async def scene(bench: Bench) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        bench.monkeypatch.setattr(keeper, "_AGAIN_SEC", seconds)
        for _ in range(2):
            with bench.monkeypatch.context() as outage:
                outage.setattr(bench.store, "write", full)
                for sessions in bench.sessions.values():
                    sessions[-1].end(Exit(code=0))
                await bench.until("2 inactive")
                await asyncio.sleep(0.1)  # a second try fails too
            assert {saved.life.state for saved in bench.saved().values()} == {State.RUNNING}
            if seconds < 1:
                await asyncio.sleep(0.1)
            else:
                await bench.supervisor.leave()
            assert {saved.life.state for saved in bench.saved().values()} == {State.INACTIVE}
            if seconds > 1:
                return
            for life in bench.supervisor.lives.values():
                life.start()
            await bench.until("2 running")
        assert [event.name for event in bench.events].count("state_problem") == 2, "once each time"

    play(config(a={}, b={}), scene)


def test_a_state_that_cannot_be_written_is_told_once_and_stops_nothing(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        bench.monkeypatch.setattr(bench.store, "write", full)
        for name in ("a", "b"):
            bench.sessions[name][0].end(Exit(code=0))
        await bench.until("2 inactive")
        problems = [event for event in bench.events if isinstance(event, events.StateProblem)]
        assert len(problems) == 1
        assert "No space left on device" in problems[0].problem

    play(config(a={}, b={}), scene)


def test_an_agent_that_is_declared_no_more_is_not_restarted_first(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["gone"][0].end(Exit(code=1))
        await bench.until("1 running, 1 auto-restart: gone (exit code 1)")
        await bench.supervisor.leave()
        await asyncio.sleep(0.3)  # by now the restart is overdue
        other = await bench.successor(config(stays={}))
        assert other.supervisor.status() == "1 running"
        assert "gone" not in other.sessions
        assert set(other.saved()) == {"stays"}

    play(config(stays={}, gone={"restart": {"delay_sec": 0.2}}), scene)


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize(
    "left",
    [
        {"state": State.FAILED, "start_again": True, "alive": False},
        {"state": State.STOPPING, "start_again": True, "stop_requested": True},
        {"state": State.STARTING, "launching": True, "alive": False},
    ],
    ids=["ended", "stopping", "starting"],
)
def test_nothing_is_started_as_what_it_is_not_declared_as_any_more(
    play: Play, left: dict[str, Any], *, moves: bool
) -> None:
    """However it was left: all that is known of how it was declared is what it takes to stop it."""

    async def scene(bench: Bench) -> None:
        saved = bench.saved()["a"]
        assert saved.session is not None
        here = saved.session if left["state"] is State.STOPPING else None
        await bench.supervisor.leave()
        bench.store.write(
            "a", saved.model_copy(update={"life": dataclasses.replace(saved.life, **left), "session": here})
        )
        other = Bench(config(a={"run_as": "somebody"}) if moves else config(), bench.store)
        bench.monkeypatch.setattr(fleet, "Session", other.make)
        starting = asyncio.create_task(other.supervisor.start(other.saved()))
        for _ in range(20):
            await asyncio.sleep(0)
        for session in other.sessions.get("a", []):
            if session.agent.run_as == "team":
                session.end(Exit(signal=15))
        await starting
        launched = [event.run_as for event in other.events if isinstance(event, events.AgentStarted)]
        assert launched == (["somebody"] if moves else [])
        assert other.supervisor.status() == ("1 running" if moves else "no agents")

    play(config(a={}), scene)


@pytest.mark.parametrize("ended_before", [False, True])
@pytest.mark.parametrize("reloads", [1, 2])
def test_who_is_stopped_while_a_change_is_examined_stays_stopped(
    play: Play, reloads: int, *, ended_before: bool
) -> None:
    async def scene(bench: Bench) -> None:
        for n in range(reloads):
            asyncio.create_task(bench.supervisor.reload(config(a={"env": {"A": str(n)}})))  # noqa: RUF006
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if ended_before:
            bench.sessions["a"][0].end(Exit(code=0))
            await bench.until("1 inactive")
        bench.supervisor.lives["a"].stop()
        declared = config(a={"env": {"A": str(reloads - 1)}})
        while bench.supervisor.plan_of(declared).changed:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        await bench.supervisor.reload(declared)
        assert bench.supervisor.lives["a"].state is State.INACTIVE
        assert bench.saved()["a"].life.state is State.INACTIVE
        bench.supervisor.lives["a"].start()
        await bench.until("1 running")
        assert [session.agent.env for session in bench.sessions["a"]] == [{}, {"A": str(reloads - 1)}]

    play(config(a={}), scene)


def test_who_is_stopped_while_a_change_waits_for_its_end_stays_stopped(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        changed = config(a={**slow, "env": {"A": "1"}})
        changing = asyncio.create_task(bench.supervisor.reload(changed))
        await bench.until("1 stopping")
        await changing
        bench.supervisor.lives["a"].stop()
        bench.sessions["a"][0].end(Exit(code=0))
        await bench.until("1 inactive")
        assert bench.supervisor.plan_of(changed).unchanged == {"a"}
        await bench.supervisor.reload(changed)
        assert bench.supervisor.lives["a"].state is State.INACTIVE
        bench.supervisor.lives["a"].start()
        await bench.until("1 running")
        assert [session.agent.env for session in bench.sessions["a"]] == [{}, {"A": "1"}]

    slow = {"model": "obstinate", "stop_timeout_sec": "infinity"}
    play(config(a=slow), scene)


@pytest.mark.parametrize("tuned", [{}, {"restart": {"delay_sec": 9}}], ids=["as-it-was", "tuned"])
def test_a_change_that_is_taken_back_before_it_holds_never_does(play: Play, tuned: dict[str, Any]) -> None:
    async def scene(bench: Bench) -> None:
        changing = asyncio.create_task(
            bench.supervisor.reload(config(a={"harness": "claude-code", "role": "r", "command": None}))
        )
        await bench.until("1 stopping")
        await changing
        await bench.supervisor.reload(config(a={**slow, **tuned}))
        bench.sessions["a"][0].end(Exit(code=1))
        await bench.until("1 running")
        assert [session.agent.command for session in bench.sessions["a"]] == [("x",), ("x",)]
        assert bench.supervisor.lives["a"].stop_exit_status == frozenset()
        assert bench.supervisor.plan_of(config(a={**slow, **tuned})).unchanged == {"a"}

    slow = {"model": "obstinate", "stop_timeout_sec": "infinity"}
    play(config(a=slow), scene)


def test_of_several_changes_that_wait_only_the_last_is_made(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.monkeypatch.setattr(supervisor, "PATIENCE", 0.01)
        for user in ("one", "other"):
            await bench.supervisor.reload(config(a={"run_as": user}))
        await bench.supervisor.reload(config(a={"run_as": "last"}))
        assert bench.supervisor.status() == "1 stopping"
        bench.sessions["a"][0].end(Exit(code=0))
        await bench.until("1 running")
        assert [session.agent.run_as for session in bench.sessions["a"]] == ["team", "last"]

    play(config(a={"model": "obstinate", "stop_timeout_sec": "infinity"}), scene)


def test_an_agent_that_waits_for_a_restart_is_started_at_once_as_it_is_declared_now(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.sessions["a"][0].end(Exit(code=1))
        await bench.until("1 auto-restart: a (exit code 1)")
        other = await bench.successor(config(a={"command": ("y",)}))
        assert other.supervisor.status() == "1 running"
        assert [session.agent.command for session in other.sessions["a"]] == [("y",)]

    play(config(a={}), scene)
