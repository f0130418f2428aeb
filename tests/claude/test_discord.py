"""A bot's launch line, files and environment, with a stand-in for the plugin where the installed one lies.

Discord itself and the feature flags of claude.ai are not there: the flag that lets channels deliver is put where claude
keeps what it was last told.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from channel_lab import PLUGIN, flags_on, install
from harness_lab import json_of, wait_for

if TYPE_CHECKING:
    from claude_lab import Lab
    from harness_lab import Json

TOKEN = "bot-token-hunter2-correct-horse"  # noqa: S105
ANNA, CHANNEL = "184695080709324800", "846209781206941736"


def library(lab: Lab) -> Json:
    lab.give(lab.home / "token", TOKEN + "\n")
    access = {"users": [ANNA], "channels": {CHANNEL: {}}}
    return {"discord": {"bots": {"team": {"token_file": str(lab.home / "token"), "access": access}}}}


def test_its_messages_reach_the_agent_and_its_server_has_token_and_state(lab: Lab) -> None:
    install(lab, lab.mcp_server("discord", "channel"))
    flags_on(lab)
    lab.start({"scout": {"discord_bot": "team"}}, library(lab))
    pid = lab.prompt("scout")
    request = json.dumps(lab.request("PUSHED"))
    assert '<channel source=\\"plugin:discord:discord\\" sender=\\"somebody\\">\\nPUSHED\\n</channel>' in request
    environment = lab.spawned()["discord"]
    state = lab.home / ".local/state/forge/discord/scout"
    assert environment["DISCORD_BOT_TOKEN"] == TOKEN
    assert environment["DISCORD_STATE_DIR"] == str(state)
    assert environment["DISCORD_ACCESS_MODE"] == "static"
    assert json_of(state / "access.json")["allowFrom"] == [ANNA]
    assert not (state / ".env").exists()
    assert TOKEN not in Path(f"/proc/{pid}/cmdline").read_text()
    argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert argv[argv.index("--channels") + 1] == f"plugin:{PLUGIN}"


def test_an_agent_without_a_bot_has_none_of_it(lab: Lab) -> None:
    install(lab, lab.mcp_server("discord", "channel"))
    flags_on(lab)
    lab.start({"scout": {}, "herald": {"discord_bot": "team"}}, library(lab))
    lab.prompt("scout")
    lab.request("PUSHED")
    wait_for(lambda: "discord" in lab.spawned(), "the server is not started")
    lab.idle("scout")
    lab.say("scout", "[from test] anything new?")
    request = json.dumps(lab.request("anything new?"))
    assert "discord" not in request.lower()
    scout = Path(f"/proc/{lab.event('agent_started', 'scout')['pid']}")
    assert "DISCORD" not in (scout / "environ").read_text()
    children = (scout / f"task/{scout.name}/children").read_text().split()
    assert not [child for child in children if "mcp_server" in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_server_that_failed_is_tried_again_at_the_next_start(lab: Lab) -> None:
    """Trap: claude does not start a plugin's server for a quarter of an hour after it has failed."""
    install(lab, {"command": "/bin/false"})
    flags_on(lab)
    lab.start({"scout": {"discord_bot": "team"}}, library(lab))
    lab.prompt("scout")
    cache = lab.home / ".claude/mcp-needs-auth-cache.json"
    wait_for(lambda: "plugin:discord:discord" in json_of(cache), "claude has not taken note of the failure")
    install(lab, lab.mcp_server("discord", "channel"))
    lab.configure({"scout": {"discord_bot": "team", "effort": "low"}}, library(lab))
    lab.reload()
    lab.request("PUSHED")


def test_what_keeps_a_bot_silent_is_an_error_of_that_agent_alone(lab: Lab) -> None:
    lab.start({"scout": {"discord_bot": "team"}, "herald": {}}, library(lab))
    lab.prompt("herald")
    problem = lab.event("agent_start_failed", "scout")
    assert problem["key"] == "agents.scout.discord_bot"
    assert f"the plugin {PLUGIN} is not installed for {lab.user}" in problem["problem"]
