"""An agent's bot: the official channel plugin of Claude Code, as the user has installed it.

Loaded by --plugin-dir it connects its tools and delivers no messages, so the agent gets the installed one. What is said
here of the plugin is from the source of its version 0.0.4.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, JsonSeed, find_program
from forge_supervisor.harness.claude_code import grants, login
from forge_supervisor.harness.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.config_library import DiscordAccess, DiscordBot
    from forge_supervisor.harness import LaunchPlan, Paths, Subject

PLUGIN = "discord@claude-plugins-official"
MARKETPLACE = "anthropics/claude-plugins-official"
TOKEN = "DISCORD_BOT_TOKEN"  # noqa: S105 - a variable's name
_NAME = "discord"
_RUNTIME = "bun"


def environment(bot: DiscordBot, paths: Paths) -> dict[str, str]:
    """Say what the plugin has to know beside the token. No .env is written: it prefers the real environment."""
    # Access that was declared is read once: what the agent is talked into writing there changes nothing.
    pinned = bot.access is not None and bot.access.policy != "pairing"
    return {"DISCORD_STATE_DIR": str(paths.discord), **({"DISCORD_ACCESS_MODE": "static"} if pinned else {})}


def files(bot: DiscordBot, paths: Paths) -> Iterator[File]:
    """Declare whom the bot answers, so that nobody has to pair; the plugin's other settings stay."""
    if bot.access is None:
        return
    file = paths.discord / "access.json"
    content = _access(bot.access, read_json(file))
    yield File(file, json.dumps(content, indent=2) + "\n", ("discord_bot",))


def _access(access: DiscordAccess, there: dict[str, Any]) -> dict[str, Any]:
    paired = there.get("allowFrom") if access.policy == "pairing" else None
    users = [*access.users, *(paired if isinstance(paired, list) else ())]
    return {
        **there,
        "dmPolicy": access.policy,
        "allowFrom": list(dict.fromkeys(user for user in users if isinstance(user, str))),
        "groups": {
            channel: {"requireMention": rule.require_mention, "allowFrom": list(rule.users)}
            for channel, rule in access.channels.items()
        },
        "mentionPatterns": list(access.mention_patterns),
        "pending": (there.get("pending") if access.policy == "pairing" else None) or {},
    }


def seeds(subject: Subject, paths: Paths) -> Iterator[JsonSeed]:
    """Have claude believe for this start that there are no new consumer terms to be accepted.

    With the traffic that channels need, it asks claude.ai for them, and the first answer of its dialog is 'train on my
    chats'. What was last heard of them is kept for each account, for a day.
    """
    file = login.config_file(subject.env, paths)
    account = read_json(file).get("oauthAccount")
    identifier = account.get("accountUuid") if isinstance(account, dict) else None
    if isinstance(identifier, str):
        heard = {"grove_enabled": False, "timestamp": time.time_ns() // 1_000_000}
        yield JsonSeed(file, {"groveConfigCache": {identifier: heard}}, Path(f"{file}.lock"), ("discord_bot",))


def problems(subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterator[Problem]:
    """Find what would keep the bot silent. Claude starts all the same and says so, if at all, on its screen only."""
    if subject.granted.bot is None:
        return
    yield from _second_copies(subject, paths)
    home = login.config_home(subject.env, paths)
    if not _is_installed(home):
        install = login.command(subject, plan, "plugin", "install", PLUGIN)
        add = login.command(subject, plan, "plugin", "marketplace", "add", MARKETPLACE)
        text = f"the plugin {PLUGIN} is not installed for {subject.agent.run_as}: run `{add} && {install}`"
        yield Problem("discord_bot", text)
    try:
        find_program(_RUNTIME, paths.search, home=paths.home)
    except LookupError as error:
        yield Problem("discord_bot", f"the plugin {PLUGIN} needs {_RUNTIME}: {error}")


def _second_copies(subject: Subject, paths: Paths) -> Iterator[Problem]:
    for name, directory in zip(
        subject.granted.plugins, grants.plugin_directories(subject.granted, paths), strict=True
    ):
        if grants.plugin_name(directory) == _NAME:
            text = (
                f"plugins.{name} is the plugin of the bot too: claude would take it for the installed one, and it "
                "delivers no messages (remove it from plugins)"
            )
            yield Problem("plugins", text)


def _is_installed(home: Path) -> bool:
    plugins = read_json(home / "plugins/installed_plugins.json").get("plugins")
    installed = plugins.get(PLUGIN) if isinstance(plugins, dict) else None
    places = [entry.get("installPath") for entry in installed or [] if isinstance(entry, dict)]
    return any(isinstance(place, str) and os.path.isfile(Path(place) / grants.MANIFEST) for place in places)
