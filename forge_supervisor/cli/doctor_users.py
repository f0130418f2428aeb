"""What the doctor looks at of one user that agents run as.

Root only looks at names and owners here. Whatever depends on what a user may do is tried by a process of that user's,
so that the kernel's answer counts, whichever way access was granted.
"""

from __future__ import annotations

import grp
import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import forge_supervisor
from forge_supervisor import units
from forge_supervisor.cli.doctor_scene import Finding, for_root, ok, problem, warning
from forge_supervisor.cli.doctor_system import least_free, of_space
from forge_supervisor.control.rights import GROUP
from forge_supervisor.trust import user_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forge_supervisor.cli.doctor_scene import Scene
    from forge_supervisor.units import User

_ROOT_BY_CONTAINER = "its agents may become root, by a container that has all of the machine in it"
_OTHERS_SCREENS = "its agents may read the journal, with what other agents show on their screens"
POWERFUL = {
    "root": "its agents may change what belongs to the group root",
    "sudo": "its agents may become root",
    "wheel": "its agents may become root",
    "docker": _ROOT_BY_CONTAINER,
    "lxd": _ROOT_BY_CONTAINER,
    "incus-admin": _ROOT_BY_CONTAINER,
    "disk": "its agents may read and write every file system",
    "shadow": "its agents may read the hashes of passwords",
    "adm": _OTHERS_SCREENS,
    "systemd-journal": _OTHERS_SCREENS,
    GROUP: "what its agents start from outside of their sessions (cron, ssh) may do everything to all agents",
}
"""Groups that no agents' user should be in, and what it means if one is."""

_NO_LOGIN = frozenset({"nologin", "false"})


def checks(scene: Scene, name: str) -> list[Callable[[], Iterator[Finding]]]:
    """List what is looked at of that user."""
    try:
        user = units.lookup(name)
    except LookupError:
        return [partial(_missing, name)]
    looks = [groups, home, shell, tmux_directory, interpreter, space]
    if not scene.system:
        looks.append(linger)
    return [partial(look, scene, user) for look in looks]


def check_name(name: str) -> str:
    return f"user {name}"


def _missing(name: str) -> Iterator[Finding]:
    yield problem(check_name(name), "there is no such user", f"useradd --create-home {name}")


def groups(scene: Scene, user: User) -> Iterator[Finding]:
    check = check_name(user.name)
    names = {group: _group_name(group) for group in user.groups}
    powerful = [name for name in names.values() if name in POWERFUL]
    for name in powerful:
        # Processes keep the groups that they were started with, credentials(7).
        fix = f"gpasswd -d {user.name} {name}, and restart what runs as {user.name}, its tmux server included"
        if names[user.gid] == name:
            fix = f"groupadd {user.name}; usermod -g {user.name} {user.name}"
        if not scene.system:
            # It is what the operator's own account is like.
            fix = "run them as a user of their own, by a supervisor that runs as root"
        yield warning(check, f'{user.name} is in the group "{name}": {POWERFUL[name]}', fix)
    if not powerful:
        yield ok(check, f"uid {user.uid}, in no group that makes it powerful")


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def home(scene: Scene, user: User) -> Iterator[Finding]:
    check, directory = check_name(user.name), scene.path(user.home)
    try:
        status = directory.stat()
    except FileNotFoundError:
        fix = f"install -d -m 700 -o {user.uid} -g {user.gid} {user.home}"
        yield problem(check, f"its home {user.home} is missing", fix)
        return
    if not stat.S_ISDIR(status.st_mode):
        yield problem(check, f"its home {user.home} is no directory", f"usermod -d /home/{user.name} -m {user.name}")
        return
    writable = all(_may(scene, user, how, directory) for how in "wx") if scene.may_act_as(user) else None
    chown = f"chown {user.uid}:{user.gid} {user.home}"
    if writable is False:
        yield problem(check, f"it may not write its home {user.home}", _make_writable(scene, user, status, chown))
    elif status.st_uid != user.uid:
        owner = user_name(status.st_uid)
        yield warning(check, f"its home {user.home} belongs to {owner}, who may change what agents read there", chown)
    elif writable is None:
        yield for_root(check, f"whether it may write its home {user.home}")
    else:
        yield ok(check, f"its home {user.home} belongs to it, and it may write there")


def _make_writable(scene: Scene, user: User, status: os.stat_result, chown: str) -> str:
    if os.statvfs(scene.path(user.home)).f_flag & os.ST_RDONLY:
        return f'mount -o remount,rw "$(findmnt -no TARGET -T {user.home})"'
    if status.st_uid != user.uid:
        return chown
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        return f"chmod u+rwx {user.home}"
    return f"namei -l {user.home} shows which directory it may not enter"


def shell(scene: Scene, user: User) -> Iterator[Finding]:
    check = check_name(user.name)
    path = scene.path(user.shell)
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        text = f"its shell {user.shell} is missing, so sudo -iu {user.name} does not work, nor may what agents run"
        yield warning(check, text, f"usermod -s /bin/bash {user.name}")
    elif path.name in _NO_LOGIN:
        # Agents are started without a shell.
        text = f"its shell {user.shell} lets nobody in: agents run, and sudo -u {user.name} COMMAND works without -i"
        yield ok(check, text)


def linger(scene: Scene, user: User) -> Iterator[Finding]:
    """Look where logind remembers it; loginctl tells it only of those that are logged in."""
    check = check_name(user.name)
    if not scene.has_systemd():
        return
    if os.path.exists(scene.path("/var/lib/systemd/linger") / user.name):
        yield ok(check, "it lingers, so agents live on when it logs out")
        return
    text = "it does not linger, so agents end when it logs out"
    yield warning(check, text, f"loginctl enable-linger {user.name}")


def tmux_directory(scene: Scene, user: User) -> Iterator[Finding]:
    check = check_name(user.name)
    where = "/tmp" if scene.system else os.environ.get("TMUX_TMPDIR", "/tmp")  # noqa: S108 - as tmux does
    name = f"{where}/tmux-{user.uid}"
    try:
        status = scene.path(name).lstat()
    except FileNotFoundError:
        yield ok(check, f"{name} is not there yet, and tmux will make it")
        return
    except PermissionError:
        yield for_root(check, f"whose {name} is")
        return
    # Not chmod by root: its owner could put a link in the place of it.
    chmod = f"runuser -u {user.name} -- chmod 700 {name}" if scene.system else f"chmod 700 {name}"
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user.uid:
        what = "belongs to " + user_name(status.st_uid) if stat.S_ISDIR(status.st_mode) else "is no directory"
        fix = f"mv -T {name} {name}.not-of-{user.uid}, and ask its owner"
        yield problem(check, f"{name} {what}, so no tmux server of {user.name} can listen there", fix)
    elif status.st_mode & 0o007 or status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        text = f"{name} has mode {stat.S_IMODE(status.st_mode):o}, which tmux refuses"
        yield problem(check, text, chmod)
    elif status.st_mode & 0o070:
        text = f"{name} has mode {stat.S_IMODE(status.st_mode):o}: its group may reach the agents' terminals"
        yield warning(check, text, chmod)
    else:
        yield ok(check, f"{name} is its own")


def interpreter(scene: Scene, user: User) -> Iterator[Finding]:
    """Try whether it may run what its workers and agents are started with."""
    check = check_name(user.name)
    python, package = Path(sys.executable), Path(forge_supervisor.__file__)
    if not scene.may_act_as(user):
        yield for_root(check, f"whether it may execute {python}")
        return
    for path, how in ((python, "x"), (package, "r")):
        if not _may(scene, user, how, path):
            yield _unreachable(scene, user, path)
            return
    yield ok(check, f"it may execute {python}")


def _unreachable(scene: Scene, user: User, path: Path) -> Finding:
    check = check_name(user.name)
    steps = dict.fromkeys([*reversed(path.parents), *reversed(path.resolve().parents)])
    closed = next((step for step in steps if not _may(scene, user, "x", step)), None)
    if closed is None:
        text = f"it may not use {path}, which its agents are started with"
        return problem(check, text, f"chmod o+rX {path.resolve()}")
    fix = f"chmod o+x {closed}"
    if closed.stat().st_uid != 0 or closed.is_relative_to("/root"):
        fix = "sudo ./dev install, in a checkout of forge-supervisor, puts it where everybody can"
    return problem(check, f"it may not enter {closed}, and {path} is what its agents are started with", fix)


def space(scene: Scene, user: User) -> Iterator[Finding]:
    """Ask df as the user: root would follow what the user has put there, and wait for a mount of the user's."""
    if not scene.may_act_as(user):
        return
    base = scene.path(user.home)
    own = None if scene.system else os.environ.get("XDG_STATE_HOME")
    for directory in (Path(own) if own else base / ".local/state", base):
        answer = scene.ask(["df", "--output=avail,size,iavail,itotal", "--", str(directory)], user=user)
        numbers = [int(word) if word.isdigit() else 0 for word in answer.out.split()[-4:]]
        if answer.code == 0 and len(numbers) == 4:
            free = least_free((numbers[0], numbers[1]), (numbers[2], numbers[3]))
            yield of_space(check_name(user.name), directory, free)
            return


def _may(scene: Scene, user: User, how: str, path: Path) -> bool:
    return scene.ask(["test", f"-{how}", str(path)], user=user).code == 0
