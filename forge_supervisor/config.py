"""config.toml: every key that the operator may write, and what the files say all told."""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from forge_supervisor.config_budget import Budget
from forge_supervisor.config_control import AgentNames, Control, unknown_agents
from forge_supervisor.config_files import ConfigError as ConfigError  # noqa: PLC0414 - part of what load() is
from forge_supervisor.config_files import Keys, Merged, Table, dotted, key_path, merge, read
from forge_supervisor.config_files import Problem as Problem  # noqa: PLC0414 - part of what load() is
from forge_supervisor.config_hooks import OnEvent, OnEvents, hook_problems
from forge_supervisor.config_library import Library as Library  # noqa: PLC0414 - part of a Config
from forge_supervisor.config_library import shared_bots, unknown_references
from forge_supervisor.config_resources import Resources
from forge_supervisor.config_restart import Restart as Restart  # noqa: PLC0414 - the type of a key
from forge_supervisor.config_restart import Resume, restart_problems
from forge_supervisor.config_schema import json_schema
from forge_supervisor.config_sentences import told
from forge_supervisor.config_values import (
    NO_OTHERS,
    AgentName,
    Argv,
    LibraryName,
    Model,
    Names,
    Place,
    Places,
    Program,
    SearchPath,
    SecretFile,
    SocketName,
    Text,
    Texts,
    Timeout,
    UserName,
    VariableName,
    WordList,
    Words,
)
from forge_supervisor.config_values import ExitStatuses as ExitStatuses  # noqa: PLC0414 - the type of three keys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Inheritable = Literal[
    "auto-memory",
    "bundled-skills",
    "claude-ai-connectors",
    "parent-instructions",
    "user-instructions",
    "user-settings",
    "user-skills",
]


class Permissions(Model):
    """Which tools an agent may use. Which rules there are is the harness's: "Bash(git *)", "mcp__tracker__search"."""

    allow: WordList = ()
    """Rules for what it may do without being asked."""
    deny: WordList = ()
    """Rules for what it may never do, skip_prompts or not."""
    skip_prompts: bool = True
    """Whether it may do all that is not denied, without being asked."""
    unlisted: Literal["refuse", "ask"] = "refuse"
    """Without skip_prompts, what becomes of what no rule allows: it is refused, or the agent asks at its terminal and
    waits for an answer. (Codex: commands run in its sandbox, whatever the rules; this is about what that forbids.)"""


class AgentTable(Model):
    """An agent as the files may have it; in [defaults], what all agents have in common."""

    role: Words | None = None
    """What the agent is for: its CLAUDE.md, or what stands for that with another harness."""
    run_as: UserName | None = None
    """The Linux user that the agent runs as, never root. Needed when the supervisor is root; otherwise one's own."""
    harness: Words = "claude-code"
    """The program that the agent runs in: "claude-code", "codex", or "command" for any other."""
    model: Words | None = None
    """The model, by an alias or a full name that the harness knows (unset: the harness's own choice)."""
    effort: Words = "max"
    """How hard the model thinks: "low", "medium", "high", "xhigh" or "max"; with codex also "ultra"."""
    env: dict[VariableName, Text] = Field(default_factory=dict, repr=False, json_schema_extra=NO_OTHERS)
    """Environment variables of the agent. Agents of one user can read each other's."""
    secrets: dict[VariableName, SecretFile] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """Environment variable to the file that holds its value, which is never written elsewhere."""
    skills: Names = ()
    """What it has of [skills]."""
    plugins: Names = ()
    """What it has of [plugins]."""
    mcp_servers: Names = ()
    """What it has of [mcp_servers]."""
    discord_bot: LibraryName | None = None
    """The one of [discord.bots] as which it answers on Discord."""
    allowed_tools: WordList = ()
    """Tools that it may use without being asked, as permissions.allow."""
    permissions: Permissions = Field(default_factory=Permissions)
    """What it may do."""
    add_dirs: Places = ()
    """Directories beside its own that it works in. ~/ is the agent's home."""
    extra_args: Texts = ()
    """Further arguments for the harness. Every user of the machine can read them (ps): no place for a secret."""
    inherit: Annotated[tuple[Inheritable, ...], Field(strict=False)] = ()
    """What it takes over from its Linux user and from the harness, all of which is kept from it otherwise. Codex has
    "bundled-skills", "user-instructions" and "user-skills" of these."""
    enabled: bool = True
    """Whether the agent is started together with the supervisor."""
    restart: Restart = Field(default_factory=Restart)
    """When the agent is started again after it has ended."""
    resume: Resume = Field(default_factory=Resume)
    """What it remembers of its earlier sessions."""
    budget: Budget = Field(default_factory=Budget)
    """What it may use of its model in a day."""
    resources: Resources = Field(default_factory=Resources)
    """How much of the machine it may use, together with all that it starts."""
    ready_timeout_sec: Timeout = 60.0
    """How long a start may take to the prompt until the agent counts as blocked, or "infinity"."""
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


class HarnessSettings(Model):
    """Where a harness's program is, and which version of it was meant."""

    binary: Program | None = None
    """The program: a path, or a name to be found on the agent's path (unset: the harness's own name for it)."""
    version: Words | None = None
    """The version that this configuration was made for; another one is a warning."""


class File(Library):
    """One file: config.toml, or a drop-in beside it, conf.d/*.toml."""

    model_config = ConfigDict(title="forge-supervisor: config.toml")

    socket_name: SocketName = "forge"
    """The name of each user's tmux socket: tmux -L <socket_name>."""
    defaults: AgentTable = Field(default_factory=AgentTable)
    """Keys for all agents. An agent's own win; tables (restart, env) are merged key by key."""
    agents: dict[AgentName, AgentTable] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """The agents, by name: a-z, 0-9 and "-", at most 48 characters. An agent stands in one file only."""
    disabled: AgentNames = ()
    """Agents that are not started, whatever their own tables say: what forgectl disable writes into conf.d."""
    control: Control = Field(default_factory=Control)
    """Who may use forgectl, beside root and the members of the group "forge"."""
    on_event: OnEvents = ()
    """Commands that are run when something happens to an agent. All of them stand in one file."""
    harnesses: dict[Words, HarnessSettings] = Field(default_factory=dict)
    """Settings for all agents of a harness, by the harness's name."""


@dataclass(frozen=True, slots=True)
class Config:
    """What all files say. `warnings` are problems with which the agents can be started nevertheless."""

    socket_name: str = "forge"
    agents: dict[str, Agent] = field(default_factory=dict)
    harnesses: dict[str, HarnessSettings] = field(default_factory=dict)
    library: Library = field(default_factory=Library)
    control: Control = field(default_factory=Control)
    hooks: tuple[OnEvent, ...] = ()
    warnings: tuple[Problem, ...] = ()
    said: Merged = field(default_factory=lambda: Merged({}, {}, ()), repr=False, compare=False)

    def origin(self, agent: str, key: str) -> tuple[str, str]:
        """Name the full key of one of the agent's keys or of the library's, and the file that says it ("" if none)."""
        full, file = _origin(key, agent, self.said)
        return full, file if _has(self.said.table, tuple(full.split("."))) else ""

    def settings(self, agent: Agent) -> HarnessSettings:
        """What is said of the agent's harness."""
        return self.harnesses.get(agent.harness, HarnessSettings())


Check = Callable[[Agent, frozenset[str], Library], Iterable[Problem]]
"""Given an agent, the keys of its own table (not those it has from [defaults]) and what it has been granted of the
library, yields problems.

Their `key` is relative to the agent's table, their `file` empty.
"""


Meant = Callable[[str], Collection[str]]
"""Given the name of a harness, tells which keys of an agent mean something with it."""


@dataclass(frozen=True, slots=True)
class Harnesses:
    """What is to be known of harnesses to read a configuration; without it, any key is taken for any harness."""

    check: Check = lambda *_: ()
    meant: Meant = lambda _: AgentTable.model_fields


def load(path: str | os.PathLike[str], *, uid: int | None = None, harnesses: Harnesses | None = None) -> Config:
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
    library = _library(merged.table)
    agents, found = ({}, []) if unread else _agents(merged, usual, library, uid, harnesses or Harnesses())
    problems += found
    settings = _settings(problems, merged, uid)
    if not agents:
        problems.append(Problem("agents", "no agent is declared ([agents.NAME])", fatal=False, file=str(path)))
    problems += _placed_at_top(unknown_agents(settings.control, settings.disabled, agents), merged)
    return Config(
        settings.socket_name,
        _without(settings.disabled, agents),
        settings.harnesses,
        library,
        settings.control,
        settings.on_event,
        tuple(dict.fromkeys(problems)),
        merged,
    )


def _settings(problems: list[Problem], merged: Merged, uid: int) -> File:
    """Read what is no agent's, adding what is wrong with it. Raises ConfigError if anything at all is fatal."""
    _raise_fatal(problems)
    settings = File.model_validate(merged.table)
    problems += hook_problems(settings.on_event, merged.origin(("on_event",)), uid)
    _raise_fatal(problems)
    return settings


def _raise_fatal(problems: Iterable[Problem]) -> None:
    if fatal := [problem for problem in problems if problem.fatal]:
        raise ConfigError(fatal)


def _without(disabled: Collection[str], agents: dict[str, Agent]) -> dict[str, Agent]:
    stopped = {name: agents[name].model_copy(update={"enabled": False}) for name in disabled if name in agents}
    return {**agents, **stopped}


def _placed_at_top(problems: Iterable[Problem], merged: Merged) -> Iterator[Problem]:
    return (replace(problem, file=merged.origin(tuple(problem.key.split(".")))) for problem in problems)


def problems_of(text: str, harnesses: Harnesses) -> list[Problem]:
    """Tell what is wrong with the text of a single file, wherever it may come to lie. Raises ValueError: no TOML."""
    table = tomllib.loads(text)
    merged = merge({"": table})
    return [*_shape_problems(table, "", 0), *_agents(merged, {}, _library(table), 0, harnesses)[1]]


def schema() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of a file, for editors."""
    return json_schema(File)


def _library(table: Table) -> Library:
    """Read the library's tables; an empty one if they are wrong, which has been told already."""
    try:
        return Library.model_validate({key: table[key] for key in Library.model_fields if key in table})
    except ValidationError:
        return Library()


def _agents(
    merged: Merged,
    usual: Table,
    library: Library,
    uid: int,
    harnesses: Harnesses,
) -> tuple[dict[str, Agent], list[Problem]]:
    """Put each agent together with the defaults. What is wrong with either by itself has been told already."""
    agents: dict[str, Agent] = {}
    problems: list[Problem] = []
    defaults = _table(merged.table, "defaults")
    tables = _table(merged.table, "agents")
    for name in tables:
        own = _table(tables, name)
        table = _over(usual, _usual_for(own, defaults, harnesses), own)
        try:
            agents[name] = agent = Agent.model_validate({**table, "name": name}, context={"uid": uid})
        except ValidationError as error:
            found = list(_lacking(error.errors()))
        else:
            found = [*restart_problems(agent.restart, _table(own, "restart")), *unknown_references(agent, merged.table)]
            found += harnesses.check(agent, frozenset(own), library.granted(agent))
        problems += (_placed(problem, name, merged) for problem in found)
    problems += _unknown_in_defaults(defaults, merged)
    problems += (_placed(problem, agent.name, merged) for agent, problem in shared_bots(agents.values(), library))
    return agents, problems


def _unknown_in_defaults(defaults: Table, merged: Merged) -> Iterator[Problem]:
    """Find what [defaults] name and no file declares, whether or not any agent has it from there."""
    try:
        usual = AgentTable.model_validate({key: value for key, value in defaults.items() if key != "run_as"})
    except ValidationError:
        return
    for problem in unknown_references(usual, merged.table):
        keys = ("defaults", problem.key)
        yield replace(problem, key=dotted(keys), file=merged.origin(keys))


def _usual_for(own: Table, defaults: Table, harnesses: Harnesses) -> Table:
    """Take of [defaults] what means something for this agent's harness, and no variable that the agent sets itself."""
    harness = own.get("harness", defaults.get("harness", AgentTable.model_fields["harness"].default))
    meant = harnesses.meant(harness) if isinstance(harness, str) else AgentTable.model_fields
    usual = {key: value for key, value in defaults.items() if key in meant or key not in AgentTable.model_fields}
    for key, other in (("env", "secrets"), ("secrets", "env")):
        if key in usual and isinstance(usual[key], dict):
            usual[key] = {name: value for name, value in usual[key].items() if name not in _table(own, other)}
    return usual


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


def _placed(problem: Problem, name: str, merged: Merged) -> Problem:
    key, file = _origin(problem.key, name, merged)
    return replace(problem, key=key, file=file)


def _origin(key: str, name: str, merged: Merged) -> tuple[str, str]:
    """Name the full key and its file: those of [defaults] if the agent has the key from there."""
    if key_path(name, key) == key != "":
        return key, merged.origin(tuple(key.split(".")))
    keys = tuple(key.split(".")) if key else ()
    table: Keys = ("agents", name)
    own = _table(_table(merged.table, "agents"), name)
    if not _has(own, keys) and _has(_table(merged.table, "defaults"), keys):
        table = ("defaults",)
    full = f"{dotted(table)}.{key}" if key else dotted(table)
    return full, merged.origin((*table, *keys))


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
        return [told(detail, file, File) for detail in error.errors()]
    return []
