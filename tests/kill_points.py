"""A supervisor that is killed at one step of its work: ``python kill_points.py NUMBER MARK ARGUMENT …``.

Steps are counted before and after each call of what acts on the world or writes something down. At step NUMBER it is
killed, unless the file MARK is there, which it makes just before: so that the next one is not.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

from forge_supervisor import handshake, journal, main, pidfd, saved, session
from forge_supervisor.units import manager, systemd
from forge_supervisor.worker import client

ACTIONS: list[tuple[Any, str]] = [
    (saved.Store, "write"),
    (saved.Store, "remove"),
    (client.Worker, "ask"),
    (client.Worker, "stop"),
    (systemd.SystemdPlacement, "run"),
    (systemd.SystemdPlacement, "enclose"),
    (systemd._SystemdScope, "end"),
    (manager.Manager, "start_transient"),
    (pidfd.Pidfd, "__init__"),
    (pidfd.Pidfd, "signal"),
    (handshake, "encode"),
    (session, "hand_over"),
    (journal, "log"),
]


def step() -> None:
    global done  # noqa: PLW0603 - this process has nothing else to do
    done += 1
    if done == number and not mark.exists():
        mark.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)


def counted(action: Any, label: str) -> Any:
    @functools.wraps(action)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        enter(f"before {label}")
        result = await action(*args, **kwargs)
        enter(f"after {label}")
        return result

    @functools.wraps(action)
    def acting(*args: Any, **kwargs: Any) -> Any:
        enter(f"before {label}")
        result = action(*args, **kwargs)
        enter(f"after {label}")
        return result

    return waiting if inspect.iscoroutinefunction(action) else acting


def enter(what: str) -> None:
    global name  # noqa: PLW0603 - see above
    name = what
    step()


done, name = 0, ""
number, mark = int(sys.argv[1]), Path(sys.argv[2])
for owner, attribute in ACTIONS:
    label = f"{getattr(owner, '__name__', owner)}.{attribute}"
    setattr(owner, attribute, counted(getattr(owner, attribute), label))
sys.argv[1:] = sys.argv[3:]
main.main()
