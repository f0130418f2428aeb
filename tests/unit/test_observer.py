from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from watching_lab import Watched, seen

from forge_supervisor import observation, observer
from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Window
from forge_supervisor.saved import SavedActivity
from forge_supervisor.worker.client import WorkerError, WorkerLostError

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.worker.messages import Observed

LIMITED = Reported("failed", trouble=Activity(Doing.LIMITED, "limit", "wait"))
DOWN = Reported("failed", trouble=Activity(Doing.UNRESPONSIVE, "down", "wait"))
ENDED = Reported("ended")
PROMPT = {"prompt": "go on"}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(observer, "_FIRST_PAUSE", 0.001)


def test_from_the_start_to_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        assert scout.doing == "starting"
        scout.see(seen("starting"))
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        assert scout.names() == ["agent_ready"]
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize("first", [[], [seen("starting")], [seen("idle")]], ids=["never", "starting", "idle"])
def test_of_one_that_cannot_be_looked_at_nothing_is_guessed(
    monkeypatch: pytest.MonkeyPatch, first: list[Observed]
) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch, ready_timeout_sec=1)
        scout.begin()
        for sight in first:
            scout.see(sight)
        scout.see(WorkerError("no space left on device"))
        await scout.until(lambda: bool(scout.observation.problem))
        assert scout.doing is None
        assert not scout.observation.is_idle
        warning = scout.events[-1]
        assert warning.name == "agent_warning"
        assert "no space left on device" in warning.sentence()
        assert "agent_blocked" not in scout.names()
        scout.see(seen("working"))
        await scout.until_doing("working")
        await scout.close()

    asyncio.run(scene())


def test_a_worker_that_answers_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "FIRST_LOOK", 0.01)

    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        await scout.until(lambda: "nobody has looked" in scout.observation.problem)
        assert scout.doing is None
        await scout.close()

    asyncio.run(scene())


def test_what_was_seen_before_a_worker_was_lost_is_told_but_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        monkeypatch.setattr(observer, "_FIRST_PAUSE", 0.05)
        scout.see(WorkerLostError("it ended"))
        await scout.until(lambda: not scout.observation.is_current)
        assert (scout.doing, scout.observation.problem) == ("idle", "")
        scout.see(WorkerLostError("it ended"))
        await scout.until(lambda: scout.observation.problem == "it ended")
        assert scout.doing is None
        await scout.close()

    asyncio.run(scene())


def test_a_fault_is_no_end_of_observing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(RuntimeError("a bug"))
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        await scout.close()

    asyncio.run(scene())


def test_what_is_wrong_is_told_a_few_times_however_often_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        for _ in range(1000):
            scout.report(DOWN)
            scout.report(ENDED)
        scout.report(LIMITED)
        told = [name for name in scout.names() if name in {"agent_blocked", "agent_recovered"}]
        assert len(told) == observation.TOLD_AT_MOST[1]
        assert scout.doing == "limited", "what it is doing is told all the same"
        # What has not been told is told later.
        scout.observation.telling.reset()
        scout.observer._look_again(scout.observation)
        assert scout.observation.told is not None
        assert scout.observation.told.doing is Doing.LIMITED
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize("worked", [True, False])
def test_who_has_answered_is_not_told_to_go_on(monkeypatch: pytest.MonkeyPatch, *, worked: bool) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch, resume=PROMPT)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        scout.report(Reported("failed", trouble=Activity(Doing.LOGGED_OUT, "no login", "log in")))
        if worked:
            scout.report(ENDED)
        else:
            scout.see(seen("idle", login="another"))
        await scout.until(lambda: "agent_recovered" in scout.names())
        await scout.quiet()
        assert scout.typed == ([] if worked else ["go on"])
        await scout.close()

    asyncio.run(scene())


def test_a_limit_is_over_also_where_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "LOOKED_AGAIN", 0.01)

    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        ends = time.time() + 3600
        scout.report(Reported(gauges=Gauges(5, (Window("five_hour", 100, ends),))))
        scout.report(LIMITED)
        assert scout.doing == "limited"
        monkeypatch.setattr(time, "time", lambda: ends + observer.LIMIT_GRACE)
        await scout.until_doing("idle")
        assert scout.names()[-1] == "agent_recovered"
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("run_as", "ends_in", "doing"),
    [
        ("team", 3600, "limited"),
        ("others", 3600, "idle"),
        # Nothing would ever tell that it is over.
        ("team", None, "idle"),
    ],
)
def test_a_limit_with_an_end_is_the_accounts_and_outlasts_the_session(
    monkeypatch: pytest.MonkeyPatch, run_as: str, ends_in: float | None, doing: str
) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        if ends_in is not None:
            scout.report(Reported(gauges=Gauges(5, (Window("five_hour", 100, time.time() + ends_in),))))
        scout.report(LIMITED)
        scout.end()
        scout.life.agent = scout.life.agent.model_copy(update={"run_as": run_as})
        scout.begin("second")
        scout.see(seen("idle"))
        await scout.until_doing(doing)
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize("resumes", [True, False])
def test_a_session_without_a_past_is_not_told_to_go_on_once_it_recovers(
    monkeypatch: pytest.MonkeyPatch, *, resumes: bool
) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch, resume=PROMPT)
        scout.begin()
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        scout.report(DOWN)
        scout.end()
        scout.begin("second", resumes=resumes)
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        await scout.quiet()
        assert "agent_recovered" in scout.names()
        assert scout.typed == ["go on"] * resumes
        await scout.close()

    asyncio.run(scene())


def test_a_session_that_is_gone_while_its_process_lives_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "ENDS_WITHIN", 0.01)

    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("idle"))
        scout.see(seen("starting"))
        await scout.until(lambda: "any more" in scout.observation.problem)
        assert scout.doing is None
        assert scout.names() == ["agent_ready", "agent_warning"]
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        assert scout.observation.is_idle
        await scout.close()

    asyncio.run(scene())


def test_what_a_user_says_acts_on_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("waiting", detail="\x1b[2Jfor\nthis"))
        await scout.until_doing("waiting")
        assert scout.observation.activity == Activity(Doing.WAITING, "[2Jfor this")
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        window = Window("\x07five\nhours", 100, None)
        trouble = Activity(Doing.LIMITED, "\x1b]0;title\x07limit", "wa\nit")
        scout.report(Reported("failed", trouble=trouble, gauges=Gauges(5, (window,))))
        assert scout.observation.activity == Activity(Doing.LIMITED, "]0;titlelimit", "wa it")
        assert scout.observation.gauges.windows[0].name == "five hours"
        await scout.close()

    asyncio.run(scene())


def test_the_next_supervisor_knows_that_it_is_logged_in_and_as_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        first = Watched(monkeypatch)
        first.begin()
        first.see(seen("idle", login=""))
        await first.until_doing("logged-out")
        first.report(ENDED)
        await first.until_doing("idle")
        second = Watched(monkeypatch)
        second.adopt(first.observation.saved)
        second.see(seen("idle", login=""))
        await second.until_doing("idle")
        second.report(Reported("failed", trouble=Activity(Doing.LOGGED_OUT, "no login", "log in")))
        third = Watched(monkeypatch)
        third.adopt(second.observation.saved)
        third.see(seen("idle", login="another"))
        await third.until(lambda: "agent_recovered" in third.names())
        for one in (first, second, third):
            await one.close()

    asyncio.run(scene())


def test_what_another_program_left_running_is_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.adopt(SavedActivity(account=("team", "another-harness"), is_ready=True))
        assert scout.observer.of("scout") is None
        scout.adopt(SavedActivity(account=("team", "claude-code"), is_ready=True))
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        await scout.close()

    asyncio.run(scene())


def test_one_that_is_overdue_is_blocked_and_what_it_shows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch, ready_timeout_sec=0.01)
        scout.begin()
        scout.see(seen("starting"))
        await scout.until_doing("blocked")
        assert scout.observation.activity == Activity(Doing.BLOCKED, "what it shows")
        await scout.close()

    asyncio.run(scene())
