"""A supervisor of sessions that are the test's, and end when it says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from forge_supervisor import events, fleet
from forge_supervisor.config import Agent, Config, HarnessSettings
from forge_supervisor.feed import Feed
from forge_supervisor.fleet import Fleet
from forge_supervisor.handshake import LaunchError
from forge_supervisor.policy import Exit
from forge_supervisor.saved import Saved, SavedSession, Store
from forge_supervisor.supervisor import Supervisor
from forge_supervisor.units import DirectPlacement

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from forge_supervisor.config_resources import Resources
    from forge_supervisor.declared import Declared

CAME_TO_NOTHING = 4000
"""The pid of the first process of a pane that has ended without having been told what to run."""


class FakeSession:
    """Runs until it is told to end; `obstinate` ones end on SIGKILL only."""

    def __init__(
        self, declared: Declared, _invocation: str, *, noted: Callable[[], None], fresh: bool, **_: Any
    ) -> None:
        self.noted = noted
        self.fresh = fresh
        self.screen: list[str] = []
        self.begun: Callable[[], None] = lambda: None
        self.declared = declared
        self.agent = agent = declared.agent
        self.saved: SavedSession | None = None
        self.limited: Resources | None = None
        self.slowness = 50 + 5 * int(agent.name[1:]) if agent.model == "crasher" else 1
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def examine(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        if self.agent.model == "broken":
            raise LaunchError("model", "is broken")

    def adopt(self, saved: SavedSession) -> bool:
        self.saved = saved
        return True

    async def interrupted(self) -> bool:
        return self.saved is None or self.saved.pid == CAME_TO_NOTHING

    async def launch(self) -> int:
        self.begun()
        if self.agent.model == "broken":
            raise LaunchError("model", "is broken")
        for _ in range(self.slowness):
            await asyncio.sleep(0)
        self.saved = SavedSession(uid=1000, pid=4711, born=1, pane="%0", server=1, server_born=1)
        self.noted()
        if self.agent.model == "crasher":
            self.end(Exit(code=1))
        return 4711

    async def death(self) -> None:
        await asyncio.shield(self.ended)

    async def collect(self) -> tuple[Exit, list[str], bool]:
        return self.ended.result(), self.screen, False

    def terminate(self) -> None:
        if self.agent.model != "obstinate":
            self.end(Exit(signal=15))

    def kill(self) -> None:
        self.end(Exit(signal=9))

    def end(self, exit_: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(exit_)

    def close(self) -> None:
        self.saved = None

    def follow(self, earlier: FakeSession) -> None:
        pass

    def limit(self, resources: Resources) -> None:
        self.limited = resources


class Scopeless(DirectPlacement):
    """Has no processes of its own."""

    async def find(self, name: str, user: Any) -> None:
        return None


class Bench:
    def __init__(self, config: Config, store: Store) -> None:
        self.store = store
        self.sessions: dict[str, list[FakeSession]] = {}
        self.events: list[events.Event] = []
        self.feed = Feed()
        self.monkeypatch: pytest.MonkeyPatch
        self.placement = Scopeless()
        nothing: Any = None
        made = Fleet(
            config.socket_name,
            placement=self.placement,
            handshake=nothing,
            store=store,
            emit=self._emit,
            conceal=lambda *_: None,
            changed=self.feed.changed,
        )
        self.supervisor = Supervisor(config, made, placement=self.placement, store=store, emit=self._emit)

    def _emit(self, event: events.Event) -> None:
        self.events.append(event)
        self.feed.emit(event)

    def make(self, declared: Declared, invocation: str, **rest: Any) -> FakeSession:
        made = FakeSession(declared, invocation, **rest)
        if invocation:  # the others are only examined
            self.sessions.setdefault(declared.agent.name, []).append(made)
        return made

    async def successor(self, config: Config) -> Bench:
        """Have this one leave, and the next one start."""
        await self.supervisor.leave()
        other = Bench(config, self.store)
        self.monkeypatch.setattr(fleet, "Session", other.make)
        other.monkeypatch = self.monkeypatch
        await other.supervisor.start(self.saved())
        return other

    def saved(self) -> dict[str, Saved]:
        saved, problems = self.store.load()
        assert problems == []
        return saved

    def names(self) -> list[tuple[str, str]]:
        return [(event.name, getattr(event, "agent", "")) for event in self.events]

    async def until(self, status: str) -> None:
        async with asyncio.timeout(5):
            while self.supervisor.status() != status:  # noqa: ASYNC110 - what is told is told to systemd
                await asyncio.sleep(0)


def config(harnesses: dict[str, HarnessSettings] | None = None, **agents: dict[str, Any]) -> Config:
    made = {
        name: Agent.model_validate({"name": name, "run_as": "team", "harness": "command", "command": ("x",), **keys})
        for name, keys in agents.items()
    }
    return Config(agents=made, harnesses=harnesses or {})
