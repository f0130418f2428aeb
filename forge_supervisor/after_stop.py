"""Run by systemd once the supervisor has ended (ExecStopPost=): after `systemctl stop` nothing of any agent may live.

Not even if the supervisor could not see to that itself, because it hung, or was killed in the middle of it. After any
other end agents live on, and the next supervisor adopts them.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys

from forge_supervisor.runtime import runtime_directory, state_directory
from forge_supervisor.units.manager import ManagerError
from forge_supervisor.units.placement import PlacementError
from forge_supervisor.units.systemd import SystemdPlacement, manager_path, own_job


async def clear() -> int:
    try:
        if own_job() != "stop":
            return 0
        await SystemdPlacement(manager_path()).discard((), ())
    except (ManagerError, PlacementError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shutil.rmtree(state_directory(runtime_directory()), ignore_errors=True)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(asyncio.run(clear()))
