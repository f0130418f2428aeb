"""What a harness may tell of the transcripts that its program leaves: where they are, and what was used.

Not all do. One that does has these methods besides those of `Harness`; both run in the worker, as the agent's user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from forge_supervisor.config import Agent
    from forge_supervisor.harness import Paths


@dataclass(frozen=True, slots=True)
class MessageUsage:
    """The tokens of one answer of a model.

    `message` is its id: what is told of one id several times is one message, and the largest counts are true.
    `time_usec` is since 1970, or None where it cannot be told. `input` is without what was read from the cache, or
    written to it.
    """

    message: str
    session: str
    model: str
    time_usec: int | None
    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int


@runtime_checkable
class KeepsTranscripts(Protocol):
    def transcripts(self, agent: Agent, paths: Paths) -> Iterable[Path]:
        """Find the agent's transcripts: files of lines, to which lines are added."""
        ...

    def usage_in(self, line: bytes, transcript: Path) -> MessageUsage | None:
        """Tell what a line says was used, if it says so and can be read.

        What it does not say itself (which model it was) may stand in other lines of its transcript.
        """
        ...
