"""`--check` asks the installed claude itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_lab import Lab


def test_a_model_that_this_claude_does_not_know_is_a_warning(lab: Lab) -> None:
    lab.configure({"scout": {"model": "claude-opus-9-9"}, "herald": {"model": "opus"}})
    answer = lab.command("--check")
    assert answer.returncode == 0, answer.stderr
    assert 'warning: agents.scout.model: this claude does not know "claude-opus-9-9"' in answer.stdout
    assert "agents.herald.model" not in answer.stdout
    assert not (lab.home / ".claude.json").exists(), "it leaves nothing behind"


# As the worker does it, for an agent whose rules we would not take; $1: claude.
CONSULT = """
import sys
from pathlib import Path
from forge_supervisor.config import Agent
from forge_supervisor.harness import LaunchPlan, Subject
from forge_supervisor.harness.claude_code import ClaudeCode
permissions = {"allow": ["Bash(git *)", "Bash("], "deny": ["WebFetch(domain:example.org)", "bash(x)"]}
agent = Agent(name="scout", run_as="team", role="x", permissions=permissions)
for problem in ClaudeCode().consult(Subject(agent), LaunchPlan((sys.argv[1],), Path("/"))):
    print(problem.key, problem.fatal, problem.text)
"""


def test_a_rule_over_which_claude_would_stop_at_a_dialog_is_found(lab: Lab) -> None:
    told = lab.as_user(sys.executable, "-I", "-c", CONSULT, lab.claude).splitlines()
    assert [line.partition(" claude would stop at a dialog: Invalid permission rule ")[0] for line in told] == [
        "permissions.allow True",
        "permissions.deny True",
    ]
    assert '"Bash(" was skipped' in told[0]
    assert '"bash(x)" was skipped' in told[1]
