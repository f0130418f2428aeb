from __future__ import annotations

import math
from pathlib import Path

import pytest

from forge_supervisor import saved
from forge_supervisor.memory import Memory, State
from forge_supervisor.policy import Exit, Result
from forge_supervisor.saved import Saved, SavedSession, Store, boot_id

SESSION = SavedSession(uid=1000, pid=7, born=4, pane="%1", server=6, server_born=3)


def left(**changes: object) -> Saved:
    whole = Saved(
        boot=boot_id(),
        socket_name="forge",
        run_as="team",
        declared={"role": "c0ffee"},
        stop_timeout_sec=math.inf,
        life=Memory(state=State.RUNNING, result=Result.SUCCESS, exit=Exit(signal=9), window=(12.5, 2), due=None),
        session=SESSION,
    )
    return whole.model_copy(update=changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "agents")
    store.write("scout", left())
    store.write("other", left(session=None))
    assert store.load() == ({"other": left(session=None), "scout": left()}, [])
    store.remove("scout")
    store.remove("scout")
    assert set(store.load()[0]) == {"other"}


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    Store(tmp_path / "agents").write("scout", left())
    assert (tmp_path / "agents").stat().st_mode & 0o077 == 0


def test_what_is_of_another_boot_is_not_of_this_one(tmp_path: Path) -> None:
    Store(tmp_path).write("scout", left(boot="another"))
    assert Store(tmp_path).load() == ({}, [])
    assert set(Store(tmp_path).load(any_boot=True)[0]) == {"scout"}


def test_without_a_directory_nothing_is_known(tmp_path: Path) -> None:
    assert Store(tmp_path / "agents").load() == ({}, [])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"boot": "x"}'])
def test_a_file_that_cannot_be_read_is_named_and_costs_no_other(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    store.write("scout", left())
    (tmp_path / "torn.json").write_bytes(damage)
    found, problems = store.load()
    assert set(found) == {"scout"}
    assert problems[0].startswith(f"{tmp_path}/torn.json cannot be read (")


def test_a_later_version_may_say_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("scout", left())
    file = tmp_path / "scout.json"
    file.write_text(file.read_text().replace('{"boot"', '{"novelty": [1], "boot"'))
    assert store.load()[0] == {"scout": left()}


def test_a_write_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write("scout", left())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("scout", left(run_as="somebody"))
    assert store.load()[0] == {"scout": left()}


def test_a_boot_is_one_of_the_kernel_and_of_the_container() -> None:
    kernel, namespace, _ = saved.boot_id().split()
    assert kernel == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert namespace == str(Path("/proc/self/ns/pid").stat().st_ino)
