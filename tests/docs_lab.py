"""What the documentation tells people to type, and to write into files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = {"sh", "toml", "python", "json", "text"}
"""`sh` is run; the others are looked at, or are what a program shows."""
_HEREDOC = re.compile(r"<<'(\w+)'")


@dataclass(frozen=True)
class Block:
    file: str
    line: int
    """Of its first line of text."""
    language: str
    text: str
    name: str
    """What stands right above it, if that is nothing but a name."""


def blocks(path: Path) -> Iterator[Block]:
    above, begun, language, lines = "", 0, "", list[str]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("```") and not begun:
            begun, language, lines = number + 1, line[3:], []
        elif line == "```":
            yield Block(path.name, begun, language, "".join(f"{each}\n" for each in lines), above)
            begun = 0
        elif begun:
            lines.append(line)
        elif line:
            named = re.fullmatch(r"`([^`]+)`:", line)
            above = named[1] if named else ""


def commands(path: Path) -> Iterator[tuple[int, str]]:
    """Give each command of its `sh` blocks, with the number of its line: with what is continued, and here-documents."""
    for block in blocks(path):
        if block.language != "sh":
            continue
        command, end, begun = "", "", 0
        for number, line in enumerate(block.text.splitlines(), block.line):
            begun = begun or number
            command += f"{line}\n"
            if end:
                end = "" if line == end else end
            elif found := _HEREDOC.search(line):
                end = found[1]
            if not end and not line.endswith("\\"):
                if command.strip():
                    yield begun, command.rstrip("\n")
                command, begun = "", 0
        assert not command.strip(), f"{path.name}:{begun}: {command!r} has no end"
