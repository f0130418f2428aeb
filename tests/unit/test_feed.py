"""What happens is told to whoever listens, at once and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from forge_supervisor import events, journal
from forge_supervisor.feed import Feed

if TYPE_CHECKING:
    from forge_supervisor.events import Event

READY = events.SupervisorReady(running=1, failed=0)
ADOPTED = events.AgentSwept(agent="a", run_as="team")
Told = list[tuple[str | None, "Event | None"]]


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    made: list[Event] = []
    monkeypatch.setattr(journal, "log", made.append)
    return made


def test_events_are_logged_and_told_and_changes_told_alone(logged: list[Event]) -> None:
    feed, told = Feed(), Told()
    with feed.listening(lambda *what: told.append(what)):
        feed.emit(READY)
        feed.changed("a")
        feed.emit(ADOPTED)
    assert told == [(None, READY), ("a", None), ("a", ADOPTED)]
    assert logged == [READY, ADOPTED]


def test_who_no_longer_listens_is_told_no_more_be_it_after_a_fault(logged: list[Event]) -> None:
    feed, told = Feed(), Told()
    with pytest.raises(KeyError), feed.listening(lambda *what: told.append(what)):
        raise KeyError
    feed.emit(READY)
    assert told == [] and logged == [READY]


def test_one_function_can_listen_twice_and_each_ends_by_itself() -> None:
    feed, told = Feed(), Told()

    def listen(agent: str | None, event: Event | None) -> None:
        told.append((agent, event))

    with feed.listening(listen):
        with feed.listening(listen):
            feed.changed("a")
        feed.changed("b")
    feed.changed("c")
    assert told == [("a", None), ("a", None), ("b", None)]


def test_a_listener_may_begin_and_end_others_while_it_is_told() -> None:
    feed, told = Feed(), Told()
    inner = feed.listening(lambda *what: told.append(what))

    def listen(agent: str | None, _event: Event | None) -> None:
        if agent == "begin":
            inner.__enter__()
        else:
            inner.__exit__(None, None, None)

    with feed.listening(listen):
        feed.changed("begin")
        feed.changed("end")
        assert told == [("end", None)]
