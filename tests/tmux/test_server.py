"""Whether there is a server, which tmux it is, and that it obeys our configuration."""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tmux_lab

from forge_supervisor import terminal
from forge_supervisor.terminal import Terminal
from forge_supervisor.tmux_client import TerminalError, TerminalTimeoutError
from forge_supervisor.tmux_conf import TMUX_CONF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmux_lab import Lab


def test_server_pid(lab: Lab) -> None:
    assert lab.terminal.socket.server_pid() == int(lab.tmux("display-message", "-p", "#{pid}"))


def test_no_server(empty_lab: Lab) -> None:
    assert empty_lab.terminal.socket.server_pid() is None


def test_no_server_on_the_socket_of_a_dead_one(lab: Lab) -> None:
    server = lab.terminal.socket.server_pid()
    assert server is not None
    os.kill(server, signal.SIGKILL)
    lab.end_server()
    assert lab.terminal.socket.path.is_socket()
    assert lab.terminal.socket.server_pid() is None


def test_a_file_in_the_socket_s_place_is_an_error(empty_lab: Lab) -> None:
    empty_lab.terminal.socket.path.parent.mkdir()
    empty_lab.terminal.socket.path.touch()
    with pytest.raises(TerminalError, match="refused"):
        empty_lab.terminal.socket.server_pid()


def test_an_unreachable_socket_is_an_error(empty_lab: Lab) -> None:
    empty_lab.terminal.socket.path.parent.touch()
    with pytest.raises(TerminalError, match="Not a directory"):
        empty_lab.terminal.socket.server_pid()


def test_a_forbidden_socket_is_an_error(lab: Lab) -> None:
    if os.geteuid() == 0:
        pytest.skip("needs a user other than root: nothing is forbidden to root")
    lab.terminal.socket.path.parent.chmod(0)
    try:
        with pytest.raises(TerminalError, match="Permission denied"):
            lab.terminal.socket.server_pid()
    finally:
        lab.terminal.socket.path.parent.chmod(0o700)


def test_another_user_s_server_is_an_error(empty_lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True)"
    )
    empty_lab.directory.chmod(0o755)
    empty_lab.terminal.socket.path.parent.mkdir()
    empty_lab.terminal.socket.path.parent.chmod(0o777)
    argv = ["/usr/bin/python3", "-c", f"{program}; s.accept()", os.fspath(empty_lab.terminal.socket.path)]
    with subprocess.Popen(argv, user=65534, cwd="/", stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"\n"
        with pytest.raises(TerminalError, match="belongs to uid 65534"):
            empty_lab.terminal.socket.server_pid()


def test_no_call_starts_a_server(empty_lab: Lab) -> None:
    with pytest.raises(TerminalError, match="list-sessions: "):
        empty_lab.terminal.panes()
    with pytest.raises(TerminalError):
        empty_lab.terminal._server.cmd("new-session", "-d")
    assert empty_lab.terminal.socket.server_pid() is None


def test_a_server_without_sessions_has_no_panes(lab: Lab) -> None:
    assert lab.terminal.panes() == []


def test_wait_for_server_that_is_just_starting(empty_lab: Lab) -> None:
    empty_lab.launch_server()
    assert empty_lab.terminal.wait_for_server(20) == empty_lab.terminal.socket.server_pid()


def test_wait_for_the_next_server_after_kill_server(lab: Lab) -> None:
    lab.tmux("kill-server")
    lab.end_server()
    assert lab.start_server() == lab.terminal.socket.server_pid()


def test_wait_for_server_gives_up(empty_lab: Lab) -> None:
    with pytest.raises(TerminalError, match=r"no server|error connecting"):
        empty_lab.terminal.wait_for_server(0.05)


def test_stopped_server_is_an_error_within_bounds(lab: Lab) -> None:
    hasty = lab.another_terminal(timeout=0.2)
    server = lab.terminal.socket.server_pid()
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    with pytest.raises(TerminalTimeoutError, match=r"no answer within 0\.2 s"):
        hasty.panes()
    with pytest.raises(TerminalTimeoutError):
        hasty.open("a", ["/bin/sleep", "9"], "none")
    with pytest.raises(TerminalTimeoutError):
        hasty.wait_for_server(0.1)
    assert hasty.socket.server_pid() == server


@pytest.fixture
def listening(empty_lab: Lab) -> Iterator[socket.socket]:
    """Ourselves in the place of a server, with a queue of one."""
    empty_lab.terminal.socket.path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(empty_lab.terminal.socket.path))
        server.listen(0)
        yield server


def test_many_that_ask_at_once_wait_for_their_turn(empty_lab: Lab, listening: socket.socket) -> None:
    """Trap: connect(2) that must not block fails at once where the queue is full, and an exit was lost by that."""
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(empty_lab.terminal.socket.server_pid) for _ in range(8)]
        while not all(each.done() for each in asked):
            if select.select([listening], [], [], 0.01)[0]:
                listening.accept()[0].close()
        assert [each.result() for each in asked] == [os.getpid()] * 8


def _asks(empty_lab: Lab, listening: socket.socket) -> int:
    """How often a listener is connected to until it is known who it is."""
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(empty_lab.terminal.socket.server_pid)
        times = 0
        while not asked.done() or select.select([listening], [], [], 0)[0]:
            if select.select([listening], [], [], 0.01)[0]:
                listening.accept()[0].close()
                times += 1
        assert asked.result() == os.getpid()
    return times


def test_a_server_is_asked_who_it_is_until_that_is_sure_and_not_again(empty_lab: Lab, listening: socket.socket) -> None:
    """Trap: a server of hundreds of panes takes a millisecond over each connection."""
    assert _asks(empty_lab, listening) == 2
    assert _asks(empty_lab, listening) == 0
    empty_lab.terminal.socket.path.chmod(0o700)  # as tmux itself does, for example
    assert _asks(empty_lab, listening) == 2
    assert _asks(empty_lab, listening) == 0


def test_a_link_to_a_socket_that_is_gone_leads_to_nobody(lab: Lab) -> None:
    path = lab.terminal.socket.path
    path.rename(lab.directory / "elsewhere")
    path.symlink_to(lab.directory / "elsewhere")
    server = lab.terminal.socket.server_pid()
    assert server is not None
    (lab.directory / "elsewhere").unlink()
    assert lab.terminal.socket.server_pid() is None
    lab.terminal.socket.restore(server)
    assert lab.terminal.socket.server_pid() == server


def test_one_that_cannot_be_asked_again_costs_no_descriptor(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = lab.terminal.socket
    server = ours.server_pid()
    asked = itertools.count(1)

    def ask() -> int | None:
        if next(asked) % 2 == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return server

    monkeypatch.setattr(ours, "_ask", ask)
    monkeypatch.setattr(ours, "_listener", None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [ours.server_pid() for _ in range(5)] == [server] * 5
    assert (next(asked), len(list(Path("/proc/self/fd").iterdir()))) == (11, before)


def test_who_listens_after_one_that_was_known_is_told(lab: Lab) -> None:
    earlier = lab.terminal.socket.server_pid()
    assert earlier is not None
    os.kill(earlier, signal.SIGKILL)
    lab.end_server()
    assert lab.terminal.socket.server_pid() is None
    assert lab.start_server() == lab.terminal.socket.server_pid() != earlier


def test_full_queue_of_a_stopped_server_is_an_error(empty_lab: Lab) -> None:
    path = empty_lab.terminal.socket.path
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as first:
        deaf.bind(os.fspath(path))
        deaf.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(TerminalError, match="unavailable"):
            empty_lab.terminal.socket.server_pid()


def _tmux_that_says(directory: Path, text: str) -> Terminal:
    program = directory / "tmux"
    program.write_text(f"#!/bin/sh\necho {text}\n")
    program.chmod(0o755)
    return Terminal("forge", env={}, tmux=str(program))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("tmux 3.3a", (3, 3)),
        ("tmux 3.5a", (3, 5)),
        ("tmux 3.10", (3, 10)),
        ("tmux next-3.6", (3, 6)),
        ("tmux openbsd-7.4", (7, 4)),
    ],
)
def test_version(tmp_path: Path, text: str, version: tuple[int, int]) -> None:
    said = _tmux_that_says(tmp_path, text)
    said.require_version()
    assert said.version() == version


@pytest.mark.parametrize("removed", ["socket", "directory"])
def test_a_socket_that_somebody_removed_is_made_anew(lab: Lab, removed: str) -> None:
    server = lab.terminal.socket.server_pid()
    assert server is not None
    pane = lab.sh("scout", "read x; exit 3")
    lab.terminal.socket.path.unlink()
    if removed == "directory":
        lab.terminal.socket.path.parent.rmdir()
    assert lab.terminal.socket.server_pid() is None
    lab.terminal.socket.restore(server)
    assert lab.terminal.socket.server_pid() == server
    assert lab.terminal.panes() == [pane]
    lab.terminal.socket.restore(server)  # nothing is amiss: nothing happens


def test_a_socket_that_another_server_has_taken_is_ours_when_it_is_said_to_be(lab: Lab) -> None:
    """Until ours has got to it, the other one answers."""
    server = lab.terminal.socket.server_pid()
    assert server is not None
    pane = lab.sh("scout", "read x; exit 3")
    with tmux_lab.lab() as another:
        other = another.start_server()
        another.terminal.socket.path.rename(lab.terminal.socket.path)
        assert lab.terminal.socket.server_pid() == other
        os.kill(server, signal.SIGSTOP)
        later = threading.Timer(0.3, os.kill, (server, signal.SIGCONT))
        later.start()
        lab.terminal.socket.restore(server)
        answering = lab.terminal.socket.server_pid()
        later.join()
    assert answering == server
    assert lab.terminal.panes() == [pane]


def test_a_server_that_does_not_make_its_socket_anew_is_an_error(lab: Lab) -> None:
    server = lab.terminal.socket.server_pid()
    assert server is not None
    lab.terminal.socket.path.unlink()
    os.kill(server, signal.SIGSTOP)
    with pytest.raises(TerminalError, match=rf"\(pid {server}\) does not make .*/forge anew"):
        lab.another_terminal(timeout=0.2).socket.restore(server)


@pytest.mark.parametrize("text", ["tmux 3.1c", "tmux 3.2a", "tmux 2.9"])
def test_tmux_too_old(tmp_path: Path, text: str) -> None:
    with pytest.raises(TerminalError) as caught:
        _tmux_that_says(tmp_path, text).require_version()
    assert str(caught.value) == f"{text} is too old: 3.3 or newer is needed (apt-get install tmux)"


def test_tmux_of_unknown_version(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"cannot read the version of 'tmux master': 3\.3 or newer is needed"):
        _tmux_that_says(tmp_path, "tmux master").require_version()


def test_this_tmux_is_new_enough(empty_lab: Lab) -> None:
    empty_lab.terminal.require_version()


def test_no_tmux(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"^tmux not found \(apt-get install tmux\)$"):
        Terminal("forge", env={"PATH": str(tmp_path)}).require_version()


def test_tmux_that_may_not_be_run(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="cannot be run: Permission denied"):
        Terminal("forge", env={}, tmux=str(tmp_path)).require_version()


def test_our_configuration_took_effect(lab: Lab) -> None:
    assert lab.terminal._differences() == []
    assert lab.tmux("show-options", "-gv", "remain-on-exit") == "on\n"
    assert lab.tmux("show-options", "-g", "update-environment") == "update-environment\n"
    lab.terminal.configure()


def test_server_of_another_configuration_is_given_ours(empty_lab: Lab) -> None:
    other = empty_lab.directory / "other.conf"
    other.write_text("set -g remain-on-exit off\nset -g mouse off\n")
    empty_lab.start_server(other)
    assert "remain-on-exit on" in empty_lab.terminal._differences()
    empty_lab.terminal.configure()
    assert empty_lab.terminal._differences() == []
    empty_lab.sh_to_the_end("a", ":")
    assert [pane.dead for pane in empty_lab.terminal.panes()] == [True]


@pytest.mark.parametrize("line", ["set -g remain-on-exits on", "set -g remain-on-exit perhaps", "set -g mouse"])
def test_line_that_tmux_cannot_use_is_an_error(empty_lab: Lab, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Tmux says nothing of it when started with `-f`."""
    bad = empty_lab.directory / "bad.conf"
    bad.write_text(f"{TMUX_CONF.read_text()}\n{line}\n")
    monkeypatch.setattr(terminal, "TMUX_CONF", bad)
    empty_lab.start_server(bad)
    with pytest.raises(TerminalError):
        empty_lab.terminal.configure()


def test_configuration_can_be_read_by_every_user() -> None:
    assert TMUX_CONF.stat().st_mode & 0o444 == 0o444


def test_users_own_tmux_conf_is_not_read(empty_lab: Lab) -> None:
    (empty_lab.directory / ".tmux.conf").write_text("set -g destroy-unattached on\nset -g @read yes\n")
    empty_lab.start_server()
    empty_lab.sh("a", "read x")
    assert empty_lab.sessions() == ["agent-a"]
    assert "@read" not in empty_lab.tmux("show-options", "-g")
    assert empty_lab.tmux("show-options", "-gv", "destroy-unattached") == "off\n"
