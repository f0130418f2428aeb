"""What agents have used, as io.forge.Supervisor tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge_supervisor.control.interface import UsageRow
from forge_supervisor.spend.prices import UNKNOWN, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forge_supervisor.spend.collector import Collector
    from forge_supervisor.spend.prices import Prices
    from forge_supervisor.spend.store import By, Sum


async def summed_up(collector: Collector, by: By, since_usec: int, run_as: str | None) -> list[UsageRow]:
    """Raises StoreError."""
    prices = collector.prices
    return rows(by, await collector.sums(by, prices, since_usec, run_as), prices)


def rows(by: By, sums: Iterable[Sum], prices: Prices) -> list[UsageRow]:
    """Make a row of all that has one key: days in their order, the rest as it was first seen."""
    keyed: dict[tuple[str | None, ...], list[Sum]] = {}
    for one in sums:
        key = (one.day, one.model if by == "model" else None, one.agent, one.run_as, one.session)
        keyed.setdefault(key, []).append(one)
    return [_row(by, found, prices) for found in keyed.values()]


def _row(by: By, sums: list[Sum], prices: Prices) -> UsageRow:
    first = sums[0]
    tokens = sum((one.tokens for one in sums), Tokens())
    costs = [cost for one in sums if (cost := prices.cost(one.tier, one.tokens)) is not None]
    unpriced = sorted({one.model for one in sums if one.tier == UNKNOWN})
    return UsageRow(
        day=first.day,
        model=first.model if by == "model" else None,
        agent=first.agent,
        run_as=first.run_as,
        session=first.session,
        messages=sum(one.messages for one in sums),
        input=tokens.input,
        output=tokens.output,
        cache_read=tokens.cache_read,
        cache_write_5m=tokens.cache_write_5m,
        cache_write_1h=tokens.cache_write_1h,
        cost_usd=round(sum(costs), 6) if costs else None,
        unpriced_models=unpriced,
    )
