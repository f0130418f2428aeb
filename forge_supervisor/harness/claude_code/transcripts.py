"""Claude's transcripts: JSON lines below ``projects``, a directory for each working directory.

A message has a line for each of its blocks, all with its id and each with its usage as far as it was known then. What
sub-agents use stands in files of their own. A session that was forked, or moved to another directory, has lines that
stand in its parent's file too.
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.harness.claude_code.login import config_home
from forge_supervisor.harness.transcripts import MessageUsage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.config import Agent
    from forge_supervisor.harness import Paths

LONGEST_NAME = 200
"""Of a directory of transcripts; of a longer path claude takes that much, and a checksum."""
_BEGINNING = b'{"parentUuid":'
_SYNTHETIC = "<synthetic>"
"""The model of what claude itself says in an answer's place."""


def files(agent: Agent, paths: Paths) -> Iterator[Path]:
    projects = config_home(agent.env, paths) / "projects"
    for name in _names(projects, name_of(paths)):
        for directory, _, inner in os.walk(projects / name):
            yield from (Path(directory, file) for file in inner if file.endswith(".jsonl"))


def name_of(paths: Paths) -> str:
    """Name the directory of the agent's transcripts, as it would be were it not too long."""
    return re.sub("[^a-zA-Z0-9]", "-", os.path.realpath(paths.state))


def _names(projects: Path, name: str) -> Iterator[str]:
    # Where a session goes on once it has moved to a working tree of its own.
    beginnings = [f"{name}--claude-worktrees-"]
    if len(name) > LONGEST_NAME:
        beginnings = [f"{name[:LONGEST_NAME]}-"]
    try:
        there = sorted(entry.name for entry in os.scandir(projects))
    except OSError:
        return
    yield from (found for found in there if found == name or found.startswith(tuple(beginnings)))


def usage_in(line: bytes) -> MessageUsage | None:
    if b'"usage"' not in line:
        return None
    entry = _entry(line)
    if entry.get("type") != "assistant":
        return None
    message = entry.get("message")
    usage = message.get("usage") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(usage, dict) or message.get("model") == _SYNTHETIC:
        return None
    cached = _count(usage, "cache_creation_input_tokens")
    lasting = min(cached, _count(usage.get("cache_creation"), "ephemeral_1h_input_tokens"))
    return MessageUsage(
        message=str(message.get("id") or entry.get("uuid") or ""),
        session=str(entry.get("sessionId") or ""),
        model=_model(message, usage),
        time_usec=_time(entry.get("timestamp")),
        input=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write_5m=cached - lasting,
        cache_write_1h=lasting,
    )


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        # One who was killed while it wrote has left half a line, and the next has added a whole one to it.
        begin = line.rfind(_BEGINNING)
        return _entry(line[begin:]) if begin > 0 else {}
    return entry if isinstance(entry, dict) else {}


def _model(message: dict[str, Any], usage: dict[str, Any]) -> str:
    # The same model has another price then.
    return f"{message.get('model') or ''}{'/fast' if usage.get('speed') == 'fast' else ''}"


def _count(usage: object, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _time(written: object) -> int | None:
    try:
        return round(datetime.fromisoformat(str(written)).timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None
