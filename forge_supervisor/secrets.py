"""Secrets: which variable is in which file, who may read that, and what it says.

A file of which every part of the path is root's is read by root, in the supervisor. Any other is read in the worker, by
the agent's own user: whoever can choose a path's parts could otherwise have root read what they like.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.config_files import Problem
from forge_supervisor.trust import others_way

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from forge_supervisor.config import Agent

MOST_BYTES = 65_536
"""Of one file: the kernel takes no variable of more than 128 KiB (execve(2))."""
SHORTEST = 4
"""Characters of the shortest value that is masked in logs: a shorter one stands in too many words."""
MASK = "[secret]"

_SHORTEST_LINE = 8
_MOST_LINES = 100
_LONGEST_WRAPPED = 512
_LONGEST_END = 4096
_MOST_BEGINNINGS = 16

_CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
_OF_THE_UNIT = Path("/run/credentials/forge-supervisor.service")
# What the supervisor's unit does not show it (ProtectHome=, PrivateTmp=). Out of it, root must not see more than that.
_NOT_IN_THE_UNIT = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there


class SecretError(Exception):
    """A secret cannot be had; the text is a sentence that names the file and the way out."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A variable of an agent, and where its value is. `key` is the key path that says so."""

    key: str
    variable: str
    file: str


@dataclass(frozen=True, slots=True)
class Secret:
    value: str = field(repr=False)
    warning: str | None = None


def of_agent(agent: Agent, of_its_grants: Iterable[SecretRef]) -> dict[str, SecretRef]:
    """Gather the agent's secrets, by variable: its own, and those that what it was granted needs."""
    return {ref.variable: ref for ref in _all(agent, of_its_grants)}


def conflicts(agent: Agent, of_its_grants: Iterable[SecretRef]) -> Iterator[Problem]:
    """Find variables that two places want to set: all that runs in an agent shares one environment."""
    seen: dict[str, SecretRef] = {}
    for ref in _all(agent, of_its_grants):
        if ref.variable in agent.env:
            yield Problem(f"env.{ref.variable}", f"is set by {ref.key} too (remove one of the two)")
        other = seen.setdefault(ref.variable, ref)
        if other.file != ref.file:
            text = f"{other.key} wants another file for it, and an agent has one environment (rename one of the two)"
            yield Problem(ref.key, text)


def _all(agent: Agent, of_its_grants: Iterable[SecretRef]) -> Iterator[SecretRef]:
    yield from of_its_grants
    yield from (SecretRef(f"secrets.{variable}", variable, file) for variable, file in agent.secrets.items())


def read_as_root(file: str) -> Secret | None:
    """Read what is the supervisor's to read: credentials of its unit, and as root what is root's; None for the rest.

    Raises SecretError.
    """
    if file.startswith(_CREDENTIALS):
        return read(_credentials() / file.removeprefix(_CREDENTIALS))
    if os.geteuid() != 0 or not file.startswith("/") or _is_hidden(file):
        return None
    path = Path(file)
    try:
        if others_way(path, whose_file=True) is not None or _is_hidden(os.path.realpath(path)):
            return None
    except FileNotFoundError:
        raise SecretError(f"{path}: there is no such file (write the secret into it, mode 600)") from None
    except OSError:
        # A path of somebody else's that leads nowhere.
        return None
    return read(path)


def _is_hidden(file: str) -> bool:
    return any(Path(file).is_relative_to(directory) for directory in _NOT_IN_THE_UNIT)


def _credentials() -> Path:
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    # A command in root's shell finds those of the running service; not what a caller's environment says.
    there = Path(given) if given and (os.geteuid() != 0 or _is_roots(Path(given))) else _OF_THE_UNIT
    if os.path.isdir(there):
        return there
    raise SecretError(
        "the supervisor has been given no credentials (systemctl edit forge-supervisor: "
        "[Service] LoadCredential=NAME:/path; only the running service has them)"
    )


def _is_roots(directory: Path) -> bool:
    try:
        return others_way(directory, whose_file=True) is None
    except OSError:
        return False


def read(path: Path) -> Secret:
    """Read one secret: the text of a regular file, without the line ends after it. Raises SecretError."""
    try:
        # Not blocking: a FIFO would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretError(f"{path} is no regular file (name the file that holds the secret)")
            content = stream.read(MOST_BYTES + 1) or b""
    except FileNotFoundError:
        raise SecretError(f"{path}: there is no such file (write the secret into it, mode 600)") from None
    except OSError as error:
        reason = error.strerror
        raise SecretError(
            f"{path} cannot be read: {reason} (namei -l {path}; root's own must be all root's, as in /etc)"
        ) from None
    return Secret(_value(path, content), _warning(path, content, status))


def _value(path: Path, content: bytes) -> str:
    if len(content) > MOST_BYTES:
        raise SecretError(f"{path} is larger than {MOST_BYTES} bytes (is it the right file?)")
    try:
        value = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"{path} is no UTF-8 text (is it the right file?)") from None
    if not value.strip():
        raise SecretError(f"{path} is empty (write the secret into it)")
    if "\0" in value:
        raise SecretError(f"{path} holds a NUL character, which no variable can (is it the right file?)")
    return value


def _warning(path: Path, content: bytes, status: os.stat_result) -> str | None:
    if status.st_mode & stat.S_IROTH:
        return f"every user of this machine may read {path} (chmod o-r {path})"
    if len(content.strip()) < SHORTEST:
        return f"{path} holds less than {SHORTEST} characters, too few to be masked in logs"
    return None


def parts(values: Iterable[str]) -> list[str]:
    """List what is to be masked of these values, the longest first: them, and the long lines of each."""
    found: set[str] = set()
    for value in values:
        found.add(value)
        lines = value.splitlines()[:_MOST_LINES]
        found.update(line.strip() for line in lines if len(line.strip()) >= _SHORTEST_LINE)
    return sorted((part for part in found if len(part) >= SHORTEST), key=len, reverse=True)


def masked(text: str, secret: Iterable[str]) -> str:
    """Put a mask in the place of each of `parts`, also where a program has broken it into lines.

    And in the place of what is left of one where the text, which may be the end of a longer one, or one of its lines,
    which may be the beginning of a longer one, was cut.
    """
    known = [(part, "".join(part.split())) for part in secret]
    squeezed = "".join(text.split()) if "\n" in text else ""
    for part, bare in known:
        text = text.replace(part, MASK)
        if _SHORTEST_LINE <= len(bare) <= _LONGEST_WRAPPED and bare in squeezed:
            text = _broken(part).sub(MASK, text)
    return _without_ends(text, known) if len(text) >= _SHORTEST_LINE else text


def _without_ends(text: str, known: Sequence[tuple[str, str]]) -> str:
    squeezed = "".join(text[: 2 * _LONGEST_END].split())
    if left := max((_overlap(bare, squeezed) for _, bare in known), default=0):
        shown = [n for n, char in enumerate(text) if not char.isspace()]
        text = MASK + text[shown[left - 1] + 1 :]
    lines = text.split("\n")
    for n, line in enumerate(lines):
        if left := max((_overlap(line, part) for part, _ in known), default=0):
            lines[n] = line[:-left] + MASK
    return "\n".join(lines)


def _overlap(first: str, second: str) -> int:
    """Tell how many characters of the end of the one are the beginning of the other: 0, or _SHORTEST_LINE or more."""
    first, second = first[-_LONGEST_END:], second[:_LONGEST_END]
    head, at = second[:_SHORTEST_LINE], -1
    # Not for ever: a user can choose both, and there are many lines and many parts.
    for _ in range(_MOST_BEGINNINGS if len(head) == _SHORTEST_LINE else 0):
        at = first.find(head, at + 1)
        if at < 0:
            return 0
        if second.startswith(first[at:]):
            return len(first) - at
    return 0


def _broken(part: str) -> re.Pattern[str]:
    # After every gap comes a character that is none, so that there is but one way to match: a user can choose both the
    # value and the text.
    words = (r"(?:[ \t]*\n[ \t]*)?".join(map(re.escape, word)) for word in part.split())
    return re.compile(r"\s+".join(words))
