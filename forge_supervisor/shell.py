"""``forge-supervisor shell AGENT``: a shell where the agent works, with its environment, as its user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from forge_supervisor.units import User

# Without their start-up files, which would change the environment that somebody wants to look at.
SHELLS = (("/bin/bash", "--norc", "--noprofile"), ("/bin/sh",))


def run(user: User, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> int:
    """Run `argv` (empty: a shell) as that user, and return its exit code; 128 + n where signal n ended it.

    Of a terminal of ours it gets another one in between: it could type into ours otherwise, which may be root's
    (ioctl_tty(2), TIOCSTI). Raises OSError.
    """
    argv = tuple(argv) or next(shell for shell in SHELLS if os.access(shell[0], os.X_OK))
    if not os.isatty(0):
        return _wait(_start(user, argv, cwd, env, None))
    ours, theirs = os.openpty()
    try:
        os.fchown(theirs, user.uid, -1) if os.geteuid() == 0 else None
        with _size_followed(ours):
            process = _start(user, argv, cwd, {**env, "TERM": os.environ.get("TERM", "linux")}, theirs)
            os.close(theirs)
            with _raw():
                _relay(ours)
                return _code(process.wait())
    finally:
        os.close(ours)


def _start(
    user: User, argv: Sequence[str], cwd: str, env: Mapping[str, str], terminal: int | None
) -> subprocess.Popen[bytes]:
    become: dict[str, Any] = {}
    if os.geteuid() != user.uid:
        become = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    if terminal is not None:
        become |= {"stdin": terminal, "stdout": terminal, "stderr": terminal, "preexec_fn": _take_terminal}
    return subprocess.Popen(argv, cwd=cwd, env=env, umask=0o022, start_new_session=True, **become)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return _code(process.wait())
    except KeyboardInterrupt:  # it is in a session of its own, where Ctrl-C does not reach it
        process.send_signal(signal.SIGINT)
        return _code(process.wait())


def _code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned


@contextlib.contextmanager
def _size_followed(terminal: int) -> Iterator[None]:
    def follow(*_: object) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    before = signal.signal(signal.SIGWINCH, follow)
    follow()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)


def _relay(terminal: int) -> None:
    """Copy both ways until the other terminal has been closed by all, which reads as an error (EIO)."""
    with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
        selector.register(0, selectors.EVENT_READ, terminal)
        selector.register(terminal, selectors.EVENT_READ, 1)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if data:
                    _write(key.data, data)
                elif key.fd == 0:
                    selector.unregister(0)
                else:
                    return


def _write(fd: int, data: bytes) -> None:
    sys.stdout.flush()
    while data:
        data = data[os.write(fd, data) :]
