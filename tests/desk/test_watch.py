"""forgectl watch, driven by keys, with a supervisor that is only told of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from agents_lab import NOW, agent
from pictures import watch_picture
from textual.widgets import Footer
from watch_lab import FakeSupervisor, event

from forge_supervisor.cli.client import CallError
from forge_supervisor.cli.roster import Roster
from forge_supervisor.cli.watch import Watch
from forge_supervisor.cli.watch_parts import AgentTable, Question, headline, size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from textual.pilot import Pilot

PATIENCE = 30


class Watched(Watch):
    """Without a terminal there is nothing to suspend; so that is noted only."""

    suspended = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.away_for: list[str] = []

    def _set_away(self, reason: str) -> None:
        self.away_for.append(reason)
        super()._set_away(reason)

    @contextlib.contextmanager
    def suspend(self) -> Iterator[None]:
        self.suspended = True
        yield
        self.suspended = False


class User:
    """Somebody at the keyboard, who waits for what is to be seen."""

    def __init__(self, app: Watched, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    await self._pilot.pause(0.01)
        except TimeoutError:
            pytest.fail(f"this is all that is seen:\n{self.seen}")

    async def sees(self, *texts: str) -> None:
        await self.until(lambda: all(text in self.seen for text in texts))

    @property
    def seen(self) -> str:
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    @property
    def table(self) -> AgentTable:
        return self.app.query_one(AgentTable)

    @property
    def names(self) -> list[str | None]:
        return [row.key.value for row in self.table.ordered_rows]

    def row(self, name: str) -> list[str]:
        return [text.plain for text in self.table.get_row(name)]


@contextlib.asynccontextmanager
async def watching(
    supervisor: FakeSupervisor, *, size: tuple[int, int] = (100, 30), **options: Any
) -> AsyncIterator[User]:
    app = Watched(supervisor, retry_sec=0.1, now=lambda: NOW, **options)
    try:
        async with app.run_test(size=size, notifications=True) as pilot:
            user = User(app, pilot)
            await user.until(lambda: supervisor.monitors or not supervisor._there)
            yield user
            # As a user quits. run_test alone would take the widgets from under the workers, which App.run does not.
            app.exit()
            assert app._task is not None
            await asyncio.wait([app._task], timeout=PATIENCE)
    finally:
        supervisor.hang_up()


class Listener:
    """A supervisor's socket, in a thread, that has one agent and then says no more."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            self._kept.append(connection)
            method = json.loads(connection.recv(65536).rstrip(b"\0"))["method"].rpartition(".")[2]
            scout = agent("scout")
            answer = {"List": {"agents": [scout]}, "Monitor": {"event": None, "agent": scout}}.get(method)
            if answer is not None:  # a Capture is left without an answer for ever
                message = {"parameters": answer, "continues": method == "Monitor"}
                connection.sendall(json.dumps(message).encode() + b"\0")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for each in (self._socket, *self._kept):
            each.close()


def _read_until(terminal: int, text: bytes | None) -> bytes:
    """Read until the text comes; without one, until nobody has the terminal any more."""
    said = b""
    while text is None or text not in said:
        assert select.select([terminal], [], [], PATIENCE)[0], said
        try:
            said += os.read(terminal, 65536)
        except OSError:  # EIO: the last one has closed it
            assert text is None, said
            break
    return said


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_the_table_follows_what_the_monitor_tells() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout"), agent("other", memory=432_000_000, activity="working"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            assert user.row("other") == ["other", "team", "running", "3 min 20 s", "0", "412M", "working"]
            failed = agent("scout", state="failed", result="exit-code", exit_code=7, pid=None, n_restarts=2)
            supervisor.tell(event("agent_failed", "scout failed with result exit-code", agent="scout"), failed)
            await user.until(lambda: user.row("scout")[2:5] == ["failed", "3 min 20 s", "2"])
            await user.sees("scout failed with result exit-code", "2 agents: 1 failed, 1 running")
            supervisor.tell(None, agent("third", state="starting"))
            await user.until(lambda: user.names == ["other", "scout", "third"])

    run(scenario())


def test_states_are_not_asked_for_while_nothing_happens() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout", state="inactive", pid=None))
        async with watching(supervisor) as user:
            await user.until(lambda: supervisor.asked("Capture"))
            supervisor.tell(event("agent_warning", "scout: one", agent="scout"), supervisor.agents["scout"])
            await user.sees("scout: one")
            assert len(supervisor.asked("List")) == 1

    run(scenario())


def test_an_agent_that_a_reload_removes_is_gone_and_a_disabled_one_comes() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("first"), agent("scout"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["first", "scout"])
            await user.press("j")
            del supervisor.agents["first"]
            supervisor.agents["idle"] = agent("idle", enabled=False, state="inactive", pid=None, since_usec=None)
            supervisor.tell(event("supervisor_reloaded", "configuration reloaded"))
            await user.until(lambda: user.names == ["idle", "scout"])
            # It was the second and is the second, but that would be so by its place too.
            assert user.table.selected == "scout"
            del supervisor.agents["idle"]
            supervisor.tell(event("agent_stopped", "idle stopped", agent="idle"))
            await user.until(lambda: user.names == ["scout"])
            assert user.table.selected == "scout"

    run(scenario())


def test_the_selection_stays_with_its_agent_when_others_come_and_go() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("m"), agent("z"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["m", "z"])
            await user.press("down")
            for name in ("a", "b"):
                supervisor.tell(None, agent(name))
            await user.until(lambda: user.names == ["a", "b", "m", "z"])
            assert user.table.selected == "z"
            await user.press("k")
            del supervisor.agents["a"], supervisor.agents["b"]
            supervisor.tell(event("supervisor_reloaded", "configuration reloaded"))
            await user.until(lambda: user.names == ["m", "z"])
            assert user.table.selected == "m"

    run(scenario())


def test_the_screen_is_that_of_the_selected_agent() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))
        supervisor.screens = {"other": ["of the other"], "scout": ["of the scout", "", ""]}
        async with watching(supervisor) as user:
            await user.sees("of the other")
            await user.press("j")
            await user.sees("of the scout")
            assert "of the other" not in user.seen
            supervisor.screens["scout"] = ["it went on"]
            await user.sees("it went on")  # though nothing was told
            supervisor.errors["Capture"] = CallError("Failed", {"reason": "scout has no terminal yet"})
            await user.sees("(scout has no terminal yet)")

    run(scenario())


def test_a_screen_that_stands_still_is_looked_at_when_something_happens() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(*(agent(name, state="failed", pid=None) for name in ("other", "scout")))
        supervisor.screens = {"other": ["of the other"], "scout": ["of the scout"]}
        async with watching(supervisor) as user:
            await user.sees("of the other")
            await user.press("j")
            await user.sees("of the scout")
            supervisor.screens["scout"] = ["it went on"]
            supervisor.tell(event("agent_warning", "scout: one", agent="scout"), supervisor.agents["scout"])
            await user.sees("it went on")

    run(scenario())


def test_of_a_long_screen_the_end_is_seen() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout"))
        supervisor.screens["scout"] = [f"line {number:03} " + "x" * 200 for number in range(100)]
        async with watching(supervisor, size=(80, 24)) as user:
            await user.sees("line 099", "line 095")
            assert "line 050" not in user.seen

    run(scenario())


@pytest.mark.parametrize(
    "text",
    ["[bold]x[/]", "[/]", "[@click=app.quit]here[/]", "[link=http://x]", "a\\[b]", "[red", ":smile:", "$primary"],
)
def test_markup_of_agents_is_text(text: str) -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout", activity=text, model=text))
        supervisor.screens["scout"] = [f"screen {text}"]
        supervisor.errors["Start"] = CallError("Failed", {"reason": f"refused {text}"})
        async with watching(supervisor) as user:
            supervisor.tell(event("agent_warning", f"log {text}", agent="scout"), supervisor.agents["scout"])
            await user.sees(f"screen {text}", f"log {text}", f"claude-code · {text}")
            assert user.row("scout")[-1] == text
            await user.press("s")
            await user.sees(f"refused {text}")
            supervisor.errors["List"] = CallError("NotPermitted", {"reason": f"banner {text}"})
            supervisor.hang_up()
            await user.sees(f"banner {text}")

    run(scenario())


def test_control_characters_do_not_pass() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout", activity="a\x1b[2Jb"))
        supervisor.screens["scout"] = ["one\x1b]0;title\x07two\x9b31m \u202eevil\r\x00end"]
        async with watching(supervisor) as user:
            supervisor.tell(event("agent_warning", "log\x1b[31m\nline", agent="scout"), supervisor.agents["scout"])
            await user.sees("one]0;titletwo31m evilend", "log[31m line", "a[2Jb")
            assert not set("\x1b\x07\x9b\u202e\r\x00") & set(user.seen)

    run(scenario())


@pytest.mark.parametrize(("key", "method"), [("s", "Start"), ("f", "ResetFailed")])
def test_what_harms_nobody_is_done_at_once(key: str, method: str) -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            await user.press("j", key)
            await user.until(lambda: supervisor.asked(method))
            assert supervisor.asked(method) == [(method, ["scout"])]

    run(scenario())


@pytest.mark.parametrize(("key", "method"), [("r", "Restart"), ("x", "Stop")])
def test_what_ends_an_agent_is_asked_first(key: str, method: str) -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            for answer in ("n", "escape"):
                await user.press("j", key)
                await user.sees(f"{method} scout?", "yes / no")
                await user.press(answer)
                await user.until(lambda: not isinstance(user.app.screen, Question))
            await user.press(key)
            await user.sees(f"{method} scout?")
            # What happens meanwhile changes neither the question nor whom it is about.
            del supervisor.agents["scout"]
            supervisor.tell(event("supervisor_reloaded", "configuration reloaded"))
            await user.until(lambda: user.names == ["other"])
            assert supervisor.asked(method) == []
            await user.press("y")
            await user.until(lambda: supervisor.asked(method))
            assert supervisor.asked(method) == [(method, ["scout"])]

    run(scenario())


def test_a_call_that_takes_long_holds_up_nothing() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))
        supervisor.blocked.clear()
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            await user.press("x", "y")
            await user.until(lambda: supervisor.asked("Stop"))
            supervisor.tell(None, agent("other", state="stopping"))
            await user.until(lambda: user.row("other")[2] == "stopping")
            await user.press("j", "s")
            await user.until(lambda: supervisor.asked("Start") == [("Start", ["scout"])])
        # Here it has quit, though neither has been answered.
        supervisor.blocked.set()

    run(scenario())


def test_a_refusal_is_a_line() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout"))
        supervisor.errors["Start"] = CallError("Disabled", {"agent": "scout"})
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["scout"])
            await user.press("s")
            await user.sees("scout is disabled (forgectl enable")
            assert user.app.is_running

    run(scenario())


def test_a_supervisor_that_goes_away_is_told_of_and_found_again() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("gone"), agent("scout"))
        supervisor.screens["gone"] = ["last seen"]
        async with watching(supervisor) as user:
            await user.sees("last seen")
            supervisor.go_away()
            await user.sees("no supervisor is running", "asking again every", "last seen")
            await user.press("s")
            await user.until(lambda: user.app._notifications)
            del supervisor.agents["gone"]
            supervisor.screens["scout"] = ["back"]
            supervisor.come_back()
            await user.until(lambda: user.names == ["scout"] and supervisor.monitors)
            await user.sees("1 agent: 1 running", "back")
            assert "no supervisor" not in user.seen.splitlines()[0]
            supervisor.tell(None, agent("scout", state="failed"))
            await user.until(lambda: user.row("scout")[2] == "failed")

    run(scenario())


def test_without_a_supervisor_it_waits_for_one() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout"))
        supervisor.go_away()
        async with watching(supervisor) as user:
            await user.sees("no supervisor is running")
            await user.press("s", "x", "r", "f", "a", "enter")
            assert "there are no agents" not in user.seen  # nobody has said so
            supervisor.come_back()
            await user.until(lambda: user.names == ["scout"])

    run(scenario())


def test_who_was_too_slow_begins_anew_without_alarm() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("scout"))
        async with watching(supervisor) as user:
            await user.until(lambda: user.names == ["scout"])
            user.app.away_for.clear()
            supervisor.hang_up(CallError("TooSlow", {}))
            await user.until(lambda: supervisor.monitors)
            supervisor.tell(None, agent("other"))
            await user.until(lambda: user.names == ["other", "scout"])
            assert not any(user.app.away_for)

    run(scenario())


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (20, 5)])
def test_there_may_be_no_agents(size: tuple[int, int]) -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor()
        async with watching(supervisor, size=size) as user:
            await user.sees("0 agents")
            if size[0] >= 80:
                await user.sees("there are no agents, or none that you may see")
            await user.press("s", "x", "r", "f", "a", "enter", "j", "k", "up", "down")
            supervisor.tell(None, agent("scout"))
            await user.until(lambda: user.names == ["scout"] and user.table.selected == "scout")
            assert [method for method, _ in supervisor.calls if method not in {"List", "Capture"}] == []

    run(scenario())


@pytest.mark.parametrize("key", ["a", "enter"])
def test_attach_has_the_terminal_to_itself(key: str) -> None:
    ran: list[tuple[list[str], bool]] = []

    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))

        def at_terminal(argv: list[str]) -> subprocess.CompletedProcess[str]:
            ran.append((argv, user.app.suspended))
            return subprocess.CompletedProcess(argv, 1, stderr="Traceback …\n[b]scout[/] is not running\n")

        async with watching(supervisor, run_at_terminal=at_terminal) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            await user.press("j", key)
            await user.sees("[b]scout[/] is not running")
            assert "Traceback" not in user.seen
            assert not user.app.suspended
            supervisor.tell(None, agent("scout", state="stopping"))
            await user.until(lambda: user.row("scout")[2] == "stopping")

    run(scenario())
    assert ran == [([sys.executable, "-I", "-m", "forge_supervisor.cli.main", "attach", "scout"], True)]


def test_attach_runs_nothing_that_lies_where_the_operator_is(tmp_path: Path) -> None:
    # Root may watch from within an agent's directory.
    (tmp_path / "argparse.py").write_text("raise SystemExit('the agent is root now')\n")
    ran: list[list[str]] = []

    async def scenario() -> None:
        def at_terminal(argv: list[str]) -> subprocess.CompletedProcess[str]:
            ran.append(argv)
            return subprocess.CompletedProcess(argv, 0, stderr="")

        async with watching(FakeSupervisor(agent("scout")), run_at_terminal=at_terminal) as user:
            await user.until(lambda: user.names == ["scout"])
            await user.press("a")
            await user.until(lambda: len(ran) == 1)

    run(scenario())
    env = {**os.environ, "FORGE_SOCKET": str(tmp_path / "none")}
    done = subprocess.run(ran[0], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "the agent is root now" not in done.stderr


def test_all_keys_are_told_in_80_columns_and_the_line_can_be_used_otherwise() -> None:
    async def scenario() -> None:
        async with watching(FakeSupervisor(agent("scout")), size=(80, 24)) as user:
            await user.sees("a Attach", "s Start", "x Stop", "r Restart", "f Reset-failed", "q Quit", "? Help")
            await user.press("question_mark")
            await user.until(lambda: not user.app.query_one(Footer).display)
            await user.press("question_mark")
            await user.sees("? Help")

    run(scenario())


def test_twenty_agents_leave_room_for_a_screen_in_24_lines() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(*(agent(f"agent-{number:02}", n_restarts=number) for number in range(20)))
        supervisor.screens["agent-19"] = ["the screen of the last"]
        async with watching(supervisor, size=(80, 24)) as user:
            await user.until(lambda: len(user.names) == 20)
            await user.press("end", *["j"] * 19)
            await user.sees("agent-19", "the screen of the last", "? Help")

    run(scenario())


def test_a_click_selects_and_does_no_more() -> None:
    async def scenario() -> None:
        supervisor = FakeSupervisor(agent("other"), agent("scout"))
        ran: list[list[str]] = []

        def at_terminal(argv: list[str]) -> subprocess.CompletedProcess[str]:
            ran.append(argv)
            return subprocess.CompletedProcess(argv, 0)

        async with watching(supervisor, run_at_terminal=at_terminal) as user:
            await user.until(lambda: user.names == ["other", "scout"])
            for _ in range(2):
                await user._pilot.click(AgentTable, offset=(3, 2))
            await user.until(lambda: user.table.selected == "scout")
            assert ran == []

    run(scenario())


def test_a_list_does_not_undo_what_was_told_after_it_was_asked_for() -> None:
    roster = Roster()
    roster.heard(agent("scout"))
    mark = roster.mark()
    roster.heard(agent("scout", state="failed"))
    roster.heard(agent("new"))
    assert not roster.listed([agent("scout"), agent("idle")], mark), "it lacks one that was told of later"
    assert {name: each["state"] for name, each in roster.agents.items()} == {
        "scout": "failed",
        "idle": "running",
        "new": "running",
    }
    assert roster.listed([agent("scout", state="failed")], roster.mark())
    assert list(roster.agents) == ["scout"]


def test_of_one_that_has_ended_the_headline_says_how() -> None:
    ended = {"state": "failed", "pid": None, "start_limit_hit": True}
    text = headline(agent("scout", result="signal", signal=9, **ended), NOW).plain
    assert text == "scout · claude-code · result signal · signal 9 (SIGKILL) · start limit hit"
    ended = {"state": "failed", "pid": None, "daily_limit_hit": True}
    assert headline(agent("scout", **ended), NOW).plain.endswith(" · daily limit hit")
    text = headline(agent("scout", state="auto-restart", pid=None, restart_usec=(NOW + 5) * 1_000_000), NOW).plain
    assert text == "scout · claude-code · starts in 5 s"


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0B"), (1023, "1023B"), (1536, "1.5K"), (432_331_162, "412.3M"), (2**42, "4T")],  # noqa: RUF001 - the same dash
)
def test_sizes_read_as_systemctls(count: int | None, text: str) -> None:
    assert size(count) == text


def test_quit_does_not_wait_for_what_a_supervisor_never_answers(tmp_path: Path) -> None:
    """Naively with asyncio.to_thread or executors, python joins the threads that read, and never ends."""
    listener = Listener(tmp_path / "socket")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from forge_supervisor.cli import watch; sys.exit(watch.run())"]
    environment = os.environ | {"FORGE_SOCKET": str(tmp_path / "socket"), "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            said = _read_until(ours, b"scout")
            os.write(ours, b"q")
            said += _read_until(ours, None)
            assert process.wait(PATIENCE) == 0, said
            assert b"Traceback" not in said
        finally:
            process.kill()
    os.close(ours)
    listener.close()


def test_without_a_terminal_it_says_so() -> None:
    command = [sys.executable, "-c", "import sys; from forge_supervisor.cli import watch; sys.exit(watch.run())"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "forgectl: watch needs a terminal\n")


def test_the_picture_in_the_documentation_can_be_drawn() -> None:
    picture = watch_picture()
    assert picture.startswith("<svg") and all(
        word in picture for word in ("coordinator", "auto-restart", "esc&#160;to")
    )
