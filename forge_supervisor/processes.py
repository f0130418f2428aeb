"""Find and end what an agent's session left behind. Runs in the worker, as the agent's user; every call blocks.

A process belongs to an agent's session if it is in the kernel session (setsid(2)) that its pane's process led, or
if it was started with ``INVOCATION_ID=<id>`` in its environment, or if it descends from such a process. Out of reach
are processes that left the kernel session *and* dropped the variable *and* lost their parent, and those that became
another user: only a cgroup holds these.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# Seconds that the kernel may take to end what got a SIGKILL, and that one round waits for it.
_KILL_TIMEOUT = 5.0
_KILL_ROUND = 0.1

# Each pinned process costs a descriptor; the rest wait for the next round.
_MOST_PINNED = 256

# Most fit into it. Of an environment that takes two readings the second is missing if it is executed in between.
_READ_SIZE = 1 << 16


@dataclass(frozen=True)
class Cleared:
    """How many ended after SIGTERM, how many more after SIGKILL, and how many live on (stuck in the kernel)."""

    terminated: int = 0
    killed: int = 0
    left: int = 0


@dataclass(frozen=True)
class _Process:
    pid: int
    start: int  # clock ticks since boot; pid and start together never come again
    ppid: int = field(compare=False)
    sid: int = field(compare=False)


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is more than a zombie."""
    return _read(pid) is not None


def resume(pid: int) -> None:
    """Let a process go on that somebody has stopped (SIGSTOP, Ctrl-Z). Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_bytes()
    if text.rpartition(b")")[2].split()[0] == b"T" and _is_ours(pid):
        os.kill(pid, signal.SIGCONT)


def survivors(invocation: str | None, sid: int | None, spare: Collection[int] = ()) -> list[int]:
    """Return the pids of our user's processes that belong to the session; never ours, never one in ``spare``.

    ``sid`` is the pid of the pane's process. ``spare`` is for the tmux server, which someone may have started from
    within a session. ``invocation`` None: go by ``sid`` alone, and trust that its process is still the pane's.
    """
    return [process.pid for process in _find(invocation, sid, spare)]


def outsiders(invocation: str, sid: int, spare: Collection[int]) -> set[int]:
    """Return pids of processes that do not belong to the session, for a `clear` that follows at once.

    Those of which that is not sure are left out: who is just being executed has no environment, and who has been forked
    and not executed has its parent's, which for the tmux server in ``spare`` tells nothing of what it is to be.
    """
    told = _told(invocation)
    unclear = {b"", *map(_environment_of, spare)}
    found = set()
    for pid in _pids():
        environment = _environment_of(pid)
        with contextlib.suppress(OSError):  # it has ended, or that is not for us to know
            if environment not in unclear and told not in environment and os.getsid(pid) != sid:
                found.add(pid)
    return found


def clear(
    invocation: str | None,
    sid: int | None,
    grace: float,
    spare: Collection[int] = (),
    outsiders: Collection[int] = (),
) -> Cleared:
    """SIGTERM to all survivors, up to ``grace`` seconds for them to end, then SIGKILL until none is found.

    Whether there are any need not be asked of ``outsiders``.
    """
    if not _may_find(invocation, sid, {os.getpid(), *spare, *outsiders}):
        return Cleared()
    terminated = 0
    killed: set[_Process] = set()
    with _Pinned() as pinned:
        deadline = time.monotonic() + grace
        while True:
            for process in pinned.add(_find(invocation, sid, spare)):
                pinned.send(process, signal.SIGTERM)
                pinned.send(process, signal.SIGCONT)  # a stopped process cannot obey
            if not pinned and not terminated:
                return Cleared()
            if not pinned or time.monotonic() >= deadline:
                break
            # Each death may uncover what the dead one had started meanwhile: look again.
            terminated += pinned.wait(deadline - time.monotonic())
        deadline = time.monotonic() + _KILL_TIMEOUT
        while True:
            pinned.add(_find(invocation, sid, spare))
            killed.update(pinned)
            for process in pinned:
                pinned.send(process, signal.SIGKILL)
            if not pinned or time.monotonic() >= deadline:
                return Cleared(terminated, killed=len(killed) - len(pinned), left=len(pinned))
            pinned.wait(_KILL_ROUND)


def clear_pane(pid: int, grace: float) -> Cleared:
    """Clear the session of a pane's process that lives, whichever invocation it is of."""
    return clear(_invocation_of(pid), pid, grace)


class _Pinned:
    """Processes held by pidfd, so that a signal goes to what was found and not to who got its pid since."""

    def __init__(self) -> None:
        self._fds: dict[_Process, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[_Process]:
        return iter(self._fds)

    def add(self, found: Iterable[_Process]) -> list[_Process]:
        """Pin what is not pinned yet; returns that."""
        new = []
        for process in found:
            if process in self._fds or len(self._fds) >= _MOST_PINNED:
                continue
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(process.pid)
                if _read(process.pid) == process and _is_ours(process.pid):
                    self._fds[process] = fd
                    new.append(process)
                else:
                    os.close(fd)
        return new

    def send(self, process: _Process, number: signal.Signals) -> None:
        # One that has just become another user's (su) lives on, and counts as left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._fds[process], number)

    def wait(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds until one has ended or more, and let go of those; returns their number."""
        poll = select.poll()
        by_fd = {fd: process for process, fd in self._fds.items()}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        ended = poll.poll(max(timeout, 0) * 1000)
        for fd, _ in ended:
            del self._fds[by_fd[fd]]
            os.close(fd)
        return len(ended)


def _find(invocation: str | None, sid: int | None, spare: Collection[int]) -> list[_Process]:
    spared = {os.getpid(), *spare}
    if not _may_find(invocation, sid, spared):
        return []
    everyone = {process.pid: process for process in _everyone() if process.pid not in spared}
    found = set() if invocation is None else {pid for pid in everyone if _invocation_of(pid) == invocation}
    # The kernel keeps a session's number from reuse while the session has members. So if a process of that pid lives
    # but is not of our invocation, the session has ended and the number is someone else's.
    if sid is not None and (sid not in everyone or sid in found or invocation is None):
        found |= {pid for pid, process in everyone.items() if process.sid == sid}
    children = defaultdict(list)
    for process in everyone.values():
        children[process.ppid].append(process.pid)
    unvisited = list(found)
    while unvisited:
        born = [pid for pid in children[unvisited.pop()] if pid not in found]
        found.update(born)
        unvisited += born
    return [everyone[pid] for pid in sorted(found) if _is_ours(pid)]


def _may_find(invocation: str | None, sid: int | None, spared: Collection[int]) -> bool:
    """Whether there may be any: as a rule there is none, and where there are hundreds of agents this takes a third."""
    told = None if invocation is None else _told(invocation)
    for pid in _pids():
        if pid in spared:
            continue
        with contextlib.suppress(OSError):  # it has ended, or that is not for us to know
            if os.getsid(pid) == sid or (told is not None and told in _environment_of(pid)):
                return True
    return False


def _told(invocation: str) -> bytes:
    return os.fsencode(f"INVOCATION_ID={invocation}")


def _everyone() -> Iterator[_Process]:
    for pid in _pids():
        if process := _read(pid):
            yield process


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - see _bytes


def _read(pid: int) -> _Process | None:
    """None for a zombie, too."""
    try:
        text = _bytes(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5); the second field may hold spaces and parentheses.
    words = text.rpartition(b")")[2].split()
    if words[0] in b"ZX":
        return None
    return _Process(pid=pid, ppid=int(words[1]), sid=int(words[3]), start=int(words[19]))


def _is_ours(pid: int) -> bool:
    # Not the owner of /proc/PID, who is root while a process is not dumpable, proc(5).
    try:
        status = _bytes(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(status.partition(b"\nUid:")[2].split(None, 1)[0]) == os.getuid()


def _invocation_of(pid: int) -> str | None:
    prefix = b"INVOCATION_ID="
    words = _environment_of(pid).split(b"\0")
    return next((os.fsdecode(word.removeprefix(prefix)) for word in words if word.startswith(prefix)), None)


def _environment_of(pid: int) -> bytes:
    """Return it as it was when its program was executed; empty if it has ended, or is another user's."""
    try:
        return _bytes(f"/proc/{pid}/environ")
    except OSError:
        return b""


def _bytes(path: str) -> bytes:
    # Not by an open file, of which the greater part is Python's: at each agent's end, a file of every process there is.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(file, _READ_SIZE):
            parts.append(part)
    finally:
        os.close(file)
    return b"".join(parts)
