"""The library's tables, and what agents name of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from config_lab import RUN_AS, SOMEBODY, loaded, refused, write

from forge_supervisor import harness
from forge_supervisor.config import load
from forge_supervisor.config_library import meant

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = """
[skills.review]
source = "/srv/review"
[skills.triage]
source = "~/triage"
description = "Label an issue"
[plugins.chat]
source = "/srv/chat"
[mcp_servers.tracker]
command = "npx"
args = ["tracker", ""]
env = {A = "b"}
secrets = {TOKEN = "/s/token", OTHER = "$CREDENTIALS_DIRECTORY/other"}
[discord.bots.team]
token_file = "/s/team"
[discord.bots.team.access]
users = ["184695080709324800"]
channels.846209781206941736 = {require_mention = false}
"""


def test_an_agent_has_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    keys = 'skills = ["triage", "triage"]\nmcp_servers = ["tracker"]\ndiscord_bot = "team"'
    config = loaded(tmp_path, f"{LIBRARY}[agents.a]\n{keys}\n[agents.b]\n")
    granted = config.library.granted(config.agents["a"])
    assert list(granted.skills) == ["triage"]
    assert granted.plugins == {}
    assert granted.mcp_servers["tracker"].args == ("tracker", "")
    assert granted.bot is not None
    assert granted.bot.access is not None
    assert granted.bot.access.policy == "allowlist"
    assert granted.bot.access.channels["846209781206941736"].require_mention is False
    nothing = config.library.granted(config.agents["b"])
    assert (nothing.skills, nothing.mcp_servers, nothing.bot) == ({}, {}, None)


def test_the_library_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, LIBRARY, "conf.d/library.toml")
    write(tmp_path, '[discord.bots.other]\ntoken_file = "/s/other"', "conf.d/other.toml")
    config = loaded(tmp_path, '[agents.a]\ndiscord_bot = "other"\nskills = ["review"]')
    assert sorted(config.library.discord.bots) == ["other", "team"]


@pytest.mark.parametrize(
    ("keys", "key", "sentence"),
    [
        ("skills = ['reviw']", "skills", 'there is no [skills.reviw] (did you mean "review"?)'),
        ("skills = ['zzz']", "skills", 'there is no [skills.zzz] (declared: "review", "triage")'),
        ("plugins = ['caht']", "plugins", 'there is no [plugins.caht] (did you mean "chat"?)'),
        ("mcp_servers = ['trackr']", "mcp_servers", 'there is no [mcp_servers.trackr] (did you mean "tracker"?)'),
        ("discord_bot = 'tam'", "discord_bot", 'there is no [discord.bots.tam] (did you mean "team"?)'),
        ("skills = ['/etc']", "skills[0]", 'must be made of letters, digits, "_" and "-"'),
        ("discord_bot = ['team']", "discord_bot", "must be a string, not a list"),
        ("permissions.skip_promts = true", "permissions.skip_promts", 'did you mean "skip_prompts"?'),
        ("skip_prompts = true", "skip_prompts", 'did you mean "permissions.skip_prompts"?'),
        ("permissions.unlisted = 'deny'", "permissions.unlisted", 'must be one of "refuse", "ask"'),
        ("inherit = ['user-skill']", "inherit[0]", 'did you mean "user-skills"?'),
        ("secrets.A = 'token'", "secrets.A", "must be an absolute path, begin with ~/"),
        ("secrets.A = '$CREDENTIALS_DIRECTORY/../x'", "secrets.A", "$CREDENTIALS_DIRECTORY/NAME"),
        ("secrets.A = '$HOME/x'", "secrets.A", "must be an absolute path"),
        ("secrets.1A = '/x'", "secrets.1A", "a variable's name"),
        ("secrets.TMUX = '/x'", "secrets.TMUX", "is set by the supervisor itself"),
        ("add_dirs = ['work']", "add_dirs[0]", "must be an absolute path"),
        ("allowed_tools = ['']", "allowed_tools[0]", "must not be empty"),
    ],
)
def test_what_an_agent_names_wrongly(tmp_path: Path, keys: str, key: str, sentence: str) -> None:
    (line,) = refused(write(tmp_path, f"{RUN_AS}{LIBRARY}[agents.a]\n{keys}"))
    assert line.startswith(f"config.toml: agents.a.{key}: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ("skills.x = {}", "skills.x.source", "is missing (add source = …)"),
        ("skills.x.source = 'relative'", "skills.x.source", "must be an absolute path"),
        ("skills.'a b'.source = '/x'", 'skills."a b"', "must be made of letters"),
        ("skills.x = {source = '/x', descripton = 'x'}", "skills.x.descripton", 'did you mean "description"?'),
        ("mcp_servers.x = {args = []}", "mcp_servers.x.command", "is missing"),
        ("mcp_servers.x.command = './x'", "mcp_servers.x.command", "must be an absolute path, begin with ~/"),
        ("mcp_servers.x = {command = 'x', type = 'http'}", "mcp_servers.x.type", "unknown key"),
        ("discord.bots.x = {}", "discord.bots.x.token_file", "is missing"),
        ("discord.bot.x = {}", "discord.bot", 'did you mean "bots"?'),
        ("discord.bots.x = {token_file = '/x', access = {user = []}}", "discord.bots.x.access.user", '"users"?'),
        ("discord.bots.x = {token_file = '/x', users = []}", "discord.bots.x.users", 'did you mean "access.users"?'),
        (
            "discord.bots.x = {token_file = '/x', access.users = [184695080709324800]}",
            "discord.bots.x.access.users[0]",
            "must be a string, not a number (put it in quotes)",
        ),
        (
            "discord.bots.x = {token_file = '/x', access.users = ['anna']}",
            "discord.bots.x.access.users[0]",
            "must be an id of Discord, 17 to 20 digits in quotes",
        ),
        (
            "discord.bots.x = {token_file = '/x', access.policy = 'all'}",
            "discord.bots.x.access.policy",
            'must be one of "allowlist", "pairing", "disabled"',
        ),
        ("mcpServers.x.command = 'x'", "mcpServers", 'did you mean "mcp_servers"?'),
    ],
)
def test_what_is_wrong_in_the_library(tmp_path: Path, text: str, key: str, sentence: str) -> None:
    (line,) = refused(write(tmp_path, f"{text}\n"))
    assert line.startswith(f"config.toml: {key}: ")
    assert sentence in line


def test_an_agent_of_a_library_that_is_wrong_is_told_of_what_it_names_all_the_same(tmp_path: Path) -> None:
    lines = refused(write(tmp_path, f"{RUN_AS}skills.good = {{}}\n[agents.a]\nskills = ['good', 'bad']"))
    assert lines == [
        "config.toml: skills.good.source: is missing (add source = …)",
        'config.toml: agents.a.skills: there is no [skills.bad] (declared: "good")',
    ]


def test_what_stands_in_defaults_is_told_there(tmp_path: Path) -> None:
    (line,) = refused(write(tmp_path, f"{RUN_AS}defaults.skills = ['x']\n[agents.a]\n"))
    assert line == "config.toml: defaults.skills: there is no [skills.x] (declare it: [skills.x])"


class TestDefaults:
    """What stands in [defaults] is for agents of every harness, each of which takes what it understands."""

    def test_an_agent_of_another_harness_has_nothing_of_the_library(self, tmp_path: Path) -> None:
        agents = '[agents.a]\nrole = "x"\n[agents.t]\nharness = "command"\ncommand = ["true"]'
        config = load(write(tmp_path, f'defaults.run_as = "{SOMEBODY.pw_name}"\n{self.defaults()}{LIBRARY}{agents}'),
                      harnesses=harness.HARNESSES)  # fmt: skip
        assert config.agents["a"].skills == ("review",)
        assert (config.agents["t"].skills, config.agents["t"].discord_bot) == ((), None)

    def test_an_agents_secret_goes_before_a_default_in_the_open_and_the_other_way_round(self, tmp_path: Path) -> None:
        defaults = 'defaults.env = {A = "open", B = "open"}\ndefaults.secrets = {C = "/s/c"}\n'
        config = loaded(tmp_path, f'{defaults}[agents.a]\nsecrets.A = "/s/a"\nenv.C = "open"')
        agent = config.agents["a"]
        assert (agent.env, agent.secrets) == ({"B": "open", "C": "open"}, {"A": "/s/a"})

    def test_what_they_name_is_looked_up_even_if_no_agent_has_it_from_there(self, tmp_path: Path) -> None:
        agents = 'defaults.harness = "command"\ndefaults.skills = ["nope"]\n[agents.t]\ncommand = ["true"]'
        path = write(tmp_path, f'defaults.run_as = "{SOMEBODY.pw_name}"\n{agents}')
        lines = refused(path, harnesses=harness.HARNESSES)
        assert lines == ["config.toml: defaults.skills: there is no [skills.nope] (declare it: [skills.nope])"]

    @staticmethod
    def defaults() -> str:
        return 'defaults.skills = ["review"]\ndefaults.discord_bot = "team"\n'


class TestBots:
    TWO = '[agents.a]\ndiscord_bot = "team"\n[agents.b]\ndiscord_bot = "{}"\n{}'

    @pytest.mark.parametrize("other", ["team", "twin"])
    def test_two_agents_with_one_bot_are_refused_with_the_reason(self, tmp_path: Path, other: str) -> None:
        """By its token: the same bot may be declared under two names."""
        twin = '[discord.bots.twin]\ntoken_file = "/s/team"\n'
        (line,) = refused(write(tmp_path, RUN_AS + LIBRARY + twin + self.TWO.format(other, "")))
        assert line == (
            "config.toml: agents.b.discord_bot: agents.a has the bot of this token too, and both would answer every "
            "message (make another bot for one of them, or disable it)"
        )

    def test_nor_is_the_same_file_under_another_path(self, tmp_path: Path) -> None:
        twin = '[discord.bots.twin]\ntoken_file = "/s/x/../team"\n'
        (line,) = refused(write(tmp_path, RUN_AS + LIBRARY + twin + self.TWO.format("twin", "")))
        assert "agents.a has the bot of this token too" in line

    def test_one_that_is_disabled_is_in_nobodys_way(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, LIBRARY + self.TWO.format("team", "enabled = false")).warnings == ()


def test_keys_are_told_with_the_file_that_says_them(tmp_path: Path) -> None:
    write(tmp_path, LIBRARY, "conf.d/library.toml")
    config = loaded(tmp_path, '[agents.a]\nrole = "x"\nskills = ["review"]')
    assert config.origin("a", "role") == ("agents.a.role", str(tmp_path / "config.toml"))
    assert config.origin("a", "run_as") == ("defaults.run_as", str(tmp_path / "config.toml"))
    assert config.origin("a", "skills.review") == ("skills.review", str(tmp_path / "conf.d/library.toml"))
    assert config.origin("a", "effort") == ("agents.a.effort", "")


def test_a_hint_is_given_of_what_can_have_been_mistyped_alone() -> None:
    assert meant("scuot", ["scout", "ceo"]) == ' (did you mean "scout"?)'
    # Callers of the control socket choose how much there is to compare.
    assert meant("x" * 100_000, ["x" * 100_001]) == ""
    assert meant(7, ["7"]) == ""
