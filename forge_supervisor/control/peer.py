"""Who is at the other end of a connection, by the kernel's word."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# asm-generic/socket.h. SO_PEERPIDFD is there from Linux 6.5.
_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
_MOST_GROUPS = 256
"""What getsockopt() of Python has room for."""


@dataclass(frozen=True, slots=True)
class Peer:
    uid: int
    gids: frozenset[int]
    agent: str | None
    """The agent from within whose session it comes; "" from somewhere else among what agents can reach; None: from
    outside."""


def peer_of(connection: socket.socket, agent_of: Callable[[int], str | None]) -> Peer:
    """Tell who has connected. `agent_of` tells of a process from within which agent it comes.

    Who cannot be told any more, because it has ended, is taken to come from within.
    """
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid, frozenset({gid, *_groups(connection)}), _agent(connection, pid, agent_of))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # too many
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def _agent(connection: socket.socket, pid: int, agent_of: Callable[[int], str | None]) -> str | None:
    try:
        pidfd = _pidfd(connection, pid)
    except OSError:
        return ""
    try:
        agent = agent_of(pid)
        # Had it ended before, its pid might have been another's by then.
        look = select.poll()
        look.register(pidfd, select.POLLIN)
        ended = bool(look.poll(0))
    finally:
        os.close(pidfd)
    return "" if ended else agent


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # Of a process that has ended, too, some kernels do not give one: its pid may be another's by now.
        if error.errno != errno.ENOPROTOOPT:
            raise
        # An older kernel. A process that ends within the microseconds since it connected, and whose pid comes round to
        # another's meanwhile, is the one that this takes for another.
        return os.pidfd_open(pid)
