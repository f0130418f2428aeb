from __future__ import annotations

from typing import TYPE_CHECKING

import codex_lab
import harness_lab
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def codex() -> None:
    if why := harness_lab.missing(codex_lab.VARIABLE):
        pytest.skip(why)


@pytest.fixture
def lab(codex: None) -> Iterator[codex_lab.Lab]:  # noqa: ARG001
    with codex_lab.lab() as made:
        yield made
