"""The socket of a tmux server, and who listens on it. Runs in the worker, as the server's user; blocks."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import stat
import struct
import threading
import time
from typing import TYPE_CHECKING

from forge_supervisor.pidfd import Pidfd
from forge_supervisor.tmux_client import TerminalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_Identity = tuple[int, int, int]
"""What tells a file from all that have been, or will be, in its place: device, inode, time of its last change."""


class TmuxSocket:
    """``timeout`` (seconds) bounds each question. May be used by several threads at once."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._listener: tuple[Pidfd, _Identity] | None = None

    def server_pid(self) -> int | None:
        """Who listens, by the kernel's word (SO_PEERCRED); None only if surely nobody does. Raises TerminalError.

        While that process lives, and the file is the same, nobody is asked again: a server of hundreds of panes takes
        a millisecond over each connection, even over one from which nothing comes.
        """
        there = self._identity()
        with self._lock:
            if self._listener is not None and self._listener[1] == there and not self._listener[0].dead:
                return self._listener[0].pid
        pid = self._ask()
        if pid is not None and there is not None:
            self._remember(pid, there)
        return pid

    def signal(self, number: signal.Signals) -> None:
        """Send who listens a signal, if it is known for sure; another that has got its pid is left alone."""
        pid = self.server_pid()
        with self._lock:
            if self._listener is not None and self._listener[0].pid == pid:
                self._listener[0].signal(number)

    def restore(self, pid: int) -> None:
        """Have server ``pid`` make its socket anew if it, or its directory, was removed, or replaced by another."""
        if self.server_pid() == pid:
            return
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        os.kill(pid, signal.SIGUSR1)  # tmux(1), option -L
        deadline = time.monotonic() + self._timeout
        waits = pauses()
        # Until then another server answers in its place, if the socket is that one's.
        while not self._listens(pid):
            if time.monotonic() > deadline:
                raise TerminalError(f"the tmux server (pid {pid}) does not make {self.path} anew")
            time.sleep(next(waits))

    def remove(self) -> None:
        """Remove the socket, as tmux does not when it is ended; unless somebody listens on it."""
        if self.server_pid() is None:
            self.path.unlink(missing_ok=True)

    def _listens(self, pid: int) -> bool:
        with contextlib.suppress(TerminalError):
            return self.server_pid() == pid
        return False

    def _ask(self) -> int | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # Not settimeout(): connect(2) then does not wait for its turn where many connect at once.
            seconds, rest = divmod(self._timeout, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))
            try:
                probe.connect(os.fspath(self.path))
            except FileNotFoundError:
                return None
            except OSError as error:
                # connect(2) refuses what is no socket with the same word as a socket that nobody listens on.
                if isinstance(error, ConnectionRefusedError) and stat.S_ISSOCK(self._lstat().st_mode):
                    return None
                raise TerminalError(f"tmux server on {self.path}: {error}") from None
            pid, uid, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise TerminalError(f"the tmux server on {self.path} belongs to uid {uid}, not to us")
        return int(pid)

    def _remember(self, pid: int, there: _Identity) -> None:
        try:
            server = Pidfd(pid, os.geteuid())
        except OSError:
            return
        replaced: Pidfd | None = server
        # Pinned before it is asked again: surely the one that listens there.
        with contextlib.suppress(OSError, TerminalError):
            if self._ask() == pid and self._identity() == there:
                with self._lock:
                    replaced = None if self._listener is None else self._listener[0]
                    self._listener = server, there
        if replaced is not None:
            replaced.close()

    def _identity(self) -> _Identity | None:
        try:
            status = self.path.stat()  # of a link: what it leads to
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns

    def _lstat(self) -> os.stat_result:
        try:
            return self.path.lstat()
        except OSError as error:
            raise TerminalError(f"tmux server on {self.path}: {error}") from None


def pauses() -> Iterator[float]:
    """2, 4, 8 ... 100, 100 ... milliseconds, in seconds."""
    return itertools.chain((2**n / 1000 for n in range(1, 7)), itertools.repeat(0.1))
