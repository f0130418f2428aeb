from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import booted
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def bare_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[booted.Machine]:
    """A booted machine without forge-supervisor."""
    if why := booted.missing():
        pytest.skip(why)
    with booted.booted(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture(scope="session")
def machine(bare_machine: booted.Machine) -> booted.Machine:
    """A booted machine in which ./dev install has been run: the real units in the real places."""
    wheels = Path(os.environ.get("FORGE_TEST_WHEELS", ""))
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)} if wheels.is_absolute() else {}
    pip |= {key: value for key, value in os.environ.items() if key.startswith("PIP_") and key not in pip}
    bare_machine.run(booted.CHECKOUT / "dev", "install", env=pip, timeout=170)
    return bare_machine
