"""Pure: what it takes to make a configuration true, given what there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forge_supervisor.declared import Declared

TAKEN_WHILE_RUNNING = frozenset(
    {"budget", "enabled", "ready_timeout_sec", "resources", "restart", "resume", "stop_timeout_sec"}
)
"""A change of these is taken by a running agent; any other is for its next session, and so brings that about."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of agents; for those that are and stay declared, the keys that differ."""

    new: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    changed: dict[str, set[str]] = field(default_factory=dict)
    """They need a new session."""
    adjusted: dict[str, set[str]] = field(default_factory=dict)
    """They take the difference while they run."""
    unchanged: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """Say it for people, an agent a line."""
        said = {
            **dict.fromkeys(self.new, "start"),
            **dict.fromkeys(self.removed, "stop (no longer declared, or disabled)"),
            **dict.fromkeys(self.unchanged, "leave alone"),
            **{name: f"restart (changed: {_listed(keys)})" for name, keys in self.changed.items()},
            **{name: f"take over without a restart: {_listed(keys)}" for name, keys in self.adjusted.items()},
        }
        return [f"{name}: {said[name]}" for name in sorted(said)]


def plan(declared: Mapping[str, Declared], known: Mapping[str, Mapping[str, str]]) -> Plan:
    """Compare the agents that are to run with those that there are, of which each fingerprint is known."""
    made = Plan(set(declared.keys() - known.keys()), set(known.keys() - declared.keys()))
    for name in declared.keys() & known.keys():
        new, old = declared[name].fingerprint(), known[name]
        keys = {key for key in new.keys() | old.keys() if new.get(key) != old.get(key)}
        if keys - TAKEN_WHILE_RUNNING:
            made.changed[name] = keys
        elif keys:
            made.adjusted[name] = keys
        else:
            made.unchanged.add(name)
    return made


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys))
