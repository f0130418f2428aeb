"""Which of codex's sessions an agent goes on with when it is started.

Codex names a session itself, and tells its name with the first words that are said in it. A hook writes it down each
time that something is said, so that the agent goes on where it was spoken to last: also after /new, or when somebody
has said /resume. `codex resume --last` would not do: with nothing to go on with it begins a new one in silence, and
what the agent itself has had a codex do counts as well.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_supervisor.harness import File
from forge_supervisor.harness.codex import rollouts
from forge_supervisor.harness.codex.login import home_of
from forge_supervisor.harness.reading import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.policy import Exit

_ID = re.compile(rollouts.ID)
# Without blanks, as a narrow terminal breaks lines.
_UNRESUMABLE = re.compile(rf"NosavedsessionfoundwithID{rollouts.ID}|thread/resumefailed:")


def file_of(paths: Paths) -> Path:
    """Say where it is written which session is the agent's; codex's sandbox lets no command write there."""
    return paths.launch / "session"


@dataclass(frozen=True, slots=True)
class Next:
    """The session that an agent's next start is in; one that is new has no name yet."""

    id: str = ""

    def options(self) -> Iterator[str]:
        """Make the arguments by which codex goes on with it; they are the last ones."""
        if self.id:
            yield from ("resume", self.id)

    def file(self, paths: Paths) -> File:
        """Make the file that says that it is the agent's."""
        return File(file_of(paths), f"{self.id}\n" if self.id else "", ("resume",))


def hook(paths: Paths) -> dict[str, str]:
    """Make the hook by which codex tells which session it is in."""
    target, new = (shlex.quote(str(path)) for path in (file_of(paths), paths.launch / "session.new"))
    # What was said, which comes later in the line, has its quotation marks escaped.
    name = r"""sed -n '1s/^{"session_id":"\([0-9a-f-]*\)".*/\1/p'"""
    return {"type": "command", "command": f"{{ {name} >{new} && [ -s {new} ] && mv -f {new} {target}; }} || :"}


def unresumable(exit_: Exit, screen: Sequence[str]) -> bool:
    """Tell whether it has said, and that was its end, that there is no such session as it was to resume."""
    return exit_.code == 1 and _UNRESUMABLE.search("".join("".join(screen).split())) is not None


def next_of(subject: Subject, paths: Paths) -> Next:
    """Choose the agent's next session."""
    known = read_text(file_of(paths)).strip()
    if subject.fresh or not _ID.fullmatch(known) or not rollouts.is_there(home_of(paths), known):
        return Next()
    return Next(known)
