"""What the kernel's control groups tell of processes that systemd has placed, cgroups(7)."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from forge_supervisor.units.properties import SLICE

_ROOT = Path("/sys/fs/cgroup")
# As /proc/PID/cgroup names them, cgroups(7).
_UNIFIED = ""
_LEGACY = "name=systemd"
_AGENT = re.compile(r"forge-agent-([a-z0-9-]+)\.scope")


def agent_of(pid: int, root: str) -> str | None:
    """As `Placement.agent_of`: by the unit that the process is in, which takes root, or its user's systemd, to change.

    `root` is the group of the systemd that starts units for us. Whatever else is in our slice is what agents can have
    things started by, too; a slice of that name below another systemd, any user's own, is none of ours.
    """
    ours = f"{root.rstrip('/')}/{SLICE}/"
    try:
        # In a container everybody may be at the top of the hierarchy that its own systemd has nothing to do with.
        below = [path.removeprefix(ours) for path in _paths(pid).values() if path.startswith(ours)]
    except OSError:
        return ""
    if not below:
        return None
    match = _AGENT.fullmatch(below[0].split("/")[0])
    return match[1] if match else ""


def memory_of(pid: int) -> int | None:
    try:
        path = _paths(pid)[_UNIFIED]
        return int((_ROOT / path.strip("/") / "memory.current").read_text(encoding="ascii"))
    except (OSError, KeyError, ValueError):
        return None


def ease_moves() -> None:
    """Spare whoever moves a process within some milliseconds after this most of the wait. Blocks for ten or so.

    The kernel makes each move wait for all its CPUs (an RCU grace period: percpu_down_write of
    cgroup_threadgroup_rwsem) unless another has waited just before. Ours changes nothing: to where we are already.
    """
    with contextlib.suppress(OSError, KeyError):
        path = _paths(os.getpid())[_UNIFIED]
        file = os.open(_ROOT / path.strip("/") / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, b"0")
        finally:
            os.close(file)


def _paths(pid: int) -> dict[str, str]:
    """Return the path of its group in each of the hierarchies in which systemd may keep its units. Raises OSError."""
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    return {name: paths[name] for name in (_UNIFIED, _LEGACY) if name in paths}
