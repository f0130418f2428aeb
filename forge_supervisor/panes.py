"""Pure: what tmux is told and asked about an agent's pane, and what its answers mean."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

# The pane option that makes a pane ours. The user can set it too: a hint, no proof.
MARK = "@forge-agent"

# Printable ASCII only: a client without UTF-8 turns anything else into '_'. People can write the mark, so what no name
# has, above all a newline, is taken out of it.
AGENT = f"#{{s/[^a-z0-9-]//:{MARK}}}"
FORMAT = f"#{{pane_id}} #{{pane_pid}} #{{pane_dead}} [#{{pane_dead_status}}] [#{{pane_dead_signal}}] {AGENT}"
_ROW = re.compile(r"(%\d+) (\d+) ([01]) \[(\d*)\] \[(\w*)\] ([a-z0-9-]*)")

# What tmux itself writes under a dead pane (option remain-on-exit-format).
_DEAD_LINE = re.compile(r"Pane is dead \(.*\)")

_LINE_LENGTH = 500


@dataclass(frozen=True)
class Pane:
    """``id`` is tmux's (``%3``) and outlives a restart in place; ``pid`` is of the process last started in it."""

    id: str
    pid: int
    agent: str
    dead: bool = False


@dataclass(frozen=True)
class Row:
    pane: Pane
    exit: Exit | None


def words(argv: Sequence[str]) -> list[str]:
    # A word that ends in ';' would end the command (cmd_parse_from_arguments in tmux's cmd-parse.y).
    return [f"{word[:-1]}\\;" if word.endswith(";") else word for word in argv]


def settings(target: str, invocation: str) -> tuple[str, ...]:
    # What people turn off for all windows, or for this one, must not take the exit status with it.
    keep = ("set-option", "-p", "-t", target, "remain-on-exit", "on", ";")
    # The agent can have the tmux server start things for it, which are then not its descendants.
    return (*keep, "set-environment", "-t", target, "INVOCATION_ID", invocation, ";")


def pipe(target: str) -> tuple[str, ...]:
    # Last words: tmux drops what it has not yet read from the terminal when it collects the process, but reads on if
    # the pane has a pipe (window_pane_destroy_ready in window.c). Of a hundred deaths at once, 95 were cut without it.
    # A pipe outlives a restart in place, and people's own serves as well.
    return ("if-shell", "-F", "-t", target, "#{pane_pipe}", "", f"pipe-pane -O -t '{target}' 'exec cat >/dev/null'")


def row(line: str) -> Row | None:
    """Read a line in `FORMAT`; None if it is none."""
    match = _ROW.fullmatch(line)
    if match is None:
        return None
    pane_id, pid, dead, status, killer, agent = match.groups()
    end = Exit(code=int(status)) if status else Exit(signal=_signal_number(killer)) if killer else None
    return Row(Pane(id=pane_id, pid=int(pid), agent=agent, dead=dead == "1"), end)


def _signal_number(text: str) -> int:
    # A number where libc has no sys_signame (glibc), else the name without SIG (sig2name in tmux's tmux.c).
    return int(text) if text.isdecimal() else int(signal.Signals[f"SIG{text.removeprefix('SIG')}"])


def capture(lines: int) -> tuple[str, ...]:
    # -J: one line for what tmux wrapped. The scrollback too: a dead pane's first line may stand there already.
    return ("capture-pane", "-p", "-J", "-S", str(-10 * lines))


def tail(shown: Sequence[str], lines: int) -> list[str]:
    texts = [text for text in map(printable, shown) if text]
    if texts and _DEAD_LINE.fullmatch(texts[-1]):
        texts.pop()
    earlier = max((n for n, text in enumerate(texts, 1) if _DEAD_LINE.fullmatch(text)), default=0)
    return texts[earlier:][-lines:]


def printable(line: str) -> str:
    text = "".join(char if char.isprintable() else " " if char.isspace() else "" for char in line)
    return text.rstrip()[:_LINE_LENGTH]
