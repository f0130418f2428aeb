"""The tokens that are counted are those that the API has handed out, whatever is killed in between."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from harness_lab import wait_for

from forge_supervisor.spend import prices
from forge_supervisor.spend.prices import Tokens
from forge_supervisor.spend.store import NAME, UsageStore

if TYPE_CHECKING:
    from claude_lab import Lab

TURNS = 500 if "FORGE_TEST_THOROUGH" in os.environ else 30
KILLED_AFTER = frozenset({0, 8, *range(7, TURNS, 15), TURNS - 1})
SUB_AGENTS_IN = frozenset({3, *range(15, TURNS, 20)})


def handed_out(lab: Lab) -> dict[str, Tokens]:
    """Sum up by model."""
    sums: Counter[tuple[str, str]] = Counter()
    for usage in lab.handed_out():
        split = usage["cache_creation"]
        for kind, number in {
            "input": usage["input_tokens"],
            "output": usage["output_tokens"],
            "cache_read": usage["cache_read_input_tokens"],
            "cache_write_5m": split["ephemeral_5m_input_tokens"],
            "cache_write_1h": split["ephemeral_1h_input_tokens"],
        }.items():
            sums[usage["model"], kind] += number
    models = {model for model, _ in sums}
    return {model: Tokens(**{kind: sums[model, kind] for kind in prices.KINDS}) for model in models}


def told(lab: Lab) -> dict[str, Tokens]:
    rows: list[dict[str, Any]] = json.loads(lab.forgectl("usage", "--by", "model", "--json"))
    return {row["model"]: Tokens(**{kind: row[kind] for kind in prices.KINDS}) for row in rows}


def kept(lab: Lab) -> dict[str, Tokens]:
    complaints: list[str] = []
    store = UsageStore(lab.lasting / NAME, complaints.append)
    sums = store.sums("model", prices.load(None, uid=0))
    store.close()
    assert complaints == []
    return {one.model: one.tokens for one in sums}


def written(lab: Lab) -> set[str]:
    """Return the messages of which something stands in a transcript, read as anybody would."""
    files = (lab.home / ".claude/projects").rglob("*.jsonl")
    lines = (line for file in files for line in file.read_text().splitlines(keepends=True))
    entries = (json.loads(line) for line in lines if '"type":"assistant"' in line and line.endswith("\n"))
    return {entry["message"]["id"] for entry in entries if entry["type"] == "assistant"}


def take_turn(lab: Lab, turn: int) -> None:
    lab.idle("scout")
    if turn in SUB_AGENTS_IN:
        task = {"description": "x", "prompt": f"say tulip {turn}", "subagent_type": "general-purpose"}
        lab.use("scout", "Agent", f"mark {turn}", **task)
        lab.idle("scout")
    lab.say("scout", f"TWICE over, turn {turn}.")
    lab.see("scout", f"ECHO TWICE over, turn {turn}.")


@pytest.mark.timeout(1800)
def test_tokens_that_are_counted_are_those_that_were_handed_out(lab: Lab) -> None:
    lab.start({"scout": {"model": "opus", "restart": {"limit_burst": 0}}})
    lab.prompt("scout")
    killed = 0
    for turn in range(TURNS):
        take_turn(lab, turn)
        if turn in KILLED_AFTER:
            # Claude writes down what it was told a moment later; killed before, it has told nobody.
            wait_for(lambda: len(written(lab)) == len(lab.handed_out()), "claude writes no transcript")
            killed += 1
            os.kill(lab.event("agent_started", "scout", killed)["pid"], signal.SIGKILL)
            lab.event("agent_started", "scout", killed + 1)
    assert len(lab.handed_out()) >= TURNS
    # After each end it is read, and nothing tells that it was.
    wait_for(lambda: told(lab) == handed_out(lab), lambda: f"{told(lab)} {handed_out(lab)}")
    lab.idle("scout")
    lab.say("scout", "One more.")
    lab.see("scout", "ECHO One more.")
    assert lab.stop() == 0
    # This agent ended with the supervisor.
    assert kept(lab) == handed_out(lab)
