"""The shared library of config.toml: skills, plugins, MCP servers and bots, declared once and granted by name."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forge_supervisor.config_files import Problem
from forge_supervisor.config_values import (
    NO_OTHERS,
    LibraryName,
    Model,
    Place,
    Program,
    SecretFile,
    Snowflake,
    Snowflakes,
    Text,
    Texts,
    VariableName,
    WordList,
    Words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from forge_supervisor.config import Agent, AgentTable

_LONGEST_NAME = 100


class Skill(Model):
    source: Place
    """Its directory, which has a SKILL.md and which the agents' users can read. ~/ is the agent's home."""
    description: Words | None = None
    """What it is for, in a line: it stands in the agent's catalogue of skills. (Codex has it from the
    SKILL.md itself.)"""


class Plugin(Model):
    source: Place
    """Its directory, which has a .claude-plugin/plugin.json. ~/ is the agent's home."""


class McpServer(Model):
    command: Program
    """The program: a path, or a name to be found on the agent's path."""
    args: Texts = ()
    """Its arguments. Every user of the machine can read them (ps): no place for a secret."""
    env: dict[VariableName, Text] = Field(default_factory=dict, repr=False, json_schema_extra=NO_OTHERS)
    """Environment variables for this server alone. They are written to a file of the agent's: no place for a secret."""
    secrets: dict[VariableName, SecretFile] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """Variable to the file that holds its value. They pass through the environment of every agent that has it."""


class DiscordChannel(Model):
    require_mention: bool = True
    """Whether the bot answers only where it is mentioned or replied to."""
    users: Snowflakes = ()
    """The ids of those whom it answers here (empty: everybody in the channel)."""


class DiscordAccess(Model):
    policy: Literal["allowlist", "pairing", "disabled"] = "allowlist"
    """Who may write to the bot directly: `users` alone, or also whoever is paired with it by a code, or nobody."""
    users: Snowflakes = ()
    """The ids of those who may. With "pairing", whoever has been paired stays as well."""
    channels: dict[Snowflake, DiscordChannel] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """The channels in which the bot answers, by their ids (not the server's)."""
    mention_patterns: WordList = ()
    """Regular expressions that count as a mention, in any case."""


class DiscordBot(Model):
    token_file: SecretFile
    """The file that holds the bot's token."""
    access: DiscordAccess | None = None
    """Whom it answers, made true at every start (unset: the plugin's own, by which it hands out pairing codes)."""


class Discord(Model):
    bots: dict[LibraryName, DiscordBot] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """The bots, by a name of your own. One bot serves one agent."""


class Library(Model):
    """All there is to grant; or, of one agent, all that it has been granted (Library.granted)."""

    skills: dict[LibraryName, Skill] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """Skills, by the name under which an agent has them (/name)."""
    plugins: dict[LibraryName, Plugin] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """Plugins, by a name of your own; what agents see is the name in the plugin's manifest."""
    mcp_servers: dict[LibraryName, McpServer] = Field(default_factory=dict, json_schema_extra=NO_OTHERS)
    """MCP servers, by the name that is in their tools' (mcp__name__tool)."""
    discord: Discord = Field(default_factory=Discord)
    """What agents have of Discord."""

    def granted(self, agent: Agent) -> Library:
        """Pick what the agent names, in its order, of what is declared."""
        return Library(
            skills={name: self.skills[name] for name in agent.skills if name in self.skills},
            plugins={name: self.plugins[name] for name in agent.plugins if name in self.plugins},
            mcp_servers={name: self.mcp_servers[name] for name in agent.mcp_servers if name in self.mcp_servers},
            discord=Discord(bots={name: bot for name, bot in self.discord.bots.items() if name == agent.discord_bot}),
        )

    @property
    def bot(self) -> DiscordBot | None:
        """The one bot of what one agent has been granted."""
        return next(iter(self.discord.bots.values()), None)


def unknown_references(agent: AgentTable, table: Mapping[str, Any]) -> Iterator[Problem]:
    """Find what the agent names and no file declares; `table` is what all of them say, right or wrong."""
    bots = (agent.discord_bot,) if agent.discord_bot else ()
    for key, named, place in (
        ("skills", agent.skills, ("skills",)),
        ("plugins", agent.plugins, ("plugins",)),
        ("mcp_servers", agent.mcp_servers, ("mcp_servers",)),
        ("discord_bot", bots, ("discord", "bots")),
    ):
        declared = _table_at(table, place)
        for name in dict.fromkeys(named):
            if name not in declared:
                yield Problem(key, _undeclared(name, ".".join(place), declared))


def _table_at(table: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any]:
    for key in place:
        inner = table.get(key)
        table = inner if isinstance(inner, dict) else {}
    return table


def _undeclared(name: str, table: str, declared: Iterable[str]) -> str:
    known = ", ".join(f'"{other}"' for other in declared)
    hint = meant(name, declared) or (f" (declared: {known})" if known else f" (declare it: [{table}.{name}])")
    return f"there is no [{table}.{name}]{hint}"


def shared_bots(agents: Iterable[Agent], library: Library) -> Iterator[tuple[Agent, Problem]]:
    """Find agents that would share a bot: Discord gives each of them every message, so that all of them answer."""
    first: dict[str, Agent] = {}
    for agent in agents:
        bot = library.discord.bots.get(agent.discord_bot or "") if agent.enabled else None
        if bot is None:
            continue
        # ~/ is another place for another user.
        whose = agent.run_as if bot.token_file.startswith("~") else ""
        other = first.setdefault(f"{whose}:{os.path.normpath(bot.token_file)}", agent)
        if other is not agent:
            text = (
                f"agents.{other.name} has the bot of this token too, and both would answer every message "
                "(make another bot for one of them, or disable it)"
            )
            yield agent, Problem("discord_bot", text)


def meant(given: object, known: Iterable[str]) -> str:
    """Make a hint of the known name that is most like the given one, or nothing."""
    # What is that long is nobody's mistyped name, and comparing it takes long too.
    is_name = isinstance(given, str) and len(given) <= _LONGEST_NAME
    close = get_close_matches(str(given), list(known), n=1) if is_name else []
    return f' (did you mean "{close[0]}"?)' if close else ""
