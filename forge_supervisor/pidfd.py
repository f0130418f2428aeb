"""A process that cannot be mistaken for another: pinned by a pidfd, its death an event of the loop (pidfd_open(2))."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path


class Pidfd:
    """Pins process `pid`, if it lives and belongs to `uid`. Raises ProcessLookupError or PermissionError.

    `born` is what `birth` told of it some time ago: another one that has got its pid since is not it. Children need not
    be reaped for their death to be seen, and other people's processes are watched alike.
    """

    def __init__(self, pid: int, uid: int, *, born: int | None = None) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._death: asyncio.Future[None] | None = None
        self._closed = self._was_dead = False
        try:
            self.born = birth(pid)
            self._check_identity(uid, self.born if born is None else born)
        except BaseException:
            os.close(self._fd)
            raise

    def _check_identity(self, uid: int, born: int) -> None:
        if self.born != born:
            raise ProcessLookupError(f"process {self.pid} is another one by now")
        owner = _real_uid(self.pid)
        # A pid is free for another process once ours has died: only if it lives *now* did we see its own owner.
        if self.dead:
            raise ProcessLookupError(f"process {self.pid} has died")
        if owner != uid:
            raise PermissionError(f"process {self.pid} belongs to uid {owner}, not to {uid}")

    @property
    def dead(self) -> bool:
        """Whether it has died; of a closed one, whether it had died by then."""
        if self._closed:
            return self._was_dead
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has died is left alone."""
        if self._closed:
            return
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return

    async def wait(self) -> None:
        """Return once the process has died. May be awaited by several tasks, and cancelled."""
        if self._closed and self._was_dead:
            return
        if self._death is None:
            loop = asyncio.get_running_loop()
            self._death = loop.create_future()
            loop.add_reader(self._fd, self._died)
        await asyncio.shield(self._death)

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._death is not None and not self._death.done():
            self._death.set_result(None)

    def close(self) -> None:
        """Let go of it. Who still waits for its death is told, if it has died, and cancelled otherwise."""
        if self._closed:
            return
        self._was_dead, self._closed = self.dead, True
        if self._death is not None and not self._death.done():
            asyncio.get_running_loop().remove_reader(self._fd)
            if self._was_dead:
                self._death.set_result(None)
            else:
                self._death.cancel()
        os.close(self._fd)


def birth(pid: int) -> int:
    """Tell when a process was started, in clock ticks since boot: with its pid, its identity. ProcessLookupError."""
    return int(_stat(pid)[19])


def parent(pid: int) -> int:
    """Tell the parent of a process. ProcessLookupError."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on, proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} has died") from None
    # The second field may hold spaces and parentheses.
    return text.rpartition(b")")[2].split()


def _real_uid(pid: int) -> int:
    # Not the owner of /proc/PID, which is root while a process is not dumpable, proc(5).
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has died") from None
    return int(status.partition("\nUid:")[2].split(None, 1)[0])
