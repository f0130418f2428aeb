from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import harness
from forge_supervisor.config import Agent, HarnessSettings
from forge_supervisor.harness import LaunchPlan, Paths
from forge_supervisor.harness.claude_code import EFFORTS, MANAGED_SETTINGS, ClaudeCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from forge_supervisor.harness import File, JsonSeed, Problem

KEY = "sk-ant-api03-0123456789-abcdefghij-KLMNOPQRST"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    home = tmp_path / "home"
    program = home / ".local/bin/claude"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n[ $1 = --version ] && echo '2.1.330 (Claude Code)'\n")
    program.chmod(0o755)
    forge = home / ".local/state/forge"
    search = (str(program.parent), "/usr/bin", "/bin")
    return Paths(home=home, state=forge / "agents/scout", launch=forge / "launch/scout", search=search)


def agent_of(**values: Any) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "role": "Look ahead.", **values})


def plan_of(paths: Paths, settings: HarnessSettings | None = None, **values: Any) -> LaunchPlan:
    return ClaudeCode().plan(agent_of(**values), settings or HarnessSettings(), paths)


def file_of(plan: LaunchPlan, name: str) -> File:
    (file,) = (file for file in plan.files if file.path.name == name)
    return file


def settings_of(plan: LaunchPlan) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file_of(plan, "settings.json").text)
    return settings


def seed_of(plan: LaunchPlan) -> JsonSeed:
    (seed,) = plan.seeds
    return seed


def preflight(paths: Paths, env: Mapping[str, str] | None = None) -> list[Problem]:
    agent = agent_of(env=dict(env or {}))
    return list(ClaudeCode().preflight(agent, ClaudeCode().plan(agent, HarnessSettings(), paths), paths))


def test_it_is_found_by_its_name() -> None:
    assert isinstance(harness.load("claude-code"), ClaudeCode)


class TestCheck:
    @pytest.mark.parametrize("effort", EFFORTS)
    def test_the_efforts_that_claude_knows(self, effort: str) -> None:
        assert list(ClaudeCode().check(agent_of(effort=effort))) == []

    @pytest.mark.parametrize("effort", ["bogus", "MAX", "max "])
    def test_an_effort_that_claude_would_ignore_in_silence(self, effort: str) -> None:
        (problem,) = ClaudeCode().check(agent_of(effort=effort))
        assert (problem.key, problem.fatal) == ("effort", True)
        assert problem.text == f'"{effort}" is no effort level (use one of low, medium, high, xhigh, max)'

    @pytest.mark.parametrize("model", ["opus", "claude-opus-4-5-20251101[1m]"])
    def test_models_are_claudes_to_know(self, model: str) -> None:
        assert list(ClaudeCode().check(agent_of(model=model))) == []

    @pytest.mark.parametrize("model", ["-p", "--version", "opus\n4"])
    def test_what_cannot_be_a_model(self, model: str) -> None:
        (problem,) = ClaudeCode().check(agent_of(model=model))
        assert (problem.key, problem.fatal) == ("model", True)


class TestCommandLine:
    def test_it_says_all_that_bounds_the_agent(self, paths: Paths) -> None:
        assert plan_of(paths, model="opus", effort="high").argv == (
            str(paths.home / ".local/bin/claude"),
            "--model", "opus",
            "--effort", "high",
            "--setting-sources", "project",
            "--settings", str(paths.launch / "settings.json"),
            "--dangerously-skip-permissions",
            "--disallowedTools=AskUserQuestion",
        )  # fmt: skip

    def test_without_a_model_claude_chooses(self, paths: Paths) -> None:
        assert "--model" not in plan_of(paths).argv

    @pytest.mark.parametrize("binary", ["~/.local/bin/claude-next", "claude-next"])
    def test_the_binary_may_be_named(self, paths: Paths, binary: str) -> None:
        program = paths.home / ".local/bin/claude-next"
        program.symlink_to("claude")
        assert plan_of(paths, HarnessSettings(binary=binary)).argv[0] == str(program)

    def test_claude_not_found(self, paths: Paths) -> None:
        (paths.home / ".local/bin/claude").unlink()
        with pytest.raises(LookupError, match=r"^claude was not found on .*/home/\.local/bin:/usr/bin:/bin"):
            plan_of(paths)

    def test_it_runs_in_its_own_directory_and_talks_to_nobody_else(self, paths: Paths) -> None:
        plan = plan_of(paths)
        assert plan.cwd == paths.state
        assert dict(plan.env) == {
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
        }

    def test_nothing_secret_is_in_it(self, paths: Paths) -> None:
        plan = plan_of(paths, env={"ANTHROPIC_API_KEY": KEY})
        assert KEY[-20:] not in " ".join(plan.argv)
        assert KEY[-20:] not in file_of(plan, "settings.json").text


class TestFiles:
    def test_the_role_is_in_claude_md(self, paths: Paths) -> None:
        file = file_of(plan_of(paths, role="Look ahead.\nTell."), "CLAUDE.md")
        assert file.path == paths.state / "CLAUDE.md"
        assert file.text == "# scout\n\nLook ahead.\nTell.\n"

    def test_the_settings_lie_where_the_agent_is_not_meant_to_edit_them(self, paths: Paths) -> None:
        plan = plan_of(paths)
        assert file_of(plan, "settings.json").path == paths.launch / "settings.json"
        assert settings_of(plan)["skipDangerousModePermissionPrompt"] is True
        assert settings_of(plan)["enableAllProjectMcpServers"] is True

    def test_instructions_above_the_agents_directory_are_left_out(self, paths: Paths) -> None:
        """Trap: ~/CLAUDE.md, ~/.claude/CLAUDE.md and rules reach the agent although sources=project."""
        excluded = settings_of(plan_of(paths))["claudeMdExcludes"]
        for directory in (paths.state.parent, paths.home, paths.home.parent, Path("/")):
            for name in ("CLAUDE.md", ".claude/CLAUDE.md", ".claude/rules/**"):
                assert str(directory / name) in excluded
        assert not [pattern for pattern in excluded if pattern.startswith(str(paths.state))]

    def test_a_home_behind_a_symlink_is_named_by_its_real_path(self, paths: Paths, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(paths.home)
        forge = link / ".local/state/forge"
        linked = Paths(home=link, state=forge / "agents/scout", launch=forge / "launch/scout", search=paths.search)
        plan = plan_of(linked)
        assert str(paths.home / "CLAUDE.md") in settings_of(plan)["claudeMdExcludes"]
        assert list(seed_of(plan).values["projects"]) == [str(paths.state)]


class TestSeed:
    def test_the_first_run_is_answered(self, paths: Paths) -> None:
        seed = seed_of(plan_of(paths))
        assert (seed.path, seed.lock) == (paths.home / ".claude.json", paths.home / ".claude.json.lock")
        assert seed.values == {
            "hasCompletedOnboarding": True,
            "projects": {
                str(paths.state): {
                    "hasTrustDialogAccepted": True,
                    "hasClaudeMdExternalIncludesApproved": True,
                    "hasClaudeMdExternalIncludesWarningShown": True,
                }
            },
        }

    def test_imports_are_answered_for_the_repository_that_the_agent_lies_in_if_its_role_has_any(
        self, paths: Paths
    ) -> None:
        (paths.home / ".git").mkdir()
        projects = seed_of(plan_of(paths, role="See @~/team.md")).values["projects"]
        assert list(projects) == [str(paths.state), str(paths.home)]
        assert "hasTrustDialogAccepted" not in projects[str(paths.home)]
        assert list(seed_of(plan_of(paths)).values["projects"]) == [str(paths.state)]

    def test_an_api_key_is_approved_by_its_last_20_characters(self, paths: Paths) -> None:
        seed = seed_of(plan_of(paths, env={"ANTHROPIC_API_KEY": KEY}))
        assert seed.values["customApiKeyResponses"] == {"approved": [KEY[-20:]]}

    def test_another_config_dir_has_the_file_in_it(self, paths: Paths) -> None:
        seed = seed_of(plan_of(paths, env={"CLAUDE_CONFIG_DIR": "/srv/claude"}))
        assert (seed.path, seed.lock) == (Path("/srv/claude/.claude.json"), Path("/srv/claude/.claude.json.lock"))

    def test_the_file_of_old_goes_before_unless_it_is_empty(self, paths: Paths) -> None:
        legacy = paths.home / ".claude/.config.json"
        legacy.parent.mkdir()
        legacy.touch()
        assert seed_of(plan_of(paths)).path == paths.home / ".claude.json"
        legacy.write_text("{}")
        seed = seed_of(plan_of(paths))
        assert (seed.path, seed.lock) == (legacy, paths.home / ".claude/.config.json.lock")


class TestLogin:
    def test_not_logged_in_is_a_warning_with_the_way_out(self, paths: Paths) -> None:
        (problem,) = preflight(paths)
        assert not problem.fatal
        assert problem.text == f"not logged in: run `sudo -iu team {paths.home}/.local/bin/claude auth login`"

    def test_another_config_dir_is_logged_in_on_its_own(self, paths: Paths) -> None:
        (paths.home / ".claude").mkdir()
        (paths.home / ".claude/.credentials.json").write_text('{"claudeAiOauth": {}}')
        (problem,) = preflight(paths, {"CLAUDE_CONFIG_DIR": "/srv/x"})
        assert "sudo -iu team env CLAUDE_CONFIG_DIR=/srv/x " in problem.text

    @pytest.mark.parametrize(
        "name",
        ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK"],
    )
    def test_a_variable_is_enough_unless_it_is_empty(self, paths: Paths, name: str) -> None:
        assert preflight(paths, {name: "1"}) == []
        assert len(preflight(paths, {name: ""})) == 1

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            (".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "x"}}),
            (".claude.json", {"primaryApiKey": "x"}),
        ],
    )
    def test_a_file_is_enough_unless_it_is_broken(self, paths: Paths, file: str, content: dict[str, Any]) -> None:
        (paths.home / ".claude").mkdir()
        (paths.home / file).write_text(json.dumps(content))
        assert preflight(paths) == []
        for broken in ("", '["primaryApiKey"]', "{}"):
            (paths.home / file).write_text(broken)
            assert len(preflight(paths)) == 1

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/tty")])
    @pytest.mark.timeout(10)
    def test_what_is_no_file_holds_nobody_up(self, paths: Paths, make: Callable[[Path], None]) -> None:
        (paths.home / ".claude").mkdir()
        make(paths.home / ".claude/.credentials.json")
        assert len(preflight(paths)) == 1

    def test_what_nests_without_end_is_no_login(self, paths: Paths) -> None:
        (paths.home / ".claude").mkdir()
        (paths.home / ".claude/.credentials.json").write_text("[" * 100_000)
        assert len(preflight(paths)) == 1

    def test_the_operators_own_way_is_enough(
        self, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        managed = tmp_path / "managed-settings.json"
        managed.write_text('{"apiKeyHelper": "/bin/true"}')
        assert Path("/etc/claude-code/managed-settings.json") == MANAGED_SETTINGS
        monkeypatch.setattr("forge_supervisor.harness.claude_code.MANAGED_SETTINGS", managed)
        assert preflight(paths) == []


class TestVersion:
    def test_it_is_the_number_alone(self, paths: Paths) -> None:
        assert ClaudeCode().version(plan_of(paths)) == "2.1.330"

    def test_a_program_beside_it_runs_it_and_nothing_of_ours_reaches_it(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As an npm install: a script for the node beside it."""
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        node = paths.home / ".local/bin/node"
        node.write_text('#!/bin/sh\necho "1$ANTHROPIC_API_KEY$HOME (Claude Code)"\n')
        node.chmod(0o755)
        (paths.home / ".local/bin/claude").write_text("#!/usr/bin/env node\n")
        assert ClaudeCode().version(plan_of(paths)) == "1"

    def test_a_failure_is_the_callers_to_tell(self, paths: Paths) -> None:
        (paths.home / ".local/bin/claude").write_text("#!/bin/sh\nexit 3\n")
        with pytest.raises(subprocess.CalledProcessError):
            ClaudeCode().version(plan_of(paths))
