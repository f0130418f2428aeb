"""A shell in an agent's seat: with a terminal of its own in between, and without one."""

from __future__ import annotations

import os
import pwd
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from config_lab import NEEDS_ROOT, SOMEBODY

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import sys
from forge_supervisor import shell, units
user, cwd, *argv = sys.argv[1:]
sys.exit(shell.run(units.lookup(user), argv, cwd, {"PATH": "/usr/bin:/bin", "GREETING": "hello"}))
"""
ME = pwd.getpwuid(os.geteuid()).pw_name


def run(*argv: str, user: str = ME, cwd: str = "/", text: str = "") -> tuple[int, str]:
    command = [sys.executable, "-c", RUN, user, cwd, *argv]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_command_has_the_directory_the_environment_and_its_exit_code(tmp_path: Path) -> None:
    code, said = run("/bin/sh", "-c", 'pwd; env | sort | grep -v "^_\\|^PWD\\|^SHLVL"; exit 7', cwd=str(tmp_path))
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


def test_of_a_terminal_it_gets_another_one_in_between() -> None:
    """What it types into its own (TIOCSTI) must not be read by the shell that started it, which may be root's."""
    ours, theirs = os.openpty()
    outer = os.ttyname(theirs)
    command = [sys.executable, "-c", RUN, ME, "/", "/bin/sh", "-c", "tty; tty </dev/tty; read line; echo got $line"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        said = _read_until(ours, b"/dev/tty")
        assert outer.encode() not in said
        os.write(ours, b"words\r")
        assert b"got words" in _read_until(ours, b"got words")
        assert process.wait(20) == 0
    os.close(ours)


def _read_until(terminal: int, mark: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 20
    while mark not in said:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        said += os.read(terminal, 4096)
    return said
