"""Every exit status is reported exactly, none is lost."""

from __future__ import annotations

import os
import random
import secrets
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tmux_lab import Lab, wait_for_death, wait_until

from forge_supervisor.panes import row
from forge_supervisor.policy import Exit
from forge_supervisor.tmux_client import TerminalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.panes import Pane

CODES = [0, 1, 143, 255]
SIGNALS = [6, 9, 11, 15]
EXITS = [Exit(code=code) for code in CODES] + [Exit(signal=number) for number in SIGNALS]

# As many as the worker has.
THREADS = 16


def script(end: Exit) -> str:
    # `ulimit -c 0`: no core files from the tests.
    return f"exit {end.code}" if end.signal is None else f"ulimit -c 0; kill -{end.signal} $$"


def deaths(panes: list[Pane]) -> Iterator[Pane]:
    """Yield each pane as the kernel tells that its process has died."""
    poll = select.poll()
    alive = {}
    for pane in panes:
        try:
            fd = os.pidfd_open(pane.pid)
        except ProcessLookupError:
            yield pane
        else:
            poll.register(fd, select.POLLIN)
            alive[fd] = pane
    while alive:
        ended = poll.poll(30_000)
        assert ended, f"alive after 30 s: {alive}"
        for fd, _ in ended:
            poll.unregister(fd)
            os.close(fd)
            yield alive.pop(fd)


def reported(lab: Lab, panes: list[Pane]) -> dict[str, Exit]:
    with ThreadPoolExecutor(THREADS) as threads:
        answers = {
            pane.agent: threads.submit(lab.terminal.exit_of, pane.id, pane.pid, timeout=30) for pane in deaths(panes)
        }
    return {agent: answer.result() for agent, answer in answers.items()}


def test_each_exit_twenty_times_restarted_in_place(lab: Lab) -> None:
    expected = {f"a{n}": end for n, end in enumerate(EXITS)}
    for _ in range(20):
        panes = [lab.sh(agent, script(end)) for agent, end in expected.items()]
        assert reported(lab, panes) == expected


def test_exits_of_a_hundred_at_once(lab: Lab) -> None:
    seed = secrets.randbits(32)
    choose = random.Random(seed)  # noqa: S311
    for _ in range(3):
        expected = {
            f"a{n}": choose.choice([Exit(code=choose.randrange(256)), Exit(signal=choose.choice(SIGNALS))])
            for n in range(100)
        }
        with lab.fifo("gate") as gate:
            panes = [lab.sh(agent, f"read x <{gate}; {script(end)}") for agent, end in expected.items()]
            gate.write_text("\n" * len(panes))
            assert reported(lab, panes) == expected, f"seed {seed}"


def test_exits_are_not_lost_to_libutempter(lab: Lab) -> None:
    """Its helper swallows SIGCHLDs: of single deaths, every tenth to third stays unknown until tmux gets another."""
    for _ in range(50):
        pane = lab.sh("a", "read x")
        os.kill(pane.pid, signal.SIGKILL)
        wait_for_death(pane.pid)
        assert lab.terminal.exit_of(pane.id, pane.pid) == Exit(signal=9)


def test_last_words_of_a_hundred_deaths_at_once_are_seldom_cut(lab: Lab) -> None:
    """One in 300 is: the kernel has not yet passed on what was written. Without the panes' pipes it is nearly all."""
    with lab.fifo("gate") as gate:
        panes = [lab.sh(f"a{n}", f"read x <{gate}; echo last; echo words; exit 3") for n in range(100)]
        gate.write_text("\n" * len(panes))
        reported(lab, panes)
    assert sum(lab.terminal.screen_tail(pane.id) == ["last", "words"] for pane in panes) > 80


def test_exit_waits_until_tmux_has_read_to_the_end(lab: Lab) -> None:
    """Else the screen lacks the end, and tmux calls the pane 'still active' and refuses to use it again."""
    with lab.fifo("gate") as gate, ThreadPoolExecutor() as threads:
        pane = lab.sh("a", "read x; seq 100000; exit 3")
        lab.tmux("pipe-pane", "-t", pane.id, f"read x <{gate}")
        lab.tmux("send-keys", "-t", pane.id, "Enter")
        wait_for_death(pane.pid)
        wait_until(lambda: lab.terminal.exit_of(pane.id, pane.pid, timeout=0.1) == Exit(code=3))
        answer = threads.submit(lab.terminal.exit_of, pane.id, pane.pid, timeout=30)
        with pytest.raises(TimeoutError):
            answer.result(0.3)
        gate.write_text("\n")
        assert answer.result() == Exit(code=3)
        assert [pane.dead for pane in lab.terminal.panes()] == [True]


def test_exit_is_known_though_a_child_keeps_the_terminal_open(lab: Lab) -> None:
    with lab.fifo("ready") as ready, lab.fifo("gone") as gone:
        pane = lab.sh("a", f"setsid sh -c 'echo >{ready}; read x <{gone}' & read x <{ready}; exit 7")
        wait_for_death(pane.pid)
        assert lab.terminal.exit_of(pane.id, pane.pid) == Exit(code=7)
        gone.write_text("\n")


def test_missing_binary_exits_1(lab: Lab) -> None:
    pane = lab.terminal.open("a", ["/nonexistent/program", "argument"], "none")
    wait_for_death(pane.pid)
    assert lab.terminal.exit_of(pane.id, pane.pid) == Exit(code=1)


def test_exit_of_a_killed_pane_is_lost(lab: Lab) -> None:
    pane = lab.sh("a", "read x")
    lab.tmux("kill-pane", "-t", pane.id)
    wait_for_death(pane.pid)
    assert lab.terminal.exit_of(pane.id, pane.pid) == Exit(lost=True)


def test_exit_is_lost_with_the_server(lab: Lab) -> None:
    pane = lab.sh("a", "read x")
    lab.end_server()
    wait_for_death(pane.pid)
    assert lab.terminal.exit_of(pane.id, pane.pid) == Exit(lost=True)


@pytest.mark.parametrize("which", ["-g", "-w", "-p"])
def test_who_turns_remain_on_exit_off_for_all_or_for_a_window_costs_no_exit(lab: Lab, which: str) -> None:
    pane = lab.sh("a", "read x; exit 3")
    target = () if which == "-g" else ("-t", pane.id)
    lab.tmux("set-option", which, *target, "remain-on-exit", "off")
    lab.tmux("send-keys", "-t", pane.id, "Enter")
    wait_for_death(pane.pid)
    exit_ = lab.terminal.exit_of(pane.id, pane.pid)
    assert exit_ == (Exit(lost=True) if which == "-p" else Exit(code=3)), "the pane itself is beyond us"
    again = lab.sh_to_the_end("a", ":")
    assert lab.terminal.exit_of(again.id, again.pid) == Exit(code=3)


def test_a_restart_keeps_the_pane_though_it_was_told_to_go_while_it_was_dead(lab: Lab) -> None:
    dead = lab.sh_to_the_end("a", ":")
    lab.tmux("set-option", "-p", "-t", dead.id, "remain-on-exit", "off")
    again = lab.sh_to_the_end("a", ":")
    assert lab.terminal.exit_of(again.id, again.pid) == Exit(code=3)


def test_exit_of_an_earlier_process_of_the_pane_is_lost(lab: Lab) -> None:
    earlier = lab.sh_to_the_end("a", ":")
    later = lab.sh_to_the_end("a", ":")
    assert lab.terminal.exit_of(earlier.id, earlier.pid) == Exit(lost=True)
    assert lab.terminal.exit_of(later.id, later.pid) == Exit(code=3)


def test_exit_that_tmux_does_not_tell_is_lost_and_not_zero(lab: Lab) -> None:
    """The caller is wrong here: the process lives. What tmux shows is what it shows before it has reaped a zombie."""
    pane = lab.sh("a", "read x")
    assert lab.terminal.exit_of(pane.id, pane.pid, timeout=0) == Exit(lost=True)


def test_exit_cannot_be_asked_of_a_stopped_server(lab: Lab) -> None:
    pane = lab.sh_to_the_end("a", ":")
    hasty = lab.another_terminal(timeout=0.5)
    server = lab.terminal.socket.server_pid()
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    with pytest.raises(TerminalError, match="no answer within"):
        hasty.exit_of(pane.id, pane.pid)


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("SIGSEGV", 11)])
def test_signal_is_a_number_or_a_name(text: str, number: int) -> None:
    told = row(f"%0 77 1 [] [{text}] a")
    assert told is not None
    assert told.exit == Exit(signal=number)
