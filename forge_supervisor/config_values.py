"""The kinds of values that config.toml holds, each with its check, its JSON Schema and its sentence."""

from __future__ import annotations

import math
import pwd
import re
import signal
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

SET_BY_US = frozenset({"FORGE_AGENT", "INVOCATION_ID", "TMUX", "TMUX_PANE"})
"""Variables that tell a process which agent, run and pane it belongs to."""

# As in systemd's time-util.h, whose month is a twelfth of a year; systemd.time(7) rounds it.
_UNITS = {
    **dict.fromkeys(("usec", "us", "µs", "μs"), 1e-6),
    **dict.fromkeys(("msec", "ms"), 1e-3),
    **dict.fromkeys(("seconds", "second", "sec", "s"), 1),
    **dict.fromkeys(("minutes", "minute", "min", "m"), 60),
    **dict.fromkeys(("hours", "hour", "hr", "h"), 3600),
    **dict.fromkeys(("days", "day", "d"), 86400),
    **dict.fromkeys(("weeks", "week", "w"), 7 * 86400),
    **dict.fromkeys(("months", "month", "M"), 365.25 / 12 * 86400),
    **dict.fromkeys(("years", "year", "y"), 365.25 * 86400),
}
_SPAN_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:\s*([A-Za-zµμ]+)|(?=\s|$))\s*", re.ASCII)
_NOT_A_DURATION = 'must be a number of seconds or a time span such as "5s", "1min 30s" or "500ms"'


NO_OTHERS: dict[str, JsonValue] = {"additionalProperties": False}
"""For the JSON Schema of a table whose keys are names with a pattern."""


class Model(BaseModel):
    """A table. Strict: "yes" is no boolean, 5.0 no count. No value in pydantic's own messages: it might be a secret."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True, slots=True)
class ExitStatuses:
    """Exit codes (0 to 255) and signal numbers, kept apart: code 15 is not SIGTERM."""

    codes: frozenset[int] = frozenset()
    signals: frozenset[int] = frozenset()


def duration(value: object) -> float:
    """Read seconds: a number of them, or a time span as systemd.time(7) has it; "infinity" and TOML's inf are math.inf.

    Raises ValueError, with a sentence, for all else.
    """
    if isinstance(value, str):
        seconds = _time_span(value.strip())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = _number(value)
    else:
        raise ValueError(_NOT_A_DURATION)  # noqa: TRY004 - pydantic reports a ValueError; a TypeError escapes it
    if seconds < 0:
        raise ValueError("must not be negative")
    return seconds


def _number(value: float) -> float:
    try:
        seconds = float(value)
    except OverflowError:  # Python's integers have no end
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError(_NOT_A_DURATION)
    return seconds


def _time_span(text: str) -> float:
    if text == "infinity":
        return math.inf
    seconds, at = 0.0, 0
    while part := _SPAN_PART.match(text, at):
        unit = part[2] or "s"
        if unit not in _UNITS:
            raise ValueError(f'"{unit}" is no unit of time (known: us, ms, s, min, h, d, w, month, y)')
        seconds += float(part[1]) * _UNITS[unit]
        at = part.end()
    if not text or at < len(text) or not math.isfinite(seconds):
        raise ValueError(_NOT_A_DURATION)
    return seconds


def _finite(value: object) -> float:
    seconds = duration(value)
    if math.isinf(seconds):
        raise ValueError("must not be infinite")
    return seconds


def _timeout(value: object) -> float:
    seconds = duration(value)
    # systemd reads TimeoutStopSec=0 as no timeout, most people as no patience.
    if seconds == 0:
        raise ValueError('must be more than 0 (for no limit write "infinity")')
    return seconds


def _limit(value: object) -> float | None:
    seconds = math.inf if value is None else duration(value)
    return None if math.isinf(seconds) else seconds


def _exit_statuses(value: object) -> ExitStatuses:
    if isinstance(value, ExitStatuses):
        return value
    if not isinstance(value, list):
        raise ValueError('must be a list of exit codes and signal names, such as [143, "SIGTERM"]')  # noqa: TRY004
    complaints = list(dict.fromkeys(filter(None, map(_complaint, value))))
    if complaints:
        raise ValueError("; ".join(complaints))
    return ExitStatuses(
        codes=frozenset(item for item in value if isinstance(item, int)),
        signals=frozenset(int(signal.Signals[_full_name(item)]) for item in value if isinstance(item, str)),
    )


def _complaint(item: object) -> str | None:
    if isinstance(item, str):
        return None if _full_name(item) in signal.Signals.__members__ else _no_signal(item)
    if isinstance(item, bool) or not isinstance(item, int):
        return 'must hold only exit codes (whole numbers) and signal names, such as [143, "SIGTERM"]'
    return None if 0 <= item <= 255 else f"{item} is no exit code (0 to 255)"


def _full_name(name: str) -> str:
    return name if name.startswith("SIG") else f"SIG{name}"


def _no_signal(name: str) -> str:
    if name.isdecimal():
        return f'"{name}" is no signal (an exit code is written without quotes)'
    known = [member.removeprefix("SIG") for member in signal.Signals.__members__]
    close = get_close_matches(name.upper().removeprefix("SIG"), known, n=1)
    hint = f'did you mean "SIG{close[0]}"?' if close else 'write "SIGTERM" or "TERM"'
    return f'"{name}" is no signal ({hint})'


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _a_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv or not argv[0].strip():
        raise ValueError('must not be empty (its first item is the program: ["/usr/bin/thing", "--flag"])')
    return argv


def _any(items: tuple[str, ...]) -> tuple[str, ...]:
    if not items:
        raise ValueError("must not be empty (leave it out for the usual directories)")
    return items


def _not_set_by_us(name: str) -> str:
    if name in SET_BY_US:
        raise ValueError("is set by the supervisor itself (leave it out)")
    return name


def _allowed_user(name: str, info: ValidationInfo) -> str:
    """Refuse uid 0, and for a supervisor that is not root, everybody else (context: its `uid`).

    A user that does not exist is no problem yet: it may be made before the agent starts.
    """
    if name.isdecimal() or name in {".", ".."}:
        raise ValueError("must be a user's name, not a number (getent passwd NUMBER tells it)")
    uid = (info.context or {}).get("uid")
    if uid is None:
        return name
    if name == "root" or uid_of(name) == 0:
        raise ValueError("an agent cannot run as root (give it a user of its own: useradd -m NAME)")
    if uid != 0 and uid_of(name) != uid:
        raise ValueError(
            "only root can run agents as other users (run forge-supervisor as root, or leave run_as out)",
        )
    return name


def uid_of(name: str) -> int | None:
    """Return None if there is no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


_SOMETHING = r"\S"
AGENT_NAME = "^[a-z0-9][a-z0-9-]{0,47}$"
_SOCKET = "^[A-Za-z0-9_-]{1,64}$"
USER = "^[A-Za-z0-9_.][A-Za-z0-9_.-]{0,30}[A-Za-z0-9_.$-]?$"  # is_valid_user_name() of shadow's useradd(8)
_VARIABLE = "^[A-Za-z_][A-Za-z0-9_]*$"
_PLACE = "^~?/"
_SEARCHED = "^~?/[^:]*$"
_PROGRAM = "^(~?/.*|[^/]+)$"
_LIBRARY = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_SECRET_FILE = "^(~?/.*|[$]CREDENTIALS_DIRECTORY/[^/.][^/]*)$"  # noqa: S105 - a pattern
_SNOWFLAKE = "^[0-9]{17,20}$"

SENTENCES = {
    _SOMETHING: "must not be empty",
    AGENT_NAME: 'an agent\'s name has at most 48 of a-z, 0-9 and "-", and begins with a letter or digit',
    _SOCKET: 'must be made of letters, digits, "_" and "-" (at most 64)',
    USER: 'must be a user\'s name: letters, digits, "_", "." and "-" (at most 32)',
    _VARIABLE: 'a variable\'s name is made of letters, digits and "_", and begins with no digit',
    _PLACE: "must be an absolute path, or begin with ~/ (the agent's home)",
    _SEARCHED: 'must be an absolute path, or begin with ~/, and hold no ":"',
    _LIBRARY: 'must be made of letters, digits, "_" and "-" (at most 64), and begin with a letter or digit',
    _SECRET_FILE: (
        "must be an absolute path, begin with ~/ (the home of the agent's user), or be "
        "$CREDENTIALS_DIRECTORY/NAME (what LoadCredential=NAME:… gives the supervisor's unit)"
    ),
    _SNOWFLAKE: "must be an id of Discord, 17 to 20 digits in quotes (Developer Mode, right-click, Copy ID)",
    _PROGRAM: "must be an absolute path, begin with ~/, or be a bare name (which is looked for on path)",
}
"""What is said of a value that does not match the pattern."""

# The pattern comes first: pydantic has no pattern in the JSON Schema of what a validator returns.
Text = Annotated[str, AfterValidator(_no_nul)]
Words = Annotated[str, Field(pattern=_SOMETHING), AfterValidator(_no_nul)]
AgentName = Annotated[str, Field(pattern=AGENT_NAME)]
SocketName = Annotated[str, Field(pattern=_SOCKET)]
UserName = Annotated[str, Field(pattern=USER), AfterValidator(_allowed_user)]
VariableName = Annotated[str, Field(pattern=_VARIABLE), AfterValidator(_not_set_by_us)]
Place = Annotated[str, Field(pattern=_PLACE), AfterValidator(_no_nul)]
LibraryName = Annotated[str, Field(pattern=_LIBRARY)]
SecretFile = Annotated[str, Field(pattern=_SECRET_FILE), AfterValidator(_no_nul)]
Snowflake = Annotated[str, Field(pattern=_SNOWFLAKE)]
Program = Annotated[str, Field(pattern=_PROGRAM), AfterValidator(_no_nul)]
Argv = Annotated[
    tuple[Text, ...],
    Field(strict=False),  # TOML's lists are lists
    AfterValidator(_a_program),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
WordList = Annotated[tuple[Words, ...], Field(strict=False)]
Names = Annotated[tuple[LibraryName, ...], Field(strict=False)]
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Snowflakes = Annotated[tuple[Snowflake, ...], Field(strict=False)]
SearchPath = Annotated[
    tuple[Annotated[Text, Field(pattern=_SEARCHED)], ...],
    Field(strict=False),
    AfterValidator(_any),
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": _SEARCHED}, "minItems": 1}),
]

SPAN: dict[str, JsonValue] = {"type": "string", "pattern": "^[0-9.][0-9A-Za-zµμ. ]*$"}
_ENDLESS = {"const": "infinity"}
_SECONDS = {"type": "number", "minimum": 0}
Duration = Annotated[float, PlainValidator(_finite), WithJsonSchema({"anyOf": [_SECONDS, SPAN]})]
Interval = Annotated[float, PlainValidator(duration), WithJsonSchema({"anyOf": [_SECONDS, SPAN, _ENDLESS]})]
Timeout = Annotated[
    float,
    PlainValidator(_timeout),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, SPAN, _ENDLESS]}),
]
Limit = Annotated[float | None, PlainValidator(_limit), WithJsonSchema({"anyOf": [_SECONDS, SPAN, _ENDLESS]})]
Statuses = Annotated[
    ExitStatuses,
    PlainValidator(_exit_statuses),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 255},
                    {"enum": [*signal.Signals.__members__, *(name[3:] for name in signal.Signals.__members__)]},
                ],
            },
        },
    ),
]
