"""Which of claude's sessions an agent goes on with when it is started: its memory, which is a transcript.

The agent's session is named in a file of ours. We write it before a start, and claude itself, by a SessionStart hook,
whenever it is in another one: after /clear, or when somebody has said /resume. Nothing else tells that reliably:
~/.claude/sessions/PID.json goes when claude ends in an orderly way, and is late after a /resume; and the newest
transcript is that of the session before as long as nothing has been said after a /clear, or that of a claude which the
agent itself has run in its directory.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_supervisor.harness import File
from forge_supervisor.harness.claude_code import transcripts
from forge_supervisor.harness.claude_code.login import config_home
from forge_supervisor.harness.reading import open_regular, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.policy import Exit

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Without blanks, as a narrow terminal breaks lines. The first is said of a transcript that is missing or in which there
# is nothing to be read, the second of one that cannot be read.
_UNRESUMABLE = re.compile(rf"(NoconversationfoundwithsessionID:|Failedtoresumesession){_ID.pattern}")


def file_of(paths: Paths) -> Path:
    """Say where it is written which session is the agent's."""
    return paths.launch / "session"


@dataclass(frozen=True, slots=True)
class Next:
    """The session that an agent's next start is in."""

    id: str
    is_resumed: bool

    def options(self) -> Iterator[str]:
        """Make the arguments by which claude goes on with it, or begins it."""
        if self.is_resumed:
            yield from ("--resume", self.id)
            # Otherwise it goes on with the appended instructions of then, whatever the file says now.
            yield from ("--system-prompt-snapshot", "off")
        else:
            yield from ("--session-id", self.id)

    def file(self, paths: Paths) -> File:
        """Make the file that says that it is the agent's."""
        return File(file_of(paths), f"{self.id}\n", ("resume",))


def hook(paths: Paths) -> dict[str, str]:
    """Make the hook by which claude tells which session it is in; what it prints the model would read."""
    target, new = (shlex.quote(str(path)) for path in (file_of(paths), paths.launch / "session.new"))
    told = f'printf "%s\\n" "$CLAUDE_CODE_SESSION_ID" >{new} && mv -f {new} {target}'
    return {"type": "command", "command": f'[ -z "$CLAUDE_CODE_SESSION_ID" ] || {{ {told}; }}'}


def unresumable(exit_: Exit, screen: Sequence[str]) -> bool:
    """Tell whether it has said, and that was its end, that there is no such session as it was to resume."""
    return exit_.code == 1 and _UNRESUMABLE.search("".join("".join(screen).split())) is not None


def next_of(subject: Subject, paths: Paths) -> Next:
    """Choose the agent's next session."""
    known = read_text(file_of(paths)).strip()
    if subject.fresh or not _ID.fullmatch(known):
        return Next(subject.new_id, is_resumed=False)
    transcript = _transcript(known, subject.env, paths)
    if transcript is None:
        return Next(known, is_resumed=False)
    # Claude begins no session by the name of which there is anything.
    if _is_wordless(transcript):
        return Next(subject.new_id, is_resumed=False)
    return Next(known, is_resumed=True)


def _transcript(session: str, env: Mapping[str, str], paths: Paths) -> Path | None:
    """Find what has the name of the session's transcript, whatever it is."""
    name = transcripts.name_of(paths)
    projects = config_home(env, paths) / "projects"
    directories = [projects / name]
    if len(name) > transcripts.LONGEST_NAME:
        with suppress(OSError):
            directories = [*projects.glob(f"{name[:transcripts.LONGEST_NAME]}-*")]
    found = (directory / f"{session}.jsonl" for directory in directories)
    return next((path for path in found if os.path.lexists(path)), None)


def _is_wordless(transcript: Path) -> bool:
    """Tell whether claude was killed before it had written a word of the conversation, which it does a little late.

    It could not resume that, and there is nothing to lose. Of what is damaged, or empty, claude is to be the judge.
    """
    lines = 0
    try:
        with open_regular(transcript) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                if not isinstance(entry, dict) or entry.get("type") in {"assistant", "user"}:
                    return False
                lines += 1
    except (OSError, ValueError, RecursionError):
        return False
    return lines > 0
