"""The tokens that are counted are those that the API has handed out, whatever is killed in between."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from codex_lab import MODEL
from harness_lab import json_of, wait_for
from responses_api import is_for_a_title

from forge_supervisor.spend import prices
from forge_supervisor.spend.prices import Tokens

if TYPE_CHECKING:
    from codex_lab import Lab

TURNS = 100 if "FORGE_TEST_THOROUGH" in os.environ else 12
KILLED_AFTER = frozenset({0, 5, *range(9, TURNS, 15), TURNS - 1})
CHANGED_AFTER = 7
"""Turns, to another model."""


def handed_out(lab: Lab) -> dict[str, Tokens]:
    """Sum up by model what went to the agents themselves."""
    sums: Counter[tuple[str, str]] = Counter()
    for file in sorted(lab.requests_in.glob("*.usage")):
        usage = json_of(file)
        if is_for_a_title(json_of(file.with_suffix(".json"))):
            continue
        details = usage["input_tokens_details"]
        cached, written = details["cached_tokens"], details["cache_write_tokens"]
        for kind, number in {
            "input": usage["input_tokens"] - cached - written,
            "output": usage["output_tokens"],
            "cache_read": cached,
            "cache_write_5m": written,
        }.items():
            sums[usage["model"], kind] += number
    models = {model for model, _ in sums}
    return {model: Tokens(**{kind: sums[model, kind] for kind in prices.KINDS}) for model in models}


def told(lab: Lab) -> dict[str, Tokens]:
    rows: list[dict[str, Any]] = json.loads(lab.forgectl("usage", "--by", "model", "--json"))
    return {row["model"]: Tokens(**{kind: row[kind] for kind in prices.KINDS}) for row in rows}


@pytest.mark.timeout(900)
def test_tokens_that_are_counted_are_those_that_were_handed_out(lab: Lab) -> None:
    agent = {"model": MODEL, "effort": "low", "restart": {"limit_burst": 0}}
    lab.start({"scout": agent})
    started = 1
    lab.prompt("scout")
    for turn in range(TURNS):
        if turn % 3:
            lab.tell("scout", f"turn {turn}.")
        else:
            lab.run("scout", "true", f"turn {turn}")
        if turn in KILLED_AFTER:
            os.kill(lab.event("agent_started", "scout", started)["pid"], signal.SIGKILL)
        elif turn == CHANGED_AFTER:
            lab.configure({"scout": {**agent, "model": "gpt-6-luna"}})
            lab.reload()
        else:
            continue
        started += 1
        lab.prompt("scout", started)
    assert len(handed_out(lab)) == 2
    # After each end it is read, and nothing tells that it was.
    wait_for(lambda: told(lab) == handed_out(lab), lambda: f"{told(lab)} {handed_out(lab)}")
    lab.tell("scout", "One more.")
    wait_for(lambda: told(lab) == handed_out(lab), lambda: f"{told(lab)} {handed_out(lab)}")


def test_a_title_is_asked_for_once_and_told_nowhere(lab: Lab) -> None:
    """Trap: codex has its model name each session, by a request of which no log has the tokens."""
    lab.start({"scout": {"model": MODEL, "effort": "low"}})
    lab.prompt("scout")
    for number in range(3):
        lab.tell("scout", f"turn {number}")
    lab.see("scout", "A title")
    titles = [request for request in lab.requests() if is_for_a_title(request)]
    assert len(titles) == 1
    assert "Generate a concise" not in lab.written("scout")


def test_what_sub_agents_use_counts(lab: Lab) -> None:
    lab.start({"scout": {"model": MODEL, "effort": "low"}})
    lab.prompt("scout")
    lab.use("scout", "spawn_agent", "sub", namespace="multi_agent_v1", message="the word is tulip")
    wait_for(lambda: len(lab.rollouts("scout")) == 2, lambda: f"no sub-agent\n{lab.story('scout')}")
    lab.request("the word is tulip")
    wait_for(lambda: lab.turns_over("scout"), "the turns are not over")
    os.kill(lab.event("agent_started", "scout")["pid"], signal.SIGKILL)
    wait_for(lambda: told(lab) == handed_out(lab), lambda: f"{told(lab)} {handed_out(lab)}")
