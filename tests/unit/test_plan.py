from __future__ import annotations

from typing import Any

from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.declared import Declared
from forge_supervisor.plan import plan


def declared(settings: HarnessSettings | None = None, granted: Library | None = None, **keys: Any) -> Declared:
    agent = {"name": "a", "run_as": "team", "harness": "command", "command": ("x",), **keys}
    return Declared(Agent.model_validate(agent), settings or HarnessSettings(), granted or Library())


def changed(old: Declared, new: Declared) -> set[str]:
    return plan({"a": new}, {"a": old.fingerprint()}).changed.get("a", set())


def test_each_agent_is_in_one_part_of_the_plan() -> None:
    known = {name: declared().fingerprint() for name in ("same", "changed", "tuned", "gone")}
    wanted = {"same": declared(), "changed": declared(command=("y",)), "tuned": declared(stop_timeout_sec=1.0)}
    made = plan({**wanted, "new": declared()}, known)
    assert (made.new, made.removed, made.unchanged) == ({"new"}, {"gone"}, {"same"})
    assert (made.changed, made.adjusted) == ({"changed": {"command"}}, {"tuned": {"stop_timeout_sec"}})
    assert made.lines() == [
        "changed: restart (changed: command)",
        "gone: stop (no longer declared, or disabled)",
        "new: start",
        "same: leave alone",
        "tuned: take over without a restart: stop_timeout_sec",
    ]


def test_what_is_taken_while_running_restarts_with_nothing_else() -> None:
    old = declared()
    all_of_them = declared(
        resources={"memory_max": "1G"},
        restart={"delay_sec": 1, "limit_interval_sec": "infinity"},
        resume={"policy": "never"},
    )
    assert plan({"a": all_of_them}, {"a": old.fingerprint()}).adjusted == {"a": {"resources", "restart", "resume"}}
    assert changed(old, declared(role="x", resources={"memory_max": "1G"})) == {"role", "resources"}


def test_what_is_granted_and_said_of_the_harness_counts() -> None:
    skills = Library.model_validate({"skills": {"s": {"source": "/s", "description": "d"}}})
    other = Library.model_validate({"skills": {"s": {"source": "/t", "description": "d"}}})
    assert changed(declared(granted=skills), declared(granted=other)) == {"skills.*"}
    assert changed(declared(), declared(HarnessSettings(version="2"))) == {"harnesses.command"}
    assert changed(declared(), declared(run_as="somebody")) == {"run_as"}


def test_the_order_of_a_set_is_no_difference_and_that_of_a_list_is() -> None:
    codes = [declared(restart={"success_exit_status": order}) for order in ([1, 2, 3, 200], [200, 3, 2, 1])]
    assert codes[0].fingerprint() == codes[1].fingerprint()
    assert changed(declared(command=("x", "a", "b")), declared(command=("x", "b", "a"))) == {"command"}


def test_a_key_at_its_default_is_no_difference() -> None:
    assert declared(enabled=True, restart={"policy": "on-failure"}).fingerprint() == declared().fingerprint()


def test_a_fingerprint_is_its_owners_own() -> None:
    one = declared()
    one.fingerprint()["command"] = "not what it was"
    assert one.fingerprint() == declared().fingerprint()
