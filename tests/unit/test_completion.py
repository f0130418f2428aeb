"""Real shells complete verbs, options and agents' names; a stub in forgectl's place tells the names."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pty_lab import read_until

from forge_supervisor.cli import completion

if TYPE_CHECKING:
    from pathlib import Path

BASH = """
source {script}
COMP_WORDS=({words} '{last}') COMP_CWORD=${{#COMP_WORDS[@]}}
COMP_CWORD=$((COMP_CWORD - 1))
$(complete -p forgectl | sed 's/.*-F \\([^ ]*\\).*/\\1/') forgectl '{last}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """Make a directory with a forgectl that knows two agents."""
    program = tmp_path / "bin/forgectl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$*" = __names ] && printf "scout\\ncoder\\n"\n')
    program.chmod(0o755)
    return program.parent


def script(tmp_path: Path, shell: str, name: str) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    file = tmp_path / "completions" / name
    file.parent.mkdir()
    file.write_text(completion.script(shell))
    return file


def said(argv: list[str], stub: Path, tmp_path: Path) -> str:
    env = {"PATH": f"{stub}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60).stdout


CASES = [
    ("", {"status", "start", "attach", "doctor"}),
    ("start", {"scout", "coder"}),
    ("attach", {"scout", "coder"}),
    ("completion", {"bash", "zsh", "fish"}),
]


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash(tmp_path: Path, stub: Path, words: str, expected: set[str]) -> None:
    file = script(tmp_path, "bash", "forgectl")
    text = BASH.format(script=file, words=f"forgectl {words}", last="")
    assert set(said(["bash", "--norc", "-c", text], stub, tmp_path).split()) >= expected


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_fish(tmp_path: Path, stub: Path, words: str, expected: set[str]) -> None:
    file = script(tmp_path, "fish", "forgectl.fish")
    line = f"forgectl {words} ".replace("  ", " ")
    told = said(["fish", "--no-config", "-c", f"source {file}; complete -C '{line}'"], stub, tmp_path)
    assert {choice.split("\t")[0] for choice in told.splitlines()} >= expected


def test_zsh(tmp_path: Path, stub: Path) -> None:
    """As somebody types it: zsh completes nothing without its line editor."""
    file = script(tmp_path, "zsh", "_forgectl")
    env = {"PATH": f"{stub}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(["zsh", "-f", "-i"], env=env, stdin=theirs, stdout=theirs, stderr=theirs) as zsh:
        os.close(theirs)
        load = f"fpath=({file.parent} $fpath); autoload -Uz compinit; compinit -u -D; print LOA''DED\n"
        os.write(ours, load.encode())
        read_until(ours, "LOADED")
        os.write(ours, b"forgectl start \t\t")
        try:
            read_until(ours, "scout", "coder")
        finally:
            zsh.kill()
            os.close(ours)
