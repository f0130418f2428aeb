"""What a placement promises, whichever it is."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from forge_supervisor.config_resources import Resources
    from forge_supervisor.pidfd import Pidfd


class PlacementError(Exception):
    """A process could not be started; the text is a sentence for the operator."""


@dataclass(frozen=True)
class User:
    """A Linux user as passwd(5) and group(5) have it; `groups` holds the primary one too."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def lookup(name: str, known: User | None = None) -> User:
    """Find a user by name. Raises LookupError with a sentence.

    Where passwd(5) still says of it what was `known`, it is that: to ask for groups can take as long as all else.
    """
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL
        raise LookupError(f'no such user "{name}" (create it: useradd -m {name})') from None
    groups = () if known is None else known.groups
    now = User(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell or "/bin/sh")
    if known is not None and now == known:
        return known
    return replace(now, groups=tuple(os.getgrouplist(name, entry.pw_gid)))


def check_user(user: User) -> None:
    """Raise PlacementError unless we may start processes as that user."""
    if os.geteuid() not in {0, user.uid}:
        raise PlacementError(f"only root may start processes as {user.name}")


def ran_out(within: float) -> str:
    """Say what became of a process that had only so many seconds."""
    return f"it had not ended after {within:g} s, and was ended"


class Process(Protocol):
    pid: int
    unit: str
    """The name of its unit; empty without systemd."""

    async def stop(self, grace: float) -> None:
        """SIGTERM, up to `grace` seconds to end, then SIGKILL to all that belongs to it. Raises nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Cleared:
    """What became of a scope: how many processes ended on SIGTERM, how many needed SIGKILL, how many do not end."""

    terminated: int = 0
    killed: int = 0
    left: int = 0
    oom_killed: bool = False
    """Whether the kernel has killed in it for want of memory."""


class Scope(Protocol):
    """Where the processes of one session are, all of them, whatever they do to get away."""

    def limit(self, resources: Resources) -> None:
        """Give it other limits while it runs. Raises PlacementError."""
        ...

    def is_over(self) -> bool:
        """Whether it is known to be gone, and nothing to have been killed for memory in it: there is nothing to end."""
        ...

    async def end(self, grace: float) -> Cleared:
        """SIGTERM to all that is in it, up to `grace` seconds to end, then SIGKILL. Raises nothing."""
        ...


class Placement(Protocol):
    holds: bool
    """Whether it has scopes that hold all of an agent's processes, and hold these to limits."""

    async def run(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int | None = None
    ) -> Process:
        """Start a process as `user` in /, with exactly `env`. Raises PlacementError.

        `name` says what it is to that user (worker, tmux). `argv[0]` is an absolute path. `stdin` is a descriptor that
        stays the caller's to close; /dev/null by default. What the process writes goes to the journal, or to our log.
        """
        ...

    async def complete(
        self, name: str, user: User, argv: Sequence[str], *, env: Mapping[str, str], stdin: int, within: float
    ) -> None:
        """Run a process as `run` does, and return when it has ended well.

        Raises PlacementError if it cannot be started, or ends with another exit code than 0, or by a signal, or has not
        ended `within` so many seconds and therefore is ended, with all that belongs to it. Where it outlives the
        supervisor its time is limited nevertheless.
        """
        ...

    async def make_private(self, path: Path, user: User) -> None:
        """As root: make a directory that is the user's alone, whoever had made one before. Raises PlacementError."""
        ...

    async def find(self, name: str, user: User) -> Process | None:
        """Find what an earlier supervisor has started with `run`, if it still runs."""
        ...

    def about_to_enclose(self) -> None:
        """Take note that there will be something to enclose in some milliseconds. Returns at once; raises nothing."""
        ...

    async def enclose(self, agent: str, process: Pidfd, resources: Resources) -> Scope:
        """Put the first process of an agent's session in a scope of its own, before it has children.

        What is left of an earlier one of that agent is ended. Raises PlacementError.
        """
        ...

    def scope(self, agent: str) -> Scope:
        """Return the scope of an agent that an earlier supervisor has made; an empty one if it is gone."""
        ...

    def scope_name(self, agent: str) -> str | None:
        """Name the unit of that scope; None without systemd."""
        ...

    def agent_of(self, pid: int, agents: Mapping[int, str]) -> str | None:
        """Name the agent from within whose session a process comes; None from outside of all that agents can reach.

        `agents` has the main process of each that runs. "" for what comes from elsewhere among what agents can reach,
        above all a tmux server, and for what cannot be told.
        """
        ...

    def memory_of(self, pid: int) -> int | None:
        """Return the bytes that the scope of an agent, given its main process, has in use; None if nobody counts."""
        ...

    async def discard(self, users: Collection[str], agents: Collection[str]) -> None:
        """End what an earlier supervisor has left, but for the tmux servers of `users` and the scopes of `agents`.

        Raises PlacementError.
        """
        ...

    def stopping(self) -> None:
        """Take note that the supervisor itself is being stopped: nothing may wait for the end of that."""
        ...

    async def close(self, *, leave: bool) -> None:
        """Let go of all processes: to `leave` them to the next supervisor, or because all have been stopped."""
        ...
