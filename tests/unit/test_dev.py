"""`./dev test` without arguments: several runs of pytest, of which one goes on in the background, are one answer."""

import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"

# A pytest that writes down what it was asked and fails for one directory.
PYTEST = """#!/bin/sh
echo "$*" >>"$0.asked"
case " $* " in *" $FAILING "*) exit 1 ;; esac
"""

# The whole of it but what it does last, which is to look at its arguments; what installs things installs nothing.
TESTS = """
need() { :; }
venv() { :; }
pinned_claude() { :; }
pinned_codex() { :; }
base=$1
tests
"""


def dev_test(tmp_path: Path, failing: str) -> tuple[int, list[str]]:
    library = tmp_path / "dev"
    beginning, found, _end = DEV.read_text().partition("\n[ $# -gt 0 ] || set -- help\n")
    assert found
    library.write_text(beginning + TESTS)
    stub = tmp_path / "venv" / "bin" / "pytest"
    stub.parent.mkdir(parents=True)
    stub.write_text(PYTEST)
    stub.chmod(0o755)
    command = ["/bin/sh", str(library), str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FAILING": failing}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return run.returncode, Path(f"{stub}.asked").read_text().splitlines()


def test_all_is_well_where_every_part_is(tmp_path: Path) -> None:
    status, asked = dev_test(tmp_path, failing="none")
    assert status == 0
    every = sorted(path.name for path in (DEV.parent / "tests").iterdir() if any(path.glob("test_*.py")))
    words = " ".join(asked).split()
    assert sorted({word.split("/")[1] for word in words if word.startswith("tests/")}) == every


@pytest.mark.parametrize("failing", ["tests/unit", "tests/claude", "tests/machine/test_oracle.py", "tests/machine"])
def test_one_part_that_fails_fails_the_whole(tmp_path: Path, failing: str) -> None:
    status, asked = dev_test(tmp_path, failing)
    assert (status, len(asked)) == (1, 4)
