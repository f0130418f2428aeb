from __future__ import annotations

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
    bare_machine.dev("install")
    return bare_machine


@pytest.fixture(autouse=True)
def stopped(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the service stopped, and systemd's limit on its starts unspent."""
    yield
    if "machine" in request.fixturenames:
        for verb in ("stop", "reset-failed"):
            request.getfixturevalue("machine").run("systemctl", verb, "forge-supervisor", check=False, timeout=120)
