"""Runs example-agent, which says in status.json what it is doing, and runs a hook when a turn begins and ends."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_supervisor.activity import Doing, Reported, Seen
from forge_supervisor.config import Agent, Library, Problem
from forge_supervisor.harness import File, LaunchPlan, Paths, Subject, find_program, said_to
from forge_supervisor.policy import Exit
from forge_supervisor.secrets import SecretRef


class Example:
    honours = frozenset({"model", "extra_args"})
    requires = frozenset({"role"})
    stop_exit_status = frozenset({143})
    clearing_key = ""

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:
        if agent.model not in {None, "small", "large"}:
            yield Problem("model", f'"{agent.model}" is neither "small" nor "large"')

    def secrets(self, granted: Library) -> Iterable[SecretRef]:
        return ()

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        program = find_program(subject.settings.binary or "example-agent", paths.search, home=paths.home)
        role = File(paths.state / "ROLE.md", f"{subject.agent.role}\n", origin=("role",))
        argv = (str(program), "--model", subject.agent.model or "small", *subject.agent.extra_args)
        return LaunchPlan(argv, paths.state, env={"EXAMPLE_HOOK": json.dumps(subject.report)}, files=(role,))

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        if "EXAMPLE_KEY" not in subject.env:
            yield Problem("secrets", 'has no EXAMPLE_KEY (add secrets = {EXAMPLE_KEY = "FILE"})')

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:
        return ()

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:
        return False

    def version(self, plan: LaunchPlan) -> str:
        return said_to(plan.argv[0], "--version").strip()

    def watched(self, subject: Subject, paths: Paths, pid: int) -> Sequence[Path]:
        return [paths.state / "status.json"]

    def observe(self, subject: Subject, paths: Paths, pid: int) -> Seen | None:
        (file,) = self.watched(subject, paths, pid)
        status = json.loads(file.read_text()) if file.exists() else {}
        return Seen(Doing(status["doing"]) if status.get("pid") == pid else Doing.STARTING, login="key")

    def reported(self, told: Mapping[str, Any]) -> Reported:
        return Reported(turn=told.get("turn"), words=str(told.get("words", "")))

    def unsendable(self, text: str) -> str | None:
        return "would take it for a command" if text.startswith("/") else None
