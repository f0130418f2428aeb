"""What somebody at a terminal sees."""

from __future__ import annotations

import os
import select
import time


def read_until(descriptor: int, *words: str) -> None:
    """Return when all the words have been shown; AssertionError, with all that was, after 30 seconds."""
    seen = ""
    deadline = time.monotonic() + 30
    while not all(word in seen for word in words):
        ready = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]
        assert ready, f"not within 30 s: {words}; {seen}"
        seen += os.read(descriptor, 65536).decode(errors="replace")
