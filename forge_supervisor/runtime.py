"""The supervisor's own directory, gone at boot: its sockets, its lock, and what the next one has to know."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def runtime_directory() -> Path:
    """Tell where sockets are: what the unit says, or else the place that it would say."""
    given = os.environ.get("RUNTIME_DIRECTORY")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/forge-supervisor")
    own = os.environ.get("XDG_RUNTIME_DIR")
    # only_one() refuses one in /tmp that somebody else has made.
    return Path(own) / "forge-supervisor" if own else Path(f"/tmp/forge-supervisor-{os.geteuid()}")  # noqa: S108


def bound_for(uid: int, path: Path, kind: socket.SocketKind) -> socket.socket:
    """Bind a socket to the path, in place of whatever is there, that this user alone can reach. Raises OSError."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        bound.bind(str(path))
        # To connect, and to send, takes the right to write, unix(7).
        path.chmod(0o600)
        if uid != os.geteuid():
            os.chown(path, uid, -1)
    except BaseException:
        bound.close()
        raise
    return bound


def state_directory(runtime: Path) -> Path:
    """Tell where it is written what the next supervisor has to know."""
    return runtime / "agents"


def lasting_directory() -> Path:
    """Tell where it is kept what is to outlive a boot: what the unit says, or else the place that it would say."""
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/forge-supervisor")
    # Not by the user's unit: systemd before 254 has StateDirectory= among a user's configuration.
    own = os.environ.get("XDG_STATE_HOME", "")
    return (Path(own) if own.startswith("/") else Path.home() / ".local/state") / "forge-supervisor"


class UnusableRuntimeError(Exception):
    pass


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[Path]:
    """Hold the runtime directory against a second supervisor. Raises UnusableRuntimeError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Agents' users connect to the socket in it, and only its owner may put another in its place.
        status = directory.lstat()
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            raise UnusableRuntimeError(f"{directory} is not a directory of this user (remove it)")
        directory.chmod(0o755)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnusableRuntimeError(f"the runtime directory {directory} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield directory
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace")
        text = f"another forge-supervisor is running (pid {holder} holds {directory}/lock)"
        raise UnusableRuntimeError(text) from None
    finally:
        os.close(lock)
