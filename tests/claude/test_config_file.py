"""~/.claude.json, which every claude of a user rewrites all the time, and so do we."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_lab import Lab

ROUNDS = 12
# As the worker does it; $1: the file, $2: a number.
SOW = """
import sys
from pathlib import Path
from forge_supervisor import json_seed
from forge_supervisor.harness import JsonSeed
file, number = sys.argv[1:]
values = {"projects": {f"/forge/{number}": {"hasTrustDialogAccepted": True}}}
json_seed.sow(JsonSeed(Path(file), values, Path(f"{file}.lock")))
"""


def test_many_claudes_and_we_lose_nothing_of_each_others(lab: Lab) -> None:
    """Trap: ~/.claude.json was rewritten without a lock while every claude of that user rewrites it too."""
    file = lab.home / ".claude.json"

    def claude(number: int) -> None:
        lab.as_user(lab.claude, "mcp", "add", "--scope", "user", f"server-{number}", "--", "true")

    def ours(number: int) -> None:
        lab.as_user(sys.executable, "-I", "-c", SOW, str(file), str(number))

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(write, number) for number in range(ROUNDS) for write in (claude, ours)]
        for one in done:
            one.result()
    content = json.loads(file.read_text())
    assert sorted(content["mcpServers"]) == sorted(f"server-{number}" for number in range(ROUNDS))
    assert sorted(content["projects"]) == sorted(f"/forge/{number}" for number in range(ROUNDS))
    assert not file.with_name(".claude.json.lock").exists()


def test_twenty_agents_of_one_user_at_once(lab: Lab) -> None:
    file = lab.home / ".claude.json"
    lab.give(file, json.dumps({"theirs": {"kept": [1, 2]}}))
    names = [f"agent-{number}" for number in range(20)]
    lab.start({name: {} for name in names})
    for name in names:
        lab.prompt(name)
    content = json.loads(file.read_text())
    assert content["theirs"] == {"kept": [1, 2]}
    assert content["hasCompletedOnboarding"] is True
    for name in names:
        assert content["projects"][str(lab.state_of(name))]["hasTrustDialogAccepted"] is True
    approved = content["customApiKeyResponses"]["approved"]
    assert sorted(approved) == sorted(f"{name:->40}"[-20:] for name in names)
    assert lab.stop() == 0
    assert json.loads(file.read_text())["theirs"] == {"kept": [1, 2]}
