"""What the kernel's control groups tell of processes that systemd has placed, cgroups(7)."""

from __future__ import annotations

import re
from pathlib import Path

from forge_supervisor.units.properties import SLICE

_ROOT = Path("/sys/fs/cgroup")
_AGENT = re.compile(r"forge-agent-([a-z0-9-]+)\.scope")


def agent_of(pid: int, root: str) -> str | None:
    """As `Placement.agent_of`: by the unit that the process is in, which takes root, or its user's systemd, to change.

    `root` is the group of the systemd that starts units for us. Whatever else is in our slice is what agents can have
    things started by, too; a slice of that name below another systemd, any user's own, is none of ours.
    """
    try:
        path = _path(pid)
    except OSError:
        return ""
    ours = f"{root.rstrip('/')}/{SLICE}/"
    if not path.startswith(ours):
        return None
    match = _AGENT.fullmatch(path.removeprefix(ours).split("/")[0])
    return match[1] if match else ""


def memory_of(pid: int) -> int | None:
    try:
        return int((_ROOT / _path(pid).strip("/") / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _path(pid: int) -> str:
    """Return the path of its group in the unified hierarchy, or, where systemd has none, in its own. Raises OSError."""
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    return paths.get("name=systemd", paths.get("", "/"))
