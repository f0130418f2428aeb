"""What the doctor looks at on the machine: tmux, systemd, limits, buses, the journal, free space."""

from __future__ import annotations

import asyncio
import grp
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.cli.doctor_scene import SUPERVISOR_UNIT, Finding, for_root, of_sentence, ok, problem, warning
from forge_supervisor.journal import JOURNAL_SOCKET
from forge_supervisor.realm import SYSTEM_PATH
from forge_supervisor.runtime import runtime_directory
from forge_supervisor.terminal import Terminal
from forge_supervisor.tmux_client import TerminalError
from forge_supervisor.trust import user_name
from forge_supervisor.units.manager import Manager, ManagerError
from forge_supervisor.units.systemd import manager_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.cli.doctor_scene import Scene

OLDEST_SYSTEMD = 252
"""The oldest version that the tests have run with."""
KEEPS_DEATHS = (3, 6)
"""The first version of tmux that tells every death even if it was built with libutempter."""
LEAST_FREE = 0.05
"""The part of a file system below which there is a warning."""

_LIMITING = ("memory", "pids")
_JOURNAL_GROUPS = ("systemd-journal", "adm")


def tmux(scene: Scene) -> Iterator[Finding]:
    path = os.pathsep.join(str(scene.path(directory)) for directory in SYSTEM_PATH.split(":"))
    found = shutil.which("tmux", path=path)
    if found is None:
        yield problem("tmux", f"tmux was not found on {SYSTEM_PATH}", "apt-get install tmux")
        return
    terminal = Terminal("forge", env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}, tmux=found)
    try:
        terminal.require_version()
        version = terminal.version()
    except TerminalError as error:
        yield of_sentence("tmux", "problem", str(error), "apt-get install tmux")
        return
    text = f"{found} is version {version[0]}.{version[1]}"
    if version < KEEPS_DEATHS and b"libutempter.so" in Path(found).read_bytes():
        # No warning: the supervisor sees to it that none is missed.
        text += ", which with libutempter loses deaths; the supervisor asks for them again"
    yield ok("tmux", text)


def systemd(scene: Scene) -> Iterator[Finding]:
    if not scene.has_systemd():
        text = "systemd has not booted this machine: agents are plain children of the supervisor, without limits"
        yield warning("systemd", text, "nothing in a container that is meant so; else a machine with systemd as PID 1")
        return
    version = scene.show("", "Version").get("Version", "")
    number = re.match(r"\d+", version)
    if number is None or int(number[0]) < OLDEST_SYSTEMD:
        text = f"version {version or 'unknown'} is older than any that this was tested with ({OLDEST_SYSTEMD})"
        yield warning("systemd", text, "upgrade to Debian 12 or newer")
        return
    manager = "PID 1" if scene.system else f"the manager of {user_name(os.geteuid())}"
    if scene.system and not scene.is_root:
        yield ok("systemd", f"version {version}")
        yield for_root("systemd", f"whether {manager} starts units for the supervisor")
        return
    try:
        asyncio.run(reach(str(scene.path(manager_path()))))
    except ManagerError as error:
        yield problem("systemd", f"{manager} cannot be asked to start units: {error}", _revive(scene))
        return
    yield ok("systemd", f"version {version}; {manager} answers")


async def reach(path: str) -> None:
    """Have the manager answer. Raises ManagerError."""
    with Manager(path) as manager:
        manager.environment()


def _revive(scene: Scene) -> str:
    if scene.system:
        return "systemctl daemon-reexec"
    return f"sudo loginctl enable-linger {user_name(os.geteuid())}, and log in anew"


def limits(scene: Scene) -> Iterator[Finding]:
    """Tell whether what `resources` say of an agent is kept to, cgroups(7)."""
    if not scene.has_systemd():
        return
    of_user = f"user.slice/user-{os.geteuid()}.slice/user@{os.geteuid()}.service"
    group = scene.path("/sys/fs/cgroup") / ("" if scene.system else of_user)
    try:
        there = (group / "cgroup.controllers").read_text(encoding="ascii").split()
    except FileNotFoundError:
        text = "cgroup v2 is not what systemd uses here, so limits of agents (resources) may not hold"
        yield warning("limits", text, "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line")
        return
    if missing := [name for name in _LIMITING if name not in there]:
        text = f"no controller {' and '.join(missing)} is delegated, so limits of agents (resources) do not hold"
        yield warning("limits", text, _delegate(scene))
        return
    yield ok("limits", "cgroup v2 with the controllers memory and pids: limits of agents (resources) hold")


def _delegate(scene: Scene) -> str:
    if scene.system:
        return "take cgroup_disable= off the kernel's command line; in a container, give it these controllers"
    # There is no command that changes it for all: systemd.resource-control(5), Delegate=.
    directory = "/etc/systemd/system/user@.service.d"
    drop_in = f"printf '[Service]\\nDelegate=cpu io memory pids\\n' | sudo tee {directory}/forge.conf"
    return f"sudo mkdir -p {directory} && {drop_in} && sudo systemctl daemon-reload, and log in anew"


def bus(scene: Scene) -> Iterator[Finding]:
    if not scene.has_systemd():
        return
    own = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    socket = "/run/dbus/system_bus_socket" if scene.system else f"{own}/bus"
    if os.path.exists(scene.path(socket)):
        yield ok("bus", f"D-Bus is at {socket}")
        return
    # The supervisor itself, and systemctl as root, speak to systemd without it.
    text = f"there is no D-Bus at {socket}, so loginctl and systemctl of ordinary users do not work"
    yield warning("bus", text, "apt-get install " + ("dbus" if scene.system else "dbus-user-session"))


def journal(scene: Scene) -> Iterator[Finding]:
    if not scene.has_systemd():
        return
    if not os.path.exists(scene.path(JOURNAL_SOCKET)):
        text = f"journald does not listen at {JOURNAL_SOCKET}: what happens to agents is not recorded in a journal"
        yield warning("journal", text, "systemctl start systemd-journald.socket")
        return
    unit = f"--unit={SUPERVISOR_UNIT}" if scene.system else f"--user-unit={SUPERVISOR_UNIT}"
    # Of an entry only the least that there is: its text is not looked at.
    options = ("--no-pager", "--quiet", "--lines=1", "--output=json", "--output-fields=PRIORITY")
    answer = scene.ask(["journalctl", *options, unit])
    if answer.code == 0 and answer.out:
        yield ok("journal", f"entries of {SUPERVISOR_UNIT} can be read")
    elif not scene.is_root and not _reads_journal():
        who = user_name(os.geteuid())
        text = f"{who} may not read what the supervisor says of agents"
        yield warning("journal", text, f"sudo usermod -aG systemd-journal {who}, and log in anew")
    elif answer.code and answer.err:
        yield warning("journal", f"it cannot be read: {answer.err}", "systemctl restart systemd-journald")
    else:
        yield ok("journal", f"it can be read, and has no entry of {SUPERVISOR_UNIT}")


def _reads_journal() -> bool:
    names = set()
    for group in os.getgroups():
        try:
            names.add(grp.getgrgid(group).gr_name)
        except KeyError:
            continue
    return not names.isdisjoint(_JOURNAL_GROUPS)


def space(scene: Scene) -> Iterator[Finding]:
    """Look at the supervisor's own directory: without room there a restart takes agents for what they were."""
    wanted = scene.path(runtime_directory())
    directory = next(path for path in (wanted, *wanted.parents) if os.path.exists(path))
    there = os.statvfs(directory)
    free = least_free((there.f_bavail, there.f_blocks), (there.f_favail, there.f_files))
    yield of_space("space", directory, free)


def least_free(*amounts: tuple[int, int]) -> float:
    """Give the least part of a file system that is left, of what is free and what there is: bytes, and inodes."""
    # Some file systems count no inodes.
    return min((free / total for free, total in amounts if total > 0), default=1.0)


def of_space(check: str, directory: Path, free: float) -> Finding:
    if free >= LEAST_FREE:
        return ok(check, f"{free:.0%} of the file system of {directory} is free")
    text = f"only {free:.1%} of the file system of {directory} is free, in bytes or in inodes"
    return warning(check, text, f"free some; what takes it: du -xh {directory} | sort -h | tail")
