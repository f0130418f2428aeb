from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import private_directory

if TYPE_CHECKING:
    from pathlib import Path

ME = (os.geteuid(), os.getegid())


def only(directory: Path, name: str) -> list[str]:
    """What else is in there."""
    return [other.name for other in directory.iterdir() if other.name != name]


def test_a_new_one_is_the_users_alone(tmp_path: Path) -> None:
    private_directory.make(tmp_path / "tmux", *ME)
    status = (tmp_path / "tmux").lstat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, ME[0])


def test_ones_own_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tmux").mkdir()
    (tmp_path / "tmux/forge").touch()
    private_directory.make(tmp_path / "tmux", *ME)
    assert (tmp_path / "tmux/forge").exists()
    assert only(tmp_path, "tmux") == []


@pytest.mark.parametrize("what", ["file", "link", "dangling"])
def test_what_is_no_directory_gets_another_name(tmp_path: Path, what: str) -> None:
    (tmp_path / "target").mkdir(mode=0o755)
    if what == "file":
        (tmp_path / "tmux").touch()
    else:
        (tmp_path / "tmux").symlink_to(tmp_path / ("target" if what == "link" else "nowhere"))
    private_directory.make(tmp_path / "tmux", *ME)
    assert stat.S_ISDIR((tmp_path / "tmux").lstat().st_mode)
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o755, "nothing is followed"
    assert [name for name in only(tmp_path, "tmux") if name.startswith(f"tmux.not-of-{ME[0]}.")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody")
def test_another_users_gets_another_name(tmp_path: Path) -> None:
    (tmp_path / "tmux").mkdir()
    os.chown(tmp_path / "tmux", 65533, 65533)
    private_directory.make(tmp_path / "tmux", 65534, 65534)
    assert (tmp_path / "tmux").stat().st_uid == 65534
    assert [(tmp_path / name).stat().st_uid for name in only(tmp_path, "tmux")] == [65533]
