from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import forge_supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

# A loaded machine is slow, which says nothing about the code; and a checkout may belong to somebody else.
hypothesis.settings.register_profile("forge", deadline=None, database=None)
hypothesis.settings.load_profile("forge")
set_hypothesis_home_dir(Path(tempfile.gettempdir(), f"forge-hypothesis-{os.getuid()}"))

# Set by ./dev, and by whatever else has installed the wheel for the tests.
INSTALLED = os.environ.get("FORGE_TEST_INSTALLED")
if INSTALLED and not Path(forge_supervisor.__file__).is_relative_to(INSTALLED):
    raise pytest.UsageError(f"{forge_supervisor.__file__} is what would be tested, and not what is in {INSTALLED}")


@pytest.fixture
def roots() -> Iterator[Path]:
    """A directory of which every part is root's, for tests that run as root: pytest's own lies in /tmp."""
    path = Path(tempfile.mkdtemp(dir="/var/lib"))
    yield path
    shutil.rmtree(path)
