"""Codex's logs of its sessions: JSON lines below ``sessions/YYYY/MM/DD`` of its home, a file a session or sub-agent.

Each is there from the first words on, and is added to as long as its session lasts. What was read of one is kept, so
that only what is new is read the next time. The short request by which codex has a title made for a session is in none.
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forge_supervisor.harness.reading import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_KIND = re.compile(rb'"type":"(session_meta|turn_context)"')
_EVENT = re.compile(rb'"type":"event_msg","payload":\{"type":"(task_started|task_complete|turn_aborted|token_count)"')
_BEGINNING = 200
"""Bytes of a line in which it says what it is."""
_LONGEST_LINE = 16 << 20
_MOST_AT_ONCE = 256 << 20
"""Bytes that are read for one look; what is left is read for the next."""
_MOST_KEPT = 64


@dataclass(slots=True)
class Rollout:
    """What a log tells up to `offset`. Times are seconds since 1970, 0.0 for never."""

    inode: int
    offset: int = 0
    is_sub_agents: bool = False
    models: list[tuple[float, str]] = field(default_factory=list)
    """Since when which one answers."""
    begun: float = 0.0
    """When the last turn began."""
    ended: float = 0.0
    """When the last turn that has ended did."""
    error: Any = None
    """What that one has failed of, as codex has it."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """The last token_count: how full the context is, and the limits."""

    @property
    def is_running(self) -> bool:
        return self.begun > self.ended

    def model_at(self, time: float) -> str:
        """Name the model that answered then; empty if that is not told."""
        before = [model for since, model in self.models if since <= time]
        return before[-1] if before else self.models[0][1] if self.models else ""

    def take(self, line: bytes) -> None:
        beginning = line[:_BEGINNING]
        if not (_EVENT.search(beginning) or _KIND.search(beginning)):
            return
        entry = entry_of(line)
        payload = entry.get("payload")
        if isinstance(payload, dict):
            self._take(str(payload.get("type") or entry.get("type")), payload, time_of(entry))

    def _take(self, kind: str, payload: dict[str, Any], time: float) -> None:
        match kind:
            case "task_started":
                self.begun = time
            case "task_complete" | "turn_aborted":
                # Of one that was told in the same moment as it began, too.
                self.ended, self.error = max(time, self.begun), payload.get("error")
            case "token_count":
                self.tokens = payload
            case "turn_context":
                model = str(payload.get("model") or "")
                if not self.models or self.models[-1][1] != model:
                    self.models.append((time, model))
            case "session_meta":
                self.is_sub_agents = isinstance(payload.get("source"), dict)


_kept: OrderedDict[Path, Rollout] = OrderedDict()


def read(path: Path) -> Rollout:
    """Read what has been added. Raises OSError."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        known = _kept.pop(path, None)
        if known is None or known.inode != status.st_ino or known.offset > status.st_size:
            known = Rollout(status.st_ino)
        begun = file.seek(known.offset)
        while line := file.readline(_LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                # It is still being written.
                break
            # Of one that is longer no piece but the first says what it is, and none can be read.
            known.take(line)
            known.offset += len(line)
            if file.tell() - begun > _MOST_AT_ONCE:
                break
    _kept[path] = known
    while len(_kept) > _MOST_KEPT:
        _kept.popitem(last=False)
    return known


def files(home: Path) -> Iterator[Path]:
    return (home / "sessions").glob("*/*/*/rollout-*.jsonl")


def is_there(home: Path, session: str) -> bool:
    return any(path.is_file() for path in (home / "sessions").glob(f"*/*/*/rollout-*-{session}.jsonl"))


def entry_of(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def time_of(entry: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(entry.get("timestamp"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
