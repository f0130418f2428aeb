"""Every command of README.md and docs/ is run as it stands there, from top to bottom, and ends with 0.

In two machines that have just been booted: one for the README, and docs/migrating.md after it; and one for
docs/deployment.md, and all that begin where that ends. What is not as a reader has it is said here: PROGRAMS that are
stand-ins, what a reader does at a terminal (KEYS), and EXCEPTIONS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import booted
import pytest
from docs_lab import ROOT, blocks, commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from booted import Machine

# Both machines have everything to install, one after the other.
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not booted.IS_CHECKOUT, reason="the documents are a checkout's"),
]

HERE = "/root/here"
"""A checkout, as far as the documents need it, in which a reader may write."""
OF_THE_CHECKOUT = ("dev", "pyproject.toml", "README.md", "config.example.toml", "forge_supervisor", "systemd", "place")
DEPLOYED = ("deployment", "security", "troubleshooting", "writing-a-harness", "upgrading")
WHEELS = os.environ.get("FORGE_TEST_WHEELS") or f"{sys.prefix}/wheels"

# The real Claude Code is what tests/claude is for; here it has to be found, log in, and stay at its prompt.
CLAUDE = """#!/bin/sh
case "$*" in
*--version) echo '2.1.330 (Claude Code)' ;;
'auth login') mkdir -p ~/.claude && echo '{"claudeAiOauth": {"accessToken": "x"}}' >~/.claude/.credentials.json ;;
'plugin '*) ;;
-p*) exit 1 ;;
*) echo ready; exec sleep infinity ;;
esac
"""
NIX_CONFIG = {
    "users": {"team": {"sshKeys": ["ssh-ed25519 AAAA anna"]}},
    "discord": {"bots": {"team": {"tokenFile": "/etc/forge-supervisor/secrets/anthropic"}}},
    "skills": {"review": {"source": "/nix/store/0a1b-review", "description": "Look at a change"}},
    "agents": {"scout": {"role": "Look ahead.", "runAs": "team", "model": "opus-4.7", "skills": ["review"]}},
}
PROGRAMS = {
    "/usr/local/bin/claude": CLAUDE,
    "/usr/local/bin/nix": f"#!/bin/sh\ncat <<'END'\n{json.dumps(NIX_CONFIG)}\nEND\n",
    "/usr/local/bin/example-agent": (ROOT / "tests/packages/example-agent").read_text(),
}
INTERRUPT, INTERRUPT_LOG, DETACH = "\x03", "\x03 ", "\x02d"
# What a reader does when the command has shown something, and its exit code then.
KEYS = {
    "./dev run": ("clock started", INTERRUPT, 0),
    "sudo forgectl logs -f scout": ("scout started", INTERRUPT_LOG, 130),
    "sudo forgectl attach scout": ("agent-scout", DETACH, 0),
    "sudo forgectl shell scout": ("bash-", "exit\r", 0),
    "sudo forge-supervisor shell scout": ("bash-", "exit\r", 0),
    "read -rsp 'Key of the API: ' key && echo": ("Key of the API", "sk-ant-api03-0123456789\r", 0),
}
EXCEPTIONS = {
    "./dev test": "it is what runs this",
    "sudo npm install --global @anthropic-ai/claude-code": "it takes a registry, and claude is a stand-in",
}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Machine]:
    """A machine that has just been booted, before anything was installed."""
    if why := booted.missing():
        pytest.skip(why)
    with booted.booted(tmp_path) as machine:
        for path, program in PROGRAMS.items():
            machine.write(path, program, mode=0o755)
        machine.run("mkdir", HERE)
        machine.run("cp", "-R", *(f"{booted.CHECKOUT}/{name}" for name in OF_THE_CHECKOUT), HERE)
        # No network is needed: sudo keeps no variables, but pip reads this.
        machine.write("/root/.config/pip/pip.conf", f"[global]\nno-index = true\nfind-links = {WHEELS}\n")
        yield machine


class Terminal:
    """A shell at a terminal of the machine. Its prompt tells how the command before it ended."""

    def __init__(self, machine: Machine, process: subprocess.Popen[bytes]) -> None:
        self._machine = machine
        self._process = process
        self._shown = ""

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def see(self, pattern: str, seconds: float = 170.0) -> re.Match[str]:
        """Wait for what has not been seen before."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._shown)):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"{pattern!r} was not shown, but:\n{self._shown}"
            self._shown += chunk.decode(errors="replace")
        self._shown = self._shown[found.end() :]
        return found

    def press(self, keys: str) -> None:
        if keys == DETACH:
            # Keys less than 1 ms apart are pasted text to tmux(1), see assume-paste-time.
            for user in ("team", "scouts"):
                detach = ("tmux", "-L", "forge", "detach-client", "-s", "=agent-scout")
                self._machine.run(*detach, user=user, check=False)
        elif keys == INTERRUPT_LOG:
            # sudo shows what its command says a moment before it passes keys on to it.
            # And beside other loads the first has been seen to be lost: people press such a key until it works.
            again = "for n in 1 2 3 4 5 6 7 8 9; do pkill -INT -x journalctl || break; sleep 1; done"
            self._machine.run("sh", "-c", again)
        else:
            self.type(keys)

    def run(self, command: str) -> tuple[int, str]:
        """Return the exit code, and what was shown."""
        self.type("".join(f"{line}\r" for line in command.splitlines()))
        if keys := KEYS.get(bare(command)):
            self.see(re.escape(keys[0]), 60)
            self.press(keys[1])
        ended = self.see(r"(?s)(.*)ended-(\d+)-")
        return int(ended[2]), ended[1]


@contextlib.contextmanager
def terminal(machine: Machine, directory: str) -> Iterator[Terminal]:
    # Not typed ahead: sudo, and whatever else has a terminal, takes what is typed meanwhile.
    shell = "stty rows 50 cols 200 -echo; exec env PS1='ended-$?-' PS2= bash --norc --noprofile --noediting -i"
    env = {"TERM": "xterm", "SHELL": "/bin/bash", "PAGER": "cat"}
    script = machine.command("script", "-qefc", shell, "/dev/null", env=env)
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        at = Terminal(machine, process)
        at.see("ended-0-", 30)
        try:
            assert at.run(f"cd {directory}")[0] == 0
            yield at
            at.type("exit\r")
            process.wait(30)
        finally:
            process.kill()


def bare(command: str) -> str:
    """Leave out what is said of it."""
    return re.split(r"\s+# ", command)[0]


def run_all(path: Path, machine: Machine, directory: str) -> list[str]:
    """Write the files that a document shows, run its commands, and return those that were left out."""
    for block in blocks(path):
        if block.name:
            machine.write(f"{directory}/{block.name}", block.text)
    left_out = []
    with terminal(machine, directory) as at:
        for number, command in commands(path):
            if bare(command) in EXCEPTIONS:
                left_out.append(bare(command))
                continue
            code, shown = at.run(command)
            *_, expected = KEYS.get(bare(command), (0,))
            assert code == expected, f"{path.name}:{number}: {command}\n{shown}"
    return left_out


def test_the_readme_and_a_migration(fresh: Machine) -> None:
    assert run_all(ROOT / "README.md", fresh, str(booted.CHECKOUT)) == ["./dev test"]
    fresh.write("/nix/store/0a1b-review/SKILL.md", "---\nname: review\ndescription: Look at a change\n---\nLook.\n")
    assert run_all(ROOT / "docs/migrating.md", fresh, HERE) == []
    assert "/srv/forge/granted/0a1b-review" in fresh.read("/etc/forge-supervisor/config.toml")


def test_a_deployment_and_all_that_follows(fresh: Machine) -> None:
    left_out = [command for name in DEPLOYED for command in run_all(ROOT / f"docs/{name}.md", fresh, HERE)]
    assert set(left_out) == EXCEPTIONS.keys() - {"./dev test"}
    assert fresh.run("test", "-e", "/opt/forge-supervisor", check=False).returncode == 1, "taken away in the end"


def test_no_document_is_left_out() -> None:
    with_commands = {file.stem for file in (ROOT / "docs").glob("*.md") if any(commands(file))}
    assert with_commands == {"migrating", *DEPLOYED}
