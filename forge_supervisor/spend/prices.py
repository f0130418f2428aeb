"""What tokens cost: the package's price list, and the operator's own, which goes before it."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import tomllib
from dataclasses import dataclass
from datetime import date  # noqa: TC003 - pydantic looks it up
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forge_supervisor.config_files import ConfigError, Problem, document

PACKAGED = Path(__file__).with_name("prices.toml")
NAME = "prices.toml"
"""Of the operator's own, beside config.toml."""
# What the clouds that sell a model, and its dated versions, have around its name.
_SHORT = re.compile(
    r"^(?:.*[./])?(claude-[a-z0-9-]+?)(?:[-@]20\d{6})?(?:-v\d+(?::\d+)?)?(?:@default)?(?:\[\w+\])?(/fast)?$"
)

Dollars = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False, strict=False)]


class Price(BaseModel):
    """US dollars for a million tokens of these models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...]
    above_prompt_tokens: int = Field(default=0, ge=0)
    input: Dollars
    output: Dollars
    cache_read: Dollars
    cache_write_5m: Dollars
    cache_write_1h: Dollars

    def is_of(self, model: str) -> bool:
        names = {model, short(model)}
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.models)


class PriceList(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    date: date
    source: str
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Tokens:
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(**{name: getattr(self, name) + getattr(other, name) for name in KINDS})

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(**{name: getattr(self, name) - getattr(other, name) for name in KINDS})

    @property
    def prompt(self) -> int:
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h

    @property
    def total(self) -> int:
        return self.prompt + self.output


KINDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
UNKNOWN = -1


class Prices:
    """The lists in the order in which they count. A tier is the place of a price among them all."""

    def __init__(self, *lists: PriceList) -> None:
        self._prices = tuple(price for each in lists for price in each.prices)
        # There are few models, and many messages.
        self._of = functools.lru_cache(maxsize=1000)(self._matching)

    @property
    def thresholds(self) -> list[int]:
        """Tell at which lengths of a prompt any price changes."""
        return sorted({price.above_prompt_tokens for price in self._prices} - {0})

    def tier(self, model: str, prompt: int) -> int:
        """Tell which price a message of that model has whose prompt has so many tokens; UNKNOWN if none is known."""
        return next((tier for above, tier in self._of(model) if prompt > above or not above), UNKNOWN)

    def cost(self, tier: int, tokens: Tokens) -> float | None:
        """Tell in US dollars what they cost; None if it is not known."""
        if tier == UNKNOWN:
            return None
        price = self._prices[tier]
        dollars: float = sum(getattr(tokens, kind) * getattr(price, kind) for kind in KINDS)
        return dollars / 1_000_000

    def _matching(self, model: str) -> tuple[tuple[int, int], ...]:
        return tuple(
            (price.above_prompt_tokens, tier) for tier, price in enumerate(self._prices) if price.is_of(model)
        )


def short(model: str) -> str:
    """Name a model as its maker does: ``us.anthropic.claude-opus-4-5-20251101-v1:0`` is ``claude-opus-4-5``."""
    found = _SHORT.match(model)
    return model if found is None else f"{found[1]}{found[2] or ''}"


def load(own: Path | None, *, uid: int) -> Prices:
    """Read the lists; the operator's `own` is trusted as the configuration is. Raises ConfigError."""
    lists = [PriceList.model_validate(tomllib.loads(PACKAGED.read_text(encoding="utf-8")))]
    if own is not None and os.path.exists(own):
        try:
            lists.insert(0, PriceList.model_validate(document(own, uid=uid)))
        except ValidationError as error:
            raise ConfigError(
                Problem(".".join(map(str, fault["loc"])), fault["msg"], file=str(own)) for fault in error.errors()
            ) from error
    return Prices(*lists)
