"""config.toml: every key that the operator may write, and what the files say all told."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from forge_supervisor.config_files import ConfigError as ConfigError  # noqa: PLC0414 - part of what load() is
from forge_supervisor.config_files import Keys, Merged, Table, dotted, merge, read
from forge_supervisor.config_files import Problem as Problem  # noqa: PLC0414 - part of what load() is
from forge_supervisor.config_values import (
    SENTENCES,
    AgentName,
    Argv,
    Duration,
    Interval,
    Limit,
    Place,
    Program,
    SearchPath,
    SocketName,
    Statuses,
    Text,
    Timeout,
    UserName,
    VariableName,
    Words,
)
from forge_supervisor.config_values import ExitStatuses as ExitStatuses  # noqa: PLC0414 - the type of three keys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails, core_schema

Policy = Literal["no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"]

_NO_OTHERS: dict[str, JsonValue] = {"additionalProperties": False}


class _Model(BaseModel):
    # strict: "yes" is no boolean, 5.0 no count. No value in pydantic's own messages: it might be a secret.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class Restart(_Model):
    """When the agent is started again. Names and meanings are those of systemd.service(5) and systemd.unit(5)."""

    policy: Policy = "on-failure"
    """After which ends the agent is started again (systemd: Restart=)."""
    delay_sec: Duration = 5.0
    """The wait before a restart (RestartSec=)."""
    limit_burst: int = Field(default=3, ge=0)
    """How many starts limit_interval_sec may hold; at one more the agent is failed (StartLimitBurst=). 0: no limit."""
    limit_interval_sec: Interval = 60.0
    """The time in which starts are counted (StartLimitIntervalSec=). 0: no limit; "infinity": for good."""
    steps: int = Field(default=0, ge=0)
    """In how many restarts the wait grows from delay_sec to max_delay_sec (RestartSteps=). 0: it does not grow."""
    max_delay_sec: Limit = None
    """The longest wait before a restart (RestartMaxDelaySec=); goes with steps."""
    success_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals that are a clean end, beside 0, HUP, INT, TERM and PIPE (SuccessExitStatus=)."""
    prevent_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals after which there is no restart, whatever the policy (RestartPreventExitStatus=)."""
    force_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals after which there is a restart, whatever the policy (RestartForceExitStatus=)."""


class AgentTable(_Model):
    """An agent as the files may have it; in [defaults], what all agents have in common."""

    role: Words | None = None
    """What the agent is for: the text of its CLAUDE.md."""
    run_as: UserName | None = None
    """The Linux user that the agent runs as, never root. Needed when the supervisor is root; otherwise one's own."""
    harness: Words = "claude-code"
    """The program that the agent runs in: "claude-code", or "command" for any other."""
    model: Words | None = None
    """The model, by an alias or a full name that the harness knows (unset: the harness's own choice)."""
    effort: Words = "max"
    """How hard the model thinks: "low", "medium", "high", "xhigh" or "max"."""
    env: dict[VariableName, Text] = Field(default_factory=dict, repr=False, json_schema_extra=_NO_OTHERS)
    """Environment variables of the agent. Agents of one user can read each other's."""
    enabled: bool = True
    """Whether the agent is started together with the supervisor."""
    restart: Restart = Field(default_factory=Restart)
    """When the agent is started again after it has ended."""
    stop_timeout_sec: Timeout = 30.0
    """How long a stop waits after SIGTERM before it sends SIGKILL (TimeoutStopSec=), or "infinity"."""
    command: Argv | None = None
    """What the "command" harness runs: the program and its arguments, without a shell."""
    cwd: Place | None = None
    """Where the "command" harness runs it (unset: the agent's own state directory). ~/ is the agent's home."""
    path: SearchPath | None = None
    """The agent's PATH, a directory an item (unset: ~/.local/bin, /usr/local/bin, /usr/bin, /bin)."""


class Agent(AgentTable):
    """One agent with nothing left open: its own keys over [defaults]. Durations are seconds, math.inf for no end."""

    name: AgentName
    run_as: UserName


class HarnessSettings(_Model):
    """Where a harness's program is, and which version of it was meant."""

    binary: Program | None = None
    """The program: a path, or a name to be found on the agent's path (unset: the harness's own name for it)."""
    version: Words | None = None
    """The version that this configuration was made for; another one is a warning."""


class File(_Model):
    """One file: config.toml, or a drop-in beside it, conf.d/*.toml."""

    model_config = ConfigDict(title="forge-supervisor: config.toml")

    socket_name: SocketName = "forge"
    """The name of each user's tmux socket: tmux -L <socket_name>."""
    defaults: AgentTable = Field(default_factory=AgentTable)
    """Keys for all agents. An agent's own win; tables (restart, env) are merged key by key."""
    agents: dict[AgentName, AgentTable] = Field(default_factory=dict, json_schema_extra=_NO_OTHERS)
    """The agents, by name: a-z, 0-9 and "-", at most 48 characters. An agent stands in one file only."""
    harnesses: dict[Words, HarnessSettings] = Field(default_factory=dict)
    """Settings for all agents of a harness, by the harness's name."""


@dataclass(frozen=True, slots=True)
class Config:
    """What all files say. `warnings` are problems with which the agents can be started nevertheless."""

    socket_name: str = "forge"
    agents: dict[str, Agent] = field(default_factory=dict)
    harnesses: dict[str, HarnessSettings] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()


Check = Callable[[Agent, frozenset[str]], Iterable[Problem]]
"""Given an agent and the keys of its own table (not those it has from [defaults]), yields problems.

Their `key` is relative to the agent's table, their `file` empty.
"""


def load(path: str | os.PathLike[str], *, uid: int | None = None, check: Check | None = None) -> Config:
    """Read the file at `path` and its drop-ins for a supervisor that runs as `uid` (by default the process's own).

    Raises ConfigError with every problem that was found, in all files.
    """
    uid = os.geteuid() if uid is None else uid
    documents, problems = read(Path(path), uid=uid)
    usual: Table = {}
    if uid:
        try:
            usual["run_as"] = pwd.getpwuid(uid).pw_name
        except KeyError:
            text = f"the supervisor runs as uid {uid}, which has no user name (getent passwd {uid})"
            problems.append(Problem("", text))
    # What an agent lacks may stand in a file that could not be read.
    unread = bool(problems)
    for file, document in documents.items():
        problems += _shape_problems(document, file, uid)
    merged = merge(documents)
    problems += merged.problems
    agents, found = ({}, []) if unread else _agents(merged, usual, uid, check)
    problems += found
    if fatal := [problem for problem in problems if problem.fatal]:
        raise ConfigError(fatal)
    if not agents:
        problems.append(Problem("agents", "no agent is declared ([agents.NAME])", fatal=False, file=str(path)))
    settings = File.model_validate(merged.table)
    return Config(settings.socket_name, agents, settings.harnesses, tuple(dict.fromkeys(problems)))


def schema() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of a file, for editors."""
    return {"$schema": _Schema.schema_dialect, **File.model_json_schema(schema_generator=_Schema)}


class _Schema(GenerateJsonSchema):
    """Says nothing of null, which TOML does not have, nor of the titles that pydantic makes up."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if isinstance(schema.get("default"), str | int | float):
            return super().default_schema(schema)
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def _agents(
    merged: Merged,
    usual: Table,
    uid: int,
    check: Check | None,
) -> tuple[dict[str, Agent], list[Problem]]:
    """Put each agent together with the defaults. What is wrong with either by itself has been told already."""
    agents: dict[str, Agent] = {}
    problems: list[Problem] = []
    defaults = _table(merged.table, "defaults")
    tables = _table(merged.table, "agents")
    for name in tables:
        own = _table(tables, name)
        table = _over(usual, defaults, own)
        try:
            agents[name] = Agent.model_validate({**table, "name": name}, context={"uid": uid})
        except ValidationError as error:
            found = list(_lacking(error.errors()))
        else:
            found = [*_restart_problems(agents[name].restart, own)]
            found += check(agents[name], frozenset(own)) if check else ()
        problems += (_placed(problem, name, own, merged) for problem in found)
    return agents, problems


def _table(table: Table, key: str) -> Table:
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def _over(*tables: Table) -> Table:
    """Lay later tables over earlier ones; the tables that they hold (restart, env) hold no further ones."""
    result: Table = {}
    for key, value in (item for table in tables for item in table.items()):
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = {**result[key], **value} if both else value
    return result


def _lacking(errors: Iterable[ErrorDetails]) -> Iterator[Problem]:
    kinds = {error["type"]: dotted(error["loc"]) for error in errors}
    # An unknown key is more likely the missing one, misspelt.
    if "missing" in kinds and "extra_forbidden" not in kinds:
        text = 'is missing (add run_as = "USER", here or in [defaults]; useradd -m USER makes one)'
        yield Problem(kinds["missing"], text)


def _restart_problems(restart: Restart, own: Table) -> Iterator[Problem]:
    """Refuse what systemd would log and ignore (service_verify() in src/core/service.c)."""
    longest = restart.max_delay_sec
    if restart.steps and longest is None:
        yield Problem("restart.steps", 'has no effect without restart.max_delay_sec (such as "5min")')
    # steps = 0 in so many words is how an agent turns off what [defaults] turn on.
    if longest is not None and "steps" not in restart.model_fields_set:
        yield Problem("restart.max_delay_sec", "has no effect without restart.steps (such as 5)")
    if longest is not None and restart.steps and longest < restart.delay_sec:
        key = "delay_sec" if "delay_sec" in _table(own, "restart") else "max_delay_sec"
        text = f"restart.max_delay_sec ({longest:g} s) must be at least restart.delay_sec ({restart.delay_sec:g} s)"
        yield Problem(f"restart.{key}", text)


def _placed(problem: Problem, name: str, own: Table, merged: Merged) -> Problem:
    """Name the file and the full key: those of [defaults] if the agent has the key from there."""
    keys = tuple(problem.key.split(".")) if problem.key else ()
    table: Keys = ("agents", name)
    if not _has(own, keys) and _has(_table(merged.table, "defaults"), keys):
        table = ("defaults",)
    key = f"{dotted(table)}.{problem.key}" if problem.key else dotted(table)
    return replace(problem, key=key, file=merged.origin((*table, *keys)))


def _has(table: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


def _shape_problems(document: Table, file: str, uid: int) -> list[Problem]:
    """Find unknown keys and wrong values in one file."""
    try:
        File.model_validate(document, context={"uid": uid})
    except ValidationError as error:
        return [_told(detail, file) for detail in error.errors()]
    return []


def _told(detail: ErrorDetails, file: str) -> Problem:
    keys = detail["loc"]
    if keys[-1] == "[key]":  # so pydantic marks that a table's key is wrong, not its value
        keys = keys[:-1]
    return Problem(dotted(keys), _sentence(detail), file=file)


_WANTED = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
}
# bool first: Python's booleans are numbers.
_KINDS = ((bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list"), (dict, "a table"))


def _sentence(detail: ErrorDetails) -> str:
    """Say what is wrong. No sentence repeats a value: it might be a secret, and these go to logs."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return _unknown(detail["loc"])
        case "string_pattern_mismatch":
            return SENTENCES[context["pattern"]]
        case "literal_error":
            known = get_args(Policy)
            return f"must be one of {_listed(known)}{_meant(detail['input'], known)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case kind:
            given = _kind(detail["input"])
            quotes = " (put it in quotes)" if kind == "string_type" and given in {"a number", "a boolean"} else ""
            return f"{_WANTED[kind]}, not {given}{quotes}"


def _kind(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")


def _unknown(keys: Keys) -> str:
    table: Any = File
    for key in keys[:-1]:
        table = get_args(table)[1] if get_origin(table) is dict else table.model_fields[str(key)].annotation
    known = list(table.model_fields)
    inner = {f"restart.{key}": key for key in Restart.model_fields} if "restart" in known else {}
    exact = [path for path, key in inner.items() if key == keys[-1]]
    hint = f' (did you mean "{exact[0]}"?)' if exact else _meant(keys[-1], [*known, *inner])
    return f"unknown key{hint or f' (known here: {_listed(known)})'}"


def _meant(given: object, known: Sequence[str]) -> str:
    close = get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f' (did you mean "{close[0]}"?)' if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
