"""What bounds an agent, as keys; that they do what they say is shown with the real claude (tests/claude)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from claude_plan_lab import home_of, launch_settings, plan_of, preflight
from plan_lab import json_in, write

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def own_settings(paths: Paths, **keys: Any) -> dict[str, Any]:
    return json_in(plan_of(paths, **keys), paths.state / ".claude/settings.json")


def said_by(hooks: list[dict[str, Any]]) -> dict[str, Any]:
    (command,) = (hook["command"] for matcher in hooks for hook in matcher["hooks"])
    said = json.loads(subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True).stdout)
    output: dict[str, Any] = said["hookSpecificOutput"]
    return output


class TestPermissions:
    def test_the_lists_are_where_whoever_attaches_looks(self, paths: Paths) -> None:
        permissions = {"allow": ("Read", "Edit"), "deny": ("WebFetch",)}
        assert own_settings(paths, allowed_tools=("Bash(git *)", "Edit"), permissions=permissions) == {
            "permissions": {"allow": ["Bash(git *)", "Edit", "Read"], "deny": ["WebFetch"]}
        }

    def test_what_is_denied_stays_so_whatever_becomes_of_the_agents_own_settings(self, paths: Paths) -> None:
        """Trap: claude reloads those within seconds."""
        settings = launch_settings(paths, permissions={"deny": ("WebFetch",)})
        assert settings["permissions"]["deny"] == ["WebFetch", f"Edit(/{paths.launch}/**)", "ListAgents"]
        assert settings["skipDangerousModePermissionPrompt"] is True

    def test_further_directories_bring_nothing_but_themselves(self, paths: Paths) -> None:
        """Trap: --add-dir asks for trust, and loads the directory's skills and sub-agents."""
        settings = launch_settings(paths, add_dirs=("~/work", "/srv/x"))
        assert settings["permissions"]["additionalDirectories"] == [str(paths.home / "work"), "/srv/x"]
        assert "--add-dir" not in plan_of(paths, add_dirs=("~/work",)).argv

    @pytest.mark.parametrize(
        ("permissions", "answered"),
        [({}, True), ({"skip_prompts": False}, True), ({"skip_prompts": False, "unlisted": "ask"}, False)],
    )
    def test_dialogs_are_answered_unless_somebody_is_to_be_asked(
        self, paths: Paths, permissions: dict[str, Any], *, answered: bool
    ) -> None:
        settings = launch_settings(paths, permissions=permissions)
        assert settings["disableAllHooks"] is False, "the agent's own settings cannot undo it"
        told = {"SessionStart", "Stop", "StopFailure", "UserPromptSubmit"}
        said = {event: said_by(hooks) for event, hooks in settings["hooks"].items() if event not in told}
        assert bool(said) is answered
        if not answered:
            return
        assert said["PermissionRequest"]["decision"]["behavior"] == "deny"
        assert said["Elicitation"]["action"] == "decline"


class TestBounds:
    def test_all_is_kept_out_that_is_not_inherited(self, paths: Paths) -> None:
        settings = launch_settings(paths)
        assert settings["disableBundledSkills"] is True
        assert settings["autoMemoryEnabled"] is False
        assert settings["disableClaudeAiConnectors"] is True
        assert settings["crossSessionInbound"] == "refuse"
        assert settings["enabledPlugins"]["cc-plugin-plugin-authoring@builtin"] is False
        assert settings["env"]["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] == "1"
        assert settings["env"]["ENABLE_CLAUDEAI_MCP_SERVERS"] == "false"

    def test_each_can_be_inherited_alone(self, paths: Paths) -> None:
        for name, key, inherited in (
            ("bundled-skills", "disableBundledSkills", False),
            ("auto-memory", "autoMemoryEnabled", True),
            ("claude-ai-connectors", "disableClaudeAiConnectors", False),
        ):
            usual, other = launch_settings(paths), launch_settings(paths, inherit=(name,))
            assert other[key] is inherited
            changed = {key for key in usual if usual[key] != other[key]}
            assert changed <= {key, "env", "enabledPlugins"}, name

    def test_the_environment_is_set_again_for_the_agents_own_settings_beat_that_of_the_process(
        self, paths: Paths
    ) -> None:
        pinned = launch_settings(paths, env={"DISABLE_UPDATES": "0"})["env"]
        assert pinned.items() >= {**plan_of(paths).env, "DISABLE_UPDATES": "0"}.items(), "the operator's word wins"

    def test_instructions_above_the_agents_directory_are_left_out(self, paths: Paths) -> None:
        """Trap: ~/CLAUDE.md, ~/.claude/CLAUDE.md and rules reach the agent although sources=project."""
        excluded = launch_settings(paths)["claudeMdExcludes"]
        for directory in (paths.state.parent, paths.home, paths.home.parent, paths.home.parents[-1]):
            for name in ("CLAUDE.md", "AGENTS.md", ".claude/CLAUDE.md", ".claude/AGENTS.md", ".claude/rules/**"):
                assert str(directory / name) in excluded
        assert not [pattern for pattern in excluded if pattern.startswith(str(paths.state))]

    def test_the_users_instructions_and_those_of_parents_are_inherited_apart(self, paths: Paths) -> None:
        users = launch_settings(paths, inherit=("user-instructions",))["claudeMdExcludes"]
        assert str(paths.home / ".claude/CLAUDE.md") not in users
        assert str(paths.home / "CLAUDE.md") in users
        parents = launch_settings(paths, inherit=("parent-instructions",))["claudeMdExcludes"]
        assert [*map(str, parents)] == [
            str(paths.home / ".claude" / name) for name in ("CLAUDE.md", "AGENTS.md", "rules/**")
        ]

    def test_instructions_that_claude_would_not_find_are_told(self, paths: Paths, tmp_path: Path) -> None:
        login = {"ANTHROPIC_API_KEY": "x"}
        assert preflight(paths, inherit=("user-instructions",), env=login) == []
        for env in ({"CLAUDE_CONFIG_DIR": str(paths.home / "cc")}, {"CLAUDE_CONFIG_DIR": str(tmp_path / "o/.claude")}):
            (problem,) = preflight(paths, inherit=("user-instructions",), env={**login, **env})
            assert (problem.key, problem.fatal) == ("inherit", False)
        elsewhere = dataclasses.replace(paths, forge=tmp_path / "state/forge")
        assert len(preflight(elsewhere, inherit=("user-instructions",), env=login)) == 1

    def test_servers_declared_above_the_agents_directory_are_not_started(self, paths: Paths) -> None:
        """Trap: claude starts the servers of every .mcp.json between the root and the agent's directory."""
        write(paths.home / ".mcp.json", {"mcpServers": {"theirs": {}, "also": {}}})
        write(paths.forge / ".mcp.json", {"mcpServers": {"other": {}}})
        write(paths.home / ".local/.mcp.json", {"mcpServers": ["no table"]})
        assert launch_settings(paths)["disabledMcpjsonServers"] == ["also", "other", "theirs"]

    def test_a_repository_around_the_agent_is_not_told(self, paths: Paths) -> None:
        assert "includeGitInstructions" not in launch_settings(paths)
        (paths.home / ".git").mkdir()
        assert launch_settings(paths)["includeGitInstructions"] is False


class TestBarrier:
    """Trap: .claude directories between the home and the agent's directory have their skills loaded."""

    def test_an_empty_repository_ends_the_walk(self, paths: Paths) -> None:
        assert paths.state / ".git" in plan_of(paths).folders

    def test_one_that_the_agent_has_made_stays(self, paths: Paths, tmp_path: Path) -> None:
        place = paths.state / ".git"
        write(place, "gitdir: /elsewhere")
        assert place not in plan_of(paths).folders
        place.unlink()
        (tmp_path / "repo").mkdir()
        place.symlink_to(tmp_path / "repo")
        assert place not in plan_of(paths).folders
        place.unlink()
        place.mkdir()
        assert place in plan_of(paths).folders, "a real directory is left as it is"
