from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor import events


@pytest.mark.parametrize("problem", [OSError("full"), ValueError("unwritable")])
def test_what_cannot_be_written_stops_nothing(problem: Exception) -> None:
    """It is called in the middle of a stop, and one agent's words must not keep others from being stopped."""

    class Store:
        def write(self, _agent: str, _saved: object) -> None:
            raise problem

    async def scene() -> None:
        told: list[events.Event] = []
        store: Any = Store()
        state_of: Callable[[str], Any] = lambda _: object()  # noqa: E731
        keeper = Keeper(store, state_of, told.append)
        keeper.save("scout")
        assert [event.name for event in told] == ["state_problem"]

    asyncio.run(scene())
