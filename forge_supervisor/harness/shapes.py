"""What the seam asks for, and what a stranger's harness has returned instead: pure, and in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from forge_supervisor.activity import LATEST, Activity, Doing, Gauges, Reported, Seen, Window
from forge_supervisor.config import AgentTable, Problem
from forge_supervisor.harness import File, JsonSeed, LaunchPlan, Link
from forge_supervisor.harness.bounded import NonsenseError
from forge_supervisor.secrets import SecretRef

if TYPE_CHECKING:
    from forge_supervisor.harness import Paths

T = TypeVar("T")

MOST = 10_000
"""Things that one answer may have."""
MOST_TEXT = 1_000_000
"""Characters that all problems of one answer may have together, and so all words and variables of a plan."""
MOST_VERSION = 300
_SEEN = (Doing.STARTING, Doing.WORKING, Doing.IDLE, Doing.WAITING)


def each(value: object, kind: type[T], most: int = MOST) -> list[T]:
    """List what should be an iterable of `kind`. Whatever iterating raises is not caught."""
    if not isinstance(value, Iterable):
        raise NonsenseError(f"{_shown(value)} instead of several {kind.__name__}")
    found: list[T] = []
    for item in islice(value, most + 1):
        if not isinstance(item, kind):
            raise NonsenseError(f"{_shown(item)} among its {kind.__name__}s")
        found.append(item)
    if len(found) > most:
        raise NonsenseError(f"more than {most} {kind.__name__}s")
    return found


def one(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise NonsenseError(f"{_shown(value)} instead of a {kind.__name__}")
    return value


def maybe(value: object, kind: type[T]) -> T | None:
    return None if value is None else one(value, kind)


def text(value: object, what: str) -> str:
    """Return what can be written to a file and, as a word, be given to a program."""
    if not isinstance(value, str):
        raise NonsenseError(f"{_shown(value)} as {what}")
    if "\0" in value or value.encode(errors="replace").decode() != value:
        raise NonsenseError(f"{what} with a character that no program can be given")
    return value


def problems(value: object) -> list[Problem]:
    found = each(value, Problem)
    for problem in found:
        text(problem.key, "the key of a Problem")
        text(problem.text, "the text of a Problem")
    _check_length((word for problem in found for word in (problem.key, problem.text)), "problems")
    return found


def secrets(value: object) -> list[SecretRef]:
    found = each(value, SecretRef)
    for ref in found:
        text(ref.key, "the key of a SecretRef")
        _variable(ref.variable)
        if not text(ref.file, "the file of a SecretRef"):
            raise NonsenseError("a SecretRef without a file")
    return found


def attributes(program: object) -> tuple[frozenset[str], frozenset[str], frozenset[int]]:
    """Give honours, requires and stop_exit_status. What is told follows 'it'."""
    honours = _attribute(program, "honours", str)
    requires = _attribute(program, "requires", str)
    if unknown := sorted(requires - AgentTable.model_fields.keys()):
        raise NonsenseError(f"requires {unknown[0]}, which is no key of an agent")
    return honours, requires, _attribute(program, "stop_exit_status", int)


def _attribute(program: object, name: str, kind: type[T]) -> frozenset[T]:
    value = getattr(program, name, None)
    if not isinstance(value, set | frozenset) or not all(isinstance(item, kind) for item in value):
        raise NonsenseError(f"has {_shown(value)} for {name} instead of a frozenset of {kind.__name__}")
    return frozenset(value)


def plan(value: object, of: Paths) -> LaunchPlan:
    """Return the plan in a shape that can be relied on."""
    found = one(value, LaunchPlan)
    argv = [text(word, "a word of argv") for word in each(one(found.argv, tuple), str)]
    if not argv or not argv[0].startswith("/"):
        raise NonsenseError("an argv that does not begin with an absolute path")
    if not one(found.cwd, Path).is_absolute():
        raise NonsenseError(f"the cwd {found.cwd}, which is no absolute path")
    env = {_variable(name): text(value, f"the value of {name}") for name, value in _mapping(found.env).items()}
    _check_length((*argv, *env, *env.values()), "argv and env")
    # Each once: what is iterated over may be gone then.
    found = replace(
        found,
        argv=tuple(argv),
        env=env,
        folders=tuple(each(found.folders, Path)),
        closed=tuple(each(found.closed, Path)),
        files=tuple(each(found.files, File)),
        links=tuple(each(found.links, Link)),
        seeds=tuple(each(found.seeds, JsonSeed)),
    )
    _check_written(found, of)
    one(found.resumes, bool)
    return found


def _check_length(words: Iterable[str], what: str, most: int = MOST_TEXT) -> None:
    if sum(map(len, words)) > most:
        raise NonsenseError(f"{what} of more than {most} characters")


def _check_written(found: LaunchPlan, of: Paths) -> None:
    own = (of.state, of.launch, of.discord)
    for folder in found.folders:
        _inside(folder, own, or_itself=True)
    for folder in found.closed:
        _inside(folder, own)
    for file in found.files:
        _inside(file.path, own)
        text(file.text, f"the text of {file.path}")
    for link in found.links:
        _inside(link.path, (of.state,))
        text(str(one(link.target, Path)), f"the target of {link.path}")
    for seed in found.seeds:
        for place in (seed.path, seed.lock):
            if not one(place, Path).is_absolute() or ".." in place.parts:
                raise NonsenseError(f"a JsonSeed in {place}, which is no absolute path")
        each(one(seed.removed, frozenset), str)
        try:
            json.dumps(_mapping(seed.values), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise NonsenseError(f"values for {seed.path} that are no JSON") from None
    for origin in (thing.origin for things in (found.files, found.links, found.seeds) for thing in things):
        each(one(origin, tuple), str)


def _inside(path: object, directories: tuple[Path, ...], *, or_itself: bool = False) -> None:
    there = one(path, Path)
    text(str(there), "a path")
    above = (there, *there.parents) if or_itself else there.parents
    if ".." in there.parts or not any(directory in above for directory in directories):
        raise NonsenseError(f"{there}, which is in none of the agent's directories,")


def _mapping(value: object) -> dict[object, object]:
    if not isinstance(value, Mapping):
        raise NonsenseError(f"{_shown(value)} instead of a mapping")
    return dict(value)


def _variable(value: object) -> str:
    name = text(value, "the name of a variable")
    if not name or "=" in name:
        raise NonsenseError("a variable whose name is empty or has a '='")
    return name


def version(value: object) -> str:
    found = text(value, "a version")
    _check_length((found,), "a version", MOST_VERSION)
    return found


def paths(value: object, most: int) -> list[Path]:
    found = each(value, Path, most)
    for path in found:
        if not path.is_absolute():
            raise NonsenseError(f"{path}, which is no absolute path,")
        text(str(path), "a path")
    return found


def seen(value: object) -> Seen | None:
    found = maybe(value, Seen)
    if found is not None:
        if found.doing not in _SEEN:
            raise NonsenseError(f"a Seen that does {found.doing!r}")
        for said in (found.detail, found.login, found.login_fix):
            text(said, "a text of Seen")
        _check_trouble(found.failed)
        _check_gauges(found.gauges)
    return found


def reported(value: object) -> Reported:
    found = one(value, Reported)
    if found.turn not in {None, "began", "ended", "failed"}:
        raise NonsenseError(f"the turn {found.turn!r}")
    text(found.words, "the words of a turn")
    _check_trouble(found.trouble)
    _check_gauges(found.gauges)
    return found


def _check_trouble(value: object) -> None:
    trouble = maybe(value, Activity)
    if trouble is not None:
        one(trouble.doing, Doing)
        text(trouble.detail, "the detail of an Activity")
        text(trouble.fix, "the fix of an Activity")
        _number(trouble.until)


def _check_gauges(value: object) -> None:
    gauges = maybe(value, Gauges)
    if gauges is not None:
        _number(gauges.context_percent)
        for window in each(gauges.windows, Window):
            text(window.name, "the name of a Window")
            _number(one(window.used_percent, float | int))  # type: ignore[arg-type]
            _number(window.resets_at)


def _number(value: object) -> None:
    if value is not None and (not isinstance(value, float | int) or not 0 <= value <= LATEST):
        raise NonsenseError(f"{_shown(value)} instead of a number")


def _shown(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
