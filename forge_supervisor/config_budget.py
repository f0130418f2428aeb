"""budget.*: what an agent may use of its model in a day."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forge_supervisor.config_values import Model


class Budget(Model):
    """What the agent may use in a day, of the host's time zone; unset is unlimited. Looked at after each turn."""

    daily_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """US dollars, as far as the prices of what it uses are known."""
    daily_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens of all kinds together, those read from a cache too."""
    action: Literal["warn", "stop"] = "warn"
    """What happens beyond it, once a day: it is told, and with "stop" the agent is stopped until somebody starts it."""

    @property
    def is_limited(self) -> bool:
        return self.daily_usd is not None or self.daily_tokens is not None
