"""A tmux server of a test's own, and people who attach to it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.terminal import Terminal
from forge_supervisor.tmux_conf import TMUX_CONF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from forge_supervisor.panes import Pane

SOCKET_NAME = "forge"
PATH = "/usr/local/bin:/usr/bin:/bin"


class Lab:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {"PATH": PATH, "TMUX_TMPDIR": str(directory), "HOME": str(directory)}
        self.terminal = self.another_terminal()
        self._server: subprocess.Popen[bytes] | None = None

    def another_terminal(self, *, env: Mapping[str, str] | None = None, timeout: float = 10.0) -> Terminal:
        return Terminal(SOCKET_NAME, env={**self.env, **(env or {})}, timeout=timeout)

    def launch_server(self, conf: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Launch it as the supervisor does, without waiting for it."""
        conf_option = ["-f", os.fspath(conf or TMUX_CONF)]
        argv = ["tmux", "-D", "-L", SOCKET_NAME, *conf_option]
        self._server = subprocess.Popen(argv, env=self.env if env is None else env, cwd="/")

    def start_server(self, conf: Path | None = None) -> int:
        self.launch_server(conf)
        return self.terminal.wait_for_server(20)

    def end_server(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)
            self._server.terminate()
            self._server.wait(20)

    def tmux(self, *args: str) -> str:
        """Act as a person on the same server."""
        argv = ["tmux", "-u", "-N", "-L", SOCKET_NAME, *args]
        return subprocess.run(argv, env=self.env, check=True, capture_output=True, text=True, timeout=20).stdout

    def sh(self, agent: str, script: str) -> Pane:
        return self.terminal.open(agent, ["/bin/sh", "-c", script], "none")

    def sh_to_the_end(self, agent: str, script: str, *, shows: str = "") -> Pane:
        """Run a script that exits with 3. What it shows is drawn before: last words can be cut."""
        pane = self.sh(agent, f"{script}; read x; exit 3")
        wait_until(lambda: shows in self.tmux("capture-pane", "-p", "-t", pane.id))
        self.tmux("send-keys", "-t", pane.id, "Enter")
        wait_for_death(pane.pid)
        self.terminal.exit_of(pane.id, pane.pid)
        return pane

    def sessions(self) -> list[str]:
        return sorted(self.tmux("list-sessions", "-F", "#{session_name}").splitlines())

    @contextlib.contextmanager
    def fifo(self, name: str) -> Iterator[Path]:
        """Make a FIFO that never blocks who opens it: it has a reader and a writer already."""
        path = self.directory / name
        os.mkfifo(path)
        both_ends = os.open(path, os.O_RDWR)
        try:
            yield path
        finally:
            os.close(both_ends)
            path.unlink()

    @contextlib.contextmanager
    def attached(self, session: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Person]:
        ours, theirs = pty.openpty()
        argv = ["tmux", "-u", "-N", "-L", SOCKET_NAME, "attach-session", *options, "-t", f"={session}"]
        environment = {**self.env, "TERM": "xterm-256color", **(env or {})}
        client = subprocess.Popen(
            argv, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        try:
            person = Person(client, ours)
            person.see(f"[{session}]")
            yield person
        finally:
            client.kill()
            client.wait()
            os.close(ours)


class Person:
    def __init__(self, client: subprocess.Popen[bytes], terminal: int) -> None:
        self.client = client
        self._terminal = terminal
        self._seen = b""

    def see(self, text: str) -> None:
        """Look at the terminal until the text has been drawn."""
        while text.encode() not in self._seen:
            readable, _, _ = select.select([self._terminal], [], [], 20)
            assert readable, f"{text!r} not in {self._seen!r}"
            self._seen += os.read(self._terminal, 65536)


def wait_until(condition: Callable[[], bool]) -> None:
    """For what tmux tells nobody of."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_for_death(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"pid {pid} lives on"
    finally:
        os.close(fd)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    # Not pytest's tmp_path: a socket's path has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="forge-tmux-") as directory:
        made = Lab(Path(directory))
        try:
            yield made
        finally:
            made.end_server()
