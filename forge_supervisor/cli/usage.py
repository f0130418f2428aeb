"""What agents have used, for people: a table with sums; and the times that can be asked for."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from forge_supervisor.cli import client

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

Row = dict[str, Any]
"""As io.forge.Supervisor has it (`control.interface.UsageRow`)."""

_COUNTS = {
    "INPUT": "input",
    "OUTPUT": "output",
    "CACHE READ": "cache_read",
    "CACHE WRITE 5M": "cache_write_5m",
    "CACHE WRITE 1H": "cache_write_1h",
}
_AGO = re.compile(r"(\d{1,6})\s*(s|sec|second|min|minute|h|hour|d|day|w|week)s?(?:\s+ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_UNKNOWN = "?"


def show(options: argparse.Namespace) -> int:
    asked = {"by": options.by}
    if options.since is not None:
        asked["since_usec"] = round(moment(options.since, datetime.now().astimezone()).timestamp() * 1e6)
    rows = client.call("Usage", asked)["rows"]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(table(rows, options.by)))
    return 0


def moment(written: str, now: datetime) -> datetime:
    """Tell when that is, in the time zone of `now`. Raises ForgectlError."""
    text = written.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if text in {"today", "yesterday"}:
        return (midnight - timedelta(days=text == "yesterday")).astimezone()
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2][0]])
        found = datetime.fromisoformat(written.strip())
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError):
        raise client.ForgectlError(
            f'"{written}" is no time (today, yesterday, "7 days ago", 2026-11-25, "2026-11-25 08:00")'
        ) from None


def table(rows: Sequence[Row], by: str) -> list[str]:
    """Make a line for each row, below a line of headings, and their sums. A count that nobody has is left out."""
    if not rows:
        return ["nothing was used"]
    counts = {head: key for head, key in _COUNTS.items() if any(row[key] for row in rows)}
    everything = [*rows, _sum(rows)] if len(rows) > 1 else rows
    names = [*_names(rows, by), "TOTAL"][: len(everything)]
    cells = [
        [name, *(f"{row[key]:,}" for key in counts.values()), cost(row)]
        for name, row in zip(names, everything, strict=True)
    ]
    lines = [[by.upper(), *counts, "USD"], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [*(_line(line, widths) for line in lines), *_note(rows)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([f"{cells[0]:{widths[0]}}", *numbers])


def cost(row: Row) -> str:
    """``1.23``, ``1.23+?`` if some of it has no price that is known, ``?`` if none of it has."""
    if row["cost_usd"] is None:
        return _UNKNOWN if row["unpriced_models"] else "0.00"
    written = f"{row['cost_usd']:,.2f}" if row["cost_usd"] >= 1 else f"{row['cost_usd']:.4f}"
    return f"{written}+{_UNKNOWN}" if row["unpriced_models"] else written


def _names(rows: Sequence[Row], by: str) -> list[str]:
    if by == "session":
        return [f"{row['session']} ({row['agent']})" for row in rows]
    names = [str(row[by]) for row in rows]
    if by == "agent" and len({*names}) < len(names):
        return [f"{row['agent']} ({row['run_as']})" for row in rows]
    return names


def _sum(rows: Sequence[Row]) -> Row:
    known = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
    return {
        **{key: sum(row[key] for row in rows) for key in _COUNTS.values()},
        "cost_usd": sum(known) if known else None,
        "unpriced_models": sorted({model for row in rows for model in row["unpriced_models"]}),
    }


def _note(rows: Sequence[Row]) -> list[str]:
    unpriced = _sum(rows)["unpriced_models"]
    if not unpriced:
        return []
    return ["", f"{_UNKNOWN}: no price is known of {', '.join(unpriced)} (add it to prices.toml, beside config.toml)"]
