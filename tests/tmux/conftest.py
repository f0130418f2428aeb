from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import tmux_lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def empty_lab() -> Iterator[tmux_lab.Lab]:
    """A place for a tmux server, without one."""
    if shutil.which("tmux", path=tmux_lab.PATH) is None:
        pytest.skip("tmux is not installed")
    with tmux_lab.lab() as made:
        yield made


@pytest.fixture
def lab(empty_lab: tmux_lab.Lab) -> tmux_lab.Lab:
    """Give the test a tmux server started as the supervisor does it, with next to no environment and no locale."""
    empty_lab.start_server()
    return empty_lab
