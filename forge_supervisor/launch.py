"""The first process of an agent's pane: fetches what to run from the supervisor, then becomes it.

Run as ``python -I -S launch.py SOCKET ID`` by tmux, whose command line and environment all users can read: so neither
holds more than a one-time id, and the agent's environment is exactly what comes through the socket. Standard library
only, and little of it: its start-up time is part of every start. What `os`, `signal` and `socket` add to the built-in
modules below them, mostly enums and abstract classes, would be half of it.

The supervisor sends eight bytes of length (big-endian) and, each closed by NUL: the directory to run in, the number of
arguments, the arguments, then ``NAME=value`` for each variable. It learns that the harness runs when exec closes the
socket without a word; otherwise it is told ``chdir`` or ``exec`` and the errno.
"""

import sys

TYPE_CHECKING = False  # typing's own would have to be loaded
if TYPE_CHECKING:
    import os
    import signal
    import socket
else:
    import _signal as signal
    import _socket as socket
    import posix as os

KEPT = (b"TERM", b"TMUX", b"TMUX_PANE")
"""Only tmux knows these."""

# CPython ignores SIGPIPE and SIGXFSZ, tmux lets its children inherit what it ignores; the harness starts with defaults.
RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP, signal.SIGHUP, signal.SIGINT)


GAVE_UP = 125
"""Its exit code wherever the harness did not get to run, as that of env(1) and timeout(1)."""


def gave_up(why: str) -> SystemExit:
    sys.stderr.write(why + "\n")
    return SystemExit(GAVE_UP)


def receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise gave_up("the supervisor did not take this launch (it may have been stopped, or given up waiting)")
        received += chunk
    return received


def main() -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(sys.argv[1])
        connection.sendall(sys.argv[2].encode() + b"\n")
        fields = receive(connection, int.from_bytes(receive(connection, 8), "big")).split(b"\0")[:-1]
    except OSError as error:
        raise gave_up(f"the supervisor cannot be reached: {error.strerror}") from error
    cwd, argc = fields[0], int(fields[1])
    argv = fields[2 : 2 + argc]
    present: dict[bytes, bytes] = os.environ  # type: ignore[assignment]  # of `posix`, it is as execve(2) had it
    environment = dict(field.split(b"=", 1) for field in fields[2 + argc :])
    environment.update({name: present[name] for name in KEPT if name in present})
    for number in RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    step = b"chdir"
    try:
        os.chdir(cwd)
        step = b"exec"
        os.execve(argv[0], argv, environment)
    except OSError as error:
        try:
            connection.sendall(b"%s %d" % (step, error.errno or 0))
        except OSError:
            step += b", and nobody is left to tell"
        raise gave_up(f"{step.decode()}: {error.strerror}") from error


if __name__ == "__main__":
    main()
