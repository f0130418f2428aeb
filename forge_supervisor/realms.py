"""The realms of all users that have agents, each made when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from forge_supervisor import events
from forge_supervisor.handshake import LaunchError
from forge_supervisor.realm import Realm
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import Close

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from forge_supervisor.config import Agent
    from forge_supervisor.units import Placement


class Realms:
    """`known` tells of a user what `Realm` has to know; `socket_name` is asked for whenever one is made."""

    def __init__(
        self,
        placement: Placement,
        emit: Callable[[events.Event], None],
        *,
        socket_name: Callable[[], str],
        known: Callable[[str], Mapping[str, int | None]],
    ) -> None:
        self._placement = placement
        self._emit = emit
        self._socket_name = socket_name
        self._known = known
        self._realms: dict[str, Realm] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        """What is left of users that have no agents any more."""

    @property
    def users(self) -> set[str]:
        return set(self._realms)

    def of(self, user: str) -> Realm:
        if user not in self._realms:
            self._realms[user] = Realm(
                user,
                self._placement,
                self._socket_name(),
                self._emit,
                known=partial(self._known, user),
                after=self._closing.pop(user, None),
            )
        return self._realms[user]

    async def find_server(self, user: str) -> None:
        """Make sure of a user's tmux server, if that can be; whoever needs it is told why it cannot."""
        with contextlib.suppress(LaunchError):
            await self.of(user).server()

    async def close_session(self, agent: Agent) -> None:
        """Remove the session of an agent that has ended, if there is any."""
        realm = self._realms.get(agent.run_as)
        if realm is None or realm.server_pid is None:
            return
        try:
            await realm.ask(Close(agent=agent.name, server=realm.server_pid))
        except (WorkerError, LaunchError) as error:
            text = f"its session stays behind: {error}"
            self._emit(events.AgentWarning(agent=agent.name, run_as=agent.run_as, key="", problem=text))

    async def close(self, user: str) -> None:
        """End what a user has, as all its agents have ended."""
        closing = asyncio.create_task(self._realms.pop(user).close())
        self._closing[user] = closing
        await asyncio.shield(closing)

    async def close_all(self) -> None:
        await asyncio.gather(*map(self.close, list(self._realms)))
        await asyncio.gather(*self._closing.values())

    async def leave(self) -> None:
        """Let go of all of them, for another supervisor to go on with."""
        await asyncio.gather(*(realm.close(leave=True) for realm in self._realms.values()))
