"""From one agent's configuration to something that can be run: in the worker, as the agent's user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import harness, report, secrets, workspace
from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.harness import BrokenHarnessError, Paths, Subject, expand_home
from forge_supervisor.worker.messages import Finding, Prepared, Written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forge_supervisor.config import Problem
    from forge_supervisor.harness import Harness, LaunchPlan
    from forge_supervisor.worker.messages import Prepare


class _FatalError(Exception):
    """Nothing more can be found out. Without a text, what is wrong has been noted already."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Preparation:
    """The steps of one `Prepare`."""

    def __init__(self, request: Prepare, home: Path) -> None:
        self._request = request
        self._agent = Agent.model_validate(request.agent)
        self._settings = HarnessSettings.model_validate(request.settings)
        self._paths = paths_of(self._agent, home)
        self._findings: list[Finding] = []
        self._secrets: dict[str, str] = {}

    def run(self) -> Prepared:
        try:
            return self._run()
        except _FatalError as fatal:
            if str(fatal):
                self._findings.append(Finding(key=fatal.key, text=str(fatal), fatal=True))
            return Prepared(argv=[], cwd="/", env={}, findings=self._findings)

    def _run(self) -> Prepared:
        if not os.path.isdir(self._paths.home):
            raise _FatalError("run_as", f"the home directory {self._paths.home} of {self._agent.run_as} is missing")
        self._read_secrets()
        granted = Library.model_validate(self._request.granted)
        subject = Subject(
            self._agent,
            granted,
            self._settings,
            {**self._request.secrets, **self._secrets},
            fresh=self._request.fresh,
            new_id=harness.NEW_EACH_TIME if self._request.dry_run else str(uuid.uuid4()),
            report=(sys.executable, "-I", "-S", report.SCRIPT, self._request.report_socket),
        )
        try:
            program = harness.load(self._agent.harness)
            plan = program.plan(subject, self._paths)
        except LookupError as error:
            raise _FatalError("harness", str(error)) from error
        try:
            self._note(program.preflight(subject, plan, self._paths))
        except BrokenHarnessError as error:
            raise _FatalError("harness", str(error)) from error
        if self._is_fatal() and not self._request.dry_run:
            raise _FatalError("", "")
        if self._request.dry_run:
            self._check_writable()
        else:
            self._build(plan)
        if self._request.consult:
            self._consult(program, subject, plan)
        self._check_cwd(plan)
        version = self._version(program, plan)
        return Prepared(
            argv=list(plan.argv),
            cwd=str(plan.cwd),
            env={**_runtime(), **plan.env},
            secrets=self._secrets,
            findings=self._findings,
            written=[*_written(plan)] if self._request.dry_run else [],
            version=version,
            resumes=plan.resumes,
        )

    def _read_secrets(self) -> None:
        for file in self._request.secret_files:
            try:
                secret = secrets.read(Path(expand_home(file.file, self._paths.home)))
            except secrets.SecretError as error:
                raise _FatalError(file.key, str(error)) from error
            if secret.warning is not None:
                self._findings.append(Finding(key=file.key, text=secret.warning, fatal=False))
            self._secrets[file.variable] = secret.value

    def _build(self, plan: LaunchPlan) -> None:
        try:
            warnings = workspace.build(plan, self._paths)
        except workspace.WorkspaceError as error:
            raise _FatalError("run_as", str(error)) from error
        self._findings += [Finding(key="", text=text, fatal=False) for text in warnings]

    def _check_writable(self) -> None:
        there = next(path for path in (self._paths.state, *self._paths.state.parents) if os.path.exists(path))
        # access(2) tells of a read-only file system too.
        if not os.access(there, os.W_OK | os.X_OK):
            raise _FatalError("run_as", f"{there} cannot be written by {self._agent.run_as} (chown or remount it)")

    def _check_cwd(self, plan: LaunchPlan) -> None:
        # tmux falls back to another directory in silence, and exec's errno would not name the key.
        if self._request.dry_run and plan.cwd == self._paths.state:
            return
        if not os.path.isdir(plan.cwd):
            raise _FatalError("cwd", f"{plan.cwd} is no directory that {self._agent.run_as} can see (make it)")
        if not os.access(plan.cwd, os.X_OK):
            raise _FatalError("cwd", f"{plan.cwd} cannot be entered by {self._agent.run_as} (chmod it)")

    def _consult(self, program: Harness, subject: Subject, plan: LaunchPlan) -> None:
        try:
            self._note(program.consult(subject, plan))
        except BrokenHarnessError as error:
            self._note_broken(error)

    def _note_broken(self, error: BrokenHarnessError) -> None:
        """Warn of what it takes no start to know."""
        self._findings.append(Finding(key="harness", text=str(error), fatal=False))

    def _version(self, program: Harness, plan: LaunchPlan) -> str:
        meant = self._settings.version
        # A program that is the agent's own may take no notice of --version, and begin its work.
        if meant is None and (not self._request.consult or "command" in program.honours):
            return ""
        seen = ""
        try:
            seen = program.version(plan)
        except BrokenHarnessError as error:
            self._note_broken(error)
            return ""
        except (OSError, subprocess.SubprocessError) as error:
            text = f"{plan.argv[0]} does not tell its version ({error}), and {meant} was meant"
        else:
            text = f"{plan.argv[0]} is version {seen}, and {meant} was meant (install that, or change the key)"
        if meant not in {None, seen}:
            self._findings.append(Finding(key=f"harnesses.{self._agent.harness}.version", text=text, fatal=False))
        return seen

    def _note(self, problems: Iterable[Problem]) -> None:
        self._findings += [Finding(key=found.key, text=found.text, fatal=found.fatal) for found in problems]

    def _is_fatal(self) -> bool:
        return any(finding.fatal for finding in self._findings)


def _written(plan: LaunchPlan) -> Iterator[Written]:
    for folder in plan.folders:
        yield Written(kind="folder", path=str(folder), text="")
    for file in plan.files:
        yield Written(kind="file", path=str(file.path), text=file.text, origin=[*file.origin])
    for link in plan.links:
        yield Written(kind="link", path=str(link.path), text=str(link.target), origin=[*link.origin])
    for seed in plan.seeds:
        values = {**seed.values, **dict.fromkeys(seed.removed)}
        yield Written(kind="seed", path=str(seed.path), text=json.dumps(values, indent=2), origin=[*seed.origin])


def _runtime() -> dict[str, str]:
    # Made by logind while the user is logged in or lingers; a sandboxed supervisor cannot look.
    directory = Path(f"/run/user/{os.getuid()}")
    return {"XDG_RUNTIME_DIR": str(directory)} if os.path.isdir(directory) else {}


def paths_of(agent: Agent, home: Path) -> Paths:
    """Say where the agent's things are, by the XDG Base Directory specification."""
    state_home = agent.env.get("XDG_STATE_HOME") or os.environ.get("XDG_STATE_HOME")
    # The specification: a relative path is to be ignored.
    forge = (Path(state_home) if state_home and Path(state_home).is_absolute() else home / ".local/state") / "forge"
    return Paths(home=home, forge=forge, agent=agent.name, search=harness.search_path(agent, home))
