"""Where processes live: workers, tmux servers and agents in units of systemd, or as plain children without it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from forge_supervisor.units.direct import DirectPlacement
from forge_supervisor.units.manager import Manager, ManagerError
from forge_supervisor.units.placement import Cleared, Placement, PlacementError, Process, Scope, User, lookup
from forge_supervisor.units.systemd import SystemdPlacement, manager_path, own_job

if TYPE_CHECKING:
    from pathlib import Path

__all__ = (
    "Cleared",
    "DirectPlacement",
    "Placement",
    "PlacementError",
    "Process",
    "Scope",
    "SystemdPlacement",
    "User",
    "asked_to_restart",
    "detect",
    "lookup",
)


def detect(runtime: Path) -> Placement:
    """Choose systemd wherever it may start units for us: PID 1 for root, the user's own manager otherwise.

    Within a running event loop only. `runtime` is the supervisor's own directory, gone at boot.
    """
    path = manager_path()
    # The socket of a systemd that is not running stays behind, so it must answer.
    with contextlib.suppress(ManagerError), Manager(path) as manager:
        manager.environment()
        return SystemdPlacement(path)
    return DirectPlacement(runtime)


def asked_to_restart() -> bool:
    """Whether what ends us now will have another supervisor follow, so that the agents live on.

    The job of our unit tells `systemctl restart` from `systemctl stop` and from a shutdown; without one it was a mere
    signal, after which systemd starts the next supervisor by Restart=. Whoever is not a service's main process (in a
    terminal, in a container) has no successor. Where systemd cannot be asked it is taken for a signal: to let agents
    live by mistake can be mended. Within a running event loop only.
    """
    # sd_notify(3) is what tells a service from a program that somebody runs: the unit has Type=notify.
    if "NOTIFY_SOCKET" not in os.environ:
        return False
    try:
        return own_job() != "stop"
    except ManagerError:
        return True
