"""Puts values into a JSON file that other programs rewrite at any time, so that neither they nor we lose anything.

The rules are those of Claude Code for its ~/.claude.json (strace of 2.1.330, and
its bundled lock module, which works as npm's proper-lockfile): the lock is a
directory beside the file, made by mkdir; its holder renews its mtime every 5 s,
so one of 10 s ago is a dead process's and is removed; the file is read under
the lock and replaced by rename, and where none was, created by link, which
overwrites nothing, because then claude takes no lock.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.folder import Folder, WorkspaceError, explained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from forge_supervisor.harness import JsonSeed

STALE = 10.0
"""Seconds without a sign of life after which a lock is nobody's."""
PATIENCE = 15.0
"""Seconds to wait for a lock: longer than a dead process can keep it."""
_RETRY = 0.02
_REREADS = (0.02, 0.08, 0.2)
"""Seconds between looks at a file that is no JSON: somebody may be writing it in place, without the lock."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def sow(seed: JsonSeed) -> list[str]:
    """Make sure of the seed's values; return what the operator should know. Raises WorkspaceError."""
    # Claude follows a symbolic link too: dotfiles are linked to where they are kept.
    target = Path(os.path.realpath(seed.path))
    with explained(target), Folder.anywhere(target.parent) as folder:
        while not _is_sown(folder, target.name, seed):
            with _locked(seed.lock) as lock:
                warnings = _sow(folder, target.name, seed, lock)
            if warnings is not None:
                return warnings
        return []


def merged(content: Any, values: Any) -> Any:
    """Return content with the values in it: tables key by key, lists by what they lack, anything else replaced."""
    if isinstance(values, dict) and isinstance(content, dict):
        return content | {key: merged(content.get(key), value) for key, value in values.items()}
    if isinstance(values, list) and isinstance(content, list):
        return content + [item for item in values if item not in content]
    return values


def serialized(content: Mapping[str, Any]) -> bytes:
    """Write as claude does. JavaScript may leave half a character, which is JSON, but only as an escape."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return _LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()


def _sown(content: dict[str, Any], seed: JsonSeed) -> dict[str, Any]:
    return {key: value for key, value in merged(content, seed.values).items() if key not in seed.removed}


def _is_sown(folder: Folder, name: str, seed: JsonSeed) -> bool:
    found = folder.read(name)
    content = None if found is None else _parsed(found[0])
    return content is not None and _sown(content, seed) == content


def _sow(folder: Folder, name: str, seed: JsonSeed, lock: _Lock) -> list[str] | None:
    """Return None if somebody came between, so that nothing was written."""
    found, content = _read_patiently(folder, name)
    if found is None:
        return [] if folder.create(name, serialized(seed.values)) else None
    raw, status = found
    warnings = []
    if content is None:
        content = {}
        kept = f"what it held is in {folder.save(name, raw)}" if raw.strip() else "it was empty"
        warnings = [f"{folder.path / name} was no JSON object and was written anew ({kept})"]
    new = serialized(_sown(content, seed))
    if not lock.is_held():
        return None
    folder.replace(name, new, like=status)
    return warnings


def _read_patiently(folder: Folder, name: str) -> tuple[tuple[bytes, os.stat_result] | None, dict[str, Any] | None]:
    for pause in (*_REREADS, None):
        found = folder.read(name)
        content = None if found is None else _parsed(found[0])
        if found is None or content is not None or pause is None:
            break
        time.sleep(pause)
    return found, content


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@dataclass(frozen=True, slots=True)
class _Lock:
    path: Path
    identity: tuple[int, int]

    @classmethod
    def take(cls, path: Path) -> Self:
        """Wait for the lock, at most PATIENCE seconds. Raises WorkspaceError."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                path.mkdir()
            except FileExistsError:
                if time.monotonic() > deadline:
                    text = "has been held by another program (if no claude of this user runs, remove the directory)"
                    raise WorkspaceError(f"{path} {text}") from None
                _break_if_stale(path)
            else:
                return cls(path, _identity(path))

    def is_held(self) -> bool:
        """Whether it is still ours: it is taken from one who was stopped for longer than STALE."""
        with suppress(FileNotFoundError):
            return _identity(self.path) == self.identity
        return False

    def release(self) -> None:
        if self.is_held():
            self.path.rmdir()


def _break_if_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.lstat().st_mtime < time.time() - STALE:
            path.rmdir()
            return
    time.sleep(_RETRY)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[_Lock]:
    lock = _Lock.take(path)
    try:
        yield lock
    finally:
        lock.release()
