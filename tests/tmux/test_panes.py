"""Sessions, panes, and what people who attach may do to them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from tmux_lab import Lab, wait_for_death, wait_until

from forge_supervisor import processes
from forge_supervisor.panes import Pane
from forge_supervisor.policy import Exit
from forge_supervisor.tmux_client import TerminalError


def history(lab: Lab, pane: Pane) -> str:
    return lab.tmux("capture-pane", "-p", "-J", "-S", "-", "-t", pane.id)


def test_open(lab: Lab) -> None:
    pane = lab.sh("scout", "read x")
    assert lab.sessions() == ["agent-scout"]
    assert lab.terminal.panes() == [Pane(pane.id, pane.pid, "scout")]
    assert Path(f"/proc/{pane.pid}/cwd").readlink() == Path("/")
    size = lab.tmux("display-message", "-p", "-t", pane.id, "#{pane_width}x#{pane_height} #{window_name}")
    assert size == "200x50 scout\n"


def test_no_shell_and_no_tmux_between_us_and_the_program(lab: Lab) -> None:
    words = ["a;", ";", "\\;", "#{pane_id}", "$HOME", "'", "*", "", "~", "x y"]
    script = "import sys; print(sys.argv[1:]); input()"
    pane = lab.terminal.open("a", ["/usr/bin/python3", "-c", script, *words], "none")
    wait_until(lambda: lab.terminal.screen_tail(pane.id) == [str(words)])


def test_single_word_would_go_to_a_shell(lab: Lab) -> None:
    with pytest.raises(ValueError, match="shell"):
        lab.terminal.open("a", ["/bin/true"], "none")


def test_double_start_is_refused(lab: Lab) -> None:
    pane = lab.sh("a", "read x")
    with pytest.raises(TerminalError, match=f"agent a runs already: pid {pane.pid} in pane {pane.id}"):
        lab.sh("a", "read x")
    assert lab.terminal.panes() == [pane]


def test_double_start_is_refused_though_the_program_closed_its_terminal(lab: Lab) -> None:
    """Such a pane is dead to tmux, which would start a second program in it."""
    with lab.fifo("gone") as gone:
        pane = lab.sh("a", f"trap '' HUP; exec <{gone} >/dev/null 2>&1; read x")
        wait_until(lambda: lab.terminal.panes()[0].dead)
        with pytest.raises(TerminalError, match="runs already"):
            lab.sh("a", "read x")
        (note,) = lab.terminal.close_leftover("a")
    assert note == f"ended pid {pane.pid}, left in pane {pane.id} by an earlier session: signal 15 (SIGTERM)"


def test_leftover_is_ended_and_its_pane_used_again(lab: Lab) -> None:
    leftover = lab.sh("a", "trap '' TERM HUP; echo ready; while :; do read x; done")
    other = lab.sh("ab", "read x")
    wait_until(lambda: lab.terminal.screen_tail(leftover.id) == ["ready"])
    (note,) = lab.terminal.close_leftover("a")
    assert "SIGKILL" in note
    again = lab.sh("a", "read x")
    assert (again.id, again.pid != leftover.pid) == (leftover.id, True)
    assert processes.lives(other.pid)


def test_dead_pane_is_no_leftover(lab: Lab) -> None:
    lab.sh_to_the_end("a", ":")
    assert lab.terminal.close_leftover("a") == []


def test_restart_keeps_who_is_attached_and_the_dead_screen(lab: Lab) -> None:
    # Several lines: tmux pushes one into the history when it writes "Pane is dead".
    first = lab.sh("a", "printf 'the first\\nthe best\\n'; read x; exit 3")
    with lab.attached("agent-a") as person:
        person.see("the best")
        lab.tmux("send-keys", "-t", first.id, "Enter")
        wait_for_death(first.pid)
        assert lab.terminal.exit_of(first.id, first.pid) == Exit(code=3)
        person.see("Pane is dead (status 3")
        second = lab.sh("a", "echo the second; read x")
        person.see("the second")
        clients = lab.tmux("list-clients", "-F", "#{client_pid} #{client_session}")
    assert clients == f"{person.client.pid} agent-a\n"
    assert second.id == first.id
    texts = [line for line in history(lab, second).splitlines() if line.startswith("the ")]
    assert texts == ["the first", "the best", "the second"]


def test_a_pane_that_is_known_need_not_be_looked_for(lab: Lab) -> None:
    first = lab.sh_to_the_end("a", ":")
    other = lab.sh("ab", "read x")
    argv = ("/bin/sh", "-c", "read x")
    second = lab.terminal.open("a", argv, "none", first.id)
    assert (second.id, lab.terminal.panes()) == (first.id, [second, other])
    with pytest.raises(TerminalError, match="runs already"):
        lab.terminal.open("a", argv, "none", first.id)
    lab.tmux("kill-session", "-t", "=agent-a")
    third = lab.terminal.open("a", argv, "none", first.id)
    assert third.id not in {first.id, other.id}
    assert lab.sessions() == ["agent-a", "agent-ab"]


def test_a_pipe_that_somebody_ended_is_there_again_after_a_restart(lab: Lab) -> None:
    """Without one tmux drops last words."""
    first = lab.sh("a", "read x")
    lab.tmux("pipe-pane", "-t", first.id)
    assert lab.tmux("display-message", "-p", "-t", first.id, "#{pane_pipe}") == "0\n"
    os.kill(first.pid, signal.SIGKILL)
    wait_for_death(first.pid)
    assert lab.terminal.exit_of(first.id, first.pid) == Exit(signal=9)
    assert lab.sh("a", "read x").id == first.id
    assert lab.tmux("display-message", "-p", "-t", first.id, "#{pane_pipe}") == "1\n"


def test_a_pipe_that_a_hook_of_peoples_own_has_opened_stays(lab: Lab) -> None:
    log = lab.directory / "log"
    lab.tmux("set-hook", "-g", "after-new-session", f"pipe-pane 'exec cat >{log}'")
    lab.sh("a", "echo hello; read x")
    wait_until(lambda: log.exists() and "hello" in log.read_text())


def test_a_pipe_of_peoples_own_outlives_a_restart(lab: Lab) -> None:
    log = lab.directory / "log"
    first = lab.sh("a", "read x; echo the first; exit 3")
    lab.tmux("pipe-pane", "-O", "-t", first.id, f"exec cat >{log}")
    lab.tmux("send-keys", "-t", first.id, "Enter")
    wait_for_death(first.pid)
    assert lab.terminal.ending(first.id, first.pid) == (Exit(code=3), ["the first"])
    lab.sh("a", "echo the second; read x")
    wait_until(lambda: "the second" in log.read_text())


def test_restart_keeps_the_dead_screen_though_somebody_scrolls(lab: Lab) -> None:
    """`send-keys -R` alone would drop it, because the pane is in copy mode."""
    first = lab.sh("a", "printf 'the first\\nthe best\\n'; read x")
    wait_until(lambda: "the best" in lab.terminal.screen_tail(first.id))
    lab.tmux("copy-mode", "-t", first.id)
    os.kill(first.pid, signal.SIGKILL)
    wait_for_death(first.pid)
    assert lab.terminal.exit_of(first.id, first.pid) == Exit(signal=9)
    assert lab.tmux("display-message", "-p", "-t", first.id, "#{pane_in_mode}") == "1\n"
    second = lab.sh("a", "read x")
    assert "the first\nthe best\n" in history(lab, second)


def test_restart_under_a_read_only_client(lab: Lab) -> None:
    first = lab.sh_to_the_end("a", r"printf 'the first\nthe best\n'", shows="the best")
    with lab.attached("agent-a", "-r") as person:
        second = lab.sh("a", "echo the second; read x")
        person.see("the second")
        assert "the first\nthe best\n" in history(lab, second)
    assert second.id == first.id


def test_who_attaches_sees_the_whole_name_of_a_session(lab: Lab) -> None:
    lab.sh("coordinator-of-everything", "read x")
    with lab.attached("agent-coordinator-of-everything") as person:
        person.see("[agent-coordinator-of-everything]")


def test_environment_of_who_attaches_does_not_reach_the_next_program(lab: Lab) -> None:
    lab.sh_to_the_end("a", ":")
    with lab.attached("agent-a", env={"SSH_AUTH_SOCK": "/stolen", "DISPLAY": "stolen:0"}):
        respawned, created = lab.sh("a", "read x"), lab.sh("b", "read x")
        environments = [Path(f"/proc/{pane.pid}/environ").read_text() for pane in (respawned, created)]
    assert [text for text in environments if "stolen" in text] == []


def test_environment_of_our_client_does_not_reach_a_program(lab: Lab) -> None:
    pane = lab.another_terminal(env={"SECRET": "stolen"}).open("a", ["/bin/sleep", "1000"], "none")
    assert "stolen" not in Path(f"/proc/{pane.pid}/environ").read_text()


def test_targets_do_not_match_by_prefix(lab: Lab) -> None:
    longer = lab.sh("ab", "read x")
    lab.terminal.kill("a")
    assert lab.terminal.close_leftover("a") == []
    assert lab.sessions() == ["agent-ab"]
    lab.sh("a", "read x")
    assert lab.sessions() == ["agent-a", "agent-ab"]
    lab.terminal.kill("a")
    assert lab.terminal.panes() == [longer]
    assert lab.sessions() == ["agent-ab"]


def test_new_window_where_people_killed_our_pane_and_opened_their_own(lab: Lab) -> None:
    longer = lab.sh("ab", "read x")
    ours = lab.sh("a", "read x")
    lab.tmux("new-window", "-t", "=agent-a:", "read x")
    lab.tmux("kill-pane", "-t", ours.id)
    again = lab.sh("a", "read x")
    assert lab.terminal.panes() == [again, longer] or lab.terminal.panes() == [longer, again]
    assert len(lab.tmux("list-windows", "-t", "=agent-a").splitlines()) == 2
    lab.terminal.kill("a")
    assert lab.sessions() == ["agent-ab"]


def test_restart_finds_its_pane_in_a_renamed_session(lab: Lab) -> None:
    first = lab.sh_to_the_end("a", ":")
    lab.tmux("rename-session", "-t", "=agent-a", "mine")
    assert lab.sh("a", "read x").id == first.id
    assert lab.sessions() == ["mine"]
    lab.terminal.kill("a")
    assert lab.terminal.panes() == []


def test_pane_in_grouped_sessions_is_one_pane(lab: Lab) -> None:
    pane = lab.sh("a", "read x")
    lab.tmux("new-session", "-d", "-t", "=agent-a", "-s", "people")
    assert lab.terminal.panes() == [pane]
    lab.terminal.kill("a")
    assert lab.terminal.panes() == []


def test_what_people_open_is_not_ours(lab: Lab) -> None:
    lab.tmux("new-session", "-d", "-s", "people", "read x")
    pane = lab.sh("a", "read x")
    lab.tmux("split-window", "-t", pane.id, "read x")
    assert lab.terminal.panes() == [pane]


def test_newline_in_an_option_does_not_break_the_line(lab: Lab) -> None:
    ours = lab.sh("a", "read x")
    fake = "x\n%99 1 0 [] [] b"
    lab.tmux(
        "new-session", "-d", "-s", "people", "read x", ";", "set-option", "-p", "-t", "=people:", "@forge-agent", fake
    )
    theirs = next(pane for pane in lab.terminal.panes() if pane != ours)
    assert theirs.agent == "x9910b"
    assert len(lab.terminal.panes()) == 2


def test_kill_of_nothing(lab: Lab) -> None:
    lab.terminal.kill("a")
    lab.end_server()
    lab.terminal.kill("a")


def test_utf8_client_without_locale(lab: Lab) -> None:
    """libtmux is helpless, and a screen unreadable, where tmux turns all but ASCII into '_'."""
    assert "LC_ALL" not in lab.env
    assert "LANG" not in lab.env
    pane = lab.sh_to_the_end("a", r"printf 'gr\303\274\303\237 \342\202\254 \360\237\246\200\n'", shows="🦀")
    for env in ({}, {"LC_ALL": "C"}, {"LANG": "C", "LC_CTYPE": "POSIX"}):
        terminal = lab.another_terminal(env=env)
        assert terminal.screen_tail(pane.id) == ["grüß € 🦀"]
        assert terminal._server.cmd("display-message", "-p", "grüß ␞").stdout == ["grüß ␞"]


def test_screen_tail_without_control_characters(lab: Lab) -> None:
    pane = lab.sh_to_the_end(
        "a",
        r"printf 'plain\n\n\033[31mred\033[0m\007\n\033]2;title\007\tmiddle   \n"
        r"bad \377\376 bytes\nc1 \302\233 bidi \342\200\256evil\nzero\000\001\177x\n'",
        shows="zero",
    )
    tail = lab.terminal.screen_tail(pane.id)
    assert tail[:2] == ["plain", "red"]
    assert tail[2].split() == ["middle"]
    assert re.fullmatch(r"bad .* bytes", tail[3])
    assert re.fullmatch(r"c1 +bidi +evil", tail[4])
    assert tail[5:] == ["zerox"]
    assert all(line.isprintable() and line == line.rstrip() for line in tail)


def test_screen_tail_is_the_last_lines_cut_to_500_characters(lab: Lab) -> None:
    pane = lab.sh("a", "seq 1000; printf '%0600d\n' 7; echo end; read x")
    wait_until(lambda: lab.terminal.screen_tail(pane.id, 1) == ["end"])
    assert lab.terminal.screen_tail(pane.id, 3) == ["1000", "0" * 500, "end"]
    assert lab.terminal.screen_tail(pane.id, 100) == [*map(str, range(903, 1001)), "0" * 500, "end"]


def test_screen_tail_is_of_the_last_program_only(lab: Lab) -> None:
    lab.sh_to_the_end("a", "echo the first", shows="the first")
    second = lab.sh_to_the_end("a", "echo the second", shows="the second")
    assert lab.terminal.screen_tail(second.id) == ["the second"]
    silent = lab.sh_to_the_end("a", ":")
    assert lab.terminal.screen_tail(silent.id) == []
