"""A supervisor for `forgectl watch` that is only told of: what it answers is set by the test."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from agents_lab import NOW

from forge_supervisor.cli.client import CallError, NotThereError

if TYPE_CHECKING:
    from collections.abc import Iterator

AWAY = "no supervisor is running (/run/x/io.forge.Supervisor); systemctl status forge-supervisor tells why"


def event(name: str, message: str, **fields: str) -> dict[str, Any]:
    return {"name": name, "time_usec": round(NOW * 1_000_000), "message": message, "fields": fields}


class FakeSupervisor:
    """Answers calls from any thread, and tells its monitors what the test has it tell."""

    def __init__(self, *agents: dict[str, Any]) -> None:
        self.agents = {agent["name"]: agent for agent in agents}
        self.screens: dict[str, list[str]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.errors: dict[str, CallError] = {}
        self.blocked = threading.Event()
        self.blocked.set()
        self._lock = threading.Lock()
        self._there = True
        self._monitors: list[queue.Queue[dict[str, Any] | CallError | None]] = []

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        parameters = parameters or {}
        if not self._there:
            raise NotThereError(AWAY)
        self.calls.append((method, parameters.get("agent") or parameters.get("agents")))
        if method in self.errors:
            raise self.errors[method]
        if method == "Capture":
            return {"screen": self.screens.get(parameters["agent"], [])}
        if method != "List":
            self.blocked.wait()
        return {"agents": list(self.agents.values())}

    def stream(self, method: str, parameters: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        assert (method, parameters) == ("Monitor", None)
        told: queue.Queue[dict[str, Any] | CallError | None] = queue.Queue()
        with self._lock:
            if not self._there:
                raise NotThereError(AWAY)
            for described in self.agents.values():
                told.put({"event": None, "agent": described})
            self._monitors.append(told)
        while not isinstance(happened := told.get(), CallError | None):
            yield happened
        raise happened or NotThereError("the supervisor hung up (it may have been stopped)")

    @property
    def monitors(self) -> int:
        return len(self._monitors)

    def tell(self, event: dict[str, Any] | None, agent: dict[str, Any] | None = None) -> None:
        """Have something happen; with an agent, that is how it is from now on."""
        if agent is not None:
            self.agents[agent["name"]] = agent
        for told in self._monitors:
            told.put({"event": event, "agent": agent})

    def hang_up(self, error: CallError | None = None) -> None:
        """End what the monitors are told."""
        with self._lock:
            for told in self._monitors:
                told.put(error)
            self._monitors.clear()

    def go_away(self) -> None:
        self._there = False
        self.hang_up()

    def come_back(self) -> None:
        self._there = True

    def asked(self, *methods: str) -> list[tuple[str, Any]]:
        return [call for call in self.calls if call[0] in methods]
