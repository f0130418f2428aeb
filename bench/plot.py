"""A bar chart of the figures, as SVG, by the standard library alone."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, LEFT, BAR, GAP, PANEL_GAP = 760, 130, 15, 5, 46
COLOURS = {1: "#9ecae1", 50: "#4292c6", 200: "#084594"}
PANELS = (
    ("restart", 1000, "killed → runs again, median, ms"),
    ("start", 1000, "start of all, from nothing, ms"),
    ("pss", 1 / 2**20, "memory (PSS), with what stands beside it, MiB"),
)


def svg(figures: Mapping[tuple[str, int], Mapping[str, Sequence[float]]], peers: Sequence[str]) -> str:
    numbers = sorted({n for _, n in figures if n})
    parts: list[str] = []
    y = 30
    for key, factor, title in PANELS:
        bars = {
            (peer, n): (statistics.median(of[key]) + statistics.median(of.get(f"beside_{key}", [0]))) * factor
            for peer in peers
            for n in numbers
            if (of := figures.get((peer, n), {})).get(key)
        }
        if bars:
            y = _panel(parts, y, f"{title} (each line is ten times the one before)", bars, peers, numbers)
    legend = "".join(
        f'<rect x="{LEFT + 110 * i}" y="{y}" width="12" height="12" fill="{COLOURS.get(n, "#888")}"/>'
        f'<text x="{LEFT + 110 * i + 17}" y="{y + 11}">{n} program{"" if n == 1 else "s"}</text>'
        for i, n in enumerate(numbers)
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 24}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{y + 24}" fill="#fff"/>'
    )
    return head + "\n" + "\n".join(parts) + "\n" + legend + "\n</svg>\n"


def _panel(
    parts: list[str],
    y: int,
    title: str,
    bars: Mapping[tuple[str, int], float],
    peers: Sequence[str],
    numbers: Sequence[int],
) -> int:
    """Draw one figure of all, on a logarithmic scale, from `y` on; return where the next begins."""
    low = 10 ** math.floor(math.log10(min(bars.values())))
    high = max(10 * low, 10 ** math.ceil(math.log10(max(bars.values()))))
    scale = (WIDTH - LEFT - 70) / math.log10(high / low)
    top = y
    parts.append(f'<text x="{LEFT}" y="{y - 8}" font-weight="bold">{title}</text>')
    for peer in peers:
        parts.append(f'<text x="{LEFT - 8}" y="{y + 12 + len(numbers) * BAR // 2 - 7}" text-anchor="end">{peer}</text>')
        for n in numbers:
            if (value := bars.get((peer, n))) is not None:
                width = max(2.0, math.log10(value / low) * scale)
                parts.append(
                    f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS.get(n, "#888")}"/>'
                    f'<text x="{LEFT + width + 5:.1f}" y="{y + 11}" font-size="10" fill="#444">{_number(value)}</text>'
                )
            y += BAR
        y += GAP
    for decade in range(round(math.log10(high / low)) + 1):
        x = LEFT + decade * scale
        parts.insert(0, f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 3}" y2="{y - GAP}" stroke="#ddd"/>')
    return y + PANEL_GAP


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
