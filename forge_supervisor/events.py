"""What the supervisor tells its log: one frozen class an event.

Names and fields are an interface. In JSON lines they stand as they are written here (`event` is the name, `message`
the sentence); in the journal the fields are upper-cased (EVENT=, AGENT=, RUN_AS=, EXIT_CODE=, SIGNAL=, RESULT=,
N_RESTARTS=, INVOCATION=). A field that is None is absent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from forge_supervisor.policy import Exit, Result

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    name: ClassVar[str]
    _level: ClassVar[Level] = "info"

    @property
    def level(self) -> Level:
        return self._level

    def sentence(self) -> str:
        raise NotImplementedError

    def fields(self) -> dict[str, str | int | float | bool]:
        """Name and value of each field that is not None; seconds are rounded to milliseconds."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent(Event):
    agent: str
    run_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStarted(AgentEvent):
    name = "agent_started"

    pid: int
    invocation: str
    n_restarts: int

    def sentence(self) -> str:
        restart = f", restart {self.n_restarts}" if self.n_restarts else ""
        return f"{self.agent} started as {self.run_as} (pid {self.pid}{restart})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReady(AgentEvent):
    """It is at its prompt, so long after its start."""

    name = "agent_ready"

    ready_sec: float

    def sentence(self) -> str:
        return f"{self.agent} is at its prompt ({duration(self.ready_sec)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBlocked(AgentEvent):
    """It runs, and cannot do its work: `activity` is ``logged-out``, ``limited``, ``blocked`` or ``unresponsive``."""

    name = "agent_blocked"
    _level = "warning"

    activity: str
    problem: str
    fix: str

    def sentence(self) -> str:
        fix = f" ({self.fix})" if self.fix else ""
        return f"{self.agent} is {self.activity}: {self.problem}{fix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecovered(AgentEvent):
    """It can do its work again; `activity` is what it was instead, for `blocked_sec`."""

    name = "agent_recovered"

    activity: str
    blocked_sec: float

    def sentence(self) -> str:
        return f"{self.agent} is no longer {self.activity}, after {duration(self.blocked_sec)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTooLarge(AgentEvent):
    """It is idle, uses more memory than resources.restart_above, both in bytes, and is restarted for that."""

    name = "agent_too_large"
    _level = "warning"

    memory: int
    restart_above: int

    def sentence(self) -> str:
        used, most = (f"{size / 2**30:.1f} GiB" for size in (self.memory, self.restart_above))
        return f"{self.agent} uses {used}, more than {most}: it is restarted while it is idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetExceeded(AgentEvent):
    """What an agent has used today is more than its budget allows."""

    name = "budget_exceeded"
    _level = "warning"

    tokens: int
    cost_usd: float
    stopped: bool

    def sentence(self) -> str:
        used = f"{self.agent} has used {self.tokens:,} tokens today (${self.cost_usd:,.2f}), more than its budget"
        return f"{used}; it is stopped (forgectl start {self.agent})" if self.stopped else used


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStartFailed(AgentEvent):
    """Nothing ran. `key` is the configuration key to look at, or empty; `next` says what happens now."""

    name = "agent_start_failed"
    _level = "warning"

    key: str
    problem: str
    n_restarts: int
    next: str

    def sentence(self) -> str:
        return f"{self.agent} could not be started: {_keyed(self.key, self.problem)}; {self.next}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentExited(AgentEvent):
    """`exit_code` or `signal` is given, or neither where it cannot be known (result ``lost``).

    `next` says what happens now: ``restarting in 5 s``, ``stopped as requested`` … `screen` is the last of what the
    agent showed, one line a line.
    """

    name = "agent_exited"

    pid: int
    invocation: str
    exit_code: int | None
    signal: int | None
    uptime_sec: float
    result: str
    n_restarts: int
    next: str
    screen: str

    @property
    def level(self) -> Level:
        return "info" if self.result == Result.SUCCESS else "warning"

    def sentence(self) -> str:
        return f"{self.agent} {self._how()} after {duration(self.uptime_sec)}; {self.next}"

    def _how(self) -> str:
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        if self.signal is not None:
            return f"was ended by {Exit(signal=self.signal)}"
        return "was lost, its exit status cannot be known,"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRestarting(AgentEvent):
    name = "agent_restarting"

    delay_sec: float
    n_restarts: int

    def sentence(self) -> str:
        return f"{self.agent} will be restarted in {duration(self.delay_sec)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFailed(AgentEvent):
    """The agent is down and stays so until somebody acts. The limits are what was in force."""

    name = "agent_failed"
    _level = "error"

    result: str
    start_limit_hit: bool
    n_restarts: int
    limit_burst: int
    limit_interval_sec: float
    daily_limit_hit: bool
    limit_daily: int

    def sentence(self) -> str:
        # It may have ended well every time, only too often.
        result = f" with result {self.result}" if self.result != Result.SUCCESS else ""
        sentence = f"{self.agent} failed{result}"
        if self.start_limit_hit:
            limit = f"start limit hit: {self.limit_burst} starts in {duration(self.limit_interval_sec)}"
        elif self.daily_limit_hit:
            limit = f"daily limit hit: {self.limit_daily} starts in a day"
        else:
            return sentence
        return f"{sentence}; {limit}; forgectl reset-failed {self.agent}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStopped(AgentEvent):
    name = "agent_stopped"

    result: str
    n_restarts: int

    def sentence(self) -> str:
        return f"{self.agent} stopped" + (f" with result {self.result}" if self.result != Result.SUCCESS else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentWarning(AgentEvent):
    name = "agent_warning"
    _level = "warning"

    key: str
    problem: str

    def sentence(self) -> str:
        return f"{self.agent}: {_keyed(self.key, self.problem)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftoversCleared(AgentEvent):
    """Processes that outlived the agent's first one: how many ended on SIGTERM, how many needed SIGKILL."""

    name = "leftovers_cleared"
    _level = "warning"

    terminated: int
    killed: int

    def sentence(self) -> str:
        counts = f"{self.terminated} terminated, {self.killed} killed"
        return f"{self.agent} left processes behind: {counts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWarning(Event):
    name = "config_warning"
    _level = "warning"

    file: str
    key: str
    problem: str

    def sentence(self) -> str:
        return _keyed(self.file, _keyed(self.key, self.problem))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigError(Event):
    """The supervisor does not start because of it."""

    name = "config_error"
    _level = "error"

    file: str
    key: str
    problem: str

    def sentence(self) -> str:
        return _keyed(self.file, _keyed(self.key, self.problem))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsUnwatched(Event):
    """The supervisor does not start, and these agents were left running by the one before: ``scout, other``."""

    name = "agents_unwatched"
    _level = "error"

    agents: str

    def sentence(self) -> str:
        return f"agents run on, watched by nobody: {self.agents} (systemctl stop forge-supervisor would end them)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorReady(Event):
    """Every enabled agent was started or has failed to; `running` and `failed` count them."""

    name = "supervisor_ready"

    running: int
    failed: int

    def sentence(self) -> str:
        return f"ready: {self.running} running, {self.failed} failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorReloaded(Event):
    name = "supervisor_reloaded"

    agents: int

    def sentence(self) -> str:
        return f"configuration reloaded, agents declared: {self.agents}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorReloadFailed(Event):
    """`problem` may have several lines, one a problem."""

    name = "supervisor_reload_failed"
    _level = "error"

    problem: str

    def sentence(self) -> str:
        return f"the configuration was not reloaded, the last good one stays in force: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStopping(Event):
    """`reason` is what asked for it: ``SIGTERM``. Agents are stopped, or left to the next supervisor."""

    name = "supervisor_stopping"

    reason: str
    leaves_agents: bool

    def sentence(self) -> str:
        return f"stopping on {self.reason}" + (", agents run on" if self.leaves_agents else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStopped(Event):
    name = "supervisor_stopped"

    def sentence(self) -> str:
        return "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutSystemd(Event):
    """No systemd starts units for us, so agents are plain children."""

    name = "without_systemd"
    _level = "warning"

    def sentence(self) -> str:
        return (
            "no systemd: agents have no limits, what they leave behind is ended as far as it is found, "
            "and they outlive a supervisor only if that is killed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateProblem(Event):
    """What is kept for the next supervisor cannot be written, or what the last one kept cannot be read."""

    name = "state_problem"
    _level = "error"

    problem: str

    def sentence(self) -> str:
        return self.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class TmuxServerStarted(Event):
    name = "tmux_server_started"

    run_as: str
    pid: int

    def sentence(self) -> str:
        return f"tmux server of {self.run_as} started (pid {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TmuxServerShared(Event):
    """Somebody else started a server on our socket; agents run in it, and it is not ours to end."""

    name = "tmux_server_shared"
    _level = "warning"

    run_as: str
    pid: int

    def sentence(self) -> str:
        return f"the tmux server of {self.run_as} (pid {self.pid}) was running already: agents join it"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAdopted(AgentEvent):
    """The session of an earlier supervisor was found alive, and goes on."""

    name = "agent_adopted"

    pid: int
    invocation: str
    uptime_sec: float
    n_restarts: int

    def sentence(self) -> str:
        return f"{self.agent} runs on as {self.run_as} (pid {self.pid}, up {duration(self.uptime_sec)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSwept(AgentEvent):
    """A process with an agent's mark was found that no supervisor knows of, and ended so that no agent runs twice."""

    name = "agent_swept"
    _level = "warning"

    def sentence(self) -> str:
        return f"a process of {self.agent} that nobody knew of has been ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class TmuxServerLost(Event):
    """It ended without having been asked to, and every session of that user with it."""

    name = "tmux_server_lost"
    _level = "error"

    run_as: str
    pid: int

    def sentence(self) -> str:
        return f"tmux server of {self.run_as} (pid {self.pid}) is gone, and its agents' terminals with it"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """The process that acts as that user ended or did not answer; agents are untouched by that."""

    name = "worker_lost"
    _level = "warning"

    run_as: str
    reason: str

    def sentence(self) -> str:
        return f"worker of {self.run_as} was lost: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed(AgentEvent):
    """A command of [[on_event]], `hook`, was not run for that agent as user `hook_user`, or has not ended well."""

    name = "hook_failed"
    _level = "warning"

    hook: str
    hook_user: str
    hook_event: str
    problem: str

    def sentence(self) -> str:
        return f"the hook {self.hook} ({self.hook_event} of {self.agent}, as {self.hook_user}) failed: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksDropped(Event):
    """More is waiting to be told to hooks than `most`, so the oldest of it never will be."""

    name = "hooks_dropped"
    _level = "error"

    most: int

    def sentence(self) -> str:
        return f"hooks are too slow: more than {self.most} wait to be run, and the oldest are dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageProblem(Event):
    """What agents use could not be counted, or what was counted is lost."""

    name = "usage_problem"
    _level = "warning"

    problem: str

    def sentence(self) -> str:
        return self.problem


def duration(seconds: float) -> str:
    """Render a duration for people: ``0.04 s``, ``12.5 s``, ``60 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if math.isinf(seconds):
        return "infinity"
    if seconds < 120:
        return f"{round(seconds, 3 if seconds < 1 else 1):g} s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (secs, "s")]
    first = next(place for place, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def _plain(value: str | float) -> str | int | float | bool:
    if not isinstance(value, float):
        return value
    # JSON has no infinity; config.toml spells it so.
    return "infinity" if math.isinf(value) else round(value, 3)


def _keyed(key: str, problem: str) -> str:
    return f"{key}: {problem}" if key else problem
