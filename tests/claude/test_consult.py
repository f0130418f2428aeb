"""`--check` asks the installed claude itself."""

from __future__ import annotations

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


def test_a_rule_that_we_take_and_claude_does_not_is_found(lab: Lab) -> None:
    """Trap: over such a rule claude opens a dialog when it starts."""
    permissions = {"skip_prompts": False, "allow": ["Bash(git *)", "B*"], "deny": ["WebFetch(domain:example.org)"]}
    lab.configure({"scout": {"permissions": permissions}})
    answer = lab.command("--check")
    assert answer.returncode == 1
    assert "cannot be started: agents.scout.permissions.allow: claude would stop at a dialog: " in answer.stdout
    assert "git" not in answer.stdout.partition("would stop")[2]
