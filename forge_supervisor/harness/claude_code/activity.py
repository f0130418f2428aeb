"""What claude is doing: from the file that it keeps of each session, its hooks, and what it tells its status line.

~/.claude/sessions/PID.json is there once all questions of the start are behind it, and says whether a turn runs, also
after Escape, of which no hook tells. A claude that was killed leaves it behind, for whoever has its pid next.

A lost login, a limit and an API that is down never end claude: that a turn failed of them is told by a hook alone,
StopFailure. Until it gives up, after ten tries, it works.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Seen, Window
from forge_supervisor.harness.claude_code.login import (
    CREDENTIAL_VARIABLES,
    config_home,
    has_credentials,
    stored_login,
)
from forge_supervisor.harness.reading import open_regular
from forge_supervisor.harness.reporting import report_command
from forge_supervisor.pidfd import birth

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from forge_supervisor.harness import Paths, Subject

REPORTED = ("UserPromptSubmit", "Stop", "StopFailure")
"""Hooks that tell something no file does."""
_TIMEOUT_SEC = 5

# "shell": the turn is over, and a command that it has begun runs on in the background, be it for months.
_DOING = {"idle": Doing.IDLE, "shell": Doing.IDLE, "busy": Doing.WORKING, "waiting": Doing.WAITING}
# What is pasted is told with this around it, if it is of more than 800 characters, or of more than a few lines.
_PASTED = re.compile(r'</?pasted_content id="[0-9a-f]*">')
_TROUBLES = {
    "authentication_failed": (Doing.LOGGED_OUT, "log in again, or replace the key"),
    "billing_error": (Doing.LIMITED, "add credit to the account"),
    "oauth_org_not_allowed": (Doing.LOGGED_OUT, "log in with an account that may use it"),
    "rate_limit": (Doing.LIMITED, "wait until the limit is over"),
    "model_not_found": (Doing.UNRESPONSIVE, "change the agent's model"),
    "overloaded": (Doing.UNRESPONSIVE, "wait until the API answers again"),
    "server_error": (Doing.UNRESPONSIVE, "wait until the API answers again"),
    "unknown": (Doing.UNRESPONSIVE, "look at its terminal"),
}
"""By the `error` of StopFailure. Others are a matter of the turn, and the next one may well succeed."""
_LONGEST = 300
_MOST_PERCENT = 999
_MOST_BYTES = 1 << 20
"""Of a session's file, which has a few hundred."""


def hook(subject: Subject) -> dict[str, Any]:
    return {"type": "command", "command": report_command(subject), "timeout": _TIMEOUT_SEC}


def status_line(subject: Subject) -> dict[str, Any]:
    """Have claude tell what it would show of the context window and the limits; it shows nothing."""
    return {"type": "command", "command": report_command(subject)}


def watched(subject: Subject, paths: Paths, pid: int) -> tuple[Path, ...]:
    return (_session_file(subject, paths, pid), _credentials(subject, paths))


def observe(subject: Subject, paths: Paths, pid: int) -> Seen | None:
    login_fix = f"sudo -iu {subject.agent.run_as} claude, then /login"
    seen = partial(Seen, login=_login(subject, paths), login_fix=login_fix)
    try:
        with open_regular(_session_file(subject, paths, pid)) as file:
            session = json.loads(file.read(_MOST_BYTES))
        if not _is_of(session, pid):
            return seen(Doing.STARTING)
        if session.get("parkedJobId"):
            # What is typed then begins another session.
            return seen(Doing.WAITING, "its session is in the background, and claude shows others")
        # In a state that we have never heard of it has something to do.
        doing = _DOING.get(session["status"], Doing.WORKING)
        return seen(doing, str(session.get("waitingFor") or "")[:_LONGEST])
    except (FileNotFoundError, KeyError):
        return seen(Doing.STARTING)
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return None


def reported(told: Mapping[str, Any]) -> Reported:
    match told.get("hook_event_name"):
        case "UserPromptSubmit":
            return Reported("began", words=_PASTED.sub("", str(told.get("prompt", ""))))
        case "Stop":
            return Reported("ended")
        case "StopFailure":
            return Reported("failed", trouble=_trouble(told))
        case None:
            return Reported(gauges=_gauges(told))
    return Reported()


def unsendable(text: str) -> str | None:
    words = text.strip()
    if words.startswith(("/", "!")):
        return f'begins with "{words[0]}", which makes a command of it (put a word before it)'
    return "would end claude" if words in {"exit", "quit", ":q", ":q!", ":wq", ":wq!"} else None


def _is_of(session: Mapping[str, Any], pid: int) -> bool:
    """Tell whether a session's file is of the process that has that pid now."""
    born = session.get("procStart")
    try:
        return born is None or born == str(birth(pid))
    except ProcessLookupError:
        return False


def _session_file(subject: Subject, paths: Paths, pid: int) -> Path:
    return config_home(subject.env, paths) / "sessions" / f"{pid}.json"


def _credentials(subject: Subject, paths: Paths) -> Path:
    return config_home(subject.env, paths) / ".credentials.json"


def _login(subject: Subject, paths: Paths) -> str:
    if login := stored_login(subject.env, paths):
        # MCP servers' logins, which claude renews by itself, are in that file too.
        return f"file of {hashlib.sha256(json.dumps(login).encode()).hexdigest()[:16]}"
    if not has_credentials(subject.env, paths):
        return ""
    return "key" if any(map(subject.env.get, CREDENTIAL_VARIABLES)) else "other"


def _trouble(told: Mapping[str, Any]) -> Activity | None:
    found = _TROUBLES.get(str(told.get("error")))
    if found is None:
        return None
    doing, fix = found
    said = " ".join(str(told.get("last_assistant_message") or told.get("error")).split())
    return Activity(doing, said[:_LONGEST], fix)


def _gauges(told: Mapping[str, Any]) -> Gauges | None:
    if not isinstance(told.get("context_window"), dict):
        return None
    limits = told.get("rate_limits")
    windows = [
        Window(str(name)[:_LONGEST], min(used, _MOST_PERCENT), _number(window.get("resets_at")))
        for name, window in (limits.items() if isinstance(limits, dict) else ())
        if isinstance(window, dict) and (used := _number(window.get("used_percentage"))) is not None
    ]
    return Gauges(_number(told["context_window"].get("used_percentage")), tuple(windows[:10]))


def _number(value: object) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_one and 0 <= value < 2**40 else None  # type: ignore[operator, arg-type]
