"""Waits, in the worker, until the files of a session say something that the supervisor does not know yet."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from asyncinotify import Inotify, Mask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from asyncinotify import Event, Watch

# Not IN_MODIFY, unless that is wanted: half of a file says nothing.
_CHANGES = (
    Mask.CLOSE_WRITE | Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
)
_Place = tuple[str, str]
"""A directory, and a name in it."""


class Changes:
    """Tells of changes of files. A file need not be there, nor the directories above it."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._watches: dict[str, Watch] = {}
        self._users: Counter[str] = Counter()
        self._waiting: defaultdict[_Place, set[asyncio.Event]] = defaultdict(set)
        self._reading: asyncio.Task[None] | None = None

    @property
    def watched(self) -> set[str]:
        """Name the directories."""
        return {*self._watches}

    @contextlib.asynccontextmanager
    async def of(self, files: Iterable[Path], *, while_written: bool = False) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set when one of them may have changed since this began. Raises OSError.

        `while_written`: not only when whoever has written to it has closed it.
        """
        changed = asyncio.Event()
        places: list[_Place] = []
        try:
            for file in files:
                place = self._watch(file, while_written=while_written)
                places.append(place)
                self._waiting[place].add(changed)
            yield changed
        finally:
            for place in places:
                self._unwatch(place, changed)

    def _watch(self, file: Path, *, while_written: bool) -> _Place:
        while True:
            place = _nearest(file)
            try:
                self._begin(place[0], _CHANGES | Mask.MODIFY if while_written else _CHANGES)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it has gone meanwhile
            if _nearest(file) == place:
                return place
            self._end(place[0])

    def _begin(self, directory: str, mask: Mask) -> None:
        if self._inotify is None:
            self._inotify = Inotify()
            self._reading = asyncio.create_task(self._read(self._inotify))
        # The same one again, if there is one.
        self._watches[directory] = self._inotify.add_watch(directory, mask | Mask.MASK_ADD)
        self._users[directory] += 1

    def _end(self, directory: str) -> None:
        self._users[directory] -= 1
        if not self._users[directory]:
            del self._users[directory]
            watch = self._watches.pop(directory)
            if self._inotify is not None and watch not in self._watches.values():
                with contextlib.suppress(OSError):  # it went with the directory
                    self._inotify.rm_watch(watch)

    def _unwatch(self, place: _Place, changed: asyncio.Event) -> None:
        self._waiting[place].discard(changed)
        if not self._waiting[place]:
            del self._waiting[place]
        self._end(place[0])

    async def _read(self, inotify: Inotify) -> None:
        async for event in inotify:
            for place in [*self._waiting]:
                if self._concerns(event, place):
                    for changed in self._waiting[place]:
                        changed.set()

    def _concerns(self, event: Event, place: _Place) -> bool:
        directory, name = place
        # Some were lost (Q_OVERFLOW): any may have changed.
        if event.watch is None or self._watches.get(directory) is not event.watch:
            return event.watch is None
        return event.name is None or os.fspath(event.name) == name


def _nearest(file: Path) -> _Place:
    """Name the first of the directories above it, from below, that is there, and what is looked for in it."""
    above, name = file.parent, file.name
    while not above.is_dir() and above != above.parent:
        above, name = above.parent, above.name
    # Of a symbolic link it is the target whose names change.
    return os.path.realpath(above), name
