"""What supervisor and worker say to each other: one JSON object a line, over a Unix stream socket.

The supervisor asks, with an id of its own; the worker answers each request once, in any order. What a worker says
is a hint: it runs as the agents' user, who can make it say anything. The models bound sizes and ranges; pids are
checked against the kernel by whoever uses them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from forge_supervisor.activity import Activity, Doing, Gauges, Seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from forge_supervisor.config import Agent, HarnessSettings, Library
    from forge_supervisor.secrets import SecretRef

LINE_LIMIT = 4 * 1024 * 1024
"""Bytes. A role may be long; a screen's tail and an environment are not."""


def _encodable(text: object) -> object:
    # The name of a file need not be UTF-8.
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


def _presentable(text: object) -> object:
    # What a program says need not end.
    text = _encodable(text)
    return text[:4096] if isinstance(text, str) else text


Pid = Annotated[int, Field(gt=1, lt=2**22 + 1)]
AgentName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,48}$")]
Text = Annotated[str, BeforeValidator(_presentable)]
"""For people: as much of it as is fit to read, and never a reason to refuse the rest."""


NO_NUL = r"^[^\x00]*$"
String = Annotated[str, Field(pattern=NO_NUL)]
"""For programs: as the kernel takes it."""
Values = Annotated[dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], String], Field(repr=False)]
"""Variable to value, some or all of them secret."""


class Message(BaseModel):
    # Errors name no value: it might be a secret, and they go to logs. Nor is a value kept by the cache for whole
    # processes that JSON's strings come from, which is of no use to what is said once: invocations, tickets. (Full, it
    # takes 2 MiB.)
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, cache_strings="keys")


class Answer(Message):
    pass


AnswerT = TypeVar("AnswerT", bound=Answer)


class Request(Message, Generic[AnswerT]):
    answer: ClassVar[type[Answer]]
    timeout: ClassVar[float]
    """Seconds after which a worker that has not answered counts as stuck."""


class Done(Answer):
    pass


class ServerFound(Answer):
    pid: Pid | None


class FindServer(Request[ServerFound]):
    """Is there a tmux server on our socket? With `wait`, one has just been started: wait until it answers.

    `server` is one that ought to be: it gets its socket back, should somebody have removed it.
    """

    answer = ServerFound
    timeout = 15.0
    kind: Literal["find-server"] = "find-server"
    wait: bool
    server: Pid | None = None


class Swept(Answer):
    agents: Annotated[list[AgentName], Field(max_length=10_000)]


class Sweep(Request[Swept]):
    """Make the server behave as ours, and end what bears an agent's mark there and is not known.

    `known` has the agents that there are, and the process of each that runs. Of these what else lives in panes with
    their marks is ended; of others the sessions are removed too.
    """

    answer = Swept
    timeout = 30.0
    kind: Literal["sweep"] = "sweep"
    known: dict[AgentName, Pid | None]


class Finding(Message):
    """As `config.Problem`."""

    key: Text
    text: Text
    fatal: bool


class Written(Message):
    """What a start puts on disk: a file with its text, a link with its target, or the values seeded into a file."""

    kind: Literal["file", "link", "seed", "folder"]
    path: Text
    text: Annotated[str, BeforeValidator(_encodable)]
    origin: list[Text] = []


class Prepared(Answer):
    """`findings` with a fatal one: the agent cannot be started. argv is empty where not even a plan could be made."""

    argv: list[String]
    cwd: Annotated[String, Field(max_length=4096)]
    env: Values
    secrets: Values = {}
    """Those of `secret_files` that could be read."""
    findings: Annotated[list[Finding], Field(max_length=10_000)]
    written: Annotated[list[Written], Field(max_length=10_000)] = []
    """With dry_run: what would be written."""
    resumes: bool = False
    """Whether it goes on with an earlier session."""
    version: String = ""
    """Of the harness's program, where it was asked for that."""


class WorkersSecret(Message):
    """As `secrets.SecretRef`."""

    key: str
    variable: str
    file: str


class Prepare(Request[Prepared]):
    """Plan the agent's launch, build its state directory, and look for what would keep it from working."""

    answer = Prepared
    timeout = 45.0
    kind: Literal["prepare"] = "prepare"
    agent: dict[str, Any]
    settings: dict[str, Any]
    granted: dict[str, Any]
    secrets: Values
    """What the supervisor has read."""
    secret_files: list[WorkersSecret]
    """What is left to the agent's user to read."""
    dry_run: bool
    """Look, but write nothing."""
    consult: bool
    """Ask the harness's program itself, too."""
    fresh: bool = False
    """Begin anew, with no memory of earlier sessions."""
    report_socket: str
    """Where the supervisor hears what the harness's hooks report."""

    @classmethod
    def of(  # noqa: PLR0913 - as many as it takes
        cls,
        agent: Agent,
        settings: HarnessSettings,
        granted: Library,
        *,
        report_socket: str = "",
        secrets: Mapping[str, str] | None = None,
        secret_files: Iterable[SecretRef] = (),
        dry_run: bool = False,
        consult: bool = False,
        fresh: bool = False,
    ) -> Prepare:
        return cls(
            agent=_for_worker(agent),
            settings=settings.model_dump(mode="json"),
            granted=granted.model_dump(mode="json"),
            secrets=dict(secrets or {}),
            secret_files=[WorkersSecret(key=ref.key, variable=ref.variable, file=ref.file) for ref in secret_files],
            dry_run=dry_run,
            consult=consult,
            fresh=fresh,
            report_socket=report_socket,
        )


PaneId = Annotated[str, Field(pattern=r"^%[0-9]{1,9}$")]


class Opened(Answer):
    pane: PaneId
    pid: Pid
    notes: Annotated[list[Text], Field(max_length=100)] = []


class Open(Request[Opened]):
    """Run argv in the agent's pane, in place of its last, dead session; end a leftover that still lives there.

    `pane` is where that was, if it was on this server.
    """

    answer = Opened
    timeout = 30.0
    kind: Literal["open"] = "open"
    server: Pid
    agent: str
    argv: list[str]
    invocation: str
    pane: PaneId | None = None


class Collected(Answer):
    code: Annotated[int, Field(ge=0, le=255)] | None
    signal: Annotated[int, Field(ge=1, le=64)] | None
    screen: Annotated[list[Text], Field(max_length=100)]
    terminated: Annotated[int, Field(ge=0)]
    killed: Annotated[int, Field(ge=0)]
    left: Annotated[int, Field(ge=0)]


class Collect(Request[Collected]):
    """The pane's process `pid` has died: how, with what on its screen? Then end all that it left behind.

    Neither code nor signal: the exit is lost.
    """

    answer = Collected
    timeout = 45.0
    kind: Literal["collect"] = "collect"
    server: Pid | None
    """If it lives."""
    agent: str
    pane: str
    pid: Pid
    invocation: str


class Close(Request[Done]):
    """Remove the session of an agent that is no longer declared."""

    answer = Done
    timeout = 15.0
    kind: Literal["close"] = "close"
    server: Pid
    agent: str


class Captured(Answer):
    screen: Annotated[list[Text], Field(max_length=1000)]


class Capture(Request[Captured]):
    """Tell what the agent's pane shows, from its first line to the last with something on it."""

    answer = Captured
    timeout = 15.0
    kind: Literal["capture"] = "capture"
    server: Pid
    agent: str


class Send(Request[Done]):
    """Paste a text into the pane of the agent, whose process is `pid`, then Enter; answered when it has been read."""

    answer = Done
    timeout = 30.0
    kind: Literal["send"] = "send"
    server: Pid
    agent: str
    pid: Pid
    text: Annotated[str, Field(repr=False)]
    clearing_key: Annotated[str, Field(max_length=16)] = ""
    """Typed before it, so that nothing else is in the prompt."""


class RemoveSocket(Request[Done]):
    """The tmux server has been stopped: remove the socket that it leaves behind, if nobody listens on it."""

    answer = Done
    timeout = 15.0
    kind: Literal["remove-socket"] = "remove-socket"


Tokens = Annotated[int, Field(ge=0, le=100_000_000, strict=True)]
"""Of one message: far more than any model takes or gives."""
TranscriptPath = Annotated[str, Field(min_length=1, max_length=1024, pattern=NO_NUL)]
MOST_TRANSCRIPTS = 2000
MOST_USAGE = 2000
"""Records of one answer."""


class Mark(Message):
    """Up to where a transcript has been read: a place in a file, and how to tell that it is still that place."""

    file: Annotated[str, Field(pattern=r"^[0-9]{1,20}:[0-9]{1,20}$")]
    """Device and inode."""
    offset: Annotated[int, Field(ge=0, lt=2**62)]
    before: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """A checksum of the bytes before it: a file may be written anew in its own place."""


class UsageRecord(Message):
    """What one message has used, as `harness.transcripts.MessageUsage` has it."""

    message: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")]
    session: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")]
    model: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")]
    time_usec: Annotated[int, Field(ge=0, lt=2**52, strict=True)]
    input: Tokens
    output: Tokens
    cache_read: Tokens
    cache_write_5m: Tokens
    cache_write_1h: Tokens


class UsageRead(Answer):
    """`marks` are those that are not as they were. A message may be told several times: its largest counts are true."""

    records: Annotated[list[UsageRecord], Field(max_length=MOST_USAGE)]
    marks: Annotated[dict[TranscriptPath, Mark], Field(max_length=MOST_TRANSCRIPTS)]
    gone: Annotated[list[TranscriptPath], Field(max_length=MOST_TRANSCRIPTS)]
    more: bool


class ReadUsage(Request[UsageRead]):
    """Tell what was used, as the agent's transcripts have it behind these marks."""

    answer = UsageRead
    timeout = 45.0
    kind: Literal["read-usage"] = "read-usage"
    agent: dict[str, Any]
    marks: Annotated[dict[str, Mark], Field(max_length=2 * MOST_TRANSCRIPTS)]

    @classmethod
    def of(cls, agent: Agent, marks: Mapping[str, Mark]) -> ReadUsage:
        return cls(agent=_for_worker(agent), marks=dict(marks))


def _fit_trouble(trouble: Activity | None) -> Activity | None:
    if trouble is None:
        return None
    if trouble.doing not in {Doing.LIMITED, Doing.LOGGED_OUT, Doing.UNRESPONSIVE}:
        raise ValueError("is nothing that a turn fails of")
    return replace(trouble, detail=str(_presentable(trouble.detail)), fix=str(_presentable(trouble.fix)))


def _fit_gauges(gauges: Gauges | None) -> Gauges | None:
    if gauges is None:
        return None
    windows = (replace(window, name=str(_presentable(window.name))) for window in gauges.windows[:10])
    return replace(gauges, windows=tuple(windows))


class Observed(Answer):
    """As `activity.Seen`."""

    doing: Literal["starting", "working", "idle", "waiting"]
    detail: Text
    login: Text
    login_fix: Text
    failed: Annotated[Activity | None, AfterValidator(_fit_trouble)] = None
    gauges: Annotated[Gauges | None, AfterValidator(_fit_gauges)] = None

    def seen(self) -> Seen:
        return Seen(Doing(self.doing), self.detail, self.login, self.login_fix, self.failed, self.gauges)


class Observe(Request[Observed]):
    """Tell what the session of process `pid` is doing as soon as that is something else than `known`."""

    answer = Observed
    timeout = math.inf
    kind: Literal["observe"] = "observe"
    agent: dict[str, Any]
    secrets: list[str]
    """Names of the secret variables in its environment."""
    pid: Pid
    known: Observed | None

    @classmethod
    def of(cls, agent: Agent, secrets: Iterable[str], pid: int, known: Observed | None) -> Observe:
        return cls(agent=_for_worker(agent), secrets=sorted(secrets), pid=pid, known=known)


AnyRequest = Annotated[
    FindServer
    | Sweep
    | Prepare
    | Open
    | Collect
    | Close
    | Capture
    | Send
    | RemoveSocket
    | ReadUsage
    | Observe,
    Field(discriminator="kind"),
]


class RequestLine(Message):
    """Without a request: nobody waits for the answer to the one with that id any more."""

    id: int
    request: AnyRequest | None


class AnswerLine(Message):
    """Either `answer`, to be read as the type that the request names, or `error`, a sentence."""

    id: int
    answer: dict[str, Any] | None = Field(default=None, repr=False)
    error: Text | None = None


_SUPERVISORS = {"restart", "resume", "resources", "stop_timeout_sec", "ready_timeout_sec", "budget"}


def _for_worker(agent: Agent) -> dict[str, Any]:
    # When, how long and how much is the supervisor's business alone; and JSON has no infinity.
    return agent.model_dump(mode="json", exclude=_SUPERVISORS)


def encode(line: Message) -> bytes:
    return line.model_dump_json().encode() + b"\n"
