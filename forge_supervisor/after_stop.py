"""Run by systemd when forge-supervisor.service is stopped: then nothing of any agent may live.

Not even if the supervisor could not see to that itself, because it hung or was killed in the middle of it (then this
is its ExecStopPost=), or because it was not running (then it is the ExecStop= of forge-agents.service). When the
supervisor is restarted agents live on, and the next one adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sys
from pathlib import Path

from forge_supervisor.runtime import UnusableRuntimeError, only_one, runtime_directory, state_directory
from forge_supervisor.units.manager import ManagerError
from forge_supervisor.units.placement import PlacementError
from forge_supervisor.units.systemd import SystemdPlacement, manager_path, own_job


async def clear() -> int:
    try:
        if own_job() != "stop":
            return 0
        # Whoever holds it is about to stop them itself; or runs in the foreground, and they are not the service's.
        with contextlib.suppress(UnusableRuntimeError), only_one(runtime_directory()) as runtime:
            await SystemdPlacement(manager_path()).discard((), ())
            shutil.rmtree(state_directory(runtime), ignore_errors=True)
            for socket in filter(Path.is_socket, runtime.iterdir()):
                socket.unlink(missing_ok=True)
    except (ManagerError, PlacementError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(asyncio.run(clear()))
