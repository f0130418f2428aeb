"""What config.toml says of the operator's desk: who may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from forge_supervisor.config_files import Problem
from forge_supervisor.config_values import AgentName, Model, UserName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

AgentNames = Annotated[tuple[AgentName, ...], Field(strict=False)]


class Control(Model):
    """Who may use forgectl, beside root and the members of the group "forge", who may do everything."""

    users: Annotated[tuple[UserName, ...], Field(strict=False)] = ()
    """Agents' users that may start, stop and write to their own agents; without that they may only look at them.
    What such an agent has its user's systemd, cron or ssh start is its user's, too, and then may do as much.
    """
    agents: AgentNames = ()
    """Agents that may do so from within, with all agents of their user; others get nothing."""


def unknown_agents(control: Control, disabled: Collection[str], agents: Collection[str]) -> Iterator[Problem]:
    """Find agents that are named and that no file declares: no reason not to start the others."""
    for key, names in (("control.agents", control.agents), ("disabled", disabled)):
        for name in names:
            if name not in agents:
                yield Problem(key, f'there is no agent "{name}"', fatal=False)
