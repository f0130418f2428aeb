"""What `forgectl watch` is put together from: the table of agents, a screen, a question, and their words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import DataTable, Static

from forge_supervisor.events import duration
from forge_supervisor.journal import printable
from forge_supervisor.policy import signal_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.app import ComposeResult

    from forge_supervisor.cli.roster import Agent

COLUMNS = ("name", "user", "state", "since", "restarts", "memory", "activity")
_NUMBERS = frozenset({"since", "restarts", "memory"})
_STATE_STYLES = {
    "running": "green",
    "starting": "cyan",
    "stopping": "cyan",
    "auto-restart": "yellow",
    "failed": "bold red",
    "inactive": "dim",
}
_EVENT_STYLES = {
    "agent_failed": "red",
    "supervisor_reload_failed": "red",
    "tmux_server_lost": "red",
    "agent_start_failed": "yellow",
    "agent_warning": "yellow",
    "worker_lost": "yellow",
}
UNKNOWN = "–"  # noqa: RUF001 - a dash, as in a table of figures


def one_line(text: str) -> str:
    """Put a text of anybody's on one line, without what would act on a terminal."""
    return " ".join(printable(text).split())


def cells(agent: Agent, now: float) -> tuple[Text, ...]:
    """Render an agent's row, one cell for each of COLUMNS; `now` is in seconds since 1970."""
    state = one_line(agent["state"])
    texts = (
        Text(one_line(agent["name"])),
        Text(one_line(agent["run_as"])),
        Text(state, _STATE_STYLES.get(state, "")),
        Text(_since(agent["since_usec"], now)),
        Text(str(agent["n_restarts"])),
        Text(size(agent["memory"])),
        Text(one_line(agent["activity"] or UNKNOWN)),
    )
    for column, text in zip(COLUMNS, texts, strict=True):
        text.no_wrap = True
        if column in _NUMBERS:
            text.justify = "right"
    return texts


def _since(usec: int | None, now: float) -> str:
    # Clocks are set, and a second is shown only when it is over.
    return UNKNOWN if usec is None else duration(int(max(0.0, now - usec / 1_000_000)))


def size(count: int | None) -> str:
    """Render bytes as systemctl does: ``412.3M``."""
    if count is None:
        return UNKNOWN
    amount, unit = float(count), "B"
    for larger in "KMGT":
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + unit


def headline(agent: Agent, now: float) -> Text:
    """Tell of one agent what the table has no room for; above all, how it ended and what comes next."""
    parts = [agent["name"], agent["harness"], agent["model"], *_end(agent, now)]
    if agent["pid"] is not None:
        parts.append(f"pid {agent['pid']}")
    if agent["declared_otherwise"]:
        parts.append("runs as before the reload")
    return Text(" · ".join(one_line(part) for part in parts if part), no_wrap=True, overflow="ellipsis")


def _end(agent: Agent, now: float) -> Iterable[str]:
    if not agent["enabled"]:
        yield "disabled"
    if agent["pid"] is None and (agent["state"] == "failed" or agent["result"] != "success"):
        yield f"result {agent['result']}"
    if agent["pid"] is None and agent["exit_code"] is not None:
        yield f"exit code {agent['exit_code']}"
    if agent["pid"] is None and agent["signal"] is not None:
        yield f"signal {signal_label(agent['signal'])}"
    if agent["start_limit_hit"]:
        yield "start limit hit"
    if agent.get("daily_limit_hit"):
        yield "daily limit hit"
    if agent["restart_usec"] is not None:
        yield f"starts in {duration(int(max(0.0, agent['restart_usec'] / 1_000_000 - now)))}"


def summary(agents: Iterable[Agent]) -> Text:
    """Count the agents by state."""
    states = Counter(one_line(agent["state"]) for agent in agents)
    text = Text(f"{states.total()} agent{'' if states.total() == 1 else 's'}")
    for position, (state, count) in enumerate(sorted(states.items())):
        text.append(", " if position else ": ").append(f"{count} {state}", _STATE_STYLES.get(state, ""))
    return text


def event_line(name: str, time: str, message: str) -> Text:
    """Render an event for the log."""
    return Text.assemble((time, "dim"), " ", (one_line(message), _EVENT_STYLES.get(name, "")))


class AgentTable(DataTable[Text]):
    """All agents by name. The selection stays with its agent, wherever that moves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Not DataTable's own: a click on a row would do the same as Enter.
        Binding("enter", "app.attach", show=False),
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(cursor_type="row", cursor_foreground_priority="renderable")

    def on_mount(self) -> None:
        for column in COLUMNS:
            self.add_column(Text(column, justify="right" if column in _NUMBERS else "left"), key=column)

    @property
    def selected(self) -> str | None:
        """The agent that keys act on."""
        return self.ordered_rows[self.cursor_row].key.value if self.row_count else None

    def show_agents(self, agents: Mapping[str, Agent], now: float) -> None:
        """Be as `agents` are, and touch only what differs: what is redrawn is sent to the terminal."""
        selected = self.selected
        shown = {str(key.value) for key in self.rows}
        for name in shown - agents.keys():
            self.remove_row(name)
        for name in agents.keys() - shown:
            self.add_row(*cells(agents[name], now), key=name)
        for name in agents.keys() & shown:
            self._change(name, cells(agents[name], now))
        if agents.keys() - shown:
            self.sort("name", key=lambda text: text.plain)
        if selected is not None and selected in agents and selected != self.selected:
            self.move_cursor(row=self.get_row_index(selected))

    def _change(self, name: str, texts: tuple[Text, ...]) -> None:
        for column, old, new in zip(COLUMNS, self.get_row(name), texts, strict=True):
            if old != new:
                self.update_cell(name, column, new, update_width=True)


class TerminalView(Widget):
    """The lower end of a terminal's screen, where its program writes and is written to."""

    def __init__(self) -> None:
        super().__init__(id="terminal")
        self._lines: list[str] = []

    def show_lines(self, lines: Iterable[str]) -> None:
        """Show lines of plain text: whatever is in them, nothing of it is markup."""
        clean = [printable(line).replace("\n", " ") for line in lines]
        while clean and not clean[-1].strip():
            clean.pop()
        if clean != self._lines:
            self._lines = clean
            self.refresh()

    def render(self) -> Text:
        return Text("\n".join(self._lines[-max(1, self.size.height) :]), no_wrap=True, overflow="crop")


class Question(ModalScreen[bool]):
    """A question that y answers with yes, and n with no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,q", "dismiss(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(Text.assemble(self._question, "  ", ("y", "bold"), "es / ", ("n", "bold"), "o"), markup=False)
