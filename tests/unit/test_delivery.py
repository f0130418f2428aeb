from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from watching_lab import Watched, seen

from forge_supervisor import delivery, observer
from forge_supervisor.activity import Reported
from forge_supervisor.delivery import NotRunningError, UndeliveredError
from forge_supervisor.worker.client import WorkerError, WorkerLostError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(observer, "_FIRST_PAUSE", 0.001)


async def idle(monkeypatch: pytest.MonkeyPatch, **keys: object) -> Watched:
    scout = Watched(monkeypatch, **keys)
    scout.begin()
    scout.see(seen("idle"))
    await scout.until_doing("idle")
    return scout


def test_it_is_typed_once_it_is_idle_and_told_to_have_been_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin()
        scout.see(seen("working"))
        await scout.until_doing("working")
        sending = asyncio.create_task(scout.delivery.deliver(scout.life, "hello"))
        await scout.quiet()
        assert not scout.typed
        scout.see(seen("idle"))
        await scout.until(lambda: scout.typed == ["hello"])
        scout.report(Reported("began", words="hello"))
        scout.see(seen("working"))
        await sending
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize("then", ["works", "has ended", "neither is seen"])
def test_the_next_one_is_not_typed_into_a_turn_that_has_just_begun(
    monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(delivery, "SHOWN_WITHIN", 0.01 if then == "neither is seen" else 60)

    async def scene() -> None:
        scout = await idle(monkeypatch)
        first = asyncio.create_task(scout.delivery.deliver(scout.life, "one"))
        second = asyncio.create_task(scout.delivery.deliver(scout.life, "two"))
        await scout.until(lambda: scout.typed == ["one"])
        scout.report(Reported("began", words="one"))
        if then != "neither is seen":
            await scout.quiet()
            assert scout.typed == ["one"], "its files do not show yet that it works"
        if then == "works":
            scout.see(seen("working"))
            await first
            assert scout.typed == ["one"]
            scout.see(seen("idle"))
        elif then == "has ended":
            scout.report(Reported("ended"))
        await scout.until(lambda: scout.typed == ["one", "two"])
        scout.report(Reported("began", words="two"))
        scout.report(Reported("ended"))
        await asyncio.gather(first, second)
        await scout.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ("two\r\nlines\t\x1b[31m", "two\nlines    [31m"),
        ("e\u0301t\u00e9 \U0001f469\u200d\U0001f680", "\u00e9t\u00e9 \U0001f469\U0001f680"),
        ("a long one " * 1000, "a long one " * 90),
    ],
)
def test_what_is_told_in_another_form_is_the_same_message(
    monkeypatch: pytest.MonkeyPatch, sent: str, taken: str
) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        sending = asyncio.create_task(scout.delivery.deliver(scout.life, sent))
        await scout.until(lambda: bool(scout.typed))
        scout.report(Reported("began", words=taken))
        scout.report(Reported("ended"))
        await sending
        await scout.close()

    asyncio.run(scene())


def test_where_hooks_tell_nothing_its_files_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CONFIRMED_WITHIN", 0.5)

    async def scene() -> None:
        scout = Watched(monkeypatch)
        scout.begin(hooks=False)
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        sending = asyncio.create_task(scout.delivery.deliver(scout.life, "hello"))
        await scout.until(lambda: bool(scout.typed))
        scout.see(seen("working"))
        await sending
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        with pytest.raises(UndeliveredError, match="has not been taken"):
            await scout.delivery.deliver(scout.life, "hello")
        await scout.close()

    asyncio.run(scene())


def test_one_whose_sender_is_gone_is_typed_to_its_end_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        scout.goes_on.clear()
        first = asyncio.create_task(scout.delivery.deliver(scout.life, "one"))
        await scout.until(lambda: scout.typed == ["one"])
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(scout.delivery.deliver(scout.life, "two"))
        await scout.quiet()
        assert scout.typed == ["one"], "it is still being typed"
        scout.goes_on.set()
        scout.report(Reported("began", words="one"))
        scout.report(Reported("ended"))
        await scout.until(lambda: scout.typed == ["one", "two"])
        scout.report(Reported("began", words="two"))
        scout.report(Reported("ended"))
        await second
        await scout.close()

    asyncio.run(scene())


def test_one_whose_sender_is_gone_before_it_is_idle_is_not_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        scout.see(seen("working"))
        await scout.until_doing("working")
        first = asyncio.create_task(scout.delivery.deliver(scout.life, "one"))
        await scout.quiet()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(scout.delivery.deliver(scout.life, "two"))
        scout.see(seen("idle"))
        await scout.until(lambda: scout.typed == ["two"])
        second.cancel()
        await scout.close()

    asyncio.run(scene())


def test_where_nobody_can_tell_whether_it_is_idle_nothing_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        scout.see(WorkerError("no space left on device"))
        await scout.until(lambda: bool(scout.observation.problem))
        with pytest.raises(UndeliveredError, match="nothing was typed: .*no space left on device"):
            await scout.delivery.deliver(scout.life, "hello")
        assert not scout.typed
        await scout.close()

    asyncio.run(scene())


def test_while_a_worker_is_replaced_a_message_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        scout.see(WorkerLostError("it ended"))
        await scout.until(lambda: not scout.observation.is_current)
        sending = asyncio.create_task(scout.delivery.deliver(scout.life, "hello"))
        await scout.quiet()
        assert not scout.typed
        scout.see(seen("idle"))
        await scout.until(lambda: scout.typed == ["hello"])
        sending.cancel()
        await scout.close()

    asyncio.run(scene())


def test_a_prompt_reaches_the_session_that_it_was_meant_for_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch, resume={"prompt": "go on"})
        scout.goes_on.clear()
        before = asyncio.create_task(scout.delivery.deliver(scout.life, "one"))
        await scout.until(lambda: scout.typed == ["one"])
        scout.delivery.go_on(scout.observation)
        await scout.quiet()
        scout.end()
        scout.begin("second")
        scout.see(seen("idle"))
        await scout.until_doing("idle")
        scout.goes_on.set()
        with pytest.raises(UndeliveredError, match="its session has ended"):
            await before
        after = asyncio.create_task(scout.delivery.deliver(scout.life, "two"))
        await scout.until(lambda: scout.typed == ["one", "two"])
        after.cancel()
        await scout.close()

    asyncio.run(scene())


def test_to_one_that_ends_nothing_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        scout = await idle(monkeypatch)
        scout.see(seen("working"))
        await scout.until_doing("working")
        sending = asyncio.create_task(scout.delivery.deliver(scout.life, "hello"))
        await scout.quiet()
        scout.end()
        with pytest.raises(NotRunningError):
            await sending
        assert not scout.typed
        await scout.close()

    asyncio.run(scene())
