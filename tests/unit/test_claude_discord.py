"""An agent's bot: launch line, environment, access, and what would keep it silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from claude_plan_lab import fatal, home_of, launch_settings, plan_of, seed_of
from plan_lab import json_in, program, write

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths

ANNA, BEN, STRANGER = "184695080709324800", "221773638772129792", "300000000000000000"
CHANNEL = "846209781206941736"
PLUGIN = "discord@claude-plugins-official"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def bot(**access: Any) -> dict[str, Any]:
    table: dict[str, Any] = {"token_file": "/s/bot"}
    if access:
        table["access"] = access
    return {"discord": {"bots": {"team": table}}}


def installed(paths: Paths) -> Path:
    """Put the plugin where `claude plugin install` does."""
    place = paths.home / ".claude/plugins/cache/claude-plugins-official/discord/0.0.4"
    write(place / ".claude-plugin/plugin.json", {"name": "discord"})
    entry = [{"scope": "user", "installPath": str(place), "version": "0.0.4"}]
    write(paths.home / ".claude/plugins/installed_plugins.json", {"version": 2, "plugins": {PLUGIN: entry}})
    return place


class TestLaunch:
    def test_messages_come_by_the_installed_plugin(self, paths: Paths) -> None:
        argv = plan_of(paths, library=bot()).argv
        assert argv[argv.index("--channels") + 1] == f"plugin:{PLUGIN}"
        assert launch_settings(paths, library=bot())["enabledPlugins"][PLUGIN] is True
        assert PLUGIN not in launch_settings(paths)["enabledPlugins"]

    def test_the_traffic_that_carries_feature_flags_is_left_on(self, paths: Paths) -> None:
        """Trap: without it channels are off, and so they are without telemetry."""
        env = plan_of(paths, library=bot()).env
        pinned = launch_settings(paths, library=bot())["env"]
        for off in ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_GROWTHBOOK"):
            assert off not in env
            assert off not in pinned
        assert env["DISABLE_AUTOUPDATER"] == env["DISABLE_UPDATES"] == "1"

    def test_its_state_outlives_sessions_and_lies_beside_the_agents_directory(self, paths: Paths) -> None:
        """Trap: the plugin refuses to send files of its state directory."""
        plan = plan_of(paths, library=bot())
        assert plan.env["DISCORD_STATE_DIR"] == str(paths.forge / "discord/scout")
        assert paths.discord in plan.folders
        assert not paths.discord.is_relative_to(plan.cwd)

    def test_terms_that_a_server_could_ask_for_are_not_asked(self, paths: Paths) -> None:
        """Trap: with that traffic, the terms dialog's first answer is 'train on my chats'."""
        write(paths.home / ".claude.json", {"oauthAccount": {"accountUuid": "u-1"}})
        seeds = [seed for seed in plan_of(paths, library=bot()).seeds if "groveConfigCache" in seed.values]
        (heard,) = (seed.values["groveConfigCache"]["u-1"] for seed in seeds)
        assert heard["grove_enabled"] is False
        assert "groveConfigCache" not in seed_of(plan_of(paths)).values


class TestAccess:
    def access(self, paths: Paths, **declared: Any) -> dict[str, Any]:
        return json_in(plan_of(paths, library=bot(**declared)), paths.discord / "access.json")

    def test_whoever_is_declared_need_not_pair(self, paths: Paths) -> None:
        channels = {CHANNEL: {"require_mention": False, "users": [BEN]}, STRANGER: {}}
        assert self.access(paths, users=[ANNA], channels=channels, mention_patterns=["^hey"]) == {
            "dmPolicy": "allowlist",
            "allowFrom": [ANNA],
            "groups": {
                CHANNEL: {"requireMention": False, "allowFrom": [BEN]},
                STRANGER: {"requireMention": True, "allowFrom": []},
            },
            "mentionPatterns": ["^hey"],
            "pending": {},
        }

    def test_whoever_is_no_more_declared_is_gone(self, paths: Paths) -> None:
        write(
            paths.discord / "access.json",
            {"allowFrom": [ANNA, STRANGER], "groups": {CHANNEL: {}}, "pending": {"c0de": {}}, "ackReaction": "👀"},
        )
        access = self.access(paths, users=[ANNA])
        assert (access["allowFrom"], access["groups"], access["pending"]) == ([ANNA], {}, {})
        assert access["ackReaction"] == "👀", "what is not declared is the plugin's"

    def test_whoever_has_been_paired_stays_while_pairing_is_the_policy(self, paths: Paths) -> None:
        pending = {"c0de": {"senderId": BEN}}
        write(paths.discord / "access.json", {"allowFrom": [STRANGER, ANNA, 3], "pending": pending})
        access = self.access(paths, policy="pairing", users=[ANNA])
        assert (access["allowFrom"], access["pending"]) == ([ANNA, STRANGER], pending)

    @pytest.mark.parametrize("broken", ["", "[]", '{"allowFrom": 3, "pending": []}'])
    def test_a_broken_file_is_no_obstacle(self, paths: Paths, broken: str) -> None:
        write(paths.discord / "access.json", broken)
        assert self.access(paths, policy="pairing", users=[ANNA])["allowFrom"] == [ANNA]

    @pytest.mark.parametrize(("policy", "mode"), [("allowlist", "static"), ("disabled", "static"), ("pairing", None)])
    def test_what_is_declared_cannot_be_talked_away(self, paths: Paths, policy: str, mode: str | None) -> None:
        assert plan_of(paths, library=bot(policy=policy)).env.get("DISCORD_ACCESS_MODE") == mode

    def test_without_declared_access_the_file_is_the_plugins(self, paths: Paths) -> None:
        plan = plan_of(paths, library=bot())
        assert "DISCORD_ACCESS_MODE" not in plan.env
        assert not [file for file in plan.files if file.path.name == "access.json"]

    def test_no_env_file_is_written_and_no_token_stands_anywhere(self, paths: Paths) -> None:
        plan = plan_of(paths, library=bot(users=[ANNA]), secrets={"DISCORD_BOT_TOKEN": "hunter2"})
        assert not [file for file in plan.files if file.path.name == ".env"]
        assert "hunter2" not in repr(plan)


class TestProblems:
    def test_the_plugin_has_to_be_installed(self, paths: Paths) -> None:
        program(paths.home / ".local/bin/bun", "")
        ((key, text),) = fatal(paths, library=bot())
        claude = f"sudo -iu team {paths.home}/.local/bin/claude"
        assert key == "discord_bot"
        assert f"run `{claude} plugin marketplace add anthropics/claude-plugins-official && " in text
        assert f"{claude} plugin install {PLUGIN}`" in text
        installed(paths)
        assert fatal(paths, library=bot()) == []

    def test_one_whose_files_are_gone_is_not_installed(self, paths: Paths) -> None:
        """Trap: claude says nothing of it."""
        program(paths.home / ".local/bin/bun", "")
        (installed(paths) / ".claude-plugin/plugin.json").unlink()
        assert [key for key, _ in fatal(paths, library=bot())] == ["discord_bot"]

    @pytest.mark.parametrize("plugins", [None, [], {PLUGIN: None}, {PLUGIN: [3, {"installPath": 4}]}])
    def test_a_list_of_plugins_that_is_none_is_no_fault_of_ours(self, paths: Paths, plugins: Any) -> None:
        write(paths.home / ".claude/plugins/installed_plugins.json", {"plugins": plugins})
        assert "is not installed" in fatal(paths, library=bot())[0][1]

    def test_its_runtime_has_to_be_on_the_agents_path(self, paths: Paths) -> None:
        installed(paths)
        ((key, text),) = fatal(paths, library=bot())
        assert (key, "needs bun: bun was not found on" in text) == ("discord_bot", True)

    def test_a_second_copy_would_take_the_messages(self, paths: Paths, tmp_path: Path) -> None:
        """Trap: a plugin of the same name given by its directory wins, and delivers nothing."""
        program(paths.home / ".local/bin/bun", "")
        installed(paths)
        write(tmp_path / "copy/.claude-plugin/plugin.json", json.dumps({"name": "discord"}))
        library = {**bot(), "plugins": {"chat": {"source": str(tmp_path / "copy")}}}
        ((key, text),) = fatal(paths, library=library)
        assert (key, "plugins.chat is the plugin of the bot too" in text) == ("plugins", True)

    def test_a_failure_of_its_server_is_forgotten(self, paths: Paths) -> None:
        cache = write(paths.home / ".claude/mcp-needs-auth-cache.json", {"plugin:discord:discord": {"timestamp": 1}})
        (seed,) = (seed for seed in plan_of(paths, library=bot()).seeds if seed.path == cache)
        assert (seed.values, seed.removed) == ({}, frozenset({"plugin:discord:discord"}))
