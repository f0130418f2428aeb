"""A shell in an agent's seat: with a terminal of its own in between, and without one."""

from __future__ import annotations

import os
import pwd
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from config_lab import NEEDS_ROOT, SOMEBODY

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import sys
from forge_supervisor import shell, units
user, cwd, *argv = sys.argv[1:]
sys.exit(shell.run(units.lookup(user), argv, cwd, {"PATH": "/usr/bin:/bin", "GREETING": "hello"}))
"""
# Makes the terminal that it is given the one that it works at, as a login does; then nothing is left on descriptor 0.
OWN_TERMINAL = """
import fcntl, os, termios
terminal = next(fd for fd in (0, 1, 2) if os.isatty(fd))
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
if not any(os.isatty(fd) for fd in (1, 2)):
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
"""
ME = pwd.getpwuid(os.geteuid()).pw_name


def run(*argv: str, user: str = ME, cwd: str = "/", text: str = "") -> tuple[int, str]:
    command = [sys.executable, "-c", RUN, user, cwd, *argv]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_command_has_the_directory_the_environment_and_its_exit_code(tmp_path: Path) -> None:
    code, said = run("/bin/sh", "-c", 'pwd; env | sort | grep -v "^_\\|PWD=\\|^SHLVL"; exit 7', cwd=str(tmp_path))
    assert code == 7
    assert said == f"{tmp_path}\nGREETING=hello\nPATH=/usr/bin:/bin\n"


def test_without_a_command_a_shell_reads_what_it_is_told() -> None:
    assert run(text="echo $GREETING; exit 3\n") == (3, "hello\n")


def test_a_signal_is_the_code_that_a_shell_makes_of_it() -> None:
    assert run("/bin/sh", "-c", "kill -TERM $$")[0] == 128 + 15


@NEEDS_ROOT
def test_root_becomes_the_agents_user_with_all_its_groups_and_no_more() -> None:
    code, said = run("/usr/bin/id", "-un", user=SOMEBODY.pw_name)
    assert (code, said) == (0, f"{SOMEBODY.pw_name}\n")
    groups = {str(group) for group in os.getgrouplist(SOMEBODY.pw_name, SOMEBODY.pw_gid)}
    assert set(run("/usr/bin/id", "-G", user=SOMEBODY.pw_name)[1].split()) == groups


@NEEDS_ROOT
@pytest.mark.parametrize("typed", [True, False])
def test_nothing_of_roots_terminal_reaches_what_runs_in_it(*, typed: bool) -> None:
    """Naively given root's terminal as stderr alone, it reads what root types when the command has long ended."""
    ours, theirs = os.openpty()
    script = "ls -l /proc/self/fd; tty </dev/tty || true; read line; echo got $line; exit 5"
    command = [sys.executable, "-c", OWN_TERMINAL + RUN, SOMEBODY.pw_name, "/", "/bin/sh", "-c", script]
    stdin = theirs if typed else subprocess.PIPE
    with subprocess.Popen(command, stdin=stdin, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        outer = os.ttyname(theirs)
        os.close(theirs)
        os.write(ours if typed else process.stdin.fileno(), b"words\n")  # type: ignore[union-attr] # it is a pipe
        said = _read_until(ours, b"got words")
        assert process.wait(20) == 5
    os.close(ours)
    assert f"{outer}\r".encode() not in said, said


@NEEDS_ROOT
def test_without_any_terminal_it_has_not_even_the_one_that_root_works_at() -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", OWN_TERMINAL + RUN, SOMEBODY.pw_name, "/", "/bin/sh", "-c", "cat </dev/tty"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) != 0
    os.close(theirs)
    os.close(ours)
    assert b"/dev/tty: No such device" in said


@NEEDS_ROOT
def test_a_directory_is_entered_as_the_user(tmp_path: Path) -> None:
    """Naively entered as root, what only root may enter is open to the user (/proc/PID/cwd)."""
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    code, said = run("/bin/pwd", user=SOMEBODY.pw_name, cwd=str(closed / "inner"))
    assert (code, "Permission denied (an agent's directory" in said) == (1, True)


@NEEDS_ROOT
def test_its_environment_is_the_agents_to_the_letter_and_no_program_of_roots_has_any_of_it(tmp_path: Path) -> None:
    """Trap: runuser runs as root, and would load what LD_PRELOAD names; and it sets HOME, USER and LOGNAME anew."""
    witness = tmp_path / "runuser"
    witness.write_text(f'#!/bin/sh\ncat /proc/self/environ >{tmp_path}/seen\nexec /usr/sbin/runuser "$@"\n')
    witness.chmod(0o755)
    env = {"HOME": "/srv/x", "USER": "agent", "LOGNAME": "agent", "LD_AUDIT": "", "EMPTY": "", "A": "two words\n=x"}
    script = (
        "import sys; from forge_supervisor import shell, units; "
        f"shell._RUNUSER = {str(witness)!r}; "
        f"sys.exit(shell.run(units.lookup({SOMEBODY.pw_name!r}), ['/usr/bin/env', '-0'], '/', {env!r}))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True).stdout
    assert dict(pair.split("=", 1) for pair in said.split("\0") if pair) == env
    assert not [name for name in ("HOME=/srv/x", "USER=agent", "LD_AUDIT") if name in (tmp_path / "seen").read_text()]


def test_a_program_that_is_not_there_is_127_as_in_any_shell() -> None:
    code, said = run("no-such-program")
    assert (code, said) == (127, "no-such-program: No such file or directory\n")


@NEEDS_ROOT
def test_a_signal_to_it_ends_what_runs_in_it() -> None:
    """It holds the agent's secrets, and nobody would end it otherwise."""
    command = [sys.executable, "-c", RUN, SOMEBODY.pw_name, "/", "/bin/sh", "-c", "echo $$; exec sleep 300"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        inner = os.pidfd_open(int(process.stdout.readline()))
        process.terminate()
        assert process.wait(20) == 128 + 15
    assert select.select([inner], [], [], 20)[0], "it runs on"
    os.close(inner)


@NEEDS_ROOT
def test_what_is_redirected_is_passed_on_as_it_is(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with (tmp_path / "out").open("wb") as out:
        script = "echo a; echo b >&2"
        command = [sys.executable, "-c", OWN_TERMINAL + RUN, SOMEBODY.pw_name, "/", "/bin/sh", "-c", script]
        subprocess.run(command, stdin=theirs, stdout=out, stderr=theirs, start_new_session=True, timeout=20, check=True)
    assert (tmp_path / "out").read_bytes() == b"a\n"
    assert b"b" in _read_until(ours, b"b")
    os.close(theirs)
    os.close(ours)


def _read_until(terminal: int, mark: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 20
    while mark not in said:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        said += os.read(terminal, 4096)
    return said
