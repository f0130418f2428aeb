"""Where events go: to the journal with native fields, or to stderr as lines for people or as JSON.

Python's own `logging` (libtmux, asyncio) goes the same way from WARNING upwards: libtmux's DEBUG records hold whole
argument lists. Logging never raises and never stops the supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import struct
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import structlog

from forge_supervisor.secrets import masked, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from structlog.typing import Processor

    from forge_supervisor.events import Event

LogFormat = Literal["auto", "console", "json", "journal"]
JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "forge-supervisor"

# syslog(3) levels.
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOUR = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
# Fields of several lines, which a console shows below the sentence.
_BLOCKS = ("screen", "exception")
# Control, format (bidirectional overrides) and surrogate characters, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# A journald that is stuck must not stick the supervisor: it goes on after this many seconds, by way of stderr.
_JOURNAL_TIMEOUT = 1.0
# A datagram over the socket's send buffer, as sd_journal_sendv() tells it.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
# Fields that hold no text of anybody's: by these an entry is found, whatever word is somebody's secret.
_NAMES = frozenset({"agent", "run_as", "key", "result", "invocation", "level", "logger", "file"})
# By the user in whose agents' entries they are masked; None: in all.
_secrets: dict[str | None, dict[str, tuple[set[str], set[str]]]] = {}
_parts: dict[str | None, list[str]] = {}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def configure(log_format: LogFormat = "auto") -> None:
    """Send everything that is logged from now on to the journal or to stderr.

    `auto` is the journal iff stderr is connected to it, as systemd says in JOURNAL_STREAM (systemd.exec(5)), and
    lines for people otherwise, coloured iff stderr is a terminal. Nothing is concealed any more.
    """
    _secrets.clear()
    _parts.clear()
    if log_format == "auto":
        log_format = "journal" if _stderr_is_journal() else "console"
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        # Once more for what had something unprintable in it.
        _concealed,
        _printable,
        _concealed,
    ]
    if log_format == "json":
        processors += [structlog.processors.TimeStamper(fmt="iso", utc=True), _to_stderr(_json_lines)]
    elif log_format == "journal":
        processors += [_Journal(JOURNAL_SOCKET)]
    else:
        processors += [_to_stderr(_console_lines(coloured=os.isatty(2)))]
    structlog.configure(processors=processors, cache_logger_on_first_use=False)
    logging.basicConfig(level=logging.WARNING, handlers=[_Foreign()], force=True)


def conceal(agent: str, secrets: Mapping[str, str], run_as: str | None) -> None:
    """Mask an agent's secrets from now on in all that is logged, wherever they come from: its screen, an error.

    With `run_as`, in what is logged of that user's agents alone: what a user can choose must not blot out the rest.
    Those of an agent's last start are remembered too, for what is logged late; older ones are not.
    """
    known = _secrets.setdefault(run_as, {})
    values = set(secrets.values())
    known[agent] = (values, known.get(agent, (set(), set()))[0])
    _parts[run_as] = parts(value for both in known.values() for some in both for value in some)


def log(event: Event) -> None:
    """Log one event under its fixed name, with its sentence and its fields."""
    logger = structlog.get_logger()
    getattr(logger, event.level)(event.name, message=event.sentence(), **event.fields())


def told(event: Event) -> MutableMapping[str, Any]:
    """Make the fields of an event as they are logged: `event` is its name, `message` its sentence."""
    entry: MutableMapping[str, Any] = {"event": event.name, "message": event.sentence(), **event.fields()}
    return _concealed(None, "", _printable(None, "", _concealed(None, "", entry)))


def shown(run_as: str, text: str) -> str:
    """Mask and clean what a user's program shows, as it would be logged."""
    return str(_concealed(None, "", {"run_as": run_as, "text": printable(text)})["text"])


class _Foreign(logging.Handler):
    """Passes on what libraries log, as an event called ``log``."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - whatever the arguments of the record do when they are rendered
            self.handleError(record)
            return
        logger = structlog.get_logger()
        write = getattr(logger, record.levelname.lower(), logger.error)
        whose = {"run_as": record.run_as} if hasattr(record, "run_as") else {}
        write("log", message=message, logger=record.name, exc_info=record.exc_info, **whose)


def _stderr_is_journal() -> bool:
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _concealed(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    secret = [*_parts.get(None, ()), *_parts.get(entry.get("run_as"), ())]
    names = _NAMES | {"event"} if "message" in entry else _NAMES
    return {
        name: masked(value, secret) if isinstance(value, str) and name not in names else value
        for name, value in entry.items()
    }


def _printable(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what would act on a terminal: sentences and fields hold what users and programs wrote."""
    clean = {name: printable(value) if isinstance(value, str) else value for name, value in entry.items()}
    # Whatever logs without a sentence (logger.info("text")) has it as its event.
    message = clean.pop("message", clean["event"])
    return {"event": clean.pop("event"), "message": " ".join(message.splitlines()), **clean}


def printable(text: str) -> str:
    """Take out what would act on a terminal; lines stay lines."""
    text = text.expandtabs()
    return "".join(char for char in text if char == "\n" or unicodedata.category(char) not in _UNPRINTABLE)


def _to_stderr(render: Callable[[MutableMapping[str, Any]], str]) -> Processor:
    def write(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> Any:
        _write_stderr(render(entry))
        raise structlog.DropEvent  # it has been written: nothing is left for a logger to do

    return write


def _write_stderr(text: str) -> None:
    # A reader that went away is no reason to go down. Not by sys.stderr: what it cannot write stays in its buffer, and
    # python ends with exit code 120 for that.
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def _json_lines(entry: MutableMapping[str, Any]) -> str:
    first = {name: entry[name] for name in ("timestamp", "level", "event")}
    return json.dumps({**first, **entry}, default=str) + "\n"


def _console_lines(*, coloured: bool) -> Callable[[MutableMapping[str, Any]], str]:
    def render(entry: MutableMapping[str, Any]) -> str:
        level = f"{entry['level']:7}"
        if coloured:
            level = f"\033[{_COLOUR[entry['level']]}m{level}\033[0m"
        lines = [f"{datetime.now().astimezone():%H:%M:%S} {level} {entry['message']}"]
        for block in _BLOCKS:
            lines += [f"    | {line}" for line in entry.get(block, "").splitlines()]
        return "".join(f"{line}\n" for line in lines)

    return render


class _Journal:
    """A structlog processor that is the last one: sends an entry by journald's native protocol.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. If journald is not to be reached, the sentence goes to stderr with
    its priority before it (sd-daemon(3)), which the stream that systemd connected there understands.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, _logger: Any, _method: str, entry: MutableMapping[str, Any]) -> Any:
        priority = _PRIORITY[entry.pop("level")]
        fields = {"PRIORITY": priority, "SYSLOG_IDENTIFIER": IDENTIFIER}
        fields |= {name.upper(): value for name, value in entry.items()}
        try:
            self._send(b"".join(_field(name, value) for name, value in fields.items()))
        except OSError:
            _write_stderr(f"<{priority}>{entry['message']}\n")
        raise structlog.DropEvent

    def _send(self, datagram: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.settimeout(_JOURNAL_TIMEOUT)
            # Connected, because poll(2) knows of the receiver's full queue only then, and the timeout is by poll.
            journal.connect(self._path)
            try:
                journal.send(datagram)
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                _send_as_file(journal, datagram)


def _field(name: str, value: object) -> bytes:
    if isinstance(value, bool):
        value = "yes" if value else "no"
    data = str(value).encode(errors="backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _send_as_file(journal: socket.socket, datagram: bytes) -> None:
    """Pass the entry as a memfd; journald reads one only if it is sealed."""
    memfd = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(datagram)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(journal, [b""], [memfd])
    finally:
        os.close(memfd)
