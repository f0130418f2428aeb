"""What is typed into a pane for an agent, so that it arrives whole, and as one message. Runs in the worker; blocks.

A paste in brackets (``paste-buffer -p``), and Enter by itself afterwards: in one go, or typed by ``send-keys``, some
programs take the Enter for a line of the text, or lose it. Enter is pasted too, as ``send-keys`` goes to the copy mode
that somebody may have the pane in. That is left for the paste: tmux asks the screen that is shown whether it wants
brackets, and that of a mode never does (cmd_paste_buffer_exec in tmux's cmd-paste-buffer.c).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import time
import uuid
from typing import TYPE_CHECKING

from forge_supervisor.tmux_client import TerminalError
from forge_supervisor.typeable import typeable

if TYPE_CHECKING:
    from forge_supervisor.tmux_client import Client

READ_TIMEOUT = 5.0
"""Seconds that a program has to read what was typed."""
_PAUSE = 0.02
_MOST_KEYS = 30
"""To clear a draft that somebody has left in the prompt: one takes a line, and one more the end of the line above."""
_KEY_PAUSE = 0.01


class Keyboard:
    def __init__(self, client: Client, pane: str) -> None:
        self._client = client
        self._pane = pane

    def submit(self, text: str, clearing_key: str = "") -> None:
        """Type a text and Enter, and return when the pane's program has read both. Raises TerminalError.

        `clearing_key` is typed before, as often as it takes for any draft.
        """
        text = typeable(text)
        if not text.strip():
            raise TerminalError("there is nothing to send")
        tty = self._client.cmd("display-message", "-p", "#{pane_tty}", target=self._pane).stdout[0]
        # Else it would pile up, in tmux too, and be one message in the end.
        _wait_until_read(tty, "nothing was typed: the program has not read what was typed before")
        if clearing_key:
            complaint = "nothing was typed: the program has not read the keys that clear its prompt"
            for _ in range(_MOST_KEYS):
                # Several at once would be a paste.
                self._paste(clearing_key)
                _wait_until_read(tty, complaint, _KEY_PAUSE)
        self._paste(text, "-p")
        _wait_until_read(tty, "it was typed, but the program has not read it")
        self._paste("\n")
        _wait_until_read(tty, "it was typed, but the program has not read the Enter after it")

    def _paste(self, text: str, *options: str) -> None:
        name = f"forge-{uuid.uuid4().hex}"
        paste = ("paste-buffer", "-t", self._pane, *options, "-d", "-b", name)
        try:
            self._client.fill_buffer(name, text)
            self._client.cmd("copy-mode", "-q", ";", *paste, target=self._pane)
        except TerminalError:
            # What is sent to an agent is nobody else's to paste.
            with contextlib.suppress(TerminalError):
                self._client.cmd("delete-buffer", "-b", name)
            raise


def _wait_until_read(tty: str, complaint: str, pause: float = _PAUSE) -> None:
    """Return when the program has read all there is, twice in a row: tmux may have had more to write."""
    try:
        descriptor = os.open(tty, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TerminalError(f"its terminal has gone ({tty}: {error.strerror})") from None
    try:
        deadline = time.monotonic() + READ_TIMEOUT
        empty = 0
        while empty < 2:
            time.sleep(pause)
            (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))
            empty = 0 if unread else empty + 1
            if time.monotonic() > deadline:
                raise TerminalError(f"{complaint} within {READ_TIMEOUT:g} s ({unread} bytes are left)")
    except OSError as error:
        raise TerminalError(f"its terminal has gone ({error.strerror})") from None
    finally:
        os.close(descriptor)
