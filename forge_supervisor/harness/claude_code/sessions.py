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
from typing import TYPE_CHECKING

from forge_supervisor.harness import File
from forge_supervisor.harness.claude_code.login import config_home, open_regular, read_text

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
    session, is_resumed = _next(subject, paths)
    if is_resumed:
        yield from ("--resume", session)
        # Otherwise it goes on with the appended instructions of then, whatever the file says now.
        yield from ("--system-prompt-snapshot", "off")
    else:
        yield from ("--session-id", session)


def is_resumed(subject: Subject, paths: Paths) -> bool:
    return _next(subject, paths)[1]


def file(subject: Subject, paths: Paths) -> File:
    """Make the file that says which session is the agent's."""
    session, _ = _next(subject, paths)
    return File(file_of(paths), f"{session}\n", ("resume",))


def hook(paths: Paths) -> dict[str, str]:
    """Make the hook by which claude tells which session it is in; what it prints the model would read."""
    target, new = (shlex.quote(str(path)) for path in (file_of(paths), paths.launch / "session.new"))
    told = f'printf "%s\\n" "$CLAUDE_CODE_SESSION_ID" >{new} && mv -f {new} {target}'
    return {"type": "command", "command": f'[ -z "$CLAUDE_CODE_SESSION_ID" ] || {{ {told}; }}'}


def unresumable(exit_: Exit, screen: Sequence[str]) -> bool:
    """Tell whether it has said, and that was its end, that there is no such session as it was to resume."""
    return exit_.code == 1 and _UNRESUMABLE.search("".join("".join(screen).split())) is not None


def _next(subject: Subject, paths: Paths) -> tuple[str, bool]:
    """Name the agent's next session, and tell whether it is resumed."""
    known = read_text(file_of(paths)).strip()
    if subject.fresh or not _ID.fullmatch(known):
        return subject.new_id, False
    transcript = _transcript(known, subject.env, paths)
    if transcript is None:
        return known, False
    # Claude begins no session by the name of which there is anything.
    return (subject.new_id, False) if _is_wordless(transcript) else (known, True)


def _transcript(session: str, env: Mapping[str, str], paths: Paths) -> Path | None:
    """Find what has the name of the session's transcript, whatever it is."""
    name = re.sub(r"[^a-zA-Z0-9]", "-", os.path.realpath(paths.state))
    projects = config_home(env, paths) / "projects"
    directories = [projects / name]
    if len(name) > _LONGEST:
        with suppress(OSError):
            directories = [*projects.glob(f"{name[:_LONGEST]}-*")]
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
