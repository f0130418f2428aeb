"""Has it written down what the next supervisor has to know of each agent, again and again where that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from forge_supervisor import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.saved import Saved, Store

_AGAIN_SEC = 5.0


class Keeper:
    """`state_of` tells what there is to know of an agent now; None if there is no such agent any more."""

    def __init__(
        self, store: Store, state_of: Callable[[str], Saved | None], emit: Callable[[events.Event], None]
    ) -> None:
        self._store = store
        self._state_of = state_of
        self._emit = emit
        self._unsaved: set[str] = set()
        """Agents of which the store has what is true no more, or nothing."""
        self._timer: asyncio.TimerHandle | None = None

    def save(self, agent: str) -> None:
        saved = self._state_of(agent)
        if saved is None:
            self._unsaved.discard(agent)
            return
        try:
            self._store.write(agent, saved)
        except (OSError, ValueError) as error:  # what cannot be written, be it for what it says
            if not self._unsaved:
                text = f"the state of agents cannot be saved, so another supervisor will not know them: {error}"
                self._emit(events.StateProblem(problem=text))
            self._unsaved.add(agent)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_AGAIN_SEC, self.save_again)
        else:
            self._unsaved.discard(agent)

    def save_again(self) -> None:
        """Try once more what could not be saved: of one that changes no more there is no other occasion."""
        self._timer = None
        for agent in sorted(self._unsaved):
            self.save(agent)

    def forget(self, agent: str) -> None:
        self._store.remove(agent)
        self._unsaved.discard(agent)
