"""Hooks against real processes: what each is told, when it is run, and what it cannot do to others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from config_lab import NEEDS_ROOT, SOMEBODY

from forge_supervisor import events, hooks, journal
from forge_supervisor.config_hooks import HookEvent, OnEvent
from forge_supervisor.feed import Feed
from forge_supervisor.hooks import MOST_AT_ONCE, MOST_WAITING, Hooks
from forge_supervisor.units import DirectPlacement, PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    import pytest

    from forge_supervisor.events import Event
    from forge_supervisor.units import User

ME = SOMEBODY.pw_name
ALL: tuple[HookEvent, ...] = ("failed", "start-limit", "recovered")
TIMEOUT = 30


def failed(agent: str = "scout", *, limit: bool = False, day: bool = False) -> events.AgentFailed:
    return events.AgentFailed(
        agent=agent,
        run_as="team",
        result="exit-code",
        start_limit_hit=limit,
        n_restarts=2,
        daily_limit_hit=day,
        limit_daily=200,
        limit_burst=3,
        limit_interval_sec=60.0,
    )


def started(agent: str = "scout") -> events.AgentStarted:
    return events.AgentStarted(agent=agent, run_as="team", pid=7, invocation="c0ffee", n_restarts=0)


def hook(*command: str, on: Sequence[HookEvent] = ALL, user: str = ME, within: float = TIMEOUT) -> OnEvent:
    return OnEvent(events=tuple(on), command=command or ("/bin/true",), user=user, timeout_sec=within)


class Held(DirectPlacement):
    """Notes what is to be run, which ends when the test says how."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.ends: list[asyncio.Future[None]] = []

    async def complete(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int, within: float
    ) -> None:
        self.names.append(name)
        self.begun.append(json.loads(os.read(stdin, 1 << 20)))
        self.ends.append(asyncio.get_running_loop().create_future())
        await self.ends[-1]

    def agents(self) -> list[str]:
        return [told["agent"] for told in self.begun]


class Bench:
    def __init__(self, placement: DirectPlacement, *declared: OnEvent) -> None:
        self.declared = declared
        self.feed = Feed()
        self.events: list[Event] = []
        self.hooks = Hooks(placement, lambda: self.declared, self.feed.emit)
        self._changed = asyncio.Event()

    def heard(self, agent: str | None, event: Event | None) -> None:
        if event is not None:
            self.events.append(event)
            self._changed.set()

    def problems(self) -> list[events.HookFailed]:
        return [event for event in self.events if isinstance(event, events.HookFailed)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def hold(placement: Callable[[], DirectPlacement], *declared: OnEvent) -> Callable[..., None]:
    """Run a test within a loop, with hooks that listen."""

    def decorated(test: Callable[..., Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            bench = Bench(placement(), *declared)
            with bench.feed.listening(bench.hooks.heard), bench.feed.listening(bench.heard):
                await test(bench, bench.hooks._placement)
            await bench.hooks.close()
            await bench.hooks._placement.close(leave=False)

        asyncio.run(run())

    return decorated


async def some_rounds() -> None:
    """Let everything that can go on go on: what is held waits for the test alone."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_which_events_are_which() -> None:
    @hold(Held, hook())
    async def _(bench: Bench, held: Held) -> None:
        bench.hooks.begin({"left"})
        for event in (
            started("fresh"),
            failed("a"),
            started("a"),
            started("a"),
            failed("b", limit=True),
            started("b"),
            failed("b", day=True),
            started("b"),
            started("left"),
        ):
            bench.feed.emit(event)
            await some_rounds()
            for end in held.ends:
                if not end.done():
                    end.set_result(None)
            await some_rounds()
        assert [(told["event"], told["agent"]) for told in held.begun] == [
            ("failed", "a"),
            ("recovered", "a"),
            ("start-limit", "b"),
            ("recovered", "b"),
            ("start-limit", "b"),
            ("recovered", "b"),
            ("recovered", "left"),
        ]


def test_one_that_cannot_do_its_work_is_told_and_that_it_can_again() -> None:
    @hold(Held, hook(on=["blocked", "recovered"]))
    async def _(bench: Bench, held: Held) -> None:
        for event in (
            events.AgentBlocked(agent="a", run_as="team", activity="limited", problem="resets 3pm", fix="wait"),
            events.AgentRecovered(agent="a", run_as="team", activity="limited", blocked_sec=1),
            events.BudgetExceeded(agent="a", run_as="team", tokens=1, cost_usd=1, stopped=False),
        ):
            bench.feed.emit(event)
            await some_rounds()
        assert [told["event"] for told in held.begun] == ["blocked", "recovered", "blocked"]
        assert held.begun[0]["fields"]["activity"] == "limited"


def test_only_what_a_hook_waits_for_and_as_it_is_declared_when_that_happens() -> None:
    @hold(Held, hook(on=["recovered"]))
    async def _(bench: Bench, held: Held) -> None:
        bench.feed.emit(failed())
        await some_rounds()
        assert held.begun == []
        bench.declared = (hook(on=["start-limit"]), hook(on=["start-limit", "failed"]))
        bench.feed.emit(failed(limit=True))
        await some_rounds()
        assert len(held.begun) == 2
        assert len(set(held.names)) == 2, "two that run at once have two names"
        bench.declared = ()
        bench.feed.emit(failed())
        await some_rounds()
        assert len(held.begun) == 2
        for end in held.ends:
            end.set_result(None)


class LogLines(logging.Handler):
    """What children write, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        _, _, line = record.getMessage().partition(f" of {ME}: ")
        self.lines.put_nowait(line)


def test_what_a_hook_is_told() -> None:
    lines: list[str] = []
    before = time.time_ns() // 1000

    @hold(DirectPlacement, hook("/bin/sh", "-c", "id -u; env; pwd; cat; echo; echo end"))
    async def _(bench: Bench, _placement: DirectPlacement) -> None:
        said = LogLines()
        logger = logging.getLogger("forge_supervisor.units.direct")
        logger.addHandler(said)
        bench.feed.emit(failed(limit=True))
        async with asyncio.timeout(TIMEOUT):
            while not lines or lines[-1] != "end":
                lines.append(await said.lines.get())
        logger.removeHandler(said)
        assert bench.problems() == []

    uid, *env, cwd, text, _end = lines
    assert int(uid) == SOMEBODY.pw_uid
    assert cwd == "/"
    variables = dict(line.split("=", 1) for line in env)
    assert {name: variables[name] for name in ("HOME", "USER", "PATH")} == {
        "HOME": SOMEBODY.pw_dir,
        "USER": ME,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    assert variables.keys() <= {"HOME", "USER", "PATH", "LOGNAME", "SHELL", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    heard = json.loads(text)
    assert before <= heard.pop("time_usec") <= time.time_ns() // 1000
    assert heard == {
        "event": "start-limit",
        "agent": "scout",
        "run_as": "team",
        "message": failed(limit=True).sentence(),
        "fields": {"event": "agent_failed", **failed(limit=True).fields()},
        "host": socket.gethostname(),
    }


def test_no_secret_is_told() -> None:
    journal.conceal("scout", {"TOKEN": "exit-code-hunter2"}, "team")
    try:

        @hold(Held, hook())
        async def _(bench: Bench, held: Held) -> None:
            bench.feed.emit(dataclasses.replace(failed(), result="exit-code-hunter2"))
            await some_rounds()
            assert "failed with result [secret]" in held.begun[0]["message"]
            held.ends[0].set_result(None)

    finally:
        journal.configure()


def test_a_hook_that_fails_is_told_and_stops_nobody() -> None:
    declared = (
        hook("/bin/sh", "-c", "exit 3"),
        hook("/nowhere/program"),
        hook("/bin/true", user="no-such-user"),
        hook("/bin/sh", "-c", "kill -KILL $$"),
    )

    @hold(DirectPlacement, *declared)
    async def _(bench: Bench, _placement: DirectPlacement) -> None:
        bench.feed.emit(failed())
        await bench.until(lambda: len(bench.problems()) == 4)
        problems = {problem.hook: problem.problem for problem in bench.problems()[-4:]}
        assert problems["/nowhere/program"] == f"/nowhere/program cannot be run as {ME}: No such file or directory"
        assert 'no such user "no-such-user"' in problems["/bin/true"]
        assert {"exit code 3", "signal 9 (SIGKILL)"} <= {problem.problem for problem in bench.problems()}
        assert {(problem.agent, problem.hook_event) for problem in bench.problems()} == {("scout", "failed")}


@NEEDS_ROOT
def test_root_runs_a_hook_as_root_if_that_is_declared() -> None:
    run = hook("/bin/sh", "-c", 'exit "$((100 + $(id -u)))"', user="root")

    @hold(DirectPlacement, run)
    async def _(bench: Bench, _placement: DirectPlacement) -> None:
        bench.feed.emit(failed())
        await bench.until(bench.problems)
        assert bench.problems()[0].problem == "exit code 100"


def test_a_hook_that_hangs_is_ended() -> None:
    @hold(DirectPlacement, hook("/bin/sleep", "1000", within=0.2))
    async def _(bench: Bench, _placement: DirectPlacement) -> None:
        bench.feed.emit(failed())
        await bench.until(bench.problems)
        assert bench.problems()[0].problem == "it had not ended after 0.2 s, and was ended"


def test_a_fault_of_ours_is_logged_and_the_next_one_runs(capfd: pytest.CaptureFixture[str]) -> None:
    journal.configure("console")

    class Faulty(Held):
        async def complete(self, *_: Any, **__: Any) -> None:
            self.names.append("called")
            raise ZeroDivisionError

    @hold(Faulty, hook())
    async def _(bench: Bench, faulty: Faulty) -> None:
        for _ in range(MOST_AT_ONCE + 2):
            bench.feed.emit(failed())
        await some_rounds()
        assert len(faulty.names) == MOST_AT_ONCE + 2

    logged = "".join(capfd.readouterr())
    assert logged.count("supervisor_fault") == MOST_AT_ONCE + 2
    assert "ZeroDivisionError" in logged


def test_so_many_run_at_once_in_their_order_and_the_oldest_that_wait_are_dropped() -> None:
    @hold(Held, hook())
    async def _(bench: Bench, held: Held) -> None:
        everybody = [f"a{number}" for number in range(MOST_AT_ONCE + 10 + MOST_WAITING)]
        for agent in everybody:
            bench.feed.emit(failed(agent))
            await some_rounds()
        assert held.agents() == everybody[:MOST_AT_ONCE]
        dropped = [event for event in bench.events if isinstance(event, events.HooksDropped)]
        assert dropped == [events.HooksDropped(most=MOST_WAITING)], "told once"
        ended = 0
        while ended < len(held.ends):
            assert len(held.ends) - ended <= MOST_AT_ONCE
            held.ends[ended].set_result(None)
            ended += 1
            await some_rounds()
        assert held.agents() == everybody[:MOST_AT_ONCE] + everybody[MOST_AT_ONCE + 10 :]


def test_what_is_dropped_later_is_told_again() -> None:
    @hold(Held, hook())
    async def _(bench: Bench, held: Held) -> None:
        for times in (1, 2):
            for number in range(MOST_AT_ONCE + 1 + MOST_WAITING):
                bench.feed.emit(failed(f"a{number}"))
                await some_rounds()
            assert len([event for event in bench.events if isinstance(event, events.HooksDropped)]) == times
            while not all(end.done() for end in held.ends):
                for end in held.ends:
                    if not end.done():
                        end.set_result(None)
                await some_rounds()


def test_a_supervisor_that_ends_waits_a_little_and_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "CLOSE_PATIENCE", 0.2)

    async def run() -> None:
        placement = DirectPlacement()
        bench = Bench(placement, hook("/bin/sleep", "1000"))
        for _ in range(MOST_AT_ONCE + 1):
            bench.hooks.heard("scout", failed())
        await asyncio.wait_for(bench.hooks.close(), TIMEOUT)
        assert placement._children == set()
        await placement.close(leave=False)

    asyncio.run(run())


def test_a_hook_that_is_about_to_end_is_waited_for_and_so_are_those_behind_it() -> None:
    class Quick(Held):
        async def complete(self, name: str, *_: Any, **__: Any) -> None:
            await asyncio.sleep(0)
            self.names.append(name)

    async def run() -> None:
        quick = Quick()
        bench = Bench(quick, hook())
        for _ in range(3 * MOST_AT_ONCE):
            bench.hooks.heard("scout", failed())
        await bench.hooks.close()
        assert len(quick.names) == 3 * MOST_AT_ONCE

    asyncio.run(run())


def test_a_hook_that_does_not_read_is_no_trouble() -> None:
    """However much there is to say: it is written beforehand, and to no pipe."""
    long = dataclasses.replace(failed(), result="x" * 200_000)

    @hold(DirectPlacement, hook("/bin/true"), hook(sys.executable, "-c", "import sys; sys.exit(len(input()) > 200000)"))
    async def _(bench: Bench, _placement: DirectPlacement) -> None:
        bench.feed.emit(long)
        await bench.until(bench.problems)
        assert [problem.problem for problem in bench.problems()] == ["exit code 1"]


def test_what_cannot_be_run_is_a_sentence() -> None:
    class Refusing(Held):
        async def complete(self, *_: Any, **__: Any) -> None:
            raise PlacementError("no")

    @hold(Refusing, hook())
    async def _(bench: Bench, _refusing: Refusing) -> None:
        bench.feed.emit(failed())
        await bench.until(bench.problems)
        assert bench.problems()[0].sentence() == f"the hook /bin/true (failed of scout, as {ME}) failed: no"
