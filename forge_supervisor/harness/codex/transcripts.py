"""What was used, as codex has it in its logs: a line for each answer, and its model in one of the turn's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge_supervisor.harness.codex import rollouts
from forge_supervisor.harness.transcripts import MessageUsage

if TYPE_CHECKING:
    from pathlib import Path

_KIND = b'"type":"token_usage_record"'
_UNKNOWN = "unknown"


def usage_in(line: bytes, rollout: Path) -> MessageUsage | None:
    if _KIND not in line[:200]:
        return None
    entry = rollouts.entry_of(line)
    record = entry.get("payload")
    usage = record.get("usage") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(usage, dict):
        return None
    read, written = _count(usage, "cached_input_tokens"), _count(usage, "cache_write_input_tokens")
    time = rollouts.time_of(entry)
    return MessageUsage(
        message=str(record.get("response_id") or ""),
        session=str(record.get("session_id") or ""),
        # Not by the turn: a new model's first turn may begin with the old one's summing up.
        model=_model(rollout, time),
        time_usec=round(time * 1_000_000) if time else None,
        input=max(0, _count(usage, "input_tokens") - read - written),
        output=_count(usage, "output_tokens"),
        cache_read=read,
        cache_write_5m=written,
        cache_write_1h=0,
    )


def _model(rollout: Path, time: float) -> str:
    try:
        return rollouts.read(rollout).model_at(time) or _UNKNOWN
    except OSError:
        return _UNKNOWN


def _count(usage: dict[str, object], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
