"""What a worker does when asked: blocking, as the agents' user, and called by several threads at once."""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor import processes
from forge_supervisor.harness import BrokenHarnessError
from forge_supervisor.policy import Exit
from forge_supervisor.terminal import PaneLivesError, Terminal
from forge_supervisor.tmux_client import TerminalError
from forge_supervisor.worker import usage
from forge_supervisor.worker.messages import (
    Answer,
    Capture,
    Captured,
    Close,
    Collect,
    Collected,
    Done,
    FindServer,
    Open,
    Opened,
    Prepare,
    ReadUsage,
    RemoveSocket,
    Send,
    ServerFound,
    Sweep,
    Swept,
)
from forge_supervisor.worker.preparation import Preparation

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.worker.messages import AnyRequest

SCREEN_LINES = 20
_MOST_LINES = 1000
LEFTOVER_GRACE = 2.0
"""Seconds that what an agent left behind gets between SIGTERM and SIGKILL."""
_LONG_AGO = 0.5


class ActionError(Exception):
    """It could not be done; the text is a sentence for the operator."""


class Actions:
    def __init__(self, terminal: Terminal, home: Path) -> None:
        self._terminal = terminal
        self.home = home
        self._handlers: dict[type, Callable[[Any], Answer]] = {
            FindServer: self._find_server,
            Sweep: self._sweep,
            Prepare: lambda request: Preparation(request, self.home).run(),
            Open: self._open,
            Collect: self._collect,
            Close: self._close,
            Capture: self._capture,
            Send: self._send,
            RemoveSocket: self._remove_socket,
            ReadUsage: lambda request: usage.read(request, self.home),
        }

    def do(self, request: AnyRequest) -> Answer:
        try:
            return self._handlers[type(request)](request)
        except (TerminalError, BrokenHarnessError) as error:
            raise ActionError(str(error)) from error

    def _find_server(self, request: FindServer) -> ServerFound:
        self._terminal.require_version()
        self._revive(request.server)
        if request.wait:
            self._terminal.wait_for_server(request.timeout / 2)
        return ServerFound(pid=self._terminal.socket.server_pid())

    def _sweep(self, request: Sweep) -> Swept:
        self._terminal.configure()
        swept = []
        for agent in {pane.agent for pane in self._terminal.panes()}:
            if self._terminal.close_leftover(agent, but=request.known.get(agent)):
                swept.append(agent)
            if agent not in request.known:
                self._terminal.kill(agent)
        return Swept(agents=swept)

    def _open(self, request: Open) -> Opened:
        self._revive(request.server)
        notes: list[str] = []
        try:
            pane = self._terminal.open(request.agent, request.argv, request.invocation, request.pane)
        except PaneLivesError:
            notes = self._terminal.close_leftover(request.agent)
            pane = self._terminal.open(request.agent, request.argv, request.invocation)
        return Opened(pane=pane.id, pid=pane.pid, notes=notes)

    def _collect(self, request: Collect) -> Collected:
        self._revive(request.server)
        began = time.monotonic()
        looking: Future[set[int]] | None = None
        # While tmux is asked: where there are hundreds of agents to look at it takes as long.
        with ThreadPoolExecutor(1) as beside:
            with contextlib.suppress(RuntimeError):  # no thread can be started where an agent has filled the machine
                looking = beside.submit(self._outsiders, request)
            exit_, screen = self._ending(request.pane, request.pid)
        # What was seen long ago may be another process by now.
        seen = looking is not None and looking.exception() is None and time.monotonic() - began < _LONG_AGO
        outsiders = looking.result() if looking is not None and seen else ()
        # Not before: what is left may write on the screen as it ends, and tmux may start more (hook pane-died).
        cleared = processes.clear(request.invocation, request.pid, LEFTOVER_GRACE, self._spare(), outsiders)
        return Collected(
            code=exit_.code,
            signal=exit_.signal,
            screen=screen,
            terminated=cleared.terminated,
            killed=cleared.killed,
            left=cleared.left,
        )

    def _close(self, request: Close) -> Answer:
        self._revive(request.server)
        self._terminal.kill(request.agent)
        return Done()

    def _capture(self, request: Capture) -> Captured:
        self._revive(request.server)
        return Captured(screen=self._terminal.screen(request.agent)[-_MOST_LINES:])

    def _send(self, request: Send) -> Answer:
        self._revive(request.server)
        self._terminal.send_text(request.agent, request.pid, request.text, clearing_key=request.clearing_key)
        return Done()

    def _remove_socket(self, _request: RemoveSocket) -> Answer:
        self._terminal.socket.remove()
        return Done()

    def _revive(self, server: int | None) -> None:
        """Have a server that lives answer: one that was stopped, or has lost its socket.

        Things in /tmp are removed, by cron jobs and by people. Who cannot be helped is told so by what comes next.
        """
        if server is not None and processes.lives(server):
            with contextlib.suppress(TerminalError, OSError):
                processes.resume(server)
                self._terminal.socket.restore(server)

    def _ending(self, pane: str, pid: int) -> tuple[Exit, list[str]]:
        try:
            return self._terminal.ending(pane, pid, SCREEN_LINES)
        except TerminalError:
            # What it left behind has to be cleared even if its exit cannot be told.
            return Exit(lost=True), []

    def _outsiders(self, request: Collect) -> set[int]:
        spare = self._spare()
        return processes.outsiders(request.invocation, request.pid, spare) if spare else set()

    def _spare(self) -> tuple[int, ...]:
        """Somebody may have started the tmux server from within a session."""
        with contextlib.suppress(TerminalError):
            if (server := self._terminal.socket.server_pid()) is not None:
                return (server,)
        return ()


def from_environment() -> Actions:
    """Make the actions of the user that runs this process, as the supervisor's environment for it says."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    return Actions(Terminal(os.environ["FORGE_SOCKET_NAME"], env=dict(os.environ)), home)
