"""What each agent has used since its history began, for whoever scrapes: in memory, as a scrape must not wait."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_supervisor.spend.prices import UNKNOWN, Prices, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forge_supervisor.spend.store import Change, Sum, Who


@dataclass(frozen=True, slots=True)
class Total:
    tokens: Tokens
    cost_usd: float
    """Of those whose price is known."""
    unpriced: int
    """Tokens whose price is not."""


class Totals:
    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._of: defaultdict[Who, defaultdict[int, Tokens]] = defaultdict(lambda: defaultdict(Tokens))

    def begin(self, prices: Prices, sums: Sequence[Sum]) -> None:
        """Forget all, and begin with what the store has by agent."""
        self._prices = prices
        self._of.clear()
        for one in sums:
            assert one.agent is not None, "grouped by agent"
            assert one.run_as is not None, "grouped by agent"
            self._of[one.agent, one.run_as][one.tier] += one.tokens

    def add(self, who: Who, changes: Iterable[Change]) -> None:
        for change in changes:
            self._of[who][self._prices.tier(change.model, change.tokens.prompt)] += change.tokens
            if change.was is not None:
                self._of[who][self._prices.tier(change.model, change.was.prompt)] -= change.was

    def of(self, who: Who) -> Total | None:
        """Tell what the agent has used, if anything is known of it."""
        if who not in self._of:
            return None
        tiers = self._of[who]
        costs = (self._prices.cost(tier, tokens) or 0.0 for tier, tokens in tiers.items())
        return Total(sum(tiers.values(), Tokens()), sum(costs), tiers.get(UNKNOWN, Tokens()).total)
