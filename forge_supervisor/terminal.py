"""One user's tmux server: sessions, panes and exit statuses. Runs in the worker, as that user; every call blocks.

Targets are exact: ``=agent-a`` for a session, ``=agent-a:`` for its pane, ``%3`` for a pane (tmux(1), COMMANDS);
a bare ``agent-a`` would also hit ``agent-ab``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import panes, processes
from forge_supervisor.keyboard import Keyboard
from forge_supervisor.panes import Pane, Row
from forge_supervisor.policy import Exit
from forge_supervisor.tmux_client import Client, TerminalError, TerminalTimeoutError
from forge_supervisor.tmux_conf import TMUX_CONF
from forge_supervisor.tmux_socket import TmuxSocket, pauses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from libtmux.common import tmux_cmd

# The first version that tells a death by signal (#{pane_dead_signal}).
OLDEST = (3, 3)

# What tmux says of a session's name that is taken (cmd-new-session.c).
_DUPLICATE = "duplicate session"

# Seconds that a leftover gets between SIGTERM and SIGKILL.
_LEFTOVER_GRACE = 2.0


class PaneLivesError(TerminalError):
    """The agent has a live pane already."""


class Terminal:
    """The tmux server on socket ``socket_name`` (``tmux -L``) of the user that this process runs as.

    ``env`` is the whole environment of every tmux client; TMUX_TMPDIR in it must exist. ``timeout`` (seconds) bounds
    each client. Every method raises TerminalError for whatever it could not find out; no error is read as "none".
    """

    def __init__(self, socket_name: str, *, env: Mapping[str, str], tmux: str = "tmux", timeout: float = 5.0) -> None:
        self._server = Client(socket_name, env=env, tmux=tmux, timeout=timeout)
        self._typing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        # As tmux makes it: tmux(1), option -L.
        path = Path(env.get("TMUX_TMPDIR") or "/tmp", f"tmux-{os.getuid()}", socket_name)  # noqa: S108
        self.socket = TmuxSocket(path, timeout)

    def version(self) -> tuple[int, int]:
        text = self._version()
        numbers = re.search(r"(\d+)\.(\d+)", text)
        if numbers is None:
            raise TerminalError(f"cannot read the version of {text!r}: {_wanted()}")
        return int(numbers[1]), int(numbers[2])

    def require_version(self) -> None:
        """TerminalError if tmux is missing or too old; it says what to do."""
        if self.version() < OLDEST:
            raise TerminalError(f"{self._version()} is too old: {_wanted()}")

    def _version(self) -> str:
        return str(self._server.run("-V", name="-V").stdout[0])

    def wait_for_server(self, timeout: float) -> int:
        """Return the server's pid as soon as it answers; raise the last error after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        waits = pauses()
        while True:
            try:
                return int(self._server.cmd("display-message", "-p", "#{pid}").stdout[0])
            except TerminalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(next(waits))

    def configure(self) -> None:
        """Make sure that the server obeys our configuration: tmux takes a bad line, or another ``-f``, in silence."""
        if self._differences():
            self._server.cmd("source-file", str(TMUX_CONF))
        if wrong := self._differences():
            raise TerminalError(f"{TMUX_CONF}: tmux did not take: {', '.join(wrong)}")

    def _differences(self) -> list[str]:
        shown = self._server.cmd("show-options", "-s", ";", "show-options", "-g", ";", "show-options", "-gw").stdout
        have = dict(_setting(shlex.split(line)) for line in shown if line)
        lines = (shlex.split(line, comments=True) for line in TMUX_CONF.read_text().splitlines())
        wanted = (_setting(words[2:]) for words in lines if words)
        return [f"{name} {value}".strip() for name, value in wanted if have.get(name) != value]

    def open(self, agent: str, argv: Sequence[str], invocation: str, pane: str | None = None) -> Pane:
        """Run ``argv`` in session ``agent-<agent>``, in /, and return its pane.

        What else is started in that session, be it by the agent, gets INVOCATION_ID, and so counts as left by it.

        A dead pane of the agent is used again: whoever is attached stays, and the dead screen goes to the scrollback.
        (All but what a program showed in the alternate screen: tmux keeps no history of that.) A session that people
        renamed keeps their name until it ends. Raises PaneLivesError if the agent still has a live pane.

        ``pane`` is where its last session on this server was: as a rule it need not be looked for.
        """
        if len(argv) < 2:
            raise ValueError("tmux hands a single word to a shell: argv needs two words or more")
        if pane is not None:
            try:
                return self._respawn(agent, pane, argv, invocation)
            except TerminalTimeoutError:
                raise
            except TerminalError:
                pass  # it is gone, or something lives in it
        ours = self._rows_of(agent)
        for row in ours:
            if _lives(row):
                raise PaneLivesError(f"agent {agent} runs already: pid {row.pane.pid} in pane {row.pane.id}")
        if not ours:
            return self._create(agent, argv, invocation)
        return self._respawn(agent, ours[0].pane.id, argv, invocation)

    def _respawn(self, agent: str, pane: str, argv: Sequence[str], invocation: str) -> Pane:
        # `send-keys -R` scrolls the screen into the history, but not under copy mode, hence `copy-mode -q`
        # (input_reset in tmux's input.c). No -k: respawn-pane then refuses a pane that lives.
        there = ("-t", pane)
        reset = ("copy-mode", "-q", *there, ";", "send-keys", "-R", *there, ";")
        spawn = ("respawn-pane", *there, "-c", "/", *panes.words(argv), ";")
        # Not before: a pane in which something else lives is not ours.
        mark = ("set-option", "-p", *there, panes.MARK, agent, ";")
        tell = ("display-message", "-p", *there, "#{pane_id} #{pane_pid} #{pane_pipe}")
        answer = self._server.cmd(*reset, *panes.settings(pane, invocation), *spawn, *mark, *tell)
        if answer.stdout[0].endswith(" 0"):
            # Somebody has ended it. Not in one go: of what if-shell takes as a string tmux loses some memory each time.
            with contextlib.suppress(TerminalError):  # its process may have died already, and is the pane's anyway
                self._server.cmd(*panes.pipe(pane))
        return _opened(answer, agent)

    def _create(self, agent: str, argv: Sequence[str], invocation: str) -> Pane:
        name = f"agent-{agent}"
        there = f"={name}:"
        spawn = ("-n", agent, "-c", "/", "-P", "-F", "#{pane_id} #{pane_pid}", *panes.words(argv))
        # The server runs one client's commands in one go: no crash of ours leaves a pane without its mark.
        mark = (";", "set-option", "-p", "-t", there, panes.MARK, agent, ";")
        rest = (*spawn, *mark, *panes.settings(there, invocation), *panes.pipe(there))
        try:
            answer = self._server.cmd("new-session", "-d", "-s", name, *rest)
        except TerminalError as error:
            if _DUPLICATE not in str(error):
                raise
            answer = self._server.cmd("new-window", "-t", there, *rest)
        return _opened(answer, agent)

    def close_leftover(self, agent: str, *, but: int | None = None) -> list[str]:
        """End what still lives in the agent's panes, ``but`` for that process; returns a sentence for each.

        With none spared `open` may be called.
        """
        ended = []
        for row in self._rows_of(agent):
            if row.pane.pid != but and _lives(row):
                processes.clear_pane(row.pane.pid, _LEFTOVER_GRACE)
                exit_ = self.exit_of(row.pane.id, row.pane.pid)
                ended.append(f"ended pid {row.pane.pid}, left in pane {row.pane.id} by an earlier session: {exit_}")
        return ended

    def panes(self) -> list[Pane]:
        """All panes of agents, dead ones too."""
        return [row.pane for row in self._rows() if row.pane.agent]

    def _rows_of(self, agent: str) -> list[Row]:
        # Its user can have the server answer anything to anything.
        return [row for row in self._rows(panes.AGENT, agent) if row.pane.agent == agent]

    def _rows(self, field: str = "1", value: str = "1") -> list[Row]:
        """List the panes of which that format has that value, by default all."""
        which = f"#{{==:{field},{value}}}"
        try:
            lines = self._list_panes(which)
        except TerminalTimeoutError:
            raise
        except TerminalError:
            # `list-panes -a` fails with "no current target" on a server without sessions; list-sessions does not.
            if not self._server.cmd("list-sessions", "-F", "#{session_id}").stdout:
                return []
            # The first session may have come in between.
            lines = self._list_panes(which)
        # A window that is linked to two sessions (or grouped ones) is listed twice.
        rows = {row.pane.id: row for row in map(panes.row, lines) if row is not None}
        return list(rows.values())

    def _list_panes(self, which: str) -> list[str]:
        return list(self._server.cmd("list-panes", "-a", "-f", which, "-F", panes.FORMAT).stdout)

    def exit_of(self, pane_id: str, pid: int, timeout: float = 5.0) -> Exit:
        """How process ``pid`` of the pane, which the caller saw die, has ended; see `ending`."""
        return self.ending(pane_id, pid, timeout=timeout)[0]

    def ending(self, pane_id: str, pid: int, lines: int = 20, *, timeout: float = 15.0) -> tuple[Exit, list[str]]:
        """How process ``pid`` of the pane, which the caller saw die, has ended, and its `screen_tail`.

        Lost, with an empty screen, if the pane is gone or runs another process, or if tmux cannot say within
        ``timeout`` seconds. Raises TerminalError if the server cannot be asked.
        """
        deadline = time.monotonic() + timeout
        # What is asked for just after a nudge is mostly there.
        waits = itertools.chain([0.0], pauses())
        self._nudge()
        while True:
            try:
                row, shown = self._row_and_screen(pane_id, lines)
            except TerminalError as error:
                if isinstance(error, TerminalTimeoutError) and time.monotonic() < deadline:
                    continue
                if self.socket.server_pid() is None:
                    return Exit(lost=True), []
                raise
            if row is None or row.pane.pid != pid:
                return Exit(lost=True), []
            # Dead without code and signal: tmux has yet to collect it. With either but not dead: it still reads.
            late = time.monotonic() > deadline
            if row.exit is not None and (row.pane.dead or late):
                return row.exit, shown
            if late:
                return Exit(lost=True), []
            if row.exit is None:
                self._nudge()
            time.sleep(next(waits))

    def _row_and_screen(self, pane_id: str, lines: int) -> tuple[Row | None, list[str]]:
        # Of its window alone: among hundreds each takes its time.
        listing = ("list-panes", "-t", pane_id, "-f", f"#{{==:#{{pane_id}},{pane_id}}}", "-F", panes.FORMAT)
        try:
            # By one client, as each takes its time to start.
            told = self._server.cmd(*listing, ";", *panes.capture(lines), "-t", pane_id).stdout
        except TerminalTimeoutError:
            raise
        except TerminalError:
            # As a rule the pane is gone. In the very moment in which it is there again it is another's.
            return next((row for row in self._rows("#{pane_id}", pane_id) if row.pane.id == pane_id), None), []
        return panes.row(told[0] if told else ""), panes.tail(told[1:], lines)

    def _nudge(self) -> None:
        """Make the server collect its dead children.

        tmux before 3.6 with libutempter loses SIGCHLDs that come while utempter's helper runs (cured in spawn.c of
        3.6 by the same means). Once is not enough: the helper of another pane may swallow ours.
        """
        with contextlib.suppress(TerminalError):  # whoever asks next is told why
            self.socket.signal(signal.SIGCHLD)

    def screen_tail(self, pane_id: str, lines: int = 20) -> list[str]:
        """Return the last lines with text that the pane's present process wrote, in printable characters only."""
        return panes.tail(self._server.cmd(*panes.capture(lines), target=pane_id).stdout, lines)

    def screen(self, agent: str) -> list[str]:
        """Return the lines that the agent's pane shows, down to the last with text, in printable characters only."""
        row = next(iter(self._rows_of(agent)), None)
        if row is None:
            raise TerminalError(f"{agent} has no terminal yet")
        answer = self._server.cmd("capture-pane", "-p", target=row.pane.id)
        return list(map(panes.printable, "\n".join(answer.stdout).rstrip().splitlines()))

    def send_text(self, agent: str, pid: int, text: str, *, clearing_key: str = "") -> None:
        """Paste a text into the pane of the agent's process ``pid``, then Enter; return when the process has read it.

        ``clearing_key`` is typed before it, to have nothing else in the prompt. The text is the agent's as it is, but
        for control characters, which are left out.
        """
        row = next((row for row in self._rows_of(agent) if row.pane.pid == pid), None)
        if row is None or not _lives(row):
            raise TerminalError(f"{agent} has no live terminal")
        with self._typing[row.pane.id]:
            # Somebody may have stopped it with a key (Ctrl-Z), and there is no shell to have it go on.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            Keyboard(self._server, row.pane.id).submit(text, clearing_key)

    def kill(self, agent: str) -> None:
        """Remove the agent's panes and session, if any; what runs there only gets a SIGHUP (see close_leftover)."""
        if self.socket.server_pid() is None:
            return
        for pane in self.panes():
            if pane.agent == agent:
                self._server.cmd("kill-pane", target=pane.id)
        name = f"agent-{agent}"
        if name in self._server.cmd("list-sessions", "-F", "#{session_name}").stdout:
            self._server.cmd("kill-session", target=f"={name}")


def _wanted() -> str:
    return f"{OLDEST[0]}.{OLDEST[1]} or newer is needed (apt-get install tmux)"


def _opened(answer: tmux_cmd, agent: str) -> Pane:
    pane_id, pid, *_ = answer.stdout[0].split(" ")
    return Pane(id=pane_id, pid=int(pid), agent=agent)


def _lives(row: Row) -> bool:
    # A program that closed its terminal leaves a pane that tmux calls dead, and lives.
    return row.exit is None and processes.lives(row.pane.pid)


def _setting(words: list[str]) -> tuple[str, str]:
    return words[0], " ".join(words[1:])
