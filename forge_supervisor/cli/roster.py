"""The agents as they were told last: by a monitor, which tells changes, and by lists, which tell who is gone."""

from __future__ import annotations

from typing import Any

Agent = dict[str, Any]
"""An agent as io.forge.Supervisor tells it (`control.interface.Agent`)."""


class Roster:
    """Monitor and List answer on different connections: a list may be older than what the monitor told meanwhile."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self._heard: dict[str, int] = {}
        self._count = 0

    def heard(self, agent: Agent) -> None:
        """Take what the monitor told of one agent."""
        self._count += 1
        self._heard[agent["name"]] = self._count
        self.agents[agent["name"]] = agent

    def mark(self) -> int:
        """Return what `listed` has to be given with the list that is asked for now."""
        return self._count

    def listed(self, agents: list[Agent], mark: int) -> bool:
        """Take a list; False if another has to be asked for, because one that it lacks was told of meanwhile."""

        def told_meanwhile(name: str) -> bool:
            return self._heard.get(name, 0) > mark

        names = {agent["name"] for agent in agents}
        self.agents |= {agent["name"]: agent for agent in agents if not told_meanwhile(agent["name"])}
        missing = self.agents.keys() - names
        doubtful = {name for name in missing if told_meanwhile(name)}
        for name in missing - doubtful:
            del self.agents[name]
        return not doubtful
