"""The harness as a whole: command line, environment, secrets. Its parts have files of their own."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from claude_plan_lab import KEY, home_of, plan_of
from plan_lab import agent_of, file_of, program, subject_of

from forge_supervisor import harness
from forge_supervisor.config import HarnessSettings, Library
from forge_supervisor.harness.claude_code import ClaudeCode

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def test_it_is_found_by_its_name() -> None:
    assert isinstance(harness.load("claude-code"), ClaudeCode)


class TestCommandLine:
    def test_it_says_all_that_bounds_the_agent(self, paths: Paths) -> None:
        library = {"plugins": {"a": {"source": "/srv/a"}, "b": {"source": "~/b"}}}
        assert plan_of(paths, model="opus", effort="high", library=library, extra_args=("--verbose",)).argv == (
            str(paths.home / ".local/bin/claude"),
            "--model", "opus",
            "--effort", "high",
            "--mcp-config", str(paths.state / ".mcp.json"),
            "--plugin-dir", "/srv/a",
            "--plugin-dir", str(paths.home / "b"),
            "--settings", str(paths.launch / "settings.json"),
            "--setting-sources", "project",
            "--append-system-prompt-file", str(paths.state / ".claude/skill-catalog.md"),
            "--dangerously-skip-permissions",
            "--disallowedTools=AskUserQuestion,EnterPlanMode,ExitPlanMode",
            "--session-id", "(new at every start)",
            "--verbose",
        )  # fmt: skip

    def test_what_would_undo_the_bounds_is_never_in_it(self, paths: Paths) -> None:
        argv = plan_of(paths, inherit=("user-settings", "bundled-skills"), permissions={"skip_prompts": False}).argv
        assert not {"--bare", "--strict-mcp-config"}.intersection(argv)

    def test_without_a_model_claude_chooses(self, paths: Paths) -> None:
        assert "--model" not in plan_of(paths).argv

    @pytest.mark.parametrize(
        ("unlisted", "mode", "asks"), [("refuse", "dontAsk", False), ("ask", "default", True)]
    )
    def test_without_skipped_prompts_the_mode_says_what_becomes_of_the_rest(
        self, paths: Paths, unlisted: str, mode: str, *, asks: bool
    ) -> None:
        argv = plan_of(paths, permissions={"skip_prompts": False, "unlisted": unlisted}).argv
        assert argv[argv.index("--permission-mode") + 1] == mode
        assert "--dangerously-skip-permissions" not in argv
        assert any(option.startswith("--disallowedTools=") for option in argv) is not asks

    def test_user_settings_are_a_source_only_if_they_are_inherited(self, paths: Paths) -> None:
        argv = plan_of(paths, inherit=("user-settings",)).argv
        assert argv[argv.index("--setting-sources") + 1] == "user,project"

    @pytest.mark.parametrize("binary", ["~/.local/bin/claude-next", "claude-next"])
    def test_the_binary_may_be_named(self, paths: Paths, binary: str) -> None:
        other = paths.home / ".local/bin/claude-next"
        other.symlink_to("claude")
        assert plan_of(paths, settings=HarnessSettings(binary=binary)).argv[0] == str(other)

    def test_claude_not_found(self, paths: Paths) -> None:
        (paths.home / ".local/bin/claude").unlink()
        with pytest.raises(LookupError, match=r"^claude was not found on .*/home/\.local/bin:/usr/bin:/bin"):
            plan_of(paths)

    def test_it_runs_in_its_own_directory_and_talks_to_nobody_else(self, paths: Paths) -> None:
        plan = plan_of(paths)
        assert plan.cwd == paths.state
        assert dict(plan.env) == {
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_UPDATES": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
            "DISABLE_COST_WARNINGS": "1",
        }

    def test_the_role_is_in_claude_md(self, paths: Paths) -> None:
        file = file_of(plan_of(paths, role="Look ahead.\nTell."), paths.state / "CLAUDE.md")
        assert (file.text, file.origin) == ("# scout\n\nLook ahead.\nTell.\n", ("role",))


LIBRARY = {
    "mcp_servers": {"tracker": {"command": "x", "secrets": {"TRACKER": "/s/tracker"}}},
    "discord": {"bots": {"team": {"token_file": "/s/bot"}}},
}


class TestSecrets:
    def test_those_of_what_was_granted(self) -> None:
        refs = ClaudeCode().secrets(subject_of(library=LIBRARY).granted)
        assert [(ref.key, ref.variable, ref.file) for ref in refs] == [
            ("mcp_servers.tracker.secrets.TRACKER", "TRACKER", "/s/tracker"),
            ("discord.bots.team.token_file", "DISCORD_BOT_TOKEN", "/s/bot"),
        ]
        assert list(ClaudeCode().secrets(Library())) == []

    def test_none_stands_in_the_plan(self, paths: Paths) -> None:
        """But for the last 20 characters of an API key, by which claude remembers that it may use it."""
        values = {"ANTHROPIC_API_KEY": KEY, "TRACKER": "tracker-secret", "DISCORD_BOT_TOKEN": "bot-secret"}
        plan = plan_of(paths, library=LIBRARY, secrets=values)
        everything = repr(plan)
        assert not [value for value in values.values() if value in everything]
        assert everything.count(KEY[-20:]) == 1

    def test_nor_in_the_subject_where_it_is_shown(self) -> None:
        assert "hunter2" not in repr(subject_of(secrets={"A": "hunter2"}))


class TestCheck:
    def test_lists_that_have_no_effect_are_warned_of(self) -> None:
        agent = agent_of(allowed_tools=("Edit",), permissions={"allow": ("Read",), "deny": ("WebFetch",)})
        problems = list(ClaudeCode().check(agent, Library()))
        assert [(problem.key, problem.fatal) for problem in problems] == [
            ("allowed_tools", False),
            ("permissions.allow", False),
        ]

    def test_all_that_is_wrong_is_told(self) -> None:
        library = Library.model_validate({"mcp_servers": {"ide": {"command": "x"}}})
        agent = agent_of(
            effort="much", model="opus-4.7", allowed_tools=("bash",), extra_args=("--bare",),
            permissions={"skip_prompts": False, "allow": ("mcp__*",), "deny": ("Bash(",)},
        )  # fmt: skip
        problems = ClaudeCode().check(agent, library)
        assert [(problem.key, problem.fatal) for problem in problems] == [
            ("effort", True),
            ("model", False),
            ("allowed_tools", True),
            ("permissions.allow", True),
            ("permissions.deny", True),
            ("mcp_servers", True),
            ("extra_args", True),
        ]


class TestVersion:
    def test_it_is_the_number_alone(self, paths: Paths) -> None:
        assert ClaudeCode().version(plan_of(paths)) == "2.1.330"

    def test_a_program_beside_it_runs_it_and_nothing_of_ours_reaches_it(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As an npm install: a script for the node beside it."""
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        program(paths.home / ".local/bin/node", 'echo "1$ANTHROPIC_API_KEY$HOME (Claude Code)"')
        (paths.home / ".local/bin/claude").write_text("#!/usr/bin/env node\n")
        assert ClaudeCode().version(plan_of(paths)) == "1"

    def test_a_failure_is_the_callers_to_tell(self, paths: Paths) -> None:
        (paths.home / ".local/bin/claude").write_text("#!/bin/sh\nexit 3\n")
        with pytest.raises(subprocess.CalledProcessError):
            ClaudeCode().version(plan_of(paths))
