"""The files that make up the configuration: which they are, whether they may be trusted, what they say together.

Nothing here knows a key but ``agents``; what the keys mean is config.py's business.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_supervisor.trust import others_way, user_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

Table = dict[str, Any]
Keys = tuple[str | int, ...]
"""A key path; a number is a place in a list."""

DROP_INS = "conf.d"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, and the way out.

    `key` is a dotted key path (empty: the file as a whole). What is not `fatal` is a warning.
    """

    key: str
    text: str
    fatal: bool = True
    file: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.text) if part)


class ConfigError(Exception):
    """The configuration cannot be used. str() is one line for each of its `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Merged:
    """What all files say together, and which file said what."""

    table: Table
    origins: Mapping[Keys, str]
    problems: tuple[Problem, ...]

    def origin(self, keys: Keys) -> str:
        """Name the file that set the key; if none did, the file of the table that it would stand in."""
        return _origin(self.origins, keys)


# Tables whose keys are not an agent's. An agent's own lists of what it has been granted have no keys below them.
_NOT_AN_AGENTS = ("harnesses.", "skills.", "plugins.", "mcp_servers.", "discord.")


def key_path(agent: str, key: str) -> str:
    """Complete a problem's key, which is one of the agent's, none, or already a path from the top of the file."""
    return key if not key or key.startswith(_NOT_AN_AGENTS) else f"agents.{agent}.{key}"


def dotted(keys: Keys) -> str:
    """Write a key path as it would stand in a file (toml.io, 'Keys')."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            path += "." * bool(path) + (key if re.fullmatch("[A-Za-z0-9_-]+", key) else _quoted(key))
    return path


def _quoted(key: str) -> str:
    return '"' + "".join(char if char.isprintable() else f"\\u{ord(char):04X}" for char in key) + '"'


def read(path: Path, *, uid: int) -> tuple[dict[str, Table], list[Problem]]:
    """Read the file, then its drop-ins (``conf.d/*.toml`` beside it, sorted by name).

    Returns what could be read, by file name, and why the rest could not.
    """
    documents: dict[str, Table] = {}
    drop_ins, problems = _drop_ins(path.parent / DROP_INS, uid)
    for file in (path, *drop_ins):
        try:
            documents[str(file)] = document(file, uid=uid)
        except ConfigError as error:
            problems += error.problems
    return documents, problems


def merge(documents: Mapping[str, Table]) -> Merged:
    """Merge the tables key by key. A key that two files set is a problem, and so is an agent in two files.

    The order of the files decides nothing: an operator who has said two things did not mean either by its file's name.
    """
    merged: Table = {}
    origins: dict[Keys, str] = {}
    problems = []

    def add(into: Table, more: Table, at: Keys, file: str) -> None:
        for key, value in more.items():
            here = (*at, key)
            is_agent = at == ("agents",)
            if key not in into:
                into[key] = value
                origins[here] = file
            elif isinstance(into[key], dict) and isinstance(value, dict) and len(here) <= 2 and not is_agent:
                into[key] = dict(into[key])
                add(into[key], value, here, file)
            else:
                other = _origin(origins, here)
                what = "an agent of this name is declared" if is_agent else "this key is set"
                problems.append(Problem(dotted(here), f"{what} in {other} too (remove one of the two)", file=file))

    for file, document in documents.items():
        origins.setdefault((), file)
        add(merged, document, (), file)
    return Merged(merged, origins, tuple(problems))


def _origin(origins: Mapping[Keys, str], keys: Keys) -> str:
    places = (keys[:length] for length in range(len(keys), -1, -1))
    return next((origins[place] for place in places if place in origins), "")


def _drop_ins(directory: Path, uid: int) -> tuple[list[Path], list[Problem]]:
    try:
        names = sorted(entry.name for entry in os.scandir(directory))
        problems = _untrusted_way(directory) if uid == 0 else []
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [_unreadable(directory, error)]
    # An editor's lock or back-up file (.#x.toml) is no drop-in.
    return [directory / name for name in names if name.endswith(".toml") and not name.startswith(".")], problems


def document(file: Path, *, uid: int) -> Table:
    """Read one file, as far as it is to be trusted. Raises ConfigError."""
    try:
        content = _content(file, uid)
    except FileNotFoundError:
        text = "there is no such file (start from config.example.toml, or name another with --config)"
        raise ConfigError([Problem("", text, file=str(file))]) from None
    except OSError as error:
        raise ConfigError([_unreadable(file, error)]) from None
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = Problem("", "not UTF-8, as TOML has to be (save it with that encoding)", file=f"{file}:{line}")
    except (ValueError, RecursionError) as error:  # tomllib lets both through: a number of 5000 digits, 1000 brackets
        problem = _broken(file, error)
    raise ConfigError([problem])


def _content(file: Path, uid: int) -> bytes:
    """Read the file through one descriptor, so that what was judged is what is read."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)  # a fifo would block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ConfigError([Problem("", f"is {what} (name the TOML file itself)", file=str(file))])
        problems = [*_untrusted_file(file, status, uid), *(_untrusted_way(file) if uid == 0 else [])]
        if problems:
            raise ConfigError(problems)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


def _untrusted_file(file: Path, status: os.stat_result, uid: int) -> Iterator[Problem]:
    if status.st_uid not in {0, uid}:
        owner, wanted = user_name(status.st_uid), user_name(uid)
        yield Problem("", f"belongs to {owner}, who could change it (chown {wanted} {file})", file=str(file))
    if status.st_mode & stat.S_IWOTH:
        yield Problem("", f"everybody may write it (chmod o-w {file})", file=str(file))
    # With a umask of 002 a user's own files are writable to the user's own group, and that is that user alone.
    if status.st_mode & stat.S_IWGRP and (uid == 0 or status.st_gid != _primary_group(uid)):
        yield Problem("", f"its group may write it (chmod g-w {file})", file=str(file))


def _untrusted_way(path: Path) -> list[Problem]:
    other = others_way(path)
    return [Problem("", other.text, file=str(other.step))] if other else []


def _broken(file: Path, error: Exception) -> Problem:
    text, _, where = str(error).partition(" (at ")
    position = re.match(r"line (\d+), column (\d+)", where)
    name = ":".join((str(file), *position.groups())) if position else str(file)
    place = f" ({where}" if where and not position else ""
    text = "tables are nested too deeply" if isinstance(error, RecursionError) else text
    return Problem("", f"not valid TOML: {text}{place}", file=name)


def _unreadable(file: Path, error: OSError) -> Problem:
    return Problem("", f"cannot be read: {error.strerror} (see: namei -l {file})", file=str(file))


def _primary_group(uid: int) -> int | None:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return None
