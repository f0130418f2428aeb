"""Counts what happens to each agent, for as long as this supervisor lives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forge_supervisor import events

if TYPE_CHECKING:
    from collections.abc import Collection

Key = tuple[str, str]
"""An agent and its user: another user's agent of the same name is another agent."""


@dataclass(slots=True)
class Counted:
    starts: int = 0
    start_failures: int = 0
    restarts: int = 0
    """Automatic ones, whether or not anything then ran."""
    start_limit_hits: int = 0
    """Of the daily limit too: the one as the other ends in a failure that waits for somebody."""
    exits: Counter[str] = field(default_factory=Counter)
    """By result."""


class Counts:
    """Listens to a feed with `heard`."""

    def __init__(self) -> None:
        self._counted: dict[Key, Counted] = {}

    def heard(self, _agent: str | None, event: events.Event | None) -> None:
        if not isinstance(event, events.AgentEvent):
            return
        counted = self._counted.setdefault((event.agent, event.run_as), Counted())
        match event:
            case events.AgentStarted():
                counted.starts += 1
                counted.restarts += event.n_restarts > 0
            case events.AgentStartFailed():
                counted.start_failures += 1
                counted.restarts += event.n_restarts > 0
            case events.AgentExited():
                counted.exits[event.result] += 1
            case events.AgentFailed():
                counted.start_limit_hits += event.start_limit_hit or event.daily_limit_hit

    def of(self, key: Key) -> Counted:
        return self._counted.get(key, Counted())

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all others, which are gone."""
        self._counted = {key: counted for key, counted in self._counted.items() if key in keys}
