"""What is tested is the wheel, and the wheel is all of the tree that anybody needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from docs_lab import ROOT

import forge_supervisor

# As ./dev copies them before it builds: setuptools leaves things where it works.
SOURCES = ("pyproject.toml", "README.md", "forge_supervisor", "systemd", "config.example.toml", "place")
SHARED = ("systemd", "config.example.toml", "place")
INSTALLED = os.environ.get("FORGE_TEST_INSTALLED")


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_has_all_of_the_tree_and_nothing_else(tmp_path: Path) -> None:
    if not (ROOT / "forge_supervisor").is_dir():
        pytest.skip("there is no checkout: the wheel was built elsewhere")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "-w", tmp_path, tree], check=True, cwd=tmp_path)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        in_wheel = {name: wheel.read(name) for name in wheel.namelist()}
    version = f"forge_supervisor-{forge_supervisor.version()}"
    shared = f"{version}.data/data/share/forge-supervisor"
    expected = {path.relative_to(ROOT): path for path in files_below(ROOT / "forge_supervisor")}
    for name in SHARED:
        there = files_below(ROOT / name) or {ROOT / name}
        expected |= {shared / path.relative_to(ROOT): path for path in there}
    assert {name for name in in_wheel if not name.startswith(f"{version}.dist-info/")} == set(map(str, expected))
    assert [str(name) for name, path in expected.items() if in_wheel[str(name)] != path.read_bytes()] == []


@pytest.mark.skipif(not INSTALLED, reason="run by hand, from the checkout")
def test_what_is_tested_is_what_was_installed_from_the_wheel(tmp_path: Path) -> None:
    package = Path(forge_supervisor.__file__).parent
    assert INSTALLED is not None
    assert package.is_relative_to(INSTALLED)
    assert package.parent.name == "site-packages"
    shared = Path(INSTALLED, "share/forge-supervisor")
    if (ROOT / "forge_supervisor").is_dir():
        installed = {path.relative_to(package): path.read_bytes() for path in files_below(package)}
        here = ROOT / "forge_supervisor"
        assert installed == {path.relative_to(here): path.read_bytes() for path in files_below(here)}
    assert (shared / "place").is_file()
    # Also by what the tests start, wherever they start it.
    script = "import forge_supervisor; print(forge_supervisor.__file__)"
    for directory in (ROOT, tmp_path):
        command = [sys.executable, "-c", script]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory).stdout
        assert said.strip() == forge_supervisor.__file__
