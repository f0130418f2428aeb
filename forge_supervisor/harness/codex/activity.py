"""What codex is doing: from the files that its process holds open, its logs of sessions, and its hooks.

It takes a lock on a session, below its home, once all questions of the start are behind it, and holds it for as long as
it may write to it. Whether a turn runs stands in the session's log, and so does what it failed of; codex ends for
neither, nor for a lost login or a limit. Of an interruption and of a failure no hook tells what they were. As long as
no connection to the API can be made at all, codex goes on trying, and works as far as it tells.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Seen, Window
from forge_supervisor.harness.codex import login, permissions, rollouts, sessions
from forge_supervisor.harness.reading import read_json
from forge_supervisor.harness.reporting import report_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.harness.codex.rollouts import Rollout

_TIMEOUT_SEC = 5
_LOCK = re.compile(rf".*/thread-writer-locks/({rollouts.ID})\.lock")
_ROLLOUT = re.compile(rf".*/rollout-[^/]*-({rollouts.ID})\.jsonl")
_LONGEST = 300
_TROUBLES = {
    "unauthorized": (Doing.LOGGED_OUT, "log in again, or replace the key"),
    "usage_limit_exceeded": (Doing.LIMITED, "wait until the limit is over, or add credit to the account"),
    "server_overloaded": (Doing.UNRESPONSIVE, "wait until the API answers again"),
    "internal_server_error": (Doing.UNRESPONSIVE, "wait until the API answers again"),
    # A connection that was lost, mostly.
    "other": (Doing.UNRESPONSIVE, "look at its terminal"),
}
"""By what codex calls an error. Of others that it had with the API, the status tells more."""
_STATUSES = {401: "unauthorized", 403: "unauthorized", 429: "usage_limit_exceeded"}


def hooks(subject: Subject, paths: Paths) -> dict[str, Any]:
    """Make the content of hooks.json."""
    report = {"type": "command", "command": report_command(subject), "timeout": _TIMEOUT_SEC}
    wanted = {"UserPromptSubmit": [sessions.hook(paths), report], "Stop": [report]}
    if permissions.may_ask(subject.agent):
        wanted["PermissionRequest"] = [_asked_hook(paths)]
    return {"hooks": {event: [{"hooks": commands}] for event, commands in wanted.items()}}


def _asked_hook(paths: Paths) -> dict[str, Any]:
    """Have codex note what it asks, for whoever looks: the log of the session says nothing of it."""
    target, new = (shlex.quote(str(path)) for path in (_asked_file(paths), paths.launch / "asked.new"))
    return {"type": "command", "command": f"{{ cat >{new} && mv -f {new} {target}; }} || :", "timeout": _TIMEOUT_SEC}


def _asked_file(paths: Paths) -> Path:
    return paths.launch / "asked"


def watched(paths: Paths, pid: int) -> tuple[Path, ...]:
    # Codex closes it whenever it has taken a lock on a session.
    taking = login.home_of(paths) / "thread-writer-locks/.coordination.lock"
    _, logs = _held(pid)
    return (taking, sessions.file_of(paths), _asked_file(paths), login.users_file(paths), *logs.values())


def observe(subject: Subject, paths: Paths, pid: int) -> Seen | None:
    seen = partial(
        Seen,
        login=login.stands_for(login.own(subject), paths),
        login_fix=f"sudo -iu {subject.agent.run_as} codex login --device-auth, then restart the agent",
    )
    locks, logs = _held(pid)
    if not locks:
        return seen(Doing.STARTING)
    try:
        read = {path: rollouts.read(path) for path in logs.values()}
    except OSError:
        return None
    # What a session that was gone back to has been doing before is nothing that this process does.
    since = {path: locks.get(session, 0.0) for session, path in logs.items()}
    running = [path for path, log in read.items() if log.is_running and log.begun >= since[path]]
    over = [log for path, log in read.items() if log.ended >= since[path] and not log.is_sub_agents]
    last = max(over, key=lambda log: log.ended, default=None)
    newest = max(read.values(), key=lambda log: log.begun, default=None)
    doing, detail = _doing(paths, running)
    return seen(
        doing,
        detail,
        failed=None if last is None else _trouble(last),
        gauges=None if newest is None else _gauges(newest),
    )


def _held(pid: int) -> tuple[dict[str, float], dict[str, Path]]:
    """Find the sessions that a process may write to: when it took the lock on each, and the logs that are there."""
    locks: dict[str, float] = {}
    logs: dict[str, Path] = {}
    for process in (pid, *_children(pid)):
        for path in _open_files(process):
            if found := _LOCK.fullmatch(path):
                with contextlib.suppress(OSError):
                    locks[found[1]] = os.stat(path).st_mtime  # noqa: PTH116 - as many as there are
            elif found := _ROLLOUT.fullmatch(path):
                logs[found[1]] = Path(path)
    return locks, logs


def _children(pid: int) -> Iterator[int]:
    # The launcher of npm's package stays beside the program on an older node.
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - as many as there are


def _doing(paths: Paths, running: list[Path]) -> tuple[Doing, str]:
    if not running:
        return Doing.IDLE, ""
    asked = _asked_file(paths)
    with contextlib.suppress(OSError):
        # What has been answered is followed by what came of it.
        if asked.stat().st_mtime > max(path.stat().st_mtime for path in running):
            return Doing.WAITING, f"it asks whether it may use {read_json(asked).get('tool_name')}"[:_LONGEST]
    return Doing.WORKING, ""


def _trouble(log: Rollout) -> Activity | None:
    error = log.error
    if not isinstance(error, dict):
        return None
    kind = error.get("codex_error_info")
    found = _TROUBLES.get(kind) if isinstance(kind, str) else _trouble_with_api(kind)
    if found is None:
        # A matter of the turn: the next one may well succeed.
        return None
    doing, fix = found
    return Activity(doing, " ".join(str(error.get("message") or kind).split())[:_LONGEST], fix)


def _trouble_with_api(kind: object) -> tuple[Doing, str] | None:
    details = next(iter(kind.values()), None) if isinstance(kind, dict) else None
    if not isinstance(details, dict) or "http_status_code" not in details:
        return None
    status = details["http_status_code"]
    if status in {400, 404}:
        return Doing.UNRESPONSIVE, "change the agent's model or effort, if that is what the API says of it"
    return _TROUBLES[_STATUSES.get(status, "server_overloaded")]


def _gauges(log: Rollout) -> Gauges:
    info, limits = log.tokens.get("info"), log.tokens.get("rate_limits")
    windows = []
    for name in ("primary", "secondary"):
        window = limits.get(name) if isinstance(limits, dict) else None
        if isinstance(window, dict) and (used := _number(window.get("used_percent"))) is not None:
            windows.append(Window(name, used, _number(window.get("resets_at"))))
    return Gauges(_filled(info), tuple(windows))


def _filled(info: object) -> float | None:
    if not isinstance(info, dict) or not isinstance(info.get("last_token_usage"), dict):
        return None
    used, window = _number(info["last_token_usage"].get("total_tokens")), _number(info.get("model_context_window"))
    return None if used is None or not window else round(min(100.0, 100 * used / window), 1)


def _number(value: object) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_one and 0 <= value < 2**40 else None  # type: ignore[operator, arg-type]


def reported(told: Mapping[str, Any]) -> Reported:
    match told.get("hook_event_name"):
        case "UserPromptSubmit":
            return Reported("began", words=str(told.get("prompt", "")))
        case "Stop":
            return Reported("ended")
    return Reported()


def unsendable(text: str) -> str | None:
    words = text.strip()
    if words.startswith(("/", "!")):
        return f'begins with "{words[0]}", which makes a command of it (put a word before it)'
    return None
