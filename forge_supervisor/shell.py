"""``forge-supervisor shell AGENT``: a shell where the agent works, with its environment, as its user.

What runs in it must get nothing of the terminal that it was started from, where that is root's: whoever holds a
descriptor of a terminal, or has it as its own (/dev/tty), can read what is typed there later, and type into it
(ioctl_tty(2), TIOCSTI). util-linux's runuser puts another one in between, and another keyring.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from forge_supervisor.units import User

# Without their start-up files, which would change the environment that somebody wants to look at.
_SHELLS = (("/bin/bash", "--norc", "--noprofile"), ("/bin/sh",))
_RUNUSER = "/usr/sbin/runuser"
# Entered as the user already: root may enter what the user may not, and what is there is the user's to choose.
_ENTER = """
cd -- "$0" 2>/dev/null || { echo "$0 cannot be entered (an agent's directory is made by its first start)" >&2; exit 1; }
exec "$@"
"""


def run(user: User, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> int:
    """Run `argv` (empty: a shell) as that user, and return its exit code; 128 + n where signal n ended it.

    Raises OSError and ValueError (a NUL).
    """
    argv = tuple(argv) or next(shell for shell in _SHELLS if os.access(shell[0], os.X_OK))
    at_terminal = any(os.isatty(fd) for fd in (0, 1, 2))
    becomes = os.geteuid() != user.uid
    # Only of a terminal: the other one changes ends of lines, and makes one of what is said and what is complained of.
    become = [_RUNUSER, *(["--pty"] if at_terminal else []), "-u", user.name, "--"] if becomes else []
    terminal = {"TERM": os.environ.get("TERM", "linux")} if at_terminal else {}
    process = subprocess.Popen(
        [*become, "/bin/sh", "-c", _ENTER, cwd, *argv],
        cwd="/",
        env={**env, **terminal},
        umask=0o022,
        start_new_session=becomes and not at_terminal,
    )
    while True:
        try:
            returned = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
        else:
            return returned if returned >= 0 else 128 - returned
