"""A secret in each place that may hold one is found nowhere else."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from channel_lab import flags_on, install
from harness_lab import command_lines, contents, wait_for

if TYPE_CHECKING:
    from claude_lab import Lab
    from harness_lab import Json

PLANTED = {
    "ANTHROPIC_API_KEY": "sk-ant-api03-planted-api-key-0123456789-abcdefghijklmnop",
    # So long that claude breaks it into lines on its screen.
    "GITHUB_TOKEN": "ghp_" + "".join(f"{number:03}-planted-" for number in range(30)),
    "TRACKER_TOKEN": "planted-secret-of-a-server-0123456789",
    "DISCORD_BOT_TOKEN": "planted-token-of-a-bot-0123456789",
}


def declared(lab: Lab) -> tuple[Json, Json]:
    files = {name: str(lab.give(lab.home / f"secrets/{name}", value + "\n")) for name, value in PLANTED.items()}
    library = {
        "mcp_servers": {
            "tracker": lab.mcp_server("tracker", secrets={"TRACKER_TOKEN": files["TRACKER_TOKEN"]}),
        },
        "discord": {"bots": {"team": {"token_file": files["DISCORD_BOT_TOKEN"]}}},
    }
    own = {name: files[name] for name in ("ANTHROPIC_API_KEY", "GITHUB_TOKEN")}
    agent = {"env": lab.variables(), "secrets": own, "mcp_servers": ["tracker"], "discord_bot": "team"}
    return {"scout": agent}, library


def test_each_is_in_the_agents_environment_and_nowhere_else(lab: Lab) -> None:
    install(lab, lab.mcp_server("discord", "channel"))
    flags_on(lab)
    lab.start(*declared(lab))
    pid = lab.prompt("scout")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert not [name for name, value in PLANTED.items() if value.encode() not in environment]
    wait_for(lambda: {"tracker", "discord"} <= lab.spawned().keys(), "the servers are not started")
    assert lab.spawned()["tracker"]["TRACKER_TOKEN"] == PLANTED["TRACKER_TOKEN"]
    # Of a session that showed all of them on its screen, as an agent may.
    lab.idle("scout")
    lab.say("scout", "[from test] " + " ".join(PLANTED.values()))
    lab.see("scout", PLANTED["DISCORD_BOT_TOKEN"])
    tmux = lab.tmux("show-environment", "-g") + lab.tmux("show-environment", "-t", "=agent-scout:")
    tmux += lab.tmux("show-options", "-g") + lab.tmux("list-panes", "-a", "-F", "#{pane_start_command}")
    commands = b"".join(command_lines())
    told = lab.command("explain", "scout").stdout + lab.command("explain", "scout", "--json").stdout
    told += lab.command("--check").stdout
    os.kill(pid, signal.SIGKILL)
    screen = lab.event("agent_exited", "scout")["screen"]
    assert "[secret]" in screen
    assert "planted" not in screen
    assert lab.stop() == 0
    log = "\n".join(json.dumps(event) for event in lab.events())
    # What claude remembers of the key by its own way is its own: the last 20 characters, in ~/.claude.json.
    files = b"".join(contents(lab.home / ".local/state/forge"))
    for name, value in PLANTED.items():
        assert value not in tmux, name
        assert value.encode() not in commands, name
        assert value not in told, name
        assert value not in log, name
        assert value.encode() not in files, name
        assert value[-20:].encode() not in files, name
        assert value[-20:] not in told, name


def test_an_api_key_from_a_file_is_a_login(lab: Lab) -> None:
    key = lab.give(lab.home / "key", PLANTED["ANTHROPIC_API_KEY"])
    lab.start({"scout": {"env": lab.variables(), "secrets": {"ANTHROPIC_API_KEY": str(key)}}})
    lab.prompt("scout")
    lab.say("scout", "[from test] hello")
    lab.see("scout", "ECHO [from test] hello")
    assert not [event for event in lab.events() if "not logged in" in json.dumps(event)]
