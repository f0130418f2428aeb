"""Keeps what was used, message by message, in one SQLite file. Blocks; used by one thread at a time.

Whatever becomes of the file, nothing but history is lost, and of that only what no transcript has any more: what has
been read of the transcripts is noted in the same file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from forge_supervisor.spend.prices import KINDS, Tokens
from forge_supervisor.worker.messages import MOST_TRANSCRIPTS, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from forge_supervisor.spend.prices import Prices
    from forge_supervisor.worker.messages import UsageRecord

T = TypeVar("T")
Who = tuple[str, str]
"""An agent and its user: another user's agent of the same name is another agent."""
By = Literal["day", "model", "agent", "session"]

NAME = "usage.db"
VERSION = 1
"""Of the tables, as PRAGMA user_version has it."""
BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that has the file."""
MOST_ROWS = 10_000
_COUNTS = ", ".join(f"{kind} INTEGER NOT NULL" for kind in KINDS)
_TABLES = f"""
CREATE TABLE message (
    agent TEXT NOT NULL, run_as TEXT NOT NULL, message TEXT NOT NULL, session TEXT NOT NULL, model TEXT NOT NULL,
    time_usec INTEGER NOT NULL, {_COUNTS}, PRIMARY KEY (agent, run_as, message)
) WITHOUT ROWID;
CREATE INDEX message_time ON message (time_usec);
CREATE TABLE mark (
    agent TEXT NOT NULL, run_as TEXT NOT NULL, path TEXT NOT NULL, file TEXT NOT NULL, place INTEGER NOT NULL,
    before TEXT NOT NULL, set_usec INTEGER NOT NULL, PRIMARY KEY (agent, run_as, path)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
# Files that were begun without it have it made.
_EXCEEDED = """
CREATE TABLE IF NOT EXISTS exceeded (
    agent TEXT NOT NULL, run_as TEXT NOT NULL, day TEXT NOT NULL, budget TEXT NOT NULL, PRIMARY KEY (agent, run_as)
) WITHOUT ROWID
"""
# Columns, and what they are grouped by, in that order.
_KEYS: dict[By, str] = {
    "day": "date(time_usec / 1000000, 'unixepoch', 'localtime') AS day, NULL AS agent, NULL AS run_as, NULL AS session",
    "model": "NULL AS day, NULL AS agent, NULL AS run_as, NULL AS session",
    "agent": "NULL AS day, agent, run_as, NULL AS session",
    "session": "NULL AS day, agent, run_as, session",
}
_BROKEN = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        # Tables that are not ours: statements are all known to be right.
        sqlite3.SQLITE_ERROR,
    }
)


class StoreError(Exception):
    """It cannot be done now; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What was used by whatever the query groups by; what it does not group by is None."""

    day: str | None
    agent: str | None
    run_as: str | None
    session: str | None
    model: str
    tier: int
    """As `Prices.tier`."""
    messages: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Change:
    """What was not known before: a message's tokens, with those that were known of it taken off."""

    model: str
    tokens: Tokens
    was: Tokens | None


class UsageStore:
    """`warn` is told what has become of the file if it could not be used. It is called by the same thread."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._connection: sqlite3.Connection | None = None
        self.begun = 0
        """How often a file was opened: each may have less in it than the one before."""

    def marks(self, who: Who) -> dict[str, Mark]:
        """Tell up to where the agent's transcripts have been read. Raises StoreError, as all of these."""
        sql = "SELECT path, file, place, before FROM mark WHERE agent = ? AND run_as = ?"
        found = self._do(lambda connection: connection.execute(sql, who).fetchall())
        return {path: Mark(file=file, offset=place, before=before) for path, file, place, before in found}

    def add(
        self, who: Who, records: Iterable[UsageRecord], marks: Mapping[str, Mark], gone: Iterable[str] = ()
    ) -> list[Change]:
        """Take note of all of it or of nothing; what is known already changes nothing.

        If the file turns out to be of no use it is nothing: what stood before these marks is to be read again.
        """

        def work(connection: sqlite3.Connection) -> list[Change]:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                changes = [change for record in records if (change := _add(connection, who, record)) is not None]
                _note(connection, who, marks, gone)
            return changes

        return self._do(work, lambda _: [])

    def sums(self, by: By, prices: Prices, *, since_usec: int = 0, run_as: str | None = None) -> list[Sum]:
        """Sum up by day of the host's time zone, by model, agent or session: a row for each, model and price."""
        sums = ", ".join(f"SUM({kind})" for kind in KINDS)
        prompt = " + ".join(kind for kind in KINDS if kind != "output")
        # Messages that exceed as many of them have one price; a call of ours for each would take far longer.
        step = " + ".join(["0", *(f"({prompt} > {above})" for above in prices.thresholds)])
        sql = (
            f"SELECT {_KEYS[by]}, model, {step} AS step, MAX({prompt}), COUNT(*), {sums} FROM message "  # noqa: S608
            f"WHERE time_usec >= ? {'' if run_as is None else 'AND run_as = ?'} "
            f"GROUP BY day, {'agent, run_as, ' if by in {'agent', 'session'} else ''}"
            f"{'session, ' if by == 'session' else ''}model, step ORDER BY MIN(time_usec) LIMIT {MOST_ROWS + 1}"
        )
        parameters = (since_usec,) if run_as is None else (since_usec, run_as)

        def work(connection: sqlite3.Connection) -> list[Sum]:
            return [
                Sum(day, agent, user, session, model, prices.tier(model, longest), messages, Tokens(*counts))
                for day, agent, user, session, model, _, longest, messages, *counts in connection.execute(
                    sql, parameters
                )
            ]

        found = self._do(work)
        if len(found) > MOST_ROWS:
            raise StoreError(f"that takes more than {MOST_ROWS} rows (begin later, by --since)")
        return found

    def exceeds(self, who: Who, day: str, budget: str) -> bool:
        """Take note that an agent has used up that day's budget, and tell whether that is new."""
        sql = (
            "INSERT INTO exceeded VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET day = excluded.day, "
            "budget = excluded.budget WHERE day <> excluded.day OR budget <> excluded.budget"
        )
        return self._do(lambda connection: connection.execute(sql, (*who, day, budget)).rowcount) == 1

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _do(
        self, work: Callable[[sqlite3.Connection], T], anew: Callable[[sqlite3.Connection], T] | None = None
    ) -> T:
        """Do the work; or that which is to be done `anew` in its place, where another file had to be begun."""
        try:
            try:
                return work(self._opened())
            except sqlite3.DatabaseError as error:
                if not self._is_broken(error):
                    raise
                self._set_aside(error)
                return (anew or work)(self._opened())
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path} cannot be used: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Nobody else's to read, whatever the umask is; -wal and -shm are made as it is, sqlite.org/wal.html.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            # One thread at a time, but not always the same.
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self.begun += 1
        return self._connection

    def _is_broken(self, error: sqlite3.DatabaseError) -> bool:
        # The lowest byte is the primary result code, sqlite.org/rescode.html.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # It is no fault of the file's if descriptors or memory have run out.
        return code in _BROKEN or (code == sqlite3.SQLITE_CANTOPEN and not self._path.is_file())

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Keep the file for who wants to look at it, the last such one, and make room for another."""
        self.close()
        aside = self._path.with_name(f"{NAME}.broken")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")  # noqa: PTH105 - three names of one file
        self._warn(f"{self._path} cannot be used ({error}): it is {aside.name} now, and a new one has been begun")


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # What a power failure loses is read again.
    connection.execute("PRAGMA synchronous = NORMAL")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _broken(f"it is damaged: {found}")
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
        elif version != VERSION:
            raise _broken(f"its version is {version}, and {VERSION} is this supervisor's")
        connection.execute(_EXCEEDED)
        connection.execute("SELECT 1 FROM message, mark, exceeded LIMIT 0")


def _broken(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _add(connection: sqlite3.Connection, who: Who, record: UsageRecord) -> Change | None:
    told = Tokens(**{kind: getattr(record, kind) for kind in KINDS})
    key = (*who, record.message)
    where = "WHERE agent = ? AND run_as = ? AND message = ?"
    known = connection.execute(f"SELECT model, {', '.join(KINDS)} FROM message {where}", key).fetchone()  # noqa: S608
    if known is None:
        # A clock that is set wrong must not have it counted on a day that is yet to come.
        when = min(record.time_usec, time.time_ns() // 1000)
        values = (*key, record.session, record.model, when, *_values(told))
        connection.execute(f"INSERT INTO message VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608
        return Change(record.model, told, None)
    model, *counts = known
    was = Tokens(*counts)
    now = Tokens(**{kind: max(getattr(was, kind), getattr(told, kind)) for kind in KINDS})
    if now == was:
        return None
    assigned = ", ".join(f"{kind} = ?" for kind in KINDS)
    connection.execute(f"UPDATE message SET {assigned} {where}", (*_values(now), *key))  # noqa: S608
    return Change(model, now, was)


def _note(connection: sqlite3.Connection, who: Who, marks: Mapping[str, Mark], gone: Iterable[str]) -> None:
    now = time.time_ns() // 1000
    rows = [(*who, path, mark.file, mark.offset, mark.before, now) for path, mark in marks.items()]
    connection.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "DELETE FROM mark WHERE agent = ? AND run_as = ? AND path = ?", [(*who, path) for path in gone]
    )
    # A transcript without one is read from its beginning, which changes nothing.
    connection.execute(
        "DELETE FROM mark WHERE agent = ?1 AND run_as = ?2 AND path NOT IN "
        "(SELECT path FROM mark WHERE agent = ?1 AND run_as = ?2 ORDER BY set_usec DESC LIMIT ?3)",
        (*who, MOST_TRANSCRIPTS),
    )


def _values(tokens: Tokens) -> tuple[int, ...]:
    return tuple(getattr(tokens, kind) for kind in KINDS)
