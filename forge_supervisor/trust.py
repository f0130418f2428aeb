"""Whether a path is root's, so that nobody else can put another file in its place.

Only `lstat` and `readlink` are called, and the walk ends at the first step that somebody else controls.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40
"""As many as the kernel follows, path_resolution(7)."""


@dataclass(frozen=True, slots=True)
class OthersStep:
    """The first directory or link on the way that is not root's alone; `text` says why, with the way out."""

    step: Path
    text: str


def others_way(path: Path, *, whose_file: bool = False) -> OthersStep | None:
    """Tell who but root could put something else in the place of `path`: the first such directory or link.

    Only the first, for what comes after a link that others own is theirs to choose. Whether the file at its end is
    root's is judged with `whose_file`; then, where there is no such step, nobody else can change what is there between
    this look and the next. (Without it a sticky directory that a group may write is good enough: /nix/store is one.)
    Raises OSError.
    """
    others = 0o022 if whose_file else stat.S_IWOTH
    for step, status in _way(path):
        is_directory = stat.S_ISDIR(status.st_mode)
        if status.st_uid != 0 and (whose_file or not stat.S_ISREG(status.st_mode)):
            text = f"belongs to {user_name(status.st_uid)}, who could replace the configuration (chown -h root {step})"
        elif is_directory and status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            text = f"others than root may write this directory and replace the configuration (chmod go-w {step})"
        elif not is_directory and step.parent.lstat().st_mode & others:
            # In a sticky directory nobody else replaces what is root's, but all may put a hard link to another file
            # of root's there, under a name of their choice (proc_sys_fs(5), protected_hardlinks).
            text = "lies in a directory that everybody may write (move it into one of its own)"
        else:
            continue
        return OthersStep(step, text)
    return None


def user_name(uid: int) -> str:
    """Name the user for people; the number where there is no such user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """List every directory and symbolic link that has a say in what `path` is, and its end (path_resolution(7))."""
    here = Path("/")
    yield here, here.lstat()
    todo = list(reversed(Path.cwd().joinpath(path).parts[1:]))
    links = 0
    while todo:
        name = todo.pop()
        step = here.parent if name == ".." else here / name
        status = step.lstat()
        yield step, status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = step.readlink()
            here = Path("/") if target.is_absolute() else here
            todo += reversed(target.parts[target.is_absolute() :])
        else:
            here = step
