from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from booted import Machine

LOG_TWO = """
from forge_supervisor import journal
from forge_supervisor.events import AgentExited

journal.configure("journal")
for screen in ("one\\ntwo", "x" * 1_000_000):
    journal.log(AgentExited(
        agent="jotter", run_as="team", pid=42, invocation="c0ffee", exit_code=None, signal=9, uptime_sec=12.5,
        result="signal", n_restarts=1, next="restarting in 5 s", screen=screen,
    ))
"""


def test_the_journal_has_the_fields_of_events_small_and_large(bare_machine: Machine) -> None:
    bare_machine.run(sys.executable, "-I", "-c", LOG_TWO)
    small, large = bare_machine.journal("AGENT=jotter", "EVENT=agent_exited")
    expected = {
        "SYSLOG_IDENTIFIER": "forge-supervisor",
        "PRIORITY": "4",
        "MESSAGE": "jotter was ended by signal 9 (SIGKILL) after 12.5 s; restarting in 5 s",
        "RUN_AS": "team",
        "SIGNAL": "9",
        "UPTIME_SEC": "12.5",
        "N_RESTARTS": "1",
        "INVOCATION": "c0ffee",
        "SCREEN": "one\ntwo",
    }
    assert {name: small.get(name) for name in expected} == expected
    assert "EXIT_CODE" not in small
    assert large["SCREEN"] == "x" * 1_000_000
