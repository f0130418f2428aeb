"""What a supervisor and a worker do without; each is a process that runs for months."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = "import sys, {module}; print(*sorted(sys.modules))"


@pytest.mark.parametrize(
    ("module", "anothers"), [("forge_supervisor.main", "libtmux"), ("forge_supervisor.worker.__main__", "pystemd")]
)
def test_nothing_is_carried_along_that_nobody_uses(module: str, anothers: str) -> None:
    argv = [sys.executable, "-I", "-c", LOADED.format(module=module)]
    loaded = {*subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()}
    assert module in loaded
    assert not {"rich", "pygments", "ssl", "_hashlib", anothers} & loaded
