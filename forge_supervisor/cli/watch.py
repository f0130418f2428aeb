"""`forgectl watch`: all agents and their screens, live, on the whole terminal."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rich.text import Text
from textual.app import App, ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import DataTable, Footer, RichLog, Static

from forge_supervisor.cli import client as real_client
from forge_supervisor.cli.background import in_thread
from forge_supervisor.cli.client import CallError, NotThereError
from forge_supervisor.cli.roster import Roster
from forge_supervisor.cli.watch_parts import (
    AgentTable,
    Question,
    TerminalView,
    event_line,
    headline,
    one_line,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forge_supervisor.cli.roster import Agent

RETRY_SEC = 2.0
"""Between attempts to reach a supervisor that is away."""
LOOK_SEC = 1.0
"""Between looks at the selected agent's screen while nothing is told of it."""
STOCK_SEC = 5.0
"""Between lists: no event tells how much memory an agent has, nor that one is gone that never ran."""
LOG_LINES = 1000
# With these an agent's screen changes by itself.
_ALIVE = frozenset({"starting", "running", "stopping"})


class Client(Protocol):
    """Of `forge_supervisor.cli.client`, what is needed here."""

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]: ...

    def stream(self, method: str, parameters: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]: ...


def run() -> int:
    """Watch until the user quits; returns the exit code."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write("forgectl: watch needs a terminal\n")
        return 1
    watch = Watch(real_client)
    watch.run()
    return watch.return_code or 0


def run_at_terminal(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program at our terminal; what it says on stderr is kept, as the screen is ours again when it ends."""
    return subprocess.run(argv, stderr=subprocess.PIPE, text=True, errors="replace", check=False)


class Watch(App[None]):
    """Three loops: `_follow` hears what happens, `_take_stock` asks who is there, `_look` shows a screen."""

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (150, "-wide")]  # noqa: RUF012 - App says so without ClassVar
    CSS = """
    #top { height: auto; max-height: 3; padding: 0 1; background: $panel; }
    #top.away { background: $error; color: $text; text-style: bold; }
    #main { height: 1fr; layout: vertical; }
    AgentTable { height: auto; max-height: 45%; scrollbar-size: 1 1; }
    AgentTable > .datatable--cursor { background: $primary-muted; text-style: bold; }
    AgentTable.away { opacity: 50%; }
    #view { height: 1fr; }
    #headline { height: 1; padding: 0 1; background: $boost; }
    #terminal { height: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: clip; }
    #log { height: 5; padding: 0 1; border-top: solid $primary; scrollbar-size: 1 1; overflow-y: auto; }
    .-wide #main { layout: horizontal; }
    .-wide AgentTable { width: 50%; height: 1fr; max-height: 100%; }
    .-wide #log { height: 8; }
    Question { align: center middle; }
    Question Static { width: auto; max-width: 90%; padding: 1 3; background: $surface; border: round $warning; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "attach", "Attach"),
        Binding("s", "do('Start')", "Start"),
        Binding("x", "confirm('Stop')", "Stop"),
        Binding("r", "confirm('Restart')", "Restart"),
        Binding("f", "do('ResetFailed')", "Reset-failed"),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
        Binding("question_mark", "help", "Help", key_display="?"),
    ]

    def __init__(
        self,
        client: Client,
        *,
        run_at_terminal: Callable[[list[str]], subprocess.CompletedProcess[str]] = run_at_terminal,
        retry_sec: float = RETRY_SEC,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` is in seconds since 1970."""
        super().__init__()
        self._client = client
        self._run_at_terminal = run_at_terminal
        self._retry_sec = retry_sec
        self._now = now
        self._roster = Roster()
        self._away = "looking for the supervisor"
        self._look_again = asyncio.Event()
        self._stock_again = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="top", markup=False)
        with Container(id="main"):
            yield AgentTable()
            with Vertical(id="view"):
                yield Static(id="headline", markup=False)
                yield TerminalView()
        log = RichLog(id="log", wrap=True, min_width=1, max_lines=LOG_LINES)
        log.can_focus = False
        yield log
        yield Footer()

    def on_mount(self) -> None:
        self._show()
        self.set_interval(1.0, self._show)
        for loop in (self._follow(), self._take_stock(), self._look()):
            self.run_worker(loop)

    # What is told.

    async def _follow(self) -> None:
        while True:
            try:
                await self._list()  # for it also answers when there are no agents to tell of
                self._set_away("")
                await self._listen()
            except (CallError, NotThereError) as error:
                if isinstance(error, CallError) and error.name == "TooSlow":
                    continue  # as after an hour at an agent's terminal
                self._set_away(str(error))
            await asyncio.sleep(self._retry_sec)

    async def _listen(self) -> None:
        stream = self._client.stream("Monitor")
        while (happened := await in_thread(partial(next, stream, None))) is not None:
            self._hear(happened["event"], happened["agent"])
        raise NotThereError("the supervisor ended the conversation")

    def _hear(self, event: dict[str, Any] | None, agent: Agent | None) -> None:
        if event is not None:
            moment = datetime.fromtimestamp(event["time_usec"] / 1_000_000, UTC).astimezone()
            self.query_one("#log", RichLog).write(event_line(event["name"], f"{moment:%H:%M:%S}", event["message"]))
        if agent is not None:
            self._roster.heard(agent)
        # An agent that is told of and not described is one that was removed.
        elif event is None or event["name"] == "supervisor_reloaded" or "agent" in event["fields"]:
            self._stock_again.set()
        self._show()
        if agent is not None and agent["name"] == self._table.selected:
            self._look_again.set()

    def _set_away(self, reason: str) -> None:
        self._away = reason
        self._show()
        self._look_again.set()

    # What is asked.

    async def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await in_thread(partial(self._client.call, method, parameters))

    async def _list(self) -> None:
        mark = self._roster.mark()
        answer = await self._ask("List")
        if not self._roster.listed(answer["agents"], mark):
            self._stock_again.set()
        self._show()

    async def _take_stock(self) -> None:
        while True:
            await _set_or_over(self._stock_again, STOCK_SEC)
            if self._away:
                continue  # it is asked as soon as it is back
            try:
                await self._list()
            except CallError as error:
                self._tell(str(error))
            except NotThereError:
                continue  # which the monitor hears too

    async def _look(self) -> None:
        while True:
            agent = self._selected_agent()
            if agent is not None and not self._away:
                lines = await self._screen_of(agent["name"])
                if lines is not None and agent["name"] == self._table.selected:
                    self.query_one(TerminalView).show_lines(lines)
            alive = agent is not None and agent["state"] in _ALIVE
            await _set_or_over(self._look_again, LOOK_SEC if alive else None)

    async def _screen_of(self, name: str) -> list[str] | None:
        try:
            return list((await self._ask("Capture", agent=name))["screen"])
        except CallError as error:
            return [f"({one_line(str(error))})"]
        except NotThereError:
            return None  # the last one stays, below a banner

    async def _carry_out(self, method: str, name: str) -> None:
        try:
            await self._ask(method, agents=[name])
        except (CallError, NotThereError) as error:
            self._tell(str(error))

    # What is shown.

    @property
    def _table(self) -> AgentTable:
        return self.query_one(AgentTable)

    def _selected_agent(self) -> Agent | None:
        return self._roster.agents.get(self._table.selected or "")

    def _show(self) -> None:
        away = bool(self._away)
        top = self.query_one("#top", Static)
        top.set_class(away, "away")
        self._table.set_class(away, "away")
        again = f"{one_line(self._away)} (asking again every {self._retry_sec:g} s)"
        top.update(Text(again) if away else summary(self._roster.agents.values()))
        self._table.show_agents(self._roster.agents, self._now())
        agent = self._selected_agent()
        nobody = "" if away else "there are no agents, or none that you may see"
        self.query_one("#headline", Static).update(headline(agent, self._now()) if agent else Text(nobody))
        if agent is None:
            self.query_one(TerminalView).show_lines([])

    def _tell(self, problem: str) -> None:
        self.notify(one_line(problem), severity="error", markup=False)

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        self.query_one(TerminalView).show_lines([])
        self._show()
        self._look_again.set()

    # What keys do.

    def action_do(self, method: str) -> None:
        """Have the supervisor do it to the selected agent; what comes of it is told by the monitor."""
        if (name := self._table.selected) is not None:
            self.run_worker(self._carry_out(method, name))

    def action_confirm(self, method: str) -> None:
        """As `action_do`, if the answer is yes."""
        if (name := self._table.selected) is None:
            return

        def answered(yes: bool | None) -> None:  # noqa: FBT001 - push_screen passes it so
            if yes:
                self.run_worker(self._carry_out(method, name))

        self.push_screen(Question(f"{method} {one_line(name)}?"), answered)

    def action_attach(self) -> None:
        """Be at the selected agent's terminal until the user detaches. Everything here stands still meanwhile."""
        if (name := self._table.selected) is None:
            return
        # -I: else python would first look for modules where the operator stands, which may be an agent's directory.
        argv = [sys.executable, "-I", "-m", "forge_supervisor.cli.main", "attach", name]
        try:
            with self.suspend():
                done = self._run_at_terminal(argv)
        except (OSError, SuspendNotSupported) as error:
            self._tell(f"{name} cannot be attached to: {error}")
            return
        if done.returncode:
            # The last line: tmux, sudo and python have it say what was wrong.
            said = done.stderr.strip().rpartition("\n")[2]
            self._tell(said or f"forgectl attach ended with exit code {done.returncode}")

    def action_help(self) -> None:
        """Show the keys, or use their line for the log."""
        footer = self.query_one(Footer)
        footer.display = not footer.display


async def _set_or_over(event: asyncio.Event, seconds: float | None) -> None:
    """Return when the event is set, or after so many seconds; it is not set then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
