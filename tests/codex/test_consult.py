"""What the real codex says when it is asked about an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codex_lab import MODEL

from forge_supervisor.harness.codex import names

if TYPE_CHECKING:
    from codex_lab import Lab


def test_models_and_efforts_that_it_knows_and_a_sandbox_that_works(lab: Lab) -> None:
    unattended = {"permissions": {"skip_prompts": False}}
    agents = {
        "good": {"model": "gpt-6-sol", "effort": "ultra", **unattended},
        "weak": {"model": MODEL, "effort": "max", **unattended},
        "unheard": {"model": "gpt-1066", **unattended},
    }
    lab.configure(agents)
    told = lab.command("--check").stdout
    warnings = [line.strip() for line in told.splitlines() if "warning" in line]
    assert len(warnings) == 2, told
    assert f'agents.weak.effort: {MODEL} has no effort "max"' in warnings[0]
    assert 'agents.unheard.model: this codex does not know "gpt-1066"' in warnings[1]
    assert not (lab.home / ".codex").exists()


def test_efforts_are_those_that_its_models_have(lab: Lab) -> None:
    told = lab.as_user(lab.program, "debug", "models", "--bundled")
    known = [effort for effort in names.EFFORTS if f'"effort":"{effort}"' in told]
    assert known == [*names.EFFORTS]
