"""An observer and a delivery, of one agent whose worker, hooks and terminal say what a test has them say."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from forge_supervisor import events, harness
from forge_supervisor.activity import Reported
from forge_supervisor.config import Agent
from forge_supervisor.delivery import Delivery
from forge_supervisor.memory import State
from forge_supervisor.observer import Observer
from forge_supervisor.worker.messages import Capture, Captured, Done, Observe, Observed, Send

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from forge_supervisor.observation import Observation
    from forge_supervisor.saved import SavedActivity

PATIENCE = 10.0
STARTED: dict[str, Any] = {"agent": "scout", "run_as": "team", "pid": 7, "n_restarts": 0}


def seen(doing: str, login: str = "key", detail: str = "") -> Observed:
    return Observed(doing=doing, detail=detail, login=login, login_fix="log in")


class Watched:
    """`look` is what the worker sees: an `Observed`, or what asking it raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
        told = {"role": "x", "ready_timeout_sec": 3600, **keys}
        agent = Agent.model_validate({"name": "scout", "run_as": "team", **told})
        self.life: Any = SimpleNamespace(agent=agent, pid=None, state=State.INACTIVE, invocation="", started_at=0.0)
        self.program = SimpleNamespace(
            clearing_key="", unsendable=lambda _: None, reported=lambda told: told["reported"]
        )
        monkeypatch.setattr(harness, "that_tells_activity", lambda _: self.program)
        self.events: list[events.Event] = []
        self.typed: list[str] = []
        self.goes_on = asyncio.Event()
        """Whether what types comes to its end."""
        self.goes_on.set()
        self.resumes = False
        self.notes = 0
        self._sights: deque[Observed | Exception] = deque()
        self._new = asyncio.Event()
        realm = SimpleNamespace(user=SimpleNamespace(uid=os.geteuid()), server_pid=2, ask=self._ask)
        fleet: Any = SimpleNamespace(
            lives={"scout": self.life},
            realm_of=lambda _: realm,
            secrets_of=lambda _: (),
            resumes=lambda _: self.resumes,
            note=self._note,
        )
        self.observer = Observer(fleet, self.events.append)
        self.delivery = Delivery(fleet, self.observer)
        self.observer.goes_on = self.delivery.go_on

    def begin(self, invocation: str = "first", *, resumes: bool = False, hooks: bool = True) -> None:
        self.resumes = resumes
        self.life.pid, self.life.state, self.life.invocation = 7, State.RUNNING, invocation
        self.life.started_at = asyncio.get_running_loop().time()
        self.observer.heard("scout", events.AgentStarted(**STARTED, invocation=invocation))
        if hooks:
            self.report(Reported())

    def adopt(self, saved: SavedActivity) -> None:
        self.life.pid, self.life.state, self.life.invocation = 7, State.RUNNING, "first"
        self.observer.begin({"scout": saved})
        self.observer.heard("scout", events.AgentAdopted(**STARTED, invocation="first", uptime_sec=1.0))

    def end(self) -> None:
        self.life.pid, self.life.state = None, State.INACTIVE
        ended = {"exit_code": 0, "signal": None, "uptime_sec": 1.0, "result": "success", "next": "", "screen": ""}
        told = STARTED | ended
        self.observer.heard("scout", events.AgentExited(**told, invocation=self.life.invocation))

    def see(self, sight: Observed | Exception) -> None:
        self._sights.append(sight)
        self._new.set()

    def report(self, reported: Reported) -> None:
        self.observer._read((os.geteuid(), self.life.invocation, {"reported": reported}))

    @property
    def observation(self) -> Observation:
        found = self.observer.of("scout")
        assert found is not None
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - what it waits for may be told by anything
                await asyncio.sleep(0.001)

    async def quiet(self) -> None:
        """Let all that can go on without being told anything more do so."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def until_doing(self, doing: str | None) -> None:
        await self.until(lambda: self.doing == doing)

    @property
    def doing(self) -> str | None:
        activity = self.observation.activity
        return None if activity is None else activity.doing

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    async def close(self) -> None:
        await self.delivery.close()
        await self.observer.close()

    def _note(self, _: str) -> None:
        self.notes += 1

    async def _ask(self, request: object) -> object:
        if isinstance(request, Capture):
            return Captured(screen=["what it shows"])
        if isinstance(request, Send):
            self.typed.append(request.text)
            await self.goes_on.wait()
            return Done()
        assert isinstance(request, Observe)
        while not self._sights:
            self._new.clear()
            await self._new.wait()
        sight = self._sights.popleft()
        if isinstance(sight, Exception):
            raise sight
        return sight
