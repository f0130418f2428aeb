"""Passes on what happens, as it happens, to whoever listens: people who watch, hooks, counters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from forge_supervisor import journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forge_supervisor.events import Event

    Listener = Callable[[str | None, Event | None], None]


class Feed:
    """A listener is given an event, as it is logged, or the name of an agent of which something is not as it was.

    With an event of an agent it is given both. It is called at once, so it must neither block nor raise.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        key = object()
        self._listeners[key] = listener
        try:
            yield
        finally:
            del self._listeners[key]

    def emit(self, event: Event) -> None:
        """Log an event, and tell of it."""
        journal.log(event)
        self._tell(getattr(event, "agent", None), event)

    def changed(self, agent: str) -> None:
        self._tell(agent, None)

    def _tell(self, agent: str | None, event: Event | None) -> None:
        for listener in list(self._listeners.values()):
            listener(agent, event)
