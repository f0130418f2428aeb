"""systemctl reload: what was changed is changed, what was not is not touched, what is broken changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
DEFAULTS = '[defaults]\nrun_as = "loader"\nharness = "command"\n'


def agent(name: str, seconds: int, *more: str) -> str:
    return "\n".join((f"[agents.{name}]", f'command = ["/bin/sleep", "{seconds}"]', *more, ""))


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    machine.run("useradd", "--create-home", "loader", check=False)
    machine.write(CONFIG, DEFAULTS + agent("same", 1001) + agent("changed", 1002) + agent("removed", 1003))
    machine.run("systemctl", "start", "forge-supervisor")
    yield machine
    machine.run("systemctl", "stop", "forge-supervisor")


def now(machine: Machine) -> int:
    """Microseconds, as the journal counts them: entries of the tests before this one are not the awaited ones."""
    return int(machine.run("date", "+%s%6N").stdout)


def sleeping(machine: Machine) -> dict[str, int]:
    """The argument of every running sleep, and its pid."""
    found = machine.processes("loader").items()
    return {command.split()[1]: pid for pid, command in found if command.startswith("/bin/sleep ")}


def test_a_reload_makes_the_config_true_and_leaves_the_rest_alone(service: Machine) -> None:
    before = sleeping(service)
    assert before.keys() == {"1001", "1002", "1003"}
    text = DEFAULTS + agent("same", 1001, "stop_timeout_sec = 5") + agent("changed", 2002) + agent("new", 1004)
    service.write(CONFIG, text)
    service.run("systemctl", "reload", "forge-supervisor")
    service.wait_for("EVENT=agent_started", "AGENT=changed", until=lambda e: int(e["PID"]) != before["1002"])
    service.wait_for("EVENT=agent_started", "AGENT=new", until=bool)
    after = sleeping(service)
    assert after.keys() == {"1001", "2002", "1004"}
    assert after["1001"] == before["1001"], "a new stop timeout takes no restart"
    sessions = service.run("tmux", "-L", "forge", "list-sessions", "-F", "#S", user="loader").stdout.split()
    assert sorted(sessions) == ["agent-changed", "agent-new", "agent-same"]
    assert service.property("forge-supervisor", "StatusText") == "3 running"


def test_an_agent_that_could_not_be_started_again_runs_on_as_it_was(service: Machine) -> None:
    before = sleeping(service)
    missing = 'secrets.TOKEN = "/etc/forge-supervisor/none"'
    moved = 'run_as = "nobody-of-that-name"'
    text = DEFAULTS + agent("same", 1001, missing) + agent("changed", 2002) + agent("removed", 1003, moved)
    service.write(CONFIG, text)
    service.run("systemctl", "reload", "forge-supervisor")
    after = sleeping(service)
    assert {seconds: after[seconds] for seconds in ("1001", "1003")} == {
        seconds: before[seconds] for seconds in ("1001", "1003")
    }
    service.wait_for("EVENT=agent_started", "AGENT=changed", until=lambda e: int(e["PID"]) != before["1002"])
    status = service.property("forge-supervisor", "StatusText")
    assert status.endswith("; as before the reload: removed, same")
    warned = service.wait_for("EVENT=agent_warning", "AGENT=same", until=lambda e: "runs on as it was" in e["PROBLEM"])
    assert "there is no such file" in warned["PROBLEM"]


def test_a_broken_config_changes_nothing_and_says_why(service: Machine) -> None:
    before = sleeping(service)
    service.write(CONFIG, "[agents.x]\nmodell = 1\n")
    service.run("systemctl", "reload", "forge-supervisor")
    told = service.wait_for("EVENT=supervisor_reload_failed", until=lambda e: "modell" in e["PROBLEM"])
    assert f"{CONFIG}: agents.x.modell: unknown key" in told["PROBLEM"]
    assert service.property("forge-supervisor", "ActiveState") == "active"
    assert service.property("forge-supervisor", "StatusText").startswith("3 running; ")
    assert sleeping(service) == before


def test_another_user_is_another_agent_and_leaves_nothing_with_the_old_one(service: Machine) -> None:
    service.run("useradd", "--create-home", "successor", check=False)
    begin = now(service)
    service.write(CONFIG, (DEFAULTS + agent("same", 1001)).replace("loader", "successor"))
    service.run("systemctl", "reload", "forge-supervisor")
    service.wait_for(
        "EVENT=supervisor_reloaded", until=lambda entry: int(entry["__REALTIME_TIMESTAMP"]) > begin
    )
    assert service.processes("loader") == {}
    service.wait_for("EVENT=agent_started", "AGENT=same", "RUN_AS=successor", until=bool)
    (exited,) = service.journal("EVENT=agent_exited", "AGENT=same", "RESULT=success")[-1:]
    assert (exited["RUN_AS"], exited["NEXT"]) == ("loader", "stopped as requested")


def test_another_socket_name_waits_for_a_restart(service: Machine) -> None:
    service.write(CONFIG, 'socket_name = "other"\n' + DEFAULTS + agent("same", 1001) + agent("new", 1005))
    service.run("systemctl", "reload", "forge-supervisor")
    warning = service.wait_for("EVENT=config_warning", "KEY=socket_name", until=bool)
    assert 'stays "forge" until the supervisor, and with it every agent, is stopped' in warning["MESSAGE"]
    service.wait_for("EVENT=agent_started", "AGENT=new", until=lambda e: int(e["PID"]) in sleeping(service).values())
    sessions = service.run("tmux", "-L", "forge", "list-sessions", "-F", "#S", user="loader").stdout.split()
    assert sorted(sessions) == ["agent-new", "agent-same"]


def test_a_disabled_agent_is_stopped(service: Machine) -> None:
    begin = now(service)
    service.write(CONFIG, DEFAULTS + agent("same", 1001) + agent("changed", 1002, "enabled = false"))
    service.run("systemctl", "reload", "forge-supervisor")
    for name in ("changed", "removed"):
        service.wait_for(
            "EVENT=agent_stopped", f"AGENT={name}", until=lambda e: int(e["__REALTIME_TIMESTAMP"]) > begin
        )
    assert sleeping(service).keys() == {"1001"}
