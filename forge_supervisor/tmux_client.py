"""One tmux client after the other, each bounded in time and given an exact environment. Blocks.

Nothing of libtmux is seen outside of this module. Inside, only what goes through ``Server.cmd`` is used: libtmux's
listings (``Server.sessions``, ``Server.panes``, ``Pane.refresh``) run tmux past it, unbounded, and ``Server.sessions``
reads some errors as "no sessions".
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import libtmux
from libtmux.common import tmux_cmd

if TYPE_CHECKING:
    from collections.abc import Mapping


class TerminalError(Exception):
    """tmux refused, or could not be asked; the text has tmux's own words."""


class TerminalTimeoutError(TerminalError):
    """tmux did not answer in time. What was asked may yet happen when the server goes on."""


class _Answer(tmux_cmd):
    """What libtmux expects from ``Server.cmd``; the constructor of its base would run tmux, unbounded."""

    def __init__(self, argv: list[str], done: subprocess.CompletedProcess[str]) -> None:
        self.cmd = argv
        self.returncode = done.returncode
        self.stdout = done.stdout.removesuffix("\n").split("\n") if done.stdout else []
        self.stderr = []


class Client(libtmux.Server):
    def __init__(self, socket_name: str, *, env: Mapping[str, str], tmux: str, timeout: float) -> None:
        super().__init__(socket_name=socket_name, tmux_bin=tmux)
        self._env = dict(env)
        self._tmux = tmux
        self._timeout = timeout

    def cmd(self, cmd: str, *args: Any, target: str | int | None = None) -> tmux_cmd:
        where = () if target is None else ("-t", str(target))
        return self._ask(cmd, *where, *map(str, args))

    def fill_buffer(self, name: str, text: str) -> None:
        # By standard input: arguments can be read by everybody, and have an end.
        self._ask("load-buffer", "-b", name, "-", stdin=text)

    def _ask(self, cmd: str, *args: str, stdin: str | None = None) -> tmux_cmd:
        # -N: a client must never start the server; it would live in our cgroup, with our environment.
        # -u: without it, and in a C locale, tmux answers with '_' for all that is not ASCII.
        return self.run("-u", "-N", f"-L{self.socket_name}", cmd, *args, name=cmd, stdin=stdin)

    def run(self, *args: str, name: str, stdin: str | None = None) -> tmux_cmd:
        argv = [self._tmux, *args]
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        try:
            done = subprocess.run(
                argv,
                env=self._env,
                cwd="/",
                **given,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TerminalTimeoutError(f"tmux {name}: no answer within {self._timeout:g} s") from None
        except FileNotFoundError:
            raise TerminalError(f"{self._tmux} not found (apt-get install tmux)") from None
        except OSError as error:
            raise TerminalError(f"{self._tmux} cannot be run: {error.strerror}") from None
        if done.returncode or done.stderr:
            words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            raise TerminalError(f"tmux {name}: {words}")
        return _Answer(argv, done)
