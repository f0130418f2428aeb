"""What a worker does when asked: blocking, as the agents' user, and called by several threads at once."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import harness, processes, workspace
from forge_supervisor.config import Agent, HarnessSettings
from forge_supervisor.policy import Exit
from forge_supervisor.terminal import Terminal, TerminalError
from forge_supervisor.worker.messages import (
    Answer,
    Close,
    Collect,
    Collected,
    Done,
    Finding,
    FindServer,
    Open,
    Opened,
    Prepare,
    Prepared,
    ServerFound,
    Sweep,
    Swept,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forge_supervisor.config import Problem
    from forge_supervisor.harness import LaunchPlan, Paths
    from forge_supervisor.worker.messages import AnyRequest

SCREEN_LINES = 20
LEFTOVER_GRACE = 2.0
"""Seconds that what an agent left behind gets between SIGTERM and SIGKILL."""


class ActionError(Exception):
    """It could not be done; the text is a sentence for the operator."""


class Actions:
    def __init__(self, terminal: Terminal, home: Path) -> None:
        self._terminal = terminal
        self._home = home

    def do(self, request: AnyRequest) -> Answer:
        try:
            match request:
                case FindServer():
                    return self._find_server(request)
                case Sweep():
                    return self._sweep()
                case Prepare():
                    return self._prepare(request)
                case Open():
                    return self._open(request)
                case Collect():
                    return self._collect(request)
                case Close():
                    self._restore_socket(request.server)
                    self._terminal.kill(request.agent)
                    return Done()
        except TerminalError as error:
            raise ActionError(str(error)) from error

    def _find_server(self, request: FindServer) -> ServerFound:
        self._terminal.require_version()
        if request.wait:
            self._terminal.wait_for_server(request.timeout / 2)
        return ServerFound(pid=self._terminal.server_pid())

    def _sweep(self) -> Swept:
        self._terminal.configure()
        swept = []
        for agent in {pane.agent for pane in self._terminal.panes()}:
            if self._terminal.close_leftover(agent):
                swept.append(agent)
            self._terminal.kill(agent)
        return Swept(agents=swept)

    def _open(self, request: Open) -> Opened:
        self._restore_socket(request.server)
        notes = self._terminal.close_leftover(request.agent)
        pane = self._terminal.open(request.agent, request.argv)
        return Opened(pane=pane.id, pid=pane.pid, notes=notes)

    def _collect(self, request: Collect) -> Collected:
        self._restore_socket(request.server)
        exit_ = self._exit_of(request.pane, request.pid)
        screen = [] if exit_.lost else self._terminal.screen_tail(request.pane, SCREEN_LINES)
        cleared = self._clear(request.invocation, request.pid)
        return Collected(
            code=exit_.code,
            signal=exit_.signal,
            screen=screen,
            terminated=cleared.terminated,
            killed=cleared.killed,
            left=cleared.left,
        )

    def _restore_socket(self, server: int) -> None:
        # Things in /tmp are removed, by cron jobs and by people. Who cannot be helped is told so by what comes next.
        if processes.lives(server):
            with contextlib.suppress(TerminalError, OSError):
                self._terminal.restore_socket(server)

    def _exit_of(self, pane: str, pid: int) -> Exit:
        try:
            return self._terminal.exit_of(pane, pid)
        except TerminalError:
            # What it left behind has to be cleared even if its exit cannot be told.
            return Exit(lost=True)

    def _clear(self, invocation: str, sid: int) -> processes.Cleared:
        try:
            server = self._terminal.server_pid()
        except TerminalError:
            server = None
        # Somebody may have started the tmux server from within a session.
        spare = () if server is None else (server,)
        return processes.clear(invocation, sid, LEFTOVER_GRACE, spare)

    def _prepare(self, request: Prepare) -> Prepared:
        agent = Agent.model_validate(request.agent)
        settings = HarnessSettings.model_validate(request.settings)
        try:
            return _Preparation(agent, settings, self._home).run(write=not request.dry_run)
        except _FatalError as fatal:
            return Prepared(argv=[], cwd="/", env={}, findings=[Finding(key=fatal.key, text=str(fatal), fatal=True)])


class _FatalError(Exception):
    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class _Preparation:
    """The steps from one agent's configuration to something that can be run."""

    def __init__(self, agent: Agent, settings: HarnessSettings, home: Path) -> None:
        self._agent = agent
        self._settings = settings
        self._paths = paths_of(agent, home)
        self._findings: list[Finding] = []

    def run(self, *, write: bool) -> Prepared:
        if not self._paths.home.is_dir():
            raise _FatalError("run_as", f"the home directory {self._paths.home} of {self._agent.run_as} is missing")
        try:
            program = harness.load(self._agent.harness)
            plan = program.plan(self._agent, self._settings, self._paths)
        except LookupError as error:
            raise _FatalError("harness", str(error)) from error
        if write:
            self._build(plan)
        else:
            self._check_writable()
        self._check_cwd(plan, missing_ok=not write)
        self._note(program.preflight(self._agent, plan, self._paths))
        self._check_version(program, plan)
        env = {**_runtime(), **plan.env}
        return Prepared(argv=list(plan.argv), cwd=str(plan.cwd), env=env, findings=self._findings)

    def _build(self, plan: LaunchPlan) -> None:
        try:
            warnings = workspace.build(plan, self._paths)
        except workspace.WorkspaceError as error:
            raise _FatalError("run_as", str(error)) from error
        self._findings += [Finding(key="", text=text, fatal=False) for text in warnings]

    def _check_writable(self) -> None:
        there = next(path for path in (self._paths.state, *self._paths.state.parents) if path.exists())
        # access(2) tells of a read-only file system too.
        if not os.access(there, os.W_OK | os.X_OK):
            raise _FatalError("run_as", f"{there} cannot be written by {self._agent.run_as} (chown or remount it)")

    def _check_cwd(self, plan: LaunchPlan, *, missing_ok: bool) -> None:
        # tmux falls back to another directory in silence, and exec's errno would not name the key.
        if missing_ok and plan.cwd == self._paths.state:
            return
        if not plan.cwd.is_dir():
            raise _FatalError("cwd", f"{plan.cwd} is no directory that {self._agent.run_as} can see (make it)")
        if not os.access(plan.cwd, os.X_OK):
            raise _FatalError("cwd", f"{plan.cwd} cannot be entered by {self._agent.run_as} (chmod it)")

    def _check_version(self, program: harness.Harness, plan: LaunchPlan) -> None:
        meant = self._settings.version
        if meant is None:
            return
        try:
            seen = program.version(plan)
        except (OSError, subprocess.SubprocessError) as error:
            text = f"{plan.argv[0]} does not tell its version ({error}), and {meant} was meant"
        else:
            if seen == meant:
                return
            text = f"{plan.argv[0]} is version {seen}, and {meant} was meant (install that, or change the key)"
        self._findings.append(Finding(key=f"harnesses.{self._agent.harness}.version", text=text, fatal=False))

    def _note(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if problem.fatal:
                raise _FatalError(problem.key, problem.text)
            self._findings.append(Finding(key=problem.key, text=problem.text, fatal=False))


def _runtime() -> dict[str, str]:
    # Made by logind while the user is logged in or lingers; a sandboxed supervisor cannot look.
    directory = Path(f"/run/user/{os.getuid()}")
    return {"XDG_RUNTIME_DIR": str(directory)} if directory.is_dir() else {}


def paths_of(agent: Agent, home: Path) -> Paths:
    state_home = agent.env.get("XDG_STATE_HOME") or os.environ.get("XDG_STATE_HOME")
    # The specification: a relative path is to be ignored.
    forge = (Path(state_home) if state_home and Path(state_home).is_absolute() else home / ".local/state") / "forge"
    return harness.Paths(
        home=home,
        state=forge / "agents" / agent.name,
        launch=forge / "launch" / agent.name,
        search=harness.search_path(agent, home),
    )


def from_environment() -> Actions:
    """Make the actions of the user that runs this process, as the supervisor's environment for it says."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    return Actions(Terminal(os.environ["FORGE_SOCKET_NAME"], env=dict(os.environ)), home)
