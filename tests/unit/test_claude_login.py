"""Answers to a first start's questions, and whether there is a login."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from claude_plan_lab import KEY, home_of, plan_of, preflight, seed_of
from plan_lab import write

from forge_supervisor.harness.claude_code.login import MANAGED_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.harness import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


class TestSeed:
    def test_the_first_run_is_answered(self, paths: Paths) -> None:
        seed = seed_of(plan_of(paths))
        assert (seed.path, seed.lock) == (paths.home / ".claude.json", paths.home / ".claude.json.lock")
        assert seed.values == {
            "hasCompletedOnboarding": True,
            "resumeReturnDismissed": True,
            "lspRecommendationDisabled": True,
            "claudeCodeHints": {"disabled": True},
            "leftArrowOpensAgents": False,
            "projects": {
                str(paths.state): {
                    "hasTrustDialogAccepted": True,
                    "hasClaudeMdExternalIncludesApproved": True,
                    "hasClaudeMdExternalIncludesWarningShown": True,
                }
            },
        }

    def test_a_home_behind_a_symlink_is_named_by_its_real_path(self, paths: Paths, tmp_path: Path) -> None:
        """Trap: trust needs the realpath."""
        link = tmp_path / "link"
        link.symlink_to(paths.home)
        linked = dataclasses.replace(paths, home=link, forge=link / ".local/state/forge")
        assert list(seed_of(plan_of(linked)).values["projects"]) == [str(paths.state)]

    @pytest.mark.parametrize("place", ["env", "secrets"])
    def test_an_api_key_is_approved_by_its_last_20_characters(self, paths: Paths, place: str) -> None:
        seed = seed_of(plan_of(paths, **{place: {"ANTHROPIC_API_KEY": KEY}}))
        assert seed.values["customApiKeyResponses"] == {"approved": [KEY[-20:]]}

    def test_another_config_dir_has_the_file_in_it(self, paths: Paths) -> None:
        seed = seed_of(plan_of(paths, env={"CLAUDE_CONFIG_DIR": "/srv/claude"}))
        assert (seed.path, seed.lock) == (Path("/srv/claude/.claude.json"), Path("/srv/claude/.claude.json.lock"))

    def test_the_file_of_old_goes_before_unless_it_is_empty(self, paths: Paths) -> None:
        legacy = write(paths.home / ".claude/.config.json", "")
        assert seed_of(plan_of(paths)).path == paths.home / ".claude.json"
        legacy.write_text("{}")
        seed = seed_of(plan_of(paths), ".config.json")
        assert (seed.path, seed.lock) == (legacy, paths.home / ".claude/.config.json.lock")


class TestLogin:
    def test_not_logged_in_is_a_warning_with_the_way_out(self, paths: Paths) -> None:
        (problem,) = preflight(paths)
        assert not problem.fatal
        assert problem.text == f"not logged in: run `sudo -iu team {paths.home}/.local/bin/claude auth login`"

    def test_another_config_dir_is_logged_in_on_its_own(self, paths: Paths) -> None:
        write(paths.home / ".claude/.credentials.json", {"claudeAiOauth": {}})
        (problem,) = preflight(paths, env={"CLAUDE_CONFIG_DIR": "/srv/x"})
        assert "sudo -iu team env CLAUDE_CONFIG_DIR=/srv/x " in problem.text

    @pytest.mark.parametrize("place", ["env", "secrets"])
    @pytest.mark.parametrize(
        "name",
        ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK"],
    )
    def test_a_variable_is_enough_unless_it_is_empty(self, paths: Paths, name: str, place: str) -> None:
        assert preflight(paths, **{place: {name: "1"}}) == []
        assert len(preflight(paths, **{place: {name: ""}})) == 1

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            (".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "x"}}),
            (".claude.json", {"primaryApiKey": "x"}),
        ],
    )
    def test_a_file_is_enough_unless_it_is_broken(self, paths: Paths, file: str, content: dict[str, Any]) -> None:
        write(paths.home / file, content)
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
        write(paths.home / ".claude/.credentials.json", "[" * 100_000)
        assert len(preflight(paths)) == 1

    def test_the_operators_own_way_is_enough(
        self, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        managed = tmp_path / "managed-settings.json"
        managed.write_text(json.dumps({"apiKeyHelper": "/bin/true"}))
        assert Path("/etc/claude-code/managed-settings.json") == MANAGED_SETTINGS
        monkeypatch.setattr("forge_supervisor.harness.claude_code.login.MANAGED_SETTINGS", managed)
        assert preflight(paths) == []
