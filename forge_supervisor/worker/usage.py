"""Reads what was used from an agent's transcripts: only what is new, only whole lines, and not too much at once.

The same may be read twice, and is by design whenever it is not certain that it was read before: whoever counts goes by
the messages' ids.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydantic import ValidationError

from forge_supervisor import harness
from forge_supervisor.config import Agent
from forge_supervisor.harness.guarded import at_length
from forge_supervisor.worker.messages import MOST_TRANSCRIPTS, MOST_USAGE, Mark, UsageRead, UsageRecord
from forge_supervisor.worker.preparation import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from forge_supervisor.harness.transcripts import KeepsTranscripts, MessageUsage
    from forge_supervisor.worker.messages import ReadUsage

MOST_BYTES = 64 * 1024 * 1024
"""Read for one answer, or a line more."""
LONGEST_LINE = 32 * 1024 * 1024
"""What is longer is skipped: no answer of a model is as long, but what a tool returned may be."""
_MOST_LISTED = 100_000
_LONGEST_PATH = 1024
_COMPARED = 4096
"""Bytes before a mark that have to be those that were there: enough for one entry's id and time."""


def read(request: ReadUsage, home: Path) -> UsageRead:
    agent = Agent.model_validate(request.agent)
    program = harness.that_keeps_transcripts(agent.harness)
    if program is None:
        return UsageRead(records=[], marks={}, gone=[], more=False)
    there = program.transcripts(agent, paths_of(agent, home))
    return at_length(program, lambda: Reading(program, request.marks).run(there))


@dataclass
class Reading:
    """One answer's worth."""

    program: KeepsTranscripts
    marks: Mapping[str, Mark]
    records: dict[str, UsageRecord] = field(default_factory=dict)
    left: int = field(default_factory=lambda: MOST_BYTES)

    def run(self, there: Iterable[Path]) -> UsageRead:
        marks: dict[str, Mark] = {}
        for path in _newest({*self.marks, *_named(there)}):
            if self._is_full():
                break
            known = self.marks.get(path)
            try:
                mark = self._read(path, known)
            except OSError:
                continue
            if mark not in {known, None}:
                marks[path] = mark
        gone = [path for path in self.marks if not os.path.lexists(path)][:MOST_TRANSCRIPTS]
        return UsageRead(records=[*self.records.values()], marks=marks, gone=gone, more=self._is_full())

    def _is_full(self) -> bool:
        return self.left <= 0 or len(self.records) >= MOST_USAGE

    def _read(self, path: str, known: Mark | None) -> Mark | None:
        # O_NONBLOCK: open(2) of a FIFO waits for a writer otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            mark = _valid(file, status, known)
            file.seek(mark.offset)
            return self._advance(file, mark, Path(path))

    def _advance(self, file: IO[bytes], mark: Mark, path: Path) -> Mark:
        offset = mark.offset
        while not self._is_full() and (line := file.readline(LONGEST_LINE)):
            is_too_long = len(line) >= LONGEST_LINE and not line.endswith(b"\n")
            if not is_too_long and not self._is_whole(line, path):
                # It is still being written.
                break
            if not is_too_long:
                self._take(line, path)
            offset += len(line)
            self.left -= len(line)
        if offset == mark.offset:
            return mark
        return Mark(file=mark.file, offset=offset, before=_before(file, offset))

    def _is_whole(self, line: bytes, path: Path) -> bool:
        # Of one that counts nothing may be missing but its end, if whoever wrote it was killed.
        return line.endswith(b"\n") or (line.endswith(b"}") and self.program.usage_in(line, path) is not None)

    def _take(self, line: bytes, path: Path) -> None:
        used = self.program.usage_in(line, path)
        record = None if used is None else _record(used)
        if record is not None:
            known = self.records.get(record.message)
            self.records[record.message] = record if known is None else larger(known, record)


def larger(known: UsageRecord, told: UsageRecord) -> UsageRecord:
    """Put together what was told of one message: its tokens were counted while it was written."""
    return known.model_copy(update={name: max(getattr(known, name), getattr(told, name)) for name in COUNTS})


COUNTS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


def _record(used: MessageUsage) -> UsageRecord | None:
    counts = {name: getattr(used, name) for name in COUNTS}
    time_usec = time.time_ns() // 1000 if used.time_usec is None else used.time_usec
    try:
        return UsageRecord(
            message=used.message, session=used.session, model=used.model, time_usec=time_usec, **counts
        )
    except ValidationError:
        return None


def _named(there: Iterable[Path]) -> Iterator[str]:
    for path in islice(there, _MOST_LISTED):
        name = os.fspath(path)
        # What is no UTF-8 cannot be told to anybody.
        if len(name) <= _LONGEST_PATH and name.isprintable():
            yield name


def _newest(paths: Iterable[str]) -> list[str]:
    """Take those that were written last; should an older one be written again, it is among them again."""

    def written(path: str) -> float:
        try:
            return os.stat(path).st_mtime  # noqa: PTH116 - as many as there are
        except OSError:
            return 0.0

    return sorted(paths, key=written, reverse=True)[:MOST_TRANSCRIPTS]


def _valid(file: IO[bytes], status: os.stat_result, known: Mark | None) -> Mark:
    """Return the mark if it still means what it did, or else the beginning of the file."""
    name = f"{status.st_dev}:{status.st_ino}"
    is_as_it_was = known is not None and known.file == name and known.offset <= status.st_size
    if known is not None and is_as_it_was and _before(file, known.offset) == known.before:
        return known
    return Mark(file=name, offset=0, before=_before(file, 0))


def _before(file: IO[bytes], offset: int) -> str:
    begin = max(0, offset - _COMPARED)
    return hashlib.blake2b(os.pread(file.fileno(), offset - begin, begin), digest_size=8).hexdigest()
