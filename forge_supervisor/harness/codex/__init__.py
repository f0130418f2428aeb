"""Codex, unattended and bounded, in a home of its own.

Every question is answered before it is asked, and nothing but what was declared for an agent reaches it, beside the one
login of its Linux user. What is said here about the program was seen on 0.169.0 and is asserted against the installed
binary by tests/codex.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, LaunchPlan, find_program
from forge_supervisor.harness.codex import (
    activity,
    catalogue,
    consult,
    login,
    names,
    permissions,
    rollouts,
    sessions,
    settings,
    transcripts,
)
from forge_supervisor.harness.granted import effort_problems, server_secrets
from forge_supervisor.harness.reporting import as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from forge_supervisor.activity import Reported, Seen
    from forge_supervisor.config import Agent, Library
    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.harness.transcripts import MessageUsage
    from forge_supervisor.policy import Exit
    from forge_supervisor.secrets import SecretRef

HOME = "CODEX_HOME"
_LAUNCHER = "codex.js"


class Codex:
    honours = frozenset(
        {
            "add_dirs",
            "allowed_tools",
            "budget",
            "effort",
            "extra_args",
            "inherit",
            "mcp_servers",
            "model",
            "permissions",
            "ready_timeout_sec",
            "resume",
            "skills",
        }
    )
    requires = frozenset({"role"})
    clearing_key = "\x0b\x15\x7f"  # Ctrl-K, Ctrl-U: both sides of the cursor; Backspace: the mode for commands, too
    reads_while_written = True
    stop_exit_status: frozenset[int] = frozenset()  # it dies of SIGTERM, which is clean

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:
        yield from effort_problems(agent.effort, names.EFFORTS)
        yield from names.model_problems(agent.model)
        yield from names.inherit_problems(agent)
        yield from names.server_problems(granted)
        yield from names.option_problems(agent.extra_args)
        yield from permissions.problems(agent)
        if HOME in agent.env or HOME in agent.secrets:
            yield Problem(f"env.{HOME}", "is the agent's own directory's (leave it out)")

    def secrets(self, granted: Library) -> Iterable[SecretRef]:
        return server_secrets(granted)

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        found = find_program(subject.settings.binary or "codex", paths.search, home=paths.home)
        program = _native(found)
        home = login.home_of(paths)
        session = sessions.next_of(subject, paths)
        return LaunchPlan(
            argv=(str(program), *_options(subject, paths, session)),
            cwd=paths.state,
            env={HOME: str(home)},
            closed=(home / "rules",),
            files=(
                *settings.files(subject, paths, program),
                File(home / "hooks.json", as_json(activity.hooks(subject, paths))),
                session.file(paths),
            ),
            links=tuple(settings.links(subject, paths)),
            resumes=bool(session.id),
        )

    def watched(self, subject: Subject, paths: Paths, pid: int) -> Sequence[Path]:  # noqa: ARG002
        return activity.watched(paths, pid)

    def observe(self, subject: Subject, paths: Paths, pid: int) -> Seen | None:
        return activity.observe(subject, paths, pid)

    def reported(self, told: Mapping[str, Any]) -> Reported:
        return activity.reported(told)

    def unsendable(self, text: str) -> str | None:
        return activity.unsendable(text)

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        yield from settings.problems(subject, paths)
        if Path(plan.argv[0]).name == _LAUNCHER:
            text = f"{plan.argv[0]} is a launcher without its program beside it: exit codes and signals are then node's"
            yield Problem("", f"{text} (npm install -g @openai/codex)", fatal=False)
        if not login.stands_for(login.own(subject), paths):
            yield Problem("", f"not logged in: run `{login.command(subject, plan)}`", fatal=False)

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:
        return consult.consult(subject, plan)

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:
        return sessions.unresumable(exit_, screen)

    def version(self, plan: LaunchPlan) -> str:
        # Whatever it is asked, it makes itself a home.
        answer = catalogue.asked(plan.argv[0], "--version")
        answer.check_returncode()
        return answer.stdout.strip().rpartition(" ")[2]

    def transcripts(self, agent: Agent, paths: Paths) -> Iterable[Path]:  # noqa: ARG002 - they are in its own home
        return rollouts.files(login.home_of(paths))

    def usage_in(self, line: bytes, transcript: Path) -> MessageUsage | None:
        return transcripts.usage_in(line, transcript)


def _options(subject: Subject, paths: Paths, session: sessions.Next) -> Iterator[str]:
    agent = subject.agent
    yield "--no-daemon"
    # A session that is resumed stays with the model and effort that it had, whatever config.toml says.
    if agent.model is not None:
        yield from ("--model", agent.model)
    yield from ("-c", f'model_reasoning_effort="{agent.effort}"')
    yield from permissions.options(agent, paths)
    # The hooks are ours alone: codex would ask whether they are to be trusted.
    yield "--dangerously-bypass-hook-trust"
    # Without it a session that is resumed asks in which directory, if that was moved.
    yield from ("--cd", str(paths.state))
    yield from agent.extra_args
    yield from session.options()


def _native(program: Path) -> Path:
    """Find the program itself behind npm's launcher, which stays in between on an older node."""
    real = Path(os.path.realpath(program))
    if real.name != _LAUNCHER:
        return program
    package = real.parents[1]
    places = (package / "node_modules/@openai", package.parent)
    found = (path for place in places for path in place.glob("codex-linux-*/vendor/*/bin/codex"))
    return next((path for path in found if os.access(path, os.X_OK)), real)
