"""Any program under the same supervision: ``command = ["/usr/bin/thing", "--flag"]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.harness import LaunchPlan, Paths, Problem, expand_home, find_program, said_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forge_supervisor.config import Agent, Library
    from forge_supervisor.harness import Subject
    from forge_supervisor.policy import Exit
    from forge_supervisor.secrets import SecretRef


class Command:
    honours = frozenset({"command", "cwd"})
    requires = frozenset({"command"})
    stop_exit_status: frozenset[int] = frozenset()

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:  # noqa: ARG002
        program = agent.command[0] if agent.command else ""
        if "/" in program and not program.startswith(("/", "~/")):
            yield Problem("command", f"{program} is a relative path (begin with / or ~/, or give a bare name)")

    def secrets(self, granted: Library) -> Iterable[SecretRef]:  # noqa: ARG002
        return ()

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        agent = subject.agent
        if not agent.command:
            raise LookupError("the command is empty")
        program = find_program(agent.command[0], paths.search, home=paths.home)
        return LaunchPlan(argv=(str(program), *agent.command[1:]), cwd=self._cwd(agent, paths))

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:  # noqa: ARG002
        return ()

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:  # noqa: ARG002
        return ()

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:  # noqa: ARG002
        return False

    def version(self, plan: LaunchPlan) -> str:
        return said_to(plan.argv[0], "--version").partition("\n")[0].strip()

    def _cwd(self, agent: Agent, paths: Paths) -> Path:
        if agent.cwd is None:
            return paths.state
        return Path(expand_home(agent.cwd, paths.home))
