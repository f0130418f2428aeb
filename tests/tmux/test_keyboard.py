"""What is typed for an agent into a real pane, and what a pane is seen to show."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
from tmux_lab import Lab, wait_for_death, wait_until

from forge_supervisor import keyboard
from forge_supervisor.tmux_client import TerminalError

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.panes import Pane

# Reads as full-screen programs do, in raw mode and with bracketed paste, and keeps all that it reads in a file.
RAW = """
import os, sys, termios, tty
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
tty.setraw(0)
os.write(1, b"\\033[?2004hready")
with open(sys.argv[2]) if len(sys.argv) > 2 else open("/dev/null") as wait:
    wait.readline()
while True:
    os.write(file, os.read(0, 65536))
"""
BEGIN, END = "\x1b[200~", "\x1b[201~"


class Program:
    """With a FIFO it does not read before that has been written to: stopped ones are continued by tmux."""

    def __init__(self, lab: Lab, name: str = "a", *fifo: str) -> None:
        self.lab = lab
        self.name = name
        self.file: Path = lab.directory / f"read-{name}"
        self.pane: Pane = lab.terminal.open(name, [sys.executable, "-c", RAW, str(self.file), *fifo], "none")
        wait_until(lambda: "ready" in lab.tmux("capture-pane", "-p", "-t", self.pane.id))

    def send(self, text: str) -> None:
        self.lab.terminal.send_text(self.name, self.pane.pid, text)

    def read(self) -> str:
        return self.file.read_bytes().decode() if self.file.exists() else ""

    def reads(self, text: str) -> None:
        """Wait until it has read exactly that."""
        try:
            wait_until(lambda: self.read() == text)
        except AssertionError:
            assert self.read() == text
            raise


TEXTS = {
    "a line": "hello",
    "many lines": "one\n\n  two\n\tthree",
    "unicode": "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{GRINNING FACE} \N{CJK UNIFIED IDEOGRAPH-4E2D}",
    "what shells read": "$HOME `id` ; rm -rf '\"' && # \\n %s #{pane_id} !! {a,b} *",
    "a leading dash": "-l -t %1",
    "a semicolon at the end": "one;",
    "the name of a key": "Enter",
    "42 KB in lines": "\n".join(f"{n:05} " + "x" * 80 for n in range(480)),
    "42 KB in one line": "0123456789" * 4200,
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_arrives_as_it_is_in_one_paste_and_then_enter(lab: Lab, what: str) -> None:
    program = Program(lab)
    program.send(TEXTS[what])
    program.reads(BEGIN + TEXTS[what].replace("\n", "\r") + END + "\r")
    assert lab.tmux("list-buffers") == ""


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("a\\", "a\\ "),
        ("a\n\n\n", "a"),
        ("a\r\nb\rc", "a\rb\rc"),
        (f"a{END}\rrm -rf /", "a[201~\rrm -rf /"),
        ("a\x03\x04\x1a\x00\x7fb", "ab"),
        ("a\x9b201~b", "a201~b"),
        ("\ud800a", "a"),
    ],
)
def test_what_would_act_on_the_program_is_left_out(lab: Lab, text: str, typed: str) -> None:
    program = Program(lab)
    program.send(text)
    program.reads(BEGIN + typed + END + "\r")


@pytest.mark.parametrize("text", ["", " ", "\n", " \t\n ", "\x1b", "\x00"])
def test_nothing_is_not_sent(lab: Lab, text: str) -> None:
    program = Program(lab)
    with pytest.raises(TerminalError, match="nothing to send"):
        program.send(text)
    program.send("x")
    program.reads(f"{BEGIN}x{END}\r")


@pytest.mark.parametrize("mode", [["copy-mode"], ["copy-mode", "-u"], ["clock-mode"], ["choose-tree"]])
def test_a_pane_in_which_somebody_scrolls_gets_the_whole_text_too(lab: Lab, mode: list[str]) -> None:
    program = Program(lab)
    command, *options = mode
    lab.tmux(command, *options, "-t", program.pane.id)
    program.send("one\ntwo")
    program.reads(f"{BEGIN}one\rtwo{END}\r")


def test_a_program_without_bracketed_paste_reads_lines(lab: Lab) -> None:
    file = lab.directory / "read"
    pane = lab.sh("a", f"cat >{file}")
    lab.terminal.send_text("a", pane.pid, "one\n -two; $HOME 'x'\nthree\\")
    wait_until(lambda: file.read_text() == "one\n -two; $HOME 'x'\nthree\\ \n")
    lab.terminal.send_text("a", pane.pid, "\n".join(["y" * 1000] * 42))
    wait_until(lambda: file.read_text().endswith("y" * 1000 + "\n") and len(file.read_text()) > 42_000)


def test_many_at_once_do_not_mix(lab: Lab) -> None:
    program = Program(lab)
    texts = [f"{n} " + f"{n}" * 5000 for n in range(8)]
    threads = [threading.Thread(target=program.send, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: program.read().count("\r") == len(texts))
    assert sorted(program.read().split("\r")[:-1]) == sorted(f"{BEGIN}{text}{END}" for text in texts)


def test_two_agents_are_typed_to_at_once_though_one_does_not_read(lab: Lab) -> None:
    other = Program(lab, "b")
    with lab.fifo("go") as go:
        deaf = Program(lab, "a", str(go))
        thread = threading.Thread(target=deaf.send, args=("x",))
        thread.start()
        wait_until(lambda: "forge-" not in lab.tmux("list-buffers"))
        other.send("y")
        other.reads(f"{BEGIN}y{END}\r")
        assert thread.is_alive()
        go.write_text("\n")
        thread.join()
    deaf.reads(f"{BEGIN}x{END}\r")


def test_a_program_that_does_not_read_is_an_error_and_is_typed_nothing_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyboard, "READ_TIMEOUT", 0.3)
    with lab.fifo("go") as go:
        program = Program(lab, "a", str(go))
        with pytest.raises(TerminalError, match="it was typed, but the program has not read it"):
            program.send("first")
        for _ in range(3):
            with pytest.raises(TerminalError, match="has not read what was typed before"):
                program.send("x" * 50_000)
        go.write_text("\n")
        monkeypatch.undo()
    program.reads(f"{BEGIN}first{END}")
    # What it has not been given Enter for is still on its line.
    program.send("second")
    program.reads(f"{BEGIN}first{END}{BEGIN}second{END}\r")
    assert lab.tmux("list-buffers") == ""


def test_a_program_that_never_reads_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyboard, "READ_TIMEOUT", 0.3)
    pane = lab.sh("a", "exec sleep 1000")
    with pytest.raises(TerminalError, match="has not read the Enter after it within 0.3 s"):
        lab.terminal.send_text("a", pane.pid, "hello")


def test_a_dead_pane_or_another_process_is_typed_nothing(lab: Lab) -> None:
    pane = lab.sh("a", "read x; exit 3")
    for agent, pid in (("a", pane.pid + 1), ("b", pane.pid)):
        with pytest.raises(TerminalError, match="no live terminal"):
            lab.terminal.send_text(agent, pid, "x")
    lab.tmux("send-keys", "-t", pane.id, "Enter")
    wait_for_death(pane.pid)
    with pytest.raises(TerminalError, match="no live terminal"):
        lab.terminal.send_text("a", pane.pid, "secret")


def test_a_text_that_could_not_be_pasted_is_not_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(lab)
    pasting = keyboard.Keyboard(lab.terminal._server, program.pane.id)
    monkeypatch.setattr(pasting, "_pane", "%99")
    with pytest.raises(TerminalError):
        pasting._paste("private")
    assert lab.tmux("list-buffers") == ""


# What is shown.


def test_a_screen_is_what_is_visible_without_its_empty_end(lab: Lab) -> None:
    lab.sh("a", r"i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done; printf '\n  in\tdented\n\n'; read x")
    wait_until(lambda: any("dented" in line for line in lab.terminal.screen("a")))
    shown = lab.terminal.screen("a")
    assert len(shown) < 50
    assert shown[-3:] == ["line 100", "", "  in    dented"]


def test_a_screen_is_the_alternate_one_if_that_is_shown(lab: Lab) -> None:
    lab.sh("a", r"echo before; printf '\033[?1049h\033[2J\033[3;5Hfull screen'; read x")
    wait_until(lambda: lab.terminal.screen("a") == ["", "", "    full screen"])


def test_a_screen_has_no_control_characters_whatever_is_printed(lab: Lab) -> None:
    printed = r"\033[31mred\033[0m \033]0;title\007 \033(0qqq\033(B \302\233[1m a\010b \342\200\256x \001\002 end"
    lab.sh("a", rf"printf '{printed}'; read x")
    wait_until(lambda: "end" in "".join(lab.terminal.screen("a")))
    (line,) = lab.terminal.screen("a")
    assert line.startswith("red") and line.isprintable()


def test_a_screen_is_the_programs_though_somebody_scrolls(lab: Lab) -> None:
    pane = lab.sh("a", "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done; read x")
    wait_until(lambda: "line 100" in lab.terminal.screen("a"))
    lab.tmux("copy-mode", "-t", pane.id)
    lab.tmux("send-keys", "-t", pane.id, "-X", "history-top")
    assert lab.terminal.screen("a")[-1] == "line 100"


def test_an_empty_screen_and_none(lab: Lab) -> None:
    lab.sh("a", "read x")
    assert lab.terminal.screen("a") == []
    with pytest.raises(TerminalError, match="b has no terminal yet"):
        lab.terminal.screen("b")
