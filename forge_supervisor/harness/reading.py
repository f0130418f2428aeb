"""Reads what a program of the agent's user keeps in that user's home: whatever may be there by now."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

MOST_READ_BYTES = 64 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """Read what the user may have put there: nothing that is no regular file (a FIFO blocks), and no end of it."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_text(path: Path) -> str:
    """Read it likewise; what cannot be read is empty."""
    try:
        with open_regular(path) as file:
            return file.read(MOST_READ_BYTES).decode()
    except (OSError, ValueError):
        return ""


def open_regular(path: Path) -> BinaryIO:
    """Open it likewise. Raises OSError."""
    # O_NONBLOCK: open(2) of a FIFO waits for a writer otherwise.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file")
    return os.fdopen(fd, "rb")
