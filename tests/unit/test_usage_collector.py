"""Agents are read while they run and after they have ended, never at idle, and no fault of that reaches them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from usage_lab import MARK, record

from forge_supervisor import events
from forge_supervisor.config import Agent
from forge_supervisor.control.usage import summed_up
from forge_supervisor.memory import State
from forge_supervisor.spend import collector as collecting
from forge_supervisor.spend import prices
from forge_supervisor.spend.collector import Collector
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import ReadUsage, UsageRead

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

NOTHING = UsageRead(records=[], marks={}, gone=[], more=False)
SCOUT = Agent.model_validate({"name": "scout", "run_as": "team", "role": "x"})
OTHER = Agent.model_validate({"name": "other", "run_as": "team", "harness": "command", "command": ["x"]})
WHO = ("scout", "team")


def used(*messages: str, more: bool = False, **counts: Any) -> UsageRead:
    return UsageRead(
        records=[record(message, **counts) for message in messages], marks={"/a": MARK}, gone=[], more=more
    )


class Scene:
    """An agent whose worker answers what the test says, and nothing new once that is at its end."""

    def __init__(self, path: Path) -> None:
        self.life = SimpleNamespace(agent=SCOUT, state=State.RUNNING)
        self.answers: list[UsageRead | Exception] = []
        self.asked: asyncio.Queue[ReadUsage] = asyncio.Queue()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.events: list[events.Event] = []
        self.collector = self.made(path)

    def made(self, path: Path) -> Collector:
        realm: Any = SimpleNamespace(ask=self._ask)

        def life_of(name: str) -> Any:
            return self.life if name == self.life.agent.name else None

        return Collector(
            path / "usage.db",
            prices.load(None, uid=os.geteuid()),
            life_of=life_of,
            realm_of=lambda _: realm,
            emit=self.events.append,
        )

    async def _ask(self, request: ReadUsage) -> UsageRead:
        self.asked.put_nowait(request)
        await self.may_answer.wait()
        answer = self.answers.pop(0) if self.answers else NOTHING
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ends(self) -> None:
        self.life.state = State.INACTIVE
        self.collector.heard("scout", EXITED)

    async def counted(self) -> int:
        await self.collector.settle(self.life.agent)
        return sum(row.messages for row in await summed_up(self.collector, "agent", 0, None))


EXITED = events.AgentExited(
    agent="scout", run_as="team", pid=2, invocation="", exit_code=0, signal=None, uptime_sec=1, result="success",
    n_restarts=0, next="", screen="",
)  # fmt: skip


def play(path: Path, scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> Scene:
    async def scenario() -> Scene:
        made = Scene(path)
        async with asyncio.timeout(20):
            try:
                await scene(made)
            finally:
                await made.collector.close()
        return made

    return asyncio.run(scenario())


def test_an_agent_is_read_after_its_end_and_then_wakes_nobody_up(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a", "b")]
        made.collector.heard("scout", None)
        assert list(made.collector._due) == ["scout"]
        made.ends()
        assert await made.counted() == 2
        made.collector._is_due("scout")
        assert made.collector._due == {}
        await made.collector.settle(SCOUT)
        assert made.asked.qsize() == 1

    play(tmp_path, scene)


def test_while_it_runs_it_is_read_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "INTERVAL", 0.01)

    async def scene(made: Scene) -> None:
        made.answers = [used("a"), NOTHING, used("b")]
        made.collector.heard("scout", None)
        for _ in range(4):
            await made.asked.get()
        assert await made.counted() == 2

    play(tmp_path, scene)


def test_many_events_have_it_read_once_in_an_interval(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        for _ in range(100):
            made.collector.heard("scout", None)
        assert len(made.collector._due) == 1
        assert made.asked.empty()

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("agent", "state"), [(OTHER, State.RUNNING), (SCOUT, State.FAILED), (SCOUT, State.AUTO_RESTART)]
)
def test_what_does_not_run_or_has_no_transcripts_is_not_waited_for(tmp_path: Path, agent: Agent, state: State) -> None:
    async def scene(made: Scene) -> None:
        made.life = SimpleNamespace(agent=agent, state=state)
        made.collector.heard(agent.name, None)
        assert made.collector._due == {}
        made.collector.begin([agent] if agent is OTHER else [])
        await made.collector.settle(agent)
        assert made.asked.empty()

    play(tmp_path, scene)


def test_what_was_used_while_no_supervisor_looked_is_read_when_one_begins(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a")]
        made.collector.begin([SCOUT])
        assert await made.counted() == 1

    play(tmp_path, scene)


def test_it_is_read_until_there_is_no_more_from_where_it_ended(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a", more=True), used("b", more=True), used("c")]
        made.ends()
        assert await made.counted() == 3
        assert [(await made.asked.get()).marks for _ in range(3)] == [{}, {"/a": MARK}, {"/a": MARK}]

    play(tmp_path, scene)


def test_one_who_never_comes_to_an_end_is_left_at_some_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_ANSWERS", 3)

    async def scene(made: Scene) -> None:
        made.answers = [used(more=True) for _ in range(100)]
        made.ends()
        await made.collector.settle(SCOUT)
        assert made.asked.qsize() == 3

    play(tmp_path, scene)


def test_an_end_while_it_is_read_has_it_read_once_more(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.may_answer.clear()
        made.answers = [NOTHING, used("last-words")]
        made.collector.begin([SCOUT])
        await made.asked.get()
        made.ends()
        made.ends()
        made.may_answer.set()
        assert await made.counted() == 1
        assert made.asked.qsize() == 1

    play(tmp_path, scene)


def test_a_worker_that_fails_is_told_of_once_and_asked_again(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [WorkerError("no"), WorkerError("no"), used("a")]
        for _ in range(3):
            made.ends()
            await made.collector.settle(SCOUT)
        assert await made.counted() == 1

    (told,) = play(tmp_path, scene).events
    assert told.sentence() == "what scout uses is not counted for now: no"
    assert told.level == "warning"


def test_a_store_that_cannot_be_used_is_told_of_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")

    async def scene(made: Scene) -> None:
        made.ends()
        await made.collector.settle(SCOUT)
        assert made.asked.empty(), "what cannot be kept is not asked for"
        (tmp_path / "state").unlink()
        made.answers = [used("a")]
        made.ends()
        assert await made.counted() == 1

    assert len(play(tmp_path / "state", scene).events) == 1


def test_a_store_that_breaks_is_told_of_and_filled_again_from_the_beginning(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a", "b")]
        made.ends()
        assert await made.counted() == 2
        await made.collector._blocking(made.collector._store.close)
        (tmp_path / "usage.db").write_bytes(b"rubbish" * 10_000)
        made.answers = [used("a", "b")]
        made.ends()
        assert await made.counted() == 2
        marks = [(await made.asked.get()).marks for _ in range(2)]
        assert marks == [{}, {}]
        total = made.collector.total(WHO)
        assert total is not None
        assert total.tokens.input == 2

    (told,) = play(tmp_path, scene).events
    assert "usage.db.broken" in told.sentence()


def test_one_that_breaks_while_a_worker_reads_is_filled_again_at_once(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a", "b")]
        made.ends()
        assert await made.counted() == 2
        made.may_answer.clear()
        made.answers = [used("c"), used("a", "b", "c")]
        made.ends()
        for _ in range(2):
            await made.asked.get()
        await made.collector._blocking(made.collector._store.close)
        (tmp_path / "usage.db").write_bytes(b"rubbish" * 10_000)
        made.may_answer.set()
        assert await made.counted() == 3
        assert (await made.asked.get()).marks == {}

    assert len(play(tmp_path, scene).events) == 1


def test_totals_are_those_of_the_store_however_they_came_about(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [
            used("a", output=1),
            used("a", output=50),
            used("b", model="claude-haiku-5-5", input=99_990),
            used("b", model="claude-haiku-5-5", input=200_000),
            used("c", model="mystery"),
        ]
        while made.answers:
            made.ends()
            await made.collector.settle(SCOUT)
        total = made.collector.total(WHO)
        assert total is not None
        (row,) = await summed_up(made.collector, "agent", 0, None)
        assert (total.tokens.input, total.tokens.output) == (row.input, row.output) == (200_002, 54)
        assert total.cost_usd == pytest.approx(row.cost_usd, abs=1e-6)
        assert (total.unpriced, row.unpriced_models) == (15, ["mystery"])
        again = made.made(tmp_path)
        await again._begin_totals()
        assert again.total(WHO) == total
        await again.close()

    play(tmp_path, scene)


def test_of_an_agent_that_has_used_nothing_nothing_is_known(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        assert made.collector.total(WHO) is None

    play(tmp_path, scene)


def test_a_user_cannot_fill_the_disk_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_A_DAY", 3)

    async def scene(made: Scene) -> None:
        made.answers = [used(f"{number}a", f"{number}b", more=True) for number in range(100)]
        made.ends()
        assert await made.counted() == 4
        monkeypatch.setattr(collecting, "_DAY", -1.0)
        made.answers = [used("tomorrow")]
        made.ends()
        assert await made.counted() == 5

    (told,) = play(tmp_path, scene).events
    assert "more than 3 messages a day" in told.sentence()


def test_the_end_of_an_agent_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "LAST_READING", 0.05)

    async def scene(made: Scene) -> None:
        made.may_answer.clear()
        made.ends()
        await made.collector.settle(SCOUT)

    play(tmp_path, scene)


def test_new_prices_count_for_what_was_used_before(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.answers = [used("a", model="mystery")]
        made.ends()
        await made.collector.settle(SCOUT)
        price = dict.fromkeys(prices.KINDS, 1_000_000)
        listed = {"date": "2027-01-01", "source": "x", "prices": [{"models": ["mystery"], **price}]}
        await made.collector.replace_prices(prices.Prices(prices.PriceList.model_validate(listed)))
        (row,) = await summed_up(made.collector, "model", 0, None)
        assert (row.cost_usd, row.unpriced_models) == (15.0, [])
        total = made.collector.total(WHO)
        assert total is not None
        assert total.cost_usd == 15.0

    play(tmp_path, scene)


def test_one_that_is_closed_begins_nothing(tmp_path: Path) -> None:
    async def scene(made: Scene) -> None:
        made.may_answer.clear()
        made.ends()
        await made.asked.get()
        await made.collector.close()
        made.ends()
        made.life.state = State.RUNNING
        made.collector.heard("scout", None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await made.asked.get()
                pytest.fail("it asks on")

    assert play(tmp_path, scene).events == []
