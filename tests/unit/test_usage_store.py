"""What was used is kept once, summed up by anything, and lost at most as a file: no fault of it reaches anybody."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from usage_lab import A_YEAR_AGO, DAY, MARK, record

from forge_supervisor.spend import prices, store
from forge_supervisor.spend.prices import UNKNOWN, Prices, Tokens
from forge_supervisor.spend.store import StoreError, UsageStore
from forge_supervisor.worker.messages import Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WHO = ("scout", "team")
@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, warnings: list[str]) -> Iterator[UsageStore]:
    made = UsageStore(tmp_path / "state/usage.db", warnings.append)
    yield made
    made.close()


@pytest.fixture
def listed() -> Prices:
    return prices.load(None, uid=os.geteuid())


def test_a_message_is_kept_once_however_often_it_is_told(opened: UsageStore, listed: Prices) -> None:
    (change,) = opened.add(WHO, [record()], {})
    assert change.was is None
    assert opened.add(WHO, [record(), record(session="s2")], {}) == []
    (one,) = opened.sums("agent", listed)
    assert (one.messages, one.tokens) == (1, Tokens(1, 2, 3, 4, 5))


def test_a_message_that_grows_is_told_to_have_grown(opened: UsageStore, listed: Prices) -> None:
    opened.add(WHO, [record(output=1)], {})
    (change,) = opened.add(WHO, [record(output=900)], {})
    assert change.was is not None
    assert (change.was.output, change.tokens.output) == (1, 900)
    assert opened.add(WHO, [record(output=5)], {}) == []
    (one,) = opened.sums("agent", listed)
    assert one.tokens.output == 900


def test_agents_of_two_users_and_of_two_names_are_told_apart(opened: UsageStore, listed: Prices) -> None:
    for who in (WHO, ("scout", "other"), ("second", "team")):
        opened.add(who, [record()], {})
    assert {(one.agent, one.run_as) for one in opened.sums("agent", listed)} == {
        WHO, ("scout", "other"), ("second", "team"),
    }  # fmt: skip
    assert {one.agent for one in opened.sums("agent", listed, run_as="team")} == {"scout", "second"}
    assert [one.messages for one in opened.sums("model", listed, run_as="other")] == [1]


def test_it_is_summed_up_by_day_model_and_session(opened: UsageStore, listed: Prices) -> None:
    old = A_YEAR_AGO - 35 * DAY
    told = [
        record("a", session="s1", time_usec=old),
        record("b", session="s1", time_usec=old + DAY, model="mystery"),
        record("c", session="s2", time_usec=old + DAY),
    ]
    opened.add(WHO, told, {})
    day = [datetime.fromtimestamp((old + number * DAY) / 1e6).astimezone().date() for number in (0, 1)]
    assert [(one.day, one.model) for one in opened.sums("day", listed)] == [
        (str(day[0]), "claude-opus-5-5"), (str(day[1]), "claude-opus-5-5"), (str(day[1]), "mystery"),
    ]  # fmt: skip
    by_model = [(one.model, one.messages) for one in opened.sums("model", listed)]
    assert by_model == [("claude-opus-5-5", 2), ("mystery", 1)]
    assert {(one.session, one.model, one.messages) for one in opened.sums("session", listed)} == {
        ("s1", "claude-opus-5-5", 1), ("s1", "mystery", 1), ("s2", "claude-opus-5-5", 1),
    }  # fmt: skip
    assert [one.messages for one in opened.sums("agent", listed, since_usec=old + DAY)] == [1, 1]


@pytest.mark.parametrize(
    ("zone", "day"), [("UTC", "2025-11-25"), ("Asia/Tokyo", "2025-11-26"), ("XXX+13", "2025-11-24")]
)
def test_a_day_is_one_of_the_hosts_time_zone(
    opened: UsageStore, listed: Prices, monkeypatch: pytest.MonkeyPatch, zone: str, day: str
) -> None:
    for usec, name in ((A_YEAR_AGO + 6 * 3_600_000_000, "Asia/Tokyo"), (A_YEAR_AGO, "UTC")):
        opened.add(WHO, [record(name, time_usec=usec)], {})
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        days = {one.day for one in opened.sums("day", listed)}
    finally:
        monkeypatch.undo()
        time.tzset()
    assert day in days


def test_a_price_that_depends_on_the_length_of_the_prompt_is_each_messages_own(
    opened: UsageStore, listed: Prices
) -> None:
    sizes = {"a": 10, "b": 99_000, "c": 200_000}
    told = [record(name, model="claude-haiku-5-5", input=size) for name, size in sizes.items()]
    opened.add(WHO, told, {})
    sums = opened.sums("agent", listed)
    assert sorted(one.messages for one in sums) == [1, 2]
    assert len({one.tier for one in sums}) == 2


def test_a_model_without_a_price_is_told_as_such(opened: UsageStore, listed: Prices) -> None:
    opened.add(WHO, [record(model="mystery")], {})
    assert [one.tier for one in opened.sums("agent", listed)] == [UNKNOWN]


def test_nothing_is_counted_on_a_day_to_come(opened: UsageStore, listed: Prices) -> None:
    opened.add(WHO, [record(time_usec=2**51)], {})
    (one,) = opened.sums("day", listed)
    assert one.day == str(datetime.now().astimezone().date())


def test_marks_are_kept_with_what_was_read_up_to_them(opened: UsageStore) -> None:
    opened.add(WHO, [record()], {"/a": MARK, "/b": MARK})
    assert opened.marks(WHO) == {"/a": MARK, "/b": MARK}
    assert opened.marks(("scout", "other")) == {}
    opened.add(WHO, [], {"/a": MARK.model_copy(update={"offset": 200})}, ["/b"])
    assert {path: mark.offset for path, mark in opened.marks(WHO).items()} == {"/a": 200}


def test_of_marks_the_latest_are_kept(opened: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_TRANSCRIPTS", 2)
    for path in ("/a", "/b", "/c"):
        opened.add(WHO, [], {path: MARK})
    assert opened.marks(WHO).keys() == {"/b", "/c"}


def test_the_largest_inode_and_offset_are_kept(opened: UsageStore) -> None:
    mark = Mark(file=f"{2**64 - 1}:{2**64 - 1}", offset=2**62 - 1, before="f" * 16)
    opened.add(WHO, [], {"/a": mark})
    assert opened.marks(WHO) == {"/a": mark}


def test_nobody_else_can_read_it(opened: UsageStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened.add(WHO, [record()], {})
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o077 for file in (tmp_path / "state").iterdir()] == [0, 0, 0]


def test_it_is_there_when_it_is_opened_again(opened: UsageStore, tmp_path: Path, listed: Prices) -> None:
    opened.add(WHO, [record()], {"/a": MARK})
    opened.close()
    again = UsageStore(tmp_path / "state/usage.db", pytest.fail)
    assert [one.messages for one in again.sums("agent", listed)] == [1]
    assert again.marks(WHO) == {"/a": MARK}
    again.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def cut_off(path: Path) -> None:
    os.truncate(path, 5000)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def without_its_tables(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE message")
    connection.close()


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil", [no_database, cut_off, overwritten, of_another_version, without_its_tables, no_file]
)
def test_a_file_that_is_of_no_use_is_moved_aside_and_told_of(
    tmp_path: Path, warnings: list[str], listed: Prices, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "usage.db"
    first = UsageStore(path, pytest.fail)
    first.add(WHO, [record(f"msg_{number}") for number in range(300)], {"/a": MARK})
    first.close()
    spoil(path)
    again = UsageStore(path, warnings.append)
    assert again.marks(WHO) == {}, "what was read is to be read again"
    again.add(WHO, [record()], {})
    assert [one.messages for one in again.sums("agent", listed)] == [1]
    again.close()
    assert len(warnings) == 1
    assert "usage.db.broken" in warnings[0]
    assert (tmp_path / "usage.db.broken").exists()


def test_one_that_breaks_while_it_is_used_is_moved_aside(tmp_path: Path, warnings: list[str], listed: Prices) -> None:
    path = tmp_path / "usage.db"
    used = UsageStore(path, warnings.append)
    used.add(WHO, [record(f"msg_{number}") for number in range(3000)], {})
    assert used._connection is not None
    used._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    used._connection.execute("PRAGMA cache_size = 1")
    overwritten(path)
    begun = used.begun
    assert used.add(WHO, [record("new")], {"/a": MARK}) == []
    assert used.begun > begun
    assert used.marks(WHO) == {}, "what stood before the mark is to be read again"
    used.add(WHO, [record("new")], {})
    assert [one.messages for one in used.sums("agent", listed)] == [1]
    used.close()
    assert len(warnings) == 1


def test_where_nothing_can_be_written_it_is_told_and_tried_again(tmp_path: Path, warnings: list[str]) -> None:
    # Root may write anywhere but into a file's place.
    (tmp_path / "state").write_text("")
    used = UsageStore(tmp_path / "state/usage.db", warnings.append)
    with pytest.raises(StoreError, match="cannot be used"):
        used.add(WHO, [record()], {})
    (tmp_path / "state").unlink()
    assert len(used.add(WHO, [record()], {})) == 1
    used.close()
    assert warnings == []


def test_on_a_full_disk_all_that_was_kept_stays_and_all_of_the_rest_comes_later(
    opened: UsageStore, warnings: list[str], listed: Prices
) -> None:
    opened.add(WHO, [record("first")], {"/a": MARK})
    assert opened._connection is not None
    (pages,) = opened._connection.execute("PRAGMA page_count").fetchone()
    opened._connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [record(f"msg_{number}") for number in range(1000)]
    with pytest.raises(StoreError, match="full"):
        opened.add(WHO, many, {"/b": MARK})
    assert opened.marks(WHO).keys() == {"/a"}
    assert [one.messages for one in opened.sums("agent", listed)] == [1]
    opened._connection.execute("PRAGMA max_page_count = 100000")
    assert len(opened.add(WHO, many, {"/b": MARK})) == 1000
    assert warnings == []


def test_a_want_of_descriptors_is_no_fault_of_the_file(
    opened: UsageStore, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.add(WHO, [record()], {})
    opened.close()
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", fail)
        with pytest.raises(StoreError):
            opened.marks(WHO)
    assert opened.add(WHO, [record()], {}) == []
    assert warnings == []


WRITER = """
import sys
from pathlib import Path
from forge_supervisor.spend.store import UsageStore
from forge_supervisor.worker.messages import UsageRecord
store = UsageStore(Path(sys.argv[1]), sys.exit)
for number in range(200):
    counts = dict(input=1, output=1, cache_read=0, cache_write_5m=0, cache_write_1h=0)
    record = UsageRecord(message=f"m{number}", session="s", model="m", time_usec=1, **counts)
    store.add(("scout", sys.argv[2]), [record], {})
    store.add(("both", "team"), [record], {})
"""


def test_two_processes_may_write_at_once(tmp_path: Path, listed: Prices) -> None:
    path = tmp_path / "usage.db"
    # Whoever makes the file has it for itself: SQLite does not wait for the change to WAL.
    first = UsageStore(path, pytest.fail)
    first.marks(WHO)
    first.close()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], env=dict(os.environ)) for name in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    read = UsageStore(path, pytest.fail)
    counted = {(one.agent, one.run_as): one.messages for one in read.sums("agent", listed)}
    read.close()
    assert counted == {("scout", "a"): 200, ("scout", "b"): 200, ("both", "team"): 200}


def test_more_than_anybody_reads_is_not_told(
    opened: UsageStore, listed: Prices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_ROWS", 2)
    opened.add(WHO, [record(f"msg_{number}", session=f"s{number}") for number in range(3)], {})
    with pytest.raises(StoreError, match="more than 2 rows"):
        opened.sums("session", listed)
