"""What config.toml says of hooks: which command is run as whom when something happens to an agent."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema

from forge_supervisor.config_files import Problem, dotted
from forge_supervisor.config_values import SPAN, USER, Argv, Model, duration, uid_of
from forge_supervisor.trust import others_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HookEvent = Literal["failed", "start-limit", "blocked", "recovered"]
"""What hooks can wait for; forge_supervisor.hooks tells which events of the supervisor these are."""

LONGEST_SEC = 3600
"""A hook of hours would keep the others waiting."""


# The hook sees them, the service does not: ProtectHome= and PrivateTmp=, systemd.exec(5).
_UNSEEN = ("/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108


def _events(words: tuple[HookEvent, ...]) -> tuple[HookEvent, ...]:
    if not words:
        raise ValueError('must name what the command is run for, such as ["failed", "recovered"]')
    return words


def _command(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv[0].startswith("/"):
        raise ValueError("must begin with an absolute path: no shell and no PATH finds the program for it")
    return argv


def _user(name: str, info: ValidationInfo) -> str:
    """Refuse root unless it is written out, and for a supervisor that is not root, everybody else (context: `uid`).

    A user that does not exist is no problem yet: it may be made before the hook is run.
    """
    if name.isdecimal() or name in {".", ".."}:
        raise ValueError("must be a user's name, not a number (getent passwd NUMBER tells it)")
    uid = (info.context or {}).get("uid")
    if uid is None:
        return name
    if uid == 0 and name != "root" and uid_of(name) == 0:
        raise ValueError('is root by another name (write "root" if that is meant)')
    if uid != 0 and uid_of(name) != uid:
        own = pwd.getpwuid(uid).pw_name
        raise ValueError(f'only root can run hooks as other users (write "{own}", or run forge-supervisor as root)')
    return name


def _patience(value: object) -> float:
    seconds = duration(value)
    if not 0 < seconds <= LONGEST_SEC:
        raise ValueError(f'must be more than 0 and at most {LONGEST_SEC} s, such as "30s"')
    return seconds


def _tables(value: object) -> object:
    if isinstance(value, dict):
        raise ValueError("is a list of tables: write [[on_event]], with two brackets")  # noqa: TRY004 - see duration()
    return value


class OnEvent(Model):
    """A command that is run when something happens, with what has happened as JSON on its standard input."""

    events: Annotated[
        tuple[HookEvent, ...], Field(strict=False, json_schema_extra={"minItems": 1}), AfterValidator(_events)
    ]
    """What it is run for: "failed" (an agent is down and stays so), "start-limit" (the same, having failed too often),
    "blocked" (an agent runs and cannot do its work), "recovered" (an agent of which either was told does again)."""
    command: Annotated[
        Argv,
        AfterValidator(_command),
        WithJsonSchema(
            {
                "type": "array",
                "prefixItems": [{"type": "string", "pattern": "^/"}],
                "items": {"type": "string"},
                "minItems": 1,
            }
        ),
    ]
    """The program, by an absolute path, and its arguments; no shell reads them."""
    user: Annotated[str, Field(pattern=USER), AfterValidator(_user)]
    """The Linux user that it runs as; root only if that is what is written here."""
    timeout_sec: Annotated[
        float,
        PlainValidator(_patience),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_SEC},
                    SPAN,
                ]
            }
        ),
    ] = 30.0
    """How long it may take before it is ended; an hour at most."""


OnEvents = Annotated[tuple[OnEvent, ...], Field(strict=False), BeforeValidator(_tables)]


def hook_problems(hooks: Sequence[OnEvent], file: str, uid: int) -> Iterator[Problem]:
    """Find users that there are not, which may still be made, and what root would run for somebody else."""
    for number, hook in enumerate(hooks):
        if uid_of(hook.user) is None:
            text = f'no such user "{hook.user}" (create it: useradd -m {hook.user})'
            yield Problem(dotted(("on_event", number, "user")), text, fatal=False, file=file)
        if hook.user == "root" and uid == 0 and (why := _whose(Path(hook.command[0]))):
            yield Problem(dotted(("on_event", number, "command")), why, file=file)


def _whose(program: Path) -> str | None:
    """Say who could have root run something else in the place of a program of root's."""
    try:
        others = others_way(program, whose_file=True)
    except OSError as error:
        step = Path(os.fsdecode(error.filename or program))
        if any(step.is_relative_to(place) for place in _UNSEEN):
            way_out = "move the program to /usr/local/bin, or name another user"
            return f"{step}: the supervisor cannot see whose it is ({way_out})"
        return None  # it may be installed before it is run, and otherwise that will be told
    if others is None:
        return None
    return f"{others.step} is not root's alone, so others could choose what root runs (move it, or name another user)"
