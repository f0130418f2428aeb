"""What the installed codex itself says of an agent's model and effort: it has a list of those it knows.

OpenAI may have more by now, which codex hears of as it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness.codex import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.harness import LaunchPlan, Subject


def consult(subject: Subject, plan: LaunchPlan) -> Iterator[Problem]:
    """Find a model that it does not know, and an effort that the model does not have. Silent if it cannot be asked."""
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
