"""What the doctor's checks have in common: what they find, and by what means they look at the machine."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from forge_supervisor.units import User

Status = Literal["ok", "warning", "problem", "skipped"]

TIMEOUT = 10.0
"""Seconds that a program gets to answer."""
SUPERVISOR_UNIT = "forge-supervisor.service"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what can be done about it: a command where there is one."""

    check: str
    status: Status
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "warning", text, fix)


def problem(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "problem", text, fix)


def for_root(check: str, text: str) -> Finding:
    """Make the finding for what an ordinary user cannot look at."""
    return Finding(check, "skipped", f"{text} (run it as root)")


def of_sentence(check: str, status: Status, sentence: str, otherwise: str) -> Finding:
    """Make a finding of a sentence that may hold its own way out, as those of this program do."""
    text, fix = _way_out(sentence)
    return Finding(check, status, text, fix or otherwise)


def _way_out(sentence: str) -> tuple[str, str]:
    if named := re.fullmatch(r"(.+): run `([^`]+)`", sentence, re.DOTALL):
        return named[1], named[2]
    start = _last_bracket(sentence)
    inside = sentence[start + 1 : -1]
    # Not every bracket at the end of a sentence is one: "(90 s)".
    if start <= 0 or not re.match(r"[a-z./].* ", inside, re.DOTALL):
        return sentence, ""
    return sentence[:start].rstrip(), inside


def _last_bracket(sentence: str) -> int:
    """Find where the bracket that ends the sentence was opened; -1 if it does not end in one."""
    depth = 0
    for place in range(len(sentence) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(sentence[place], 0)
        if depth == 0:
            return place if sentence[place] == "(" else -1
    return -1


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    err: str


class Ask(Protocol):
    def __call__(self, argv: Sequence[str], *, user: User | None = None) -> Answer: ...


def ask(argv: Sequence[str], *, user: User | None = None) -> Answer:
    """Run one of the system's programs, as that user if one is given, and return what it says.

    Code 127 if there is no such program. Raises OSError and subprocess.SubprocessError.
    """
    session = {} if os.geteuid() == 0 else {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **_of_the_session()}
    becomes: dict[str, Any] = {}
    if user is not None and user.uid != os.geteuid():
        becomes = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    try:
        done = subprocess.run(
            argv,
            cwd="/",
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8", **session},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            # What runs as an agents' user must get nothing of root's terminal: the user may trace it, and type there.
            start_new_session=True,
            **becomes,
        )
    except FileNotFoundError:
        return Answer(_NOT_FOUND, "", f"{argv[0]} is not installed")
    return Answer(done.returncode, done.stdout, done.stderr.strip())


def _of_the_session() -> dict[str, str]:
    names = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in names if name in os.environ}


@dataclass(frozen=True, slots=True)
class Scene:
    """The machine, and whose supervisor on it is looked at: the system's, or the caller's own."""

    system: bool
    is_root: bool
    ask: Ask = ask
    root: Path = Path("/")
    """Where the machine's files are."""

    def path(self, absolute: str | Path) -> Path:
        return self.root / Path(absolute).relative_to("/")

    def has_systemd(self) -> bool:
        return os.path.isdir(self.path("/run/systemd/system"))  # sd_booted(3)

    def may_act_as(self, user: User) -> bool:
        return self.is_root or user.uid == os.geteuid()

    def systemctl(self, words: str) -> str:
        """Write a command of systemctl's for people."""
        return f"systemctl {words}" if self.system else f"systemctl --user {words}"

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Ask for properties of a unit; of the manager itself, if the unit is empty. Raises OSError."""
        whose = () if self.system else ("--user",)
        which = ("--", unit) if unit else ()
        answer = self.ask(["systemctl", *whose, "--no-pager", "show", f"--property={','.join(names)}", *which])
        if answer.code:
            raise OSError(answer.err or f"systemctl show: exit code {answer.code}")
        return dict(line.split("=", 1) for line in answer.out.splitlines() if "=" in line)


def skipped_without_systemd(check: str) -> Iterator[Finding]:
    yield Finding(check, "skipped", "there are no units, as systemd has not booted this machine")
