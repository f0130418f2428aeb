"""What config_files and secrets ask of it is tested with them; here is the walk itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from config_lab import NEEDS_ROOT, SOMEBODY

from forge_supervisor.trust import others_way, user_name

if TYPE_CHECKING:
    from pathlib import Path


@NEEDS_ROOT
def test_the_first_step_that_is_not_roots_is_named(roots: Path) -> None:
    (roots / "a/b").mkdir(parents=True)
    (roots / "a/b/file").touch()
    assert others_way(roots / "a/b/file") is None
    os.chown(roots / "a/b", SOMEBODY.pw_uid, -1)
    os.chown(roots / "a", SOMEBODY.pw_uid, -1)
    found = others_way(roots / "a/b/file")
    assert found is not None
    assert found.step == roots / "a"
    assert f"belongs to {SOMEBODY.pw_name}" in found.text


@NEEDS_ROOT
def test_where_a_link_leads_is_judged_too(roots: Path) -> None:
    (roots / "theirs").mkdir()
    (roots / "theirs/file").touch()
    os.chown(roots / "theirs", SOMEBODY.pw_uid, -1)
    (roots / "link").symlink_to("theirs/file")
    found = others_way(roots / "link")
    assert found is not None
    assert found.step == roots / "theirs"


@NEEDS_ROOT
@pytest.mark.timeout(10)
def test_links_in_a_circle_are_an_error_as_for_the_kernel(roots: Path) -> None:
    (roots / "a").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        others_way(roots / "a")


def test_a_user_without_a_name_is_a_number() -> None:
    assert user_name(0) == "root"
    assert user_name(4_000_000) == "4000000"
