from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import runtime

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


def test_the_runtime_directory_is_where_the_unit_would_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.runtime_directory().name == "run"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(runtime.runtime_directory()) == "/run/forge-supervisor"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert str(runtime.runtime_directory()) == "/run/user/1000/forge-supervisor"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(runtime.runtime_directory()) == "/tmp/forge-supervisor-1000"


def test_what_outlives_a_boot_is_where_the_unit_says_or_where_it_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/there")
    assert str(runtime.lasting_directory()) == "/var/lib/there"
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(runtime.lasting_directory()) == "/var/lib/forge-supervisor"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    for own, meant in {"/state": "/state", "": "/home/ann/.local/state", "relative": "/home/ann/.local/state"}.items():
        monkeypatch.setenv("XDG_STATE_HOME", own)
        assert str(runtime.lasting_directory()) == f"{meant}/forge-supervisor"


def test_a_second_supervisor_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    told = f"another forge-supervisor is running .pid {os.getpid()} holds"
    with runtime.only_one(tmp_path / "run") as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755
        with (
            pytest.raises(runtime.UnusableRuntimeError, match=told),
            runtime.only_one(tmp_path / "run"),
        ):
            pass
    with runtime.only_one(tmp_path / "run"):
        pass


def test_a_runtime_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(runtime.UnusableRuntimeError, match="is not a directory of this user"),
        runtime.only_one(tmp_path / "run"),
    ):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o700
