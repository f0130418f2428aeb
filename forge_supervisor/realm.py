"""What the supervisor has of one Linux user: a worker, a tmux server, and the environments of these and of agents."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, units
from forge_supervisor.handshake import LaunchError
from forge_supervisor.harness import search_path
from forge_supervisor.pidfd import Pidfd
from forge_supervisor.tmux_conf import TMUX_CONF
from forge_supervisor.worker.client import Worker, WorkerError, WorkerLostError
from forge_supervisor.worker.messages import FindServer, RemoveSocket, Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from forge_supervisor.config import Agent
    from forge_supervisor.units import Placement, Process, User
    from forge_supervisor.worker.messages import AnswerT, Request

log = structlog.get_logger()

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
STOP_TIMEOUT = 5.0
"""Seconds for a worker or a tmux server to end before it is killed."""
# Where one's own files and servers are looked for, if the supervisor runs as an ordinary user's own service.
_OWN = ("XDG_STATE_HOME", "TMUX_TMPDIR")


class Realm:
    """One user's worker and tmux server, each started when first needed and again after it was lost."""

    def __init__(
        self,
        name: str,
        placement: Placement,
        socket_name: str,
        emit: Callable[[events.Event], None],
        *,
        known: Callable[[], Mapping[str, int | None]] = dict,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """`known` tells the agents that may be on the tmux server when it is found, and the pids of those that run.

        `after` is the end of an earlier one of that user.
        """
        self._after = after
        self.placement = placement
        self._name = name
        self._socket_name = socket_name
        self._emit = emit
        self._known = known
        self._starting_server = asyncio.Lock()
        self._starting_worker = asyncio.Lock()
        self._user: User | None = None
        self._worker: Worker | None = None
        self._mourned: Worker | None = None
        """The last one of which it was told that it is lost."""
        self._server_process: Process | None = None
        self._server: Pidfd | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def user(self) -> User:
        """Look the user up, once. Raises LaunchError."""
        if self._user is None:
            self._user = self._lookup(None)
        return self._user

    def _lookup(self, known: User | None) -> User:
        try:
            return units.lookup(self._name, known)
        except LookupError as error:
            raise LaunchError("run_as", str(error)) from error

    @property
    def server_pid(self) -> int | None:
        """The tmux server that there is; None if there is none."""
        return None if self._server is None or self._server.dead else self._server.pid

    async def server(self) -> Pidfd:
        """Make sure of the user and the tmux server, and return that. Raises LaunchError."""
        if self._after is not None:
            await asyncio.wait([self._after])
        async with self._starting_server:
            if self._server is not None and not self._server.dead:
                self._look_again(afresh=False)
                return self._server
            self._look_again(afresh=True)
            try:
                server = await self._start_server()
            except (OSError, units.PlacementError, WorkerError) as error:
                raise LaunchError("", str(error)) from error
            if self._server is not None:
                self._server.close()
            self._server = server
            self._watching = asyncio.create_task(self._watch(server))
            return server

    def _look_again(self, *, afresh: bool) -> None:
        """See whether the user is still the one that worker and tmux server run as.

        `afresh`: its groups too. All that is started in a tmux server has those that the server was started with.
        """
        known = self._user
        now = self._lookup(None if afresh else known)
        if known is not None and now.uid != known.uid:
            text = f'"{self._name}" had uid {known.uid} and has {now.uid} now (restart the supervisor)'
            raise LaunchError("run_as", text)
        self._user = now

    async def ask(self, request: Request[AnswerT]) -> AnswerT:
        """Ask the worker, a new one if need be. Raises WorkerError, or LaunchError if there is no such user."""
        async with self._starting_worker:
            if self._worker is None or self._worker.lost is not None:
                self._worker = await self._start_worker()
            worker = self._worker
        try:
            return await worker.ask(request)
        except WorkerLostError as error:
            # All that wait for it find out.
            if worker is not self._mourned:
                self._mourned = worker
                self._emit(events.WorkerLost(run_as=self._name, reason=str(error)))
            raise

    async def close(self, *, leave: bool = False) -> None:
        """End worker and tmux server, as the agents have ended before; or `leave` all that matters as it is."""
        if self._watching is not None:
            self._watching.cancel()
        if not leave:
            # One of an earlier supervisor need not have been looked for yet.
            if self._server_process is None and self._user is not None:
                self._server_process = await self.placement.find("tmux", self._user)
            if self._server_process is not None:
                await self._server_process.stop(STOP_TIMEOUT)
                with contextlib.suppress(WorkerError, LaunchError):  # it is of no use to anybody, and does no harm
                    await self.ask(RemoveSocket())
        if self._worker is not None:
            await self._worker.stop()
        if self._server is not None:
            self._server.close()

    async def _start_worker(self) -> Worker:
        # What is not right about its user is for the next launch to say: what runs needs a worker as before.
        with contextlib.suppress(LaunchError):
            self._look_again(afresh=True)
        try:
            return await Worker.start(self.placement, self.user, self._environment())
        except (OSError, units.PlacementError) as error:
            raise WorkerLostError(f"the worker of {self._name} cannot be started: {error}") from error

    async def _start_server(self) -> Pidfd:
        earlier = await self.placement.find("tmux", self.user)
        found = await self.ask(FindServer(wait=False, server=None if earlier is None else earlier.pid))
        self._server_process = earlier
        if found.pid is None:
            self._server_process = await self._run_server()
            found = await self.ask(FindServer(wait=True))
        if found.pid is None:
            raise LaunchError("", f"the tmux server of {self._name} ended as soon as it was started")
        server = Pidfd(found.pid, self.user.uid)
        if self._server_process is None or self._server_process.pid != found.pid:
            self._emit(events.TmuxServerShared(run_as=self._name, pid=found.pid))
        elif self._server_process is not earlier:
            self._emit(events.TmuxServerStarted(run_as=self._name, pid=found.pid))
        try:
            swept = await self.ask(Sweep(known=dict(self._known())))
        except BaseException:
            server.close()
            raise
        for agent in swept.agents:
            # A mark says what its user likes.
            if agent in self._known():
                self._emit(events.AgentSwept(agent=agent, run_as=self._name))
            else:
                text = f'what bore the mark of agent "{agent}" was ended'
                log.warning("foreign_mark", run_as=self._name, message=text)
        return server

    async def _run_server(self) -> Process:
        tmux = shutil.which("tmux", path=SYSTEM_PATH)
        if tmux is None:
            raise LaunchError("", f"tmux was not found on {SYSTEM_PATH} (apt-get install tmux)")
        # -D: it stays the process that was started, and stays without sessions.
        await self.placement.make_private(self._socket_directory(), self.user)
        argv = (tmux, "-D", "-L", self._socket_name, "-f", str(TMUX_CONF))
        return await self.placement.run("tmux", self.user, argv, env=self._environment())

    def _socket_directory(self) -> Path:
        # As tmux makes it, and refuses it if it is another user's: tmux(1), option -L.
        return Path(self._environment().get("TMUX_TMPDIR", "/tmp"), f"tmux-{self.user.uid}")  # noqa: S108

    async def _watch(self, server: Pidfd) -> None:
        await server.wait()
        self._emit(events.TmuxServerLost(run_as=self._name, pid=server.pid))

    def _environment(self) -> dict[str, str]:
        """Make the environment of worker and tmux server; an agent gets nothing of it."""
        own = {} if os.geteuid() == 0 else {name: os.environ[name] for name in _OWN if name in os.environ}
        return {
            **login_environment(self.user),
            "PATH": SYSTEM_PATH,
            # Without a UTF-8 locale tmux mangles what libtmux parses.
            "LC_CTYPE": "C.UTF-8",
            "FORGE_SOCKET_NAME": self._socket_name,
            **own,
        }


def login_environment(user: User) -> dict[str, str]:
    return {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell, "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Layer:
    """Variables of an agent's environment, and where they come from; a later layer wins."""

    origin: str
    variables: Mapping[str, str]


def environment_layers(
    user: User, agent: Agent, from_worker: Mapping[str, str], secrets: Mapping[str, str], invocation: str
) -> list[Layer]:
    """Make an agent's environment, from nothing; launch.py adds TERM, TMUX and TMUX_PANE.

    `from_worker` is what its harness wants, and what only the user can see.
    """
    path = ":".join(search_path(agent, Path(user.home)))
    return [
        Layer(f"the account of {user.name}", login_environment(user)),
        Layer("path" if agent.path else "the default of path", {"PATH": path}),
        Layer(f"the harness {agent.harness}", from_worker),
        Layer("env", agent.env),
        Layer("secrets", secrets),
        # INVOCATION_ID is as systemd's; also what tells an agent's processes from others after it has died.
        Layer("the supervisor", {"FORGE_AGENT": agent.name, "INVOCATION_ID": invocation}),
    ]


def agent_environment(
    user: User, agent: Agent, from_worker: Mapping[str, str], secrets: Mapping[str, str], invocation: str
) -> dict[str, str]:
    """Put the layers together."""
    layers = environment_layers(user, agent, from_worker, secrets, invocation)
    return {name: value for layer in layers for name, value in layer.variables.items()}
