"""What the installed codex itself says of an agent's values, and of the machine: it has a list of models and a sandbox.

OpenAI may have more models by now, of which codex hears as it runs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness.codex import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.harness import LaunchPlan, Subject

_LONGEST = 300


def consult(subject: Subject, plan: LaunchPlan) -> Iterator[Problem]:
    """Find a model that it does not know, an effort that the model does not have, and a sandbox that does not work.

    Silent if it cannot be asked.
    """
    yield from _model_problems(subject, plan)
    if not subject.agent.permissions.skip_prompts:
        yield from _sandbox_problems(plan)


def _model_problems(subject: Subject, plan: LaunchPlan) -> Iterator[Problem]:
    agent, models = subject.agent, catalogue.of(Path(plan.argv[0]))
    if agent.model is None or not models:
        return
    model = models.get(agent.model)
    if model is None:
        text = f'this codex does not know "{agent.model}" (it knows {", ".join(sorted(models))})'
        yield Problem("model", text, fatal=False)
    elif agent.effort not in model.efforts:
        text = f'{agent.model} has no effort "{agent.effort}" (it has {", ".join(model.efforts)})'
        yield Problem("effort", text, fatal=False)


def _sandbox_problems(plan: LaunchPlan) -> Iterator[Problem]:
    """Find that it cannot be made, as on a machine where users have no user namespaces: then no command runs in it."""
    try:
        tried = catalogue.asked(plan.argv[0], "sandbox", "--", "true")
    except (OSError, subprocess.SubprocessError):
        return
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["it says nothing"])[-1]
        text = f"codex's sandbox cannot be made here, so commands that no rule allows fail: {said[:_LONGEST]}"
        yield Problem("permissions.skip_prompts", text, fatal=False)
