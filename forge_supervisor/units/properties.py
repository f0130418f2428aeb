"""What systemd is told of the units that it makes for us: their names and their properties."""

from __future__ import annotations

import os
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from forge_supervisor.config_resources import Resources
    from forge_supervisor.units.placement import User

SLICE = "forge.slice"
"""All that agents, and what acts for them, are in."""
# Seconds for what is left of a unit when systemd itself has to stop it.
_STOP_BACKSTOP = 10
# systemd.exec(5), 'Environment Variables in Spawned Processes': what a service gets unasked.
_SPAWN_ENVIRONMENT = (
    *("HOME", "INVOCATION_ID", "JOURNAL_STREAM", "LANG", "LOGNAME", "MANAGERPID", "MANAGERPIDFDID", "PATH", "SHELL"),
    *("MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "SYSTEMD_EXEC_PID", "TERM", "USER", "XDG_RUNTIME_DIR"),
)
_IN_UNIT_NAME = frozenset(string.ascii_letters + string.digits + ":_.-")


def scope_name(agent: str) -> str:
    """Make ``forge-agent-scout.scope``; an agent's name needs no escaping."""
    return f"forge-agent-{agent}.scope"


def unit_name(name: str, user: str) -> str:
    """Make ``forge-tmux-team.service``; what a unit's name may not hold is escaped as systemd.unit(5) has it."""
    escaped = "".join(char if char in _IN_UNIT_NAME else _escape(char) for char in user)
    return f"forge-{name}-{escaped}.service"


def _escape(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def of_service(
    name: str, user: User, argv: Sequence[str], env: Mapping[str, str], inherited: Sequence[str]
) -> dict[bytes, object]:
    # systemd.service(5): $ in arguments is expanded, $$ is a dollar sign.
    arguments = [os.fsencode(argument.replace("$", "$$")) for argument in argv]
    unset = {variable.partition("=")[0] for variable in inherited}.union(_SPAWN_ENVIRONMENT).difference(env)
    return {
        b"Description": f"forge {name} of {user.name}".encode(),
        b"Type": b"exec",  # started means executed: a program that cannot be is a failed start
        b"ExecStart": [(os.fsencode(argv[0]), arguments, False)],
        **({b"User": user.name.encode()} if os.geteuid() != user.uid else {}),
        b"WorkingDirectory": b"/",
        b"Environment": [os.fsencode(f"{key}={value}") for key, value in env.items()],
        b"UnsetEnvironment": [variable.encode() for variable in sorted(unset)],
        b"IgnoreSIGPIPE": False,
        b"StandardOutput": b"journal",
        b"StandardError": b"journal",
        b"Slice": SLICE.encode(),
        b"CollectMode": b"inactive-or-failed",
        b"TimeoutStopUSec": _STOP_BACKSTOP * 1_000_000,
        # At shutdown units stop in reverse order: the supervisor sees its agents end before their terminals do.
        b"Before": [b"forge-supervisor.service"],
        # By default systemd stops the whole unit where the kernel killed but one process, systemd.service(5).
        b"OOMPolicy": b"continue",
    }


def of_errand(
    name: str, user: User, argv: Sequence[str], env: Mapping[str, str], inherited: Sequence[str], within: float
) -> dict[bytes, object]:
    """Give those of a service that does one thing `within` so many seconds, and is done when that is.

    The supervisor's own start does not wait for it, as it would if this came before that: it may outlive a supervisor.
    """
    service = of_service(name, user, argv, env, inherited)
    del service[b"Before"]
    return {**service, b"Type": b"oneshot", b"TimeoutStartUSec": round(within * 1_000_000)}


def of_task(description: str, argv: Sequence[str]) -> dict[bytes, object]:
    """Give those of a service that does one thing, as root, and is done when that is."""
    return {
        b"Description": description.encode(),
        b"Type": b"oneshot",
        b"ExecStart": [(os.fsencode(argv[0]), list(map(os.fsencode, argv)), False)],
        b"Slice": SLICE.encode(),
        b"CollectMode": b"inactive-or-failed",
        b"TimeoutStartUSec": _STOP_BACKSTOP * 1_000_000,
        b"Before": [b"forge-supervisor.service"],
    }


def of_scope(agent: str, pid: int, resources: Resources) -> dict[bytes, object]:
    return {
        b"Description": f"agent {agent}".encode(),
        b"PIDs": [pid],
        b"Slice": SLICE.encode(),
        # One that has failed stays until somebody has read why, which need not be this supervisor.
        b"CollectMode": b"inactive",
        b"TimeoutStopUSec": _STOP_BACKSTOP * 1_000_000,
        # At shutdown units stop in reverse order: the supervisor ends its agents, and takes no death for a crash.
        b"Before": [b"forge-supervisor.service"],
        **resources.properties(),
    }
