"""Records of what was used, as a worker tells them."""

from __future__ import annotations

from typing import Any

from forge_supervisor.worker.messages import Mark, UsageRecord

MARK = Mark(file="1:2", offset=100, before="0" * 16)
DAY = 86_400_000_000
A_YEAR_AGO = 1_795_608_000_000_000 - 365 * DAY
"""25 November 2025, 12:00 UTC."""


def record(message: str = "msg_1", **more: Any) -> UsageRecord:
    counts = {"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5}
    told = {"message": message, "session": "s1", "model": "claude-opus-5-5", "time_usec": A_YEAR_AGO, **counts}
    return UsageRecord.model_validate({**told, **more})
