"""How codex ends, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from codex_lab import MODEL
from harness_lab import wait_for

from forge_supervisor import processes

if TYPE_CHECKING:
    from codex_lab import Lab

FAST = {"model": MODEL, "effort": "low"}


def command_lines(uid: int) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == uid:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def running(lab: Lab, words: str) -> list[int]:
    return [pid for pid, line in command_lines(lab.uid).items() if words in line and processes.lives(pid)]


def escaped(lab: Lab, pid: int) -> bool:
    lines = command_lines(lab.uid)
    with contextlib.suppress(ProcessLookupError):
        return any(os.getsid(one) != os.getsid(pid) for one, line in lines.items() if line.startswith("tail -f"))
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_is_its_end(lab: Lab, number: int) -> None:
    """It catches none: its end is never an exit code."""
    lab.start({"scout": FAST})
    os.kill(lab.prompt("scout"), number)
    exited = lab.event("agent_exited", "scout")
    assert (exited.get("exit_code"), exited["signal"]) == (None, number)
    assert exited["result"] == ("success" if number != signal.SIGKILL else "signal")


@pytest.mark.parametrize("keys", [["C-c"], ["C-d"]])
def test_a_key_is_its_end(lab: Lab, keys: list[str]) -> None:
    lab.start({"scout": FAST})
    lab.prompt("scout")
    # Just after the start, the first one is an end of what it still does then.
    lab.tell("scout", "hello")
    # Its rollout has the end of a turn before its terminal knows of it, and until then the key is an end of the turn.
    lab.see("scout", "Worked for")
    lab.tmux("send-keys", "-t", "=agent-scout:", *keys)
    exited = lab.event("agent_exited", "scout")
    assert (exited["exit_code"], exited["result"]) == (0, "success")


@pytest.mark.parametrize(("arguments", "code"), [(["--no-such-option"], 2), (["-c", "tui=3"], 1)])
def test_what_it_does_not_take_is_its_end(lab: Lab, arguments: list[str], code: int) -> None:
    lab.start({"scout": {**FAST, "extra_args": arguments, "restart": {"policy": "no"}}})
    assert lab.event("agent_exited", "scout")["exit_code"] == code


def test_a_stop_ends_the_commands_that_it_runs(lab: Lab) -> None:
    """Trap: each is in a session of its own, and codex ends none of them when it is sent SIGTERM."""
    library = {"mcp_servers": {"tracker": lab.mcp_server("tracker")}}
    lab.start({"scout": {**FAST, "mcp_servers": ["tracker"]}}, library)
    pid = lab.prompt("scout")
    call = {"name": "exec_command", "arguments": json.dumps({"cmd": "sh -c 'exec tail -f /dev/null' left-over"})}
    lab.say("scout", f"TOOL {json.dumps(call)}")
    wait_for(lambda: escaped(lab, pid), "the command does not run in a session of its own")
    wait_for(lambda: running(lab, "mcp_server.py"), "the server does not run")
    lab.forgectl("stop", "scout")
    exited = lab.event("agent_exited", "scout")
    assert (exited["signal"], exited["result"], exited["next"]) == (signal.SIGTERM, "success", "stopped as requested")
    assert not running(lab, "tail -f /dev/null")
    assert not running(lab, "mcp_server.py")


def test_two_agents_do_not_share_a_server_of_codexs(lab: Lab) -> None:
    """Trap: by default the second agent's requests go out by the first one's process, under the first one's key."""
    lab.start({"scout": FAST, "herald": FAST})
    for agent in ("scout", "herald"):
        lab.prompt(agent)
    for agent in ("scout", "herald"):
        lab.tell(agent, f"{agent} speaking")
    told = {lab.said(request).rpartition("\n")[2]: bearer for request, bearer in lab.authorized()}
    for agent in ("scout", "herald"):
        assert told[f"{agent} speaking"] == f"Bearer {lab.keyed(agent)['OPENAI_API_KEY']}"
    assert not running(lab, "app-server")
    lab.forgectl("stop", "--all")
    assert not running(lab, "codex")


SHARING = """#!/bin/sh
# codex, as it would be had nobody said anything: one home for all agents of the user
[ "$1" != --version ] || exec {codex} "$@"
mkdir -p {home} {home}/work
sed '/daemon_auto_start/d' "$CODEX_HOME/config.toml" >{home}/config.toml
export CODEX_HOME={home}
cd {home}/work
exec {codex} --dangerously-bypass-approvals-and-sandbox
"""


def test_the_trap_is_there(lab: Lab) -> None:
    """What the test before is about: with that server the second agent has the first one's key."""
    home = lab.home / "shared"
    script = lab.give(lab.home / "sharing", SHARING.format(home=home, codex=lab.program), mode="755")
    library = {"harnesses": {"codex": {"binary": str(script)}}}
    lab.start({"scout": {}}, library)
    lab.event("agent_started", "scout")
    lab.see("scout", "Ask Codex")
    wait_for(lambda: running(lab, "app-server"), "no server")
    lab.configure({"scout": {}, "herald": {}}, library)
    lab.reload()
    lab.event("agent_started", "herald")
    lab.see("herald", "Ask Codex")
    lab.say("herald", "herald speaking")
    lab.request("herald speaking")
    assert f"Bearer {lab.keyed('scout')['OPENAI_API_KEY']}" in lab.bearers()
    assert f"Bearer {lab.keyed('herald')['OPENAI_API_KEY']}" not in lab.bearers()
