"""A secret in each place that may hold one is found nowhere else; and what `explain` says is what runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from codex_lab import MODEL
from harness_lab import command_lines, contents, wait_for

if TYPE_CHECKING:
    from codex_lab import Lab
    from harness_lab import Json

PLANTED = {
    "OPENAI_API_KEY": "sk-proj-planted-api-key-0123456789-abcdefghijklmnop",
    "GITHUB_TOKEN": "ghp_" + "".join(f"{number:03}-planted-" for number in range(30)),
    "TRACKER_TOKEN": "planted-secret-of-a-server-0123456789",
}


def declared(lab: Lab) -> tuple[Json, Json]:
    files = {name: str(lab.give(lab.home / f"secrets/{name}", value + "\n")) for name, value in PLANTED.items()}
    tracker = lab.mcp_server("tracker", secrets={"TRACKER_TOKEN": files["TRACKER_TOKEN"]})
    library = {"mcp_servers": {"tracker": tracker, "calendar": lab.mcp_server("calendar")}}
    own = {name: files[name] for name in ("OPENAI_API_KEY", "GITHUB_TOKEN")}
    agent = {"model": MODEL, "effort": "low", "env": lab.variables(), "secrets": own}
    return {"scout": {**agent, "mcp_servers": ["tracker", "calendar"]}}, library


def test_each_is_where_it_is_needed_and_nowhere_else(lab: Lab) -> None:
    lab.start(*declared(lab))
    pid = lab.prompt("scout")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert not [name for name, value in PLANTED.items() if value.encode() not in environment]
    wait_for(lambda: len(lab.spawned()) == 2, "the servers are not started")
    assert lab.spawned()["tracker"]["TRACKER_TOKEN"] == PLANTED["TRACKER_TOKEN"]
    assert not PLANTED.keys() & lab.spawned()["calendar"].keys()
    assert PLANTED.keys() & lab.spawned()["tracker"].keys() == {"TRACKER_TOKEN"}
    lab.tell("scout", "hello")
    seen = lab.run("scout", "env | cut -d = -f 1 | grep TOKEN", "commands")
    assert "GITHUB_TOKEN" in seen
    assert "TRACKER_TOKEN" not in seen
    assert set(lab.bearers()) == {f"Bearer {PLANTED['OPENAI_API_KEY']}"}
    tmux = lab.tmux("show-environment", "-g") + lab.tmux("show-environment", "-t", "=agent-scout:")
    tmux += lab.tmux("show-options", "-g") + lab.tmux("list-panes", "-a", "-F", "#{pane_start_command}")
    commands = b"".join(command_lines())
    told = lab.command("explain", "scout").stdout + lab.command("explain", "scout", "--json").stdout
    told += lab.command("--check").stdout
    # Before it says them aloud, which it may, in logs of its own.
    files = b"".join(contents(lab.home / ".local/state/forge"))
    lab.say("scout", " ".join(PLANTED.values()))
    lab.see("scout", PLANTED["TRACKER_TOKEN"])
    os.kill(pid, signal.SIGKILL)
    screen = lab.event("agent_exited", "scout")["screen"]
    assert "[secret]" in screen
    assert "planted" not in screen
    assert lab.stop() == 0
    log = "\n".join(json.dumps(event) for event in lab.events())
    for name, value in PLANTED.items():
        assert value not in tmux, name
        assert value.encode() not in commands, name
        assert value not in told, name
        assert value not in log, name
        assert value.encode() not in files, name


def test_explain_equals_what_really_runs(lab: Lab) -> None:
    lab.start(*declared(lab))
    pid = lab.prompt("scout")
    answer = lab.command("explain", "scout", "--json")
    assert answer.returncode == 0, answer.stderr
    explained = json.loads(answer.stdout)
    assert explained["argv"] == Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    for written in explained["written"]:
        path = Path(written["path"])
        if written["kind"] == "link":
            assert str(path.readlink()) == written["text"]
        # Codex adds to this one what it has seen, and reports go to where this supervisor listens.
        elif path.name not in {"config.toml", "hooks.json"}:
            assert path.read_text() == written["text"]
    assert explained["env"]["CODEX_HOME"] == str(lab.home_of("scout"))
