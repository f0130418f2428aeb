"""What can be asked, and what is answered: the types and errors of io.forge.Supervisor.

Field by field this is an interface for other programs: nothing is renamed or taken away, only added. Times are
microseconds since 1970 (CLOCK_REALTIME), as in systemd's D-Bus interface. No deferred annotations here: asyncvarlink
makes the interface's description of them.
"""


from dataclasses import dataclass
from typing import TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from forge_supervisor.control import NAME


@dataclass
class Limit:
    """A window of a usage limit: how much of it is used, and when it begins anew."""

    name: str
    used_percent: float
    resets_usec: int | None


@dataclass
class Agent:
    """One agent. `state`, `result` and the rest are as in the journal; what is not known is null."""

    name: str
    run_as: str
    harness: str
    model: str | None
    enabled: bool
    state: str
    since_usec: int | None
    activity: str | None
    activity_detail: str | None
    activity_since_usec: int | None
    limited_until_usec: int | None
    context_percent: float | None
    limits: list[Limit]
    result: str
    exit_code: int | None
    signal: int | None
    start_limit_hit: bool
    daily_limit_hit: bool
    n_restarts: int
    pid: int | None
    invocation: str | None
    started_usec: int | None
    restart_usec: int | None
    memory: int | None
    scope: str | None
    socket_name: str
    declared_otherwise: bool


@dataclass
class Event:
    """What was logged: `name` is EVENT= in the journal, `fields` are its other fields."""

    name: str
    time_usec: int
    message: str
    fields: dict[str, str]


@dataclass
class UsageRow:
    """What was used in one day, or by one model, agent or session; what it was not asked by is null.

    Tokens of `unpriced_models` are counted, but not in `cost_usd`; that is null if it would be nothing but those.
    """

    day: str | None
    model: str | None
    agent: str | None
    run_as: str | None
    session: str | None
    messages: int
    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    cost_usd: float | None
    unpriced_models: list[str]


class Usages(TypedDict):
    rows: list[UsageRow]


class Agents(TypedDict):
    agents: list[Agent]


class OneAgent(TypedDict):
    agent: Agent


class Screen(TypedDict):
    screen: list[str]


class Plan(TypedDict):
    plan: list[str]


class Pong(TypedDict):
    version: str
    pid: int


class Happened(TypedDict):
    """An event, or the agent as it is now; with an event of an agent both."""

    event: Event | None
    agent: Agent | None


class NoSuchAgent(TypedVarlinkErrorReply, interface=NAME):
    """There is no such agent, or none that the caller may see."""

    class Parameters:
        agent: str
        hint: str


class NotPermitted(TypedVarlinkErrorReply, interface=NAME):
    """The caller may not do that."""

    class Parameters:
        reason: str


class Disabled(TypedVarlinkErrorReply, interface=NAME):
    """The agent is not to be started: forgectl enable."""

    class Parameters:
        agent: str


class NotRunning(TypedVarlinkErrorReply, interface=NAME):
    """It takes an agent that runs."""

    class Parameters:
        agent: str
        state: str


class Failed(TypedVarlinkErrorReply, interface=NAME):
    """It could not be done; the reason is a sentence."""

    class Parameters:
        reason: str


class BadConfiguration(TypedVarlinkErrorReply, interface=NAME):
    """Nothing was reloaded: the configuration is broken. A sentence for each problem."""

    class Parameters:
        problems: list[str]


class TooSlow(TypedVarlinkErrorReply, interface=NAME):
    """The caller has not read what it was told; some of it is lost."""

    class Parameters:
        pass
