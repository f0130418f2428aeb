"""``forge-supervisor shell AGENT``: a shell where the agent works, with its environment, as its user.

What runs in it must get nothing of the terminal that it was started from, where that is root's: whoever holds a
descriptor of a terminal, or has it as its own (/dev/tty), can read what is typed there later, and type into it
(ioctl_tty(2), TIOCSTI). util-linux's runuser puts another one in between, and another keyring. It runs as root, so it
has nothing of the agent's environment (LD_PRELOAD): that goes past it through a descriptor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

from forge_supervisor.handshake import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from forge_supervisor.units import User

# Without their start-up files, which would change the environment that somebody wants to look at.
_SHELLS = (("/bin/bash", "--norc", "--noprofile"), ("/bin/sh",))
_RUNUSER = "/usr/sbin/runuser"
# Run as the user already: root may enter what the user may not, and what is there is the user's to choose.
_ENTER = """
import os, sys
with open(int(sys.argv[1]), "rb") as seat:
    fields = seat.read().split(b"\\0")[:-1]
end = 2 + int(fields[1])
environment = dict(field.split(b"=", 1) for field in fields[end:])
if "TERM" in os.environ:
    environment[b"TERM"] = os.environb[b"TERM"]
os.umask(0o022)
try:
    os.chdir(fields[0])
except OSError as error:
    sys.exit(f"{os.fsdecode(fields[0])}: {error.strerror} (an agent's directory is made by its first start)")
try:
    os.execvpe(fields[2], fields[2:end], environment)
except OSError as error:
    print(f"{os.fsdecode(fields[2])}: {error.strerror}", file=sys.stderr)
    sys.exit(127)
"""


def run(user: User, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> int:
    """Run `argv` (empty: a shell) as that user, and return its exit code; 128 + n where signal n ended it.

    Raises OSError.
    """
    argv = tuple(argv) or next(shell for shell in _SHELLS if os.access(shell[0], os.X_OK))
    becomes = os.geteuid() != user.uid
    # Only where both ways lead to a terminal: another one in between changes ends of lines, and echoes.
    at_terminal = os.isatty(0) and os.isatty(1)
    become = [_RUNUSER, *(["--pty"] if at_terminal else []), "-u", user.name, "--"] if becomes else []
    seat = os.memfd_create("seat", 0)
    try:
        os.write(seat, encode(cwd, argv, env))
        os.lseek(seat, 0, os.SEEK_SET)
        apart = becomes and not at_terminal
        process = subprocess.Popen(
            [*become, sys.executable, "-I", "-S", "-c", _ENTER, str(seat)],
            cwd="/",
            env={"TERM": os.environ.get("TERM", "linux")} if os.isatty(1) else {},
            pass_fds=[seat],
            start_new_session=apart,
            stdin=subprocess.DEVNULL if apart and os.isatty(0) else None,
            stdout=subprocess.PIPE if apart and os.isatty(1) else None,
            stderr=subprocess.PIPE if apart and os.isatty(2) else None,
        )
    finally:
        os.close(seat)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        # In a session of its own the terminal's signals do not reach it.
        signal.signal(number, lambda *_: process.terminate())
    copying = [_copy(process.stdout, 1), _copy(process.stderr, 2)]
    returned = process.wait()
    for thread in copying:
        thread.join(1.0)  # something that it left running may hold on to the pipe
    return returned if returned >= 0 else 128 - returned


def _copy(source: IO[bytes] | None, target: int) -> threading.Thread:
    """Pass on what it says to a terminal of ours, which it has not got itself."""

    def copy() -> None:
        if source is not None:
            with open(target, "wb", buffering=0, closefd=False) as file:
                shutil.copyfileobj(source, file)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread
