"""A stranger's harness, held to the seam: it answers in time and in shape, or raises BrokenHarnessError."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from forge_supervisor.harness import activity, shapes
from forge_supervisor.harness.bounded import NonsenseError, bounded
from forge_supervisor.harness.transcripts import MessageUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from forge_supervisor.activity import Reported, Seen
    from forge_supervisor.config import Agent, Library, Problem
    from forge_supervisor.harness import LaunchPlan, Paths, Subject
    from forge_supervisor.harness.transcripts import KeepsTranscripts
    from forge_supervisor.policy import Exit
    from forge_supervisor.secrets import SecretRef

T = TypeVar("T")

_NEEDED = ("check", "secrets", "plan", "preflight", "consult", "unresumable", "version")
_OF_ACTIVITY = ("clearing_key", "watched", "observe", "reported", "unsendable")
_OF_TRANSCRIPTS = ("transcripts", "usage_in")
_LONGEST_KEY = 16
MOST_TRANSCRIPTS = 100_000
MOST_WATCHED = 1000


def load(entry: EntryPoint) -> Guarded:
    """Import and make it. Raises BrokenHarnessError."""
    return bounded(entry.name, "load", partial(_load, entry))


def _load(entry: EntryPoint) -> Guarded:
    program = entry.load()()
    if lacking := [name for name in _NEEDED if not callable(getattr(program, name, None))]:
        raise NonsenseError(f"lacks the method {lacking[0]}()")
    tells, keeps = _has(program, _OF_ACTIVITY), _has(program, _OF_TRANSCRIPTS)
    return _KINDS[tells, keeps](entry.name, program)


def _has(program: object, names: tuple[str, ...]) -> bool:
    there = [name for name in names if hasattr(program, name)]
    if there and len(there) < len(names):
        (lacking, *_) = [name for name in names if name not in there]
        raise NonsenseError(f"has {there[0]}, and lacks {lacking}")
    return bool(there)


class Guarded:
    """As `harness.Harness`. One serves all agents of a process, and is called by several threads at once."""

    def __init__(self, name: str, program: Any) -> None:
        self._name = name
        self._program = program
        self.honours, self.requires, self.stop_exit_status = shapes.attributes(program)

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:
        return self._ask("check", lambda: shapes.problems(self._program.check(agent, granted)))

    def secrets(self, granted: Library) -> Iterable[SecretRef]:
        return self._ask("secrets", lambda: shapes.secrets(self._program.secrets(granted)))

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        return self._ask("plan", lambda: shapes.plan(self._program.plan(subject, paths), paths))

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        return self._ask("preflight", lambda: shapes.problems(self._program.preflight(subject, plan, paths)))

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:
        return self._ask("consult", lambda: shapes.problems(self._program.consult(subject, plan)))

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:
        return self._ask("unresumable", lambda: shapes.one(self._program.unresumable(exit_, screen), bool))

    def version(self, plan: LaunchPlan) -> str:
        return self._ask("version", lambda: shapes.version(self._program.version(plan)))

    def _ask(self, method: str, work: Callable[[], T]) -> T:
        return bounded(self._name, method, work)


class _Tells(Guarded):
    """As `harness.activity.TellsActivity`, too."""

    def __init__(self, name: str, program: Any) -> None:
        super().__init__(name, program)
        self.clearing_key = shapes.text(program.clearing_key, "its clearing_key")
        if len(self.clearing_key) > _LONGEST_KEY:
            raise NonsenseError(f"has a clearing_key of more than {_LONGEST_KEY} characters")
        self.reads_while_written = activity.reads_while_written(program)

    def watched(self, subject: Subject, paths: Paths, pid: int) -> Sequence[Path]:
        return self._ask("watched", lambda: shapes.paths(self._program.watched(subject, paths, pid), MOST_WATCHED))

    def observe(self, subject: Subject, paths: Paths, pid: int) -> Seen | None:
        return self._ask("observe", lambda: shapes.seen(self._program.observe(subject, paths, pid)))

    def reported(self, told: Mapping[str, Any]) -> Reported:
        return self._ask("reported", lambda: shapes.reported(self._program.reported(told)))

    def unsendable(self, text: str) -> str | None:
        return self._ask("unsendable", lambda: shapes.maybe(self._program.unsendable(text), str))


class _Keeps(Guarded):
    """As `harness.transcripts.KeepsTranscripts`, too."""

    def transcripts(self, agent: Agent, paths: Paths) -> Iterable[Path]:
        there = self._program.transcripts
        return self._ask("transcripts", lambda: shapes.paths(there(agent, paths), MOST_TRANSCRIPTS))

    def usage_in(self, line: bytes, transcript: Path) -> MessageUsage | None:
        """Not bounded, for there are too many lines: to be called within `at_length`."""
        return shapes.maybe(self._program.usage_in(line, transcript), MessageUsage)

    def at_length(self, work: Callable[[], T]) -> T:
        return self._ask("usage_in", work)


class _TellsAndKeeps(_Tells, _Keeps):
    pass


_KINDS = {
    (False, False): Guarded,
    (True, False): _Tells,
    (False, True): _Keeps,
    (True, True): _TellsAndKeeps,
}


def at_length(program: KeepsTranscripts, work: Callable[[], T]) -> T:
    """Do what calls `usage_in` for many lines. Raises BrokenHarnessError."""
    return program.at_length(work) if isinstance(program, _Keeps) else work()
