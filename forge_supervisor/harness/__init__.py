"""The seam between the core and the programs that agents run in.

A harness is a class without arguments, registered under its name in the entry
point group ``forge_supervisor.harnesses``. The core never names one.

One that does not come with forge-supervisor is called by way of `guarded`: whatever it does, what comes of it is an
answer or a BrokenHarnessError.

`Harness.check`, `Harness.secrets` and `Harness.unresumable` run in the supervisor and must be pure. `Harness.plan`,
`Harness.preflight`, `Harness.consult` and `Harness.version` run in the worker, as the agent's
Linux user: they may look at that user's files and write nothing. What a plan
wants on disk is data (`File`, `Link`, `JsonSeed`) and is written by workspace.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from forge_supervisor import secrets
from forge_supervisor.config import AgentTable, Harnesses, HarnessSettings, Library
from forge_supervisor.config import Problem as Problem
from forge_supervisor.harness.activity import TellsActivity
from forge_supervisor.harness.bounded import BrokenHarnessError as BrokenHarnessError
from forge_supervisor.harness.transcripts import KeepsTranscripts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from forge_supervisor.config import Agent
    from forge_supervisor.policy import Exit
    from forge_supervisor.secrets import SecretRef

ENTRY_POINT_GROUP = "forge_supervisor.harnesses"
_OUR_OWN = "forge_supervisor."
NEW_EACH_TIME = "(new at every start)"
"""What people are told in place of a value that only a start has."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one agent's things are; all absolute, none necessarily there yet."""

    home: Path
    forge: Path
    """``$XDG_STATE_HOME/forge``, which holds the things of all agents of the user."""
    agent: str
    search: tuple[str, ...]
    """The agent's PATH, one directory an item."""

    @property
    def state(self) -> Path:
        """The agent's own directory."""
        return self.forge / "agents" / self.agent

    @property
    def launch(self) -> Path:
        """Files for the harness that the agent is not meant to edit."""
        return self.forge / "launch" / self.agent

    @property
    def discord(self) -> Path:
        """What the agent's bot remembers. Not in `state`: the bot's plugin sends no file from where that is."""
        return self.forge / "discord" / self.agent


@dataclass(frozen=True, slots=True)
class File:
    """A file below `Paths.forge` that is written anew at every start, atomically, mode 0600.

    `origin` says for people what its content follows from: keys of the agent ("role"), tables of the library
    ("skills.review").
    """

    path: Path
    text: str
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link below `Paths.forge`. One that is no longer wanted is removed at the next start."""

    path: Path
    target: Path
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JsonSeed:
    """Values that must stand in a JSON file which other programs rewrite too.

    Tables are merged key by key, lists gain the items they lack, anything else
    is replaced, and the keys in `removed` go; all other content stays. `lock` is the directory whose
    existence is the lock among those who write the file.
    """

    path: Path
    values: Mapping[str, Any]
    lock: Path
    origin: tuple[str, ...] = ()
    removed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one agent is run.

    `argv[0]` is an absolute path. `env` is what the harness adds to the
    agent's environment (the agent's own `env` wins over it).
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    """Directories below `Paths.forge` that are to be there, beside those of the files and links; ours alone, 0700."""
    closed: tuple[Path, ...] = ()
    """Directories below `Paths.forge` in which nothing is to lie but the files: what else is there is moved aside."""
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    seeds: tuple[JsonSeed, ...] = ()
    resumes: bool = False
    """Whether it goes on with an earlier session."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a harness makes its plan of: one agent, and all that has been granted and told to it."""

    agent: Agent
    granted: Library = field(default_factory=Library)
    settings: HarnessSettings = field(default_factory=HarnessSettings)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variable to value. They reach the agent's environment by themselves, and must be written nowhere."""
    fresh: bool = False
    """Whether the agent is to have no memory of earlier sessions."""
    new_id: str = NEW_EACH_TIME
    """By what to call a session that is new: a UUID, or, where nothing is started, what is said in its place."""
    report: tuple[str, ...] = ()
    """The command, for the harness's hooks, that tells the supervisor the JSON which it reads. It prints nothing."""

    @property
    def env(self) -> dict[str, str]:
        """The variables that were declared for the agent, secret or not."""
        return {**self.agent.env, **self.secrets}


class Harness(Protocol):
    honours: frozenset[str]
    """The agent keys, beside those that the core itself acts on, that have a meaning here."""
    requires: frozenset[str]
    """Agent keys that must be given."""
    stop_exit_status: frozenset[int]
    """Exit codes that are clean while a requested stop is under way (and only then)."""

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:
        """Tell what is wrong with the agent's values, without looking at the machine."""
        ...

    def secrets(self, granted: Library) -> Iterable[SecretRef]:
        """Say which secrets the agent's environment needs for what it was granted; pure, as `check`."""
        ...

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        """Say how the agent is run. Raises LookupError, with a sentence, if its program is not found."""
        ...

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        """Tell what would keep the agent from working (not logged in, …)."""
        ...

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:
        """Ask the program itself what is wrong with the agent's values. May take seconds: only a dry run does it."""
        ...

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:
        """Tell by a session's end, and the last of its screen, whether the one before could not be resumed; pure."""
        ...

    def version(self, plan: LaunchPlan) -> str:
        """Ask the program for its version. Raises OSError or subprocess.SubprocessError."""
        ...


def names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def load(name: str) -> Harness:
    """Import and make the harness of that name.

    Raises LookupError if none is registered, and BrokenHarnessError if that which is cannot be used.
    """
    return _maker(name)()


def that_tells_activity(name: str) -> TellsActivity | None:
    """Make the harness of that name, if there is one that tells what its sessions are doing."""
    program = _installed(name)
    return program if isinstance(program, TellsActivity) else None


def that_keeps_transcripts(name: str) -> KeepsTranscripts | None:
    """Make the harness of that name, if there is one whose program keeps transcripts."""
    program = _installed(name)
    return program if isinstance(program, KeepsTranscripts) else None


def _installed(name: str) -> object:
    with contextlib.suppress(LookupError):
        return load(name)
    return None


@cache
def _maker(name: str) -> Callable[[], Harness]:
    # Each look reads what every installed distribution says of itself: milliseconds, several times a start.
    entries = [*entry_points(group=ENTRY_POINT_GROUP, name=name)]
    # No package takes the place of ours, wherever it is found.
    if ours := [entry for entry in entries if entry.value.startswith(_OUR_OWN)]:
        maker: Callable[[], Harness] = ours[0].load()
        return maker
    if len({entry.value for entry in entries}) > 1:
        told = ", ".join(sorted(entry.value for entry in entries))
        raise LookupError(f'more than one package has a harness "{name}" ({told}): uninstall all but one')
    if entries:
        from forge_supervisor.harness import guarded  # noqa: PLC0415 - it is made of what is here

        stranger = guarded.load(entries[0])
        return lambda: stranger
    raise LookupError(f'no harness "{name}" is installed (installed: {", ".join(names())})')


def find_program(program: str, search: Sequence[str], *, home: Path) -> Path:
    """Find an executable as execvp would. A leading ``~/`` is the agent's home.

    Raises LookupError with a sentence that names where it was looked for.
    """
    program = expand_home(program, home)
    if "/" in program:
        if not Path(program).is_absolute():
            raise LookupError(f"{program} is a relative path (give an absolute one, or a bare name that is on path)")
        if not _is_executable(program):
            raise LookupError(f"{program} is not an executable file for this user")
        return Path(program)
    for directory in search:
        candidate = Path(directory, program)
        if _is_executable(candidate):
            return candidate
    raise LookupError(f"{program} was not found on {':'.join(search)} (install it, or add its directory to path)")


def said_to(program: str, argument: str, **env: str) -> str:
    """Run a program for what it says to one argument, with next to no environment.

    Raises OSError and subprocess.SubprocessError.
    """
    answer = run_bare([program, argument], env)
    answer.check_returncode()
    return answer.stdout


def run_bare(
    argv: Sequence[str], env: Mapping[str, str], *, cwd: Path | None = None, timeout: float = 10.0
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing to read and next to no environment but `env`; `timeout` is in seconds.

    Raises OSError and subprocess.SubprocessError.
    """
    return subprocess.run(
        argv,
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        # An npm install is a script for the node beside it.
        env={"PATH": f"{Path(argv[0]).parent}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", **env},
    )


def _is_executable(path: str | Path) -> bool:
    # Not Path.is_file, which raises where a user may not look.
    return os.path.isfile(path) and os.access(path, os.X_OK)


DEFAULT_PATH = ("~/.local/bin", "/usr/local/bin", "/usr/bin", "/bin")


def search_path(agent: Agent, home: Path) -> tuple[str, ...]:
    """Tell the agent's PATH, one directory an item: its `path`, or else the user's own programs and the system's."""
    return tuple(expand_home(directory, home) for directory in agent.path or DEFAULT_PATH)


def expand_home(path: str, home: Path) -> str:
    """Resolve a leading ``~`` or ``~/``, which is the agent's home and nobody else's."""
    return str(home / path[2:]) if path == "~" or path.startswith("~/") else path


_THE_CORES = frozenset(
    {"role", "run_as", "harness", "env", "secrets", "enabled", "resources", "restart", "stop_timeout_sec", "path"}
)
"""Agent keys that the core itself acts on; any other means something only where a harness honours it."""


def meant(name: str) -> frozenset[str]:
    """Tell which keys of an agent mean something with that harness; all of them, if there is no such harness."""
    try:
        return _THE_CORES | load(name).honours
    except LookupError:
        return frozenset(AgentTable.model_fields)


def check_agent(agent: Agent, explicit: frozenset[str], granted: Library) -> Iterable[Problem]:
    """Tell what is wrong with the agent's values for its harness; `explicit` are the keys of its own table.

    A key that its harness does not honour is wrong where it was written for this agent, and skipped where it stands in
    [defaults], which is for agents of every harness.
    """
    try:
        harness = load(agent.harness)
    except BrokenHarnessError as error:
        yield _broken(error)
        return
    except LookupError as error:
        yield Problem(key="harness", text=str(error))
        return
    for key in sorted(explicit - _THE_CORES - harness.honours):
        yield Problem(key=key, text=f'means nothing to the harness "{agent.harness}" (remove it)')
    for key in sorted(harness.requires):
        if not getattr(agent, key):
            yield Problem(key=key, text=f'is missing, and the harness "{agent.harness}" needs it')
    if agent.resources.restart_above is not None and "resources" in explicit and not isinstance(harness, TellsActivity):
        text = f'means nothing to the harness "{agent.harness}", which does not tell when it is idle (remove it)'
        yield Problem(key="resources.restart_above", text=text)
    try:
        yield from harness.check(agent, granted)
        yield from secrets.conflicts(agent, harness.secrets(granted))
    except BrokenHarnessError as error:
        yield _broken(error)


def _broken(error: BrokenHarnessError) -> Problem:
    # Its agents fail when they are started, and no others.
    return Problem(key="harness", text=str(error), fatal=False)


def stop_exit_status(name: str) -> frozenset[int]:
    """Tell that harness's `stop_exit_status`; none, if there is no such harness."""
    try:
        return load(name).stop_exit_status
    except LookupError:
        return frozenset()


HARNESSES = Harnesses(check_agent, meant)
"""What config.load() is to know of those that are installed."""
