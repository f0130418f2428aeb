"""Who may do what. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forge_supervisor.config_control import Control
    from forge_supervisor.control.peer import Peer

GROUP = "forge"
"""Its members may do everything."""


@dataclass(frozen=True, slots=True)
class Rights:
    everything: bool = False
    user: str | None = None
    """Whose agents it may look at."""
    acts: bool = False
    """Whether it may also start and stop these, and write to them."""
    refusal: str = ""
    """Why not, as a sentence."""

    def sees(self, run_as: str) -> bool:
        return self.everything or run_as == self.user

    def act_on(self, run_as: str) -> bool:
        return self.everything or (self.acts and run_as == self.user)


def rights_of(
    peer: Peer, user: str | None, control: Control, *, own_uid: int, group: int | None, agents: Mapping[str, str]
) -> Rights:
    """Tell what a caller may do.

    `user` is its name if it is a user of agents, `group` the gid of GROUP, and `agents` has the user of each agent.
    """
    if peer.agent is not None:
        return _from_within(peer.agent, user, control, agents)
    if peer.uid in {0, own_uid} or (group is not None and group in peer.gids):
        return Rights(everything=True)
    if user is None:
        return Rights(refusal=f'only root, members of the group "{GROUP}" and agents\' own users may ask that')
    if user in control.users:
        return Rights(user=user, acts=True, refusal=f'only root and members of the group "{GROUP}" may do that')
    refusal = f'{user} may look at its agents only (control.users, or the group "{GROUP}", grants more)'
    return Rights(user=user, refusal=refusal)


def _from_within(agent: str, user: str | None, control: Control, agents: Mapping[str, str]) -> Rights:
    if not agent or agent not in control.agents:
        who = f"agent {agent}" if agent else "what agents can start"
        return Rights(refusal=f"this comes from within {who} (control.agents grants it to an agent)")
    # By sudo, say, an agent can become somebody else, of whom it was granted nothing.
    if user is None or agents.get(agent) != user:
        return Rights(refusal=f"this comes from within agent {agent}, but not from its user")
    return Rights(user=user, acts=True, refusal="this is for operators, not for agents")
