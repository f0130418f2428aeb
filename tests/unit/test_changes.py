from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forge_supervisor.worker.changes import Changes

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 10.0


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def is_told(changes: Changes, file: Path, change: Callable[[], object]) -> None:
    async with changes.of([file]) as changed:
        change()
        async with asyncio.timeout(PATIENCE):
            await changed.wait()


def replaced(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_text("x")
    new.rename(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda file: file.write_text("new"),
    "replaced": replaced,
    "removed": lambda file: file.unlink(),
    "moved away": lambda file: file.rename(file.with_suffix(".old")),
    "gone with its directory": lambda file: shutil.rmtree(file.parent),
    "gone with its moved directory": lambda file: file.parent.rename(file.parent.with_suffix(".old")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes(tmp_path: Path, change: str) -> None:
    async def scene() -> None:
        file = tmp_path / "sessions/7.json"
        file.parent.mkdir()
        file.write_text("old")
        await is_told(Changes(), file, lambda: CHANGES[change](file))

    asyncio.run(scene())


def test_a_file_to_which_lines_are_added(tmp_path: Path) -> None:
    """Whoever looks at closed files only, in the same directory, takes nothing away."""

    async def scene() -> None:
        changes = Changes()
        with (tmp_path / "log").open("w") as log:
            async with changes.of([tmp_path / "log"], while_written=True) as changed, changes.of([tmp_path / "other"]):
                log.write("a line\n")
                log.flush()
                async with asyncio.timeout(PATIENCE):
                    await changed.wait()

    asyncio.run(scene())


def test_a_file_is_waited_for_with_all_directories_above_it(tmp_path: Path) -> None:
    async def scene() -> None:
        changes, file = Changes(), tmp_path / ".claude/sessions/7.json"
        await is_told(changes, file, (tmp_path / ".claude").mkdir)
        await is_told(changes, file, file.parent.mkdir)
        await is_told(changes, file, file.touch)

    asyncio.run(scene())


def test_a_file_behind_a_symbolic_link(tmp_path: Path) -> None:
    async def scene() -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        await is_told(Changes(), tmp_path / "link/7.json", (tmp_path / "real/7.json").touch)

    asyncio.run(scene())


def test_what_does_not_concern_it_wakes_nobody(tmp_path: Path) -> None:
    async def scene() -> None:
        changes = Changes()
        async with changes.of([tmp_path / "a"]) as one, changes.of([tmp_path / "b"]) as other:
            (tmp_path / "a").touch()
            async with asyncio.timeout(PATIENCE):
                await one.wait()
            assert not other.is_set()

    asyncio.run(scene())


def test_several_wait_for_one_file_and_one_for_several(tmp_path: Path) -> None:
    async def scene() -> None:
        changes = Changes()
        async with changes.of([tmp_path / "a", tmp_path / "b"]) as one:
            async with changes.of([tmp_path / "b"]):
                pass
            # Who went has not taken the other's watch along.
            (tmp_path / "b").touch()
            async with asyncio.timeout(PATIENCE):
                await one.wait()

    asyncio.run(scene())


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async def scene() -> None:
        changes = Changes()
        for number in range(100):
            await is_told(changes, tmp_path / "a", lambda: (tmp_path / "a").write_text("x"))
            if number == 0:
                before = descriptors()
        assert descriptors() == before
        assert not changes.watched

    asyncio.run(scene())
