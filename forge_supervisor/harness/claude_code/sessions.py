"""Which of claude's sessions an agent goes on with when it is started: its memory, which is a transcript.

The agent's session is named in a file of ours. We write it before a start, and claude itself, by a SessionStart hook,
whenever it is in another one: after /clear, or when somebody has said /resume. Nothing else tells that reliably:
~/.claude/sessions/PID.json goes when claude ends in an orderly way, and is late after a /resume; and the newest
transcript is that of the session before as long as nothing has been said after a /clear, or that of a claude which the
agent itself has run in its directory.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING

from forge_supervisor.harness import File
from forge_supervisor.harness.claude_code.login import config_home, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.policy import Exit

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST = 200
"""Characters of a project's directory in full; of a longer one the rest is a hash."""
# Without blanks, as a narrow terminal breaks lines. The first is said of a transcript that is missing or in which there
# is nothing to be read, the second of one that cannot be read.
_UNRESUMABLE = re.compile(rf"(NoconversationfoundwithsessionID:|Failedtoresumesession){_ID.pattern}")


def file_of(paths: Paths) -> Path:
    """Say where it is written which session is the agent's."""
    return paths.launch / "session"


def options(subject: Subject, paths: Paths) -> Iterator[str]:
    """Make the arguments by which claude goes on with the agent's session, or begins one."""
    session = _next(subject, paths)
    if not subject.fresh and _has_transcript(session, subject.env, paths):
        yield from ("--resume", session)
        # Otherwise it goes on with the appended instructions of then, whatever the file says now.
        yield from ("--system-prompt-snapshot", "off")
    else:
        yield from ("--session-id", session)


def file(subject: Subject, paths: Paths) -> File:
    """Make the file that says which session is the agent's."""
    return File(file_of(paths), f"{_next(subject, paths)}\n", ("resume",))


def hook(paths: Paths) -> dict[str, str]:
    """Make the hook by which claude tells which session it is in; what it prints the model would read."""
    target, new = (shlex.quote(str(path)) for path in (file_of(paths), paths.launch / "session.new"))
    told = f'printf "%s\\n" "$CLAUDE_CODE_SESSION_ID" >{new} && mv -f {new} {target}'
    return {"type": "command", "command": f'[ -z "$CLAUDE_CODE_SESSION_ID" ] || {{ {told}; }}'}


def unresumable(exit_: Exit, screen: Sequence[str]) -> bool:
    """Tell whether it has said, and that was its end, that there is no such session as it was to resume."""
    return exit_.code == 1 and _UNRESUMABLE.search("".join("".join(screen).split())) is not None


def _next(subject: Subject, paths: Paths) -> str:
    known = read_text(file_of(paths)).strip()
    return subject.new_id if subject.fresh or not _ID.fullmatch(known) else known


def _has_transcript(session: str, env: Mapping[str, str], paths: Paths) -> bool:
    """Whether there is something by the name of its transcript: claude begins no session of that id then."""
    name = re.sub(r"[^a-zA-Z0-9]", "-", os.path.realpath(paths.state))
    projects = config_home(env, paths) / "projects"
    if len(name) <= _LONGEST:
        return os.path.lexists(projects / name / f"{session}.jsonl")
    with suppress(OSError):
        return any(projects.glob(f"{name[:_LONGEST]}-*/{session}.jsonl"))
    return False
