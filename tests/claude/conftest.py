from __future__ import annotations

from typing import TYPE_CHECKING

import claude_lab
import harness_lab
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def claude() -> None:
    if why := harness_lab.missing(claude_lab.VARIABLE):
        pytest.skip(why)


@pytest.fixture
def lab(claude: None) -> Iterator[claude_lab.Lab]:  # noqa: ARG001
    with claude_lab.lab() as made:
        yield made
