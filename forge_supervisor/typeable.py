"""What of a text can be typed into a terminal, by the worker; and so what of a message arrives, for the supervisor."""

from __future__ import annotations


def typeable(text: str) -> str:
    """Leave out control characters: an escape sequence would end the paste, and act on the program."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    text = "".join(char for char in text if char in "\n\t" or char.isprintable())
    # Programs take a backslash before Enter for a line that goes on, and Enter, as they complete the name of a file (@)
    # or of a skill ($), for the choice of one.
    last = text.split()[-1] if text.split() else ""
    return f"{text} " if last.endswith("\\") or last.startswith(("@", "$")) else text
