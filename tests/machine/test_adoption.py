"""A supervisor that ends leaves its agents running, and the next one goes on with them as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from booted import Machine

UNIT = "forge-supervisor.service"
CONFIG = "/etc/forge-supervisor/config.toml"
AGENTS = """
[defaults]
run_as = "adopted"
harness = "command"
[agents.adopted-calm]
command = ["/bin/sleep", "infinity"]
[agents.adopted-crash]
command = ["/bin/sh", "-c", "exit 7"]
restart = {delay_sec = 0.1}
"""
STUBBORN = """
[agents.adopted-stubborn]
command = ["/bin/bash", "-c", "trap '' TERM HUP; (setsid env -i sleep 1000 &); while :; do sleep 1; done"]
stop_timeout_sec = 1
"""


@pytest.fixture
def start(machine: Machine) -> Iterator[Callable[[str], int]]:
    machine.run("useradd", "--create-home", "adopted", check=False)

    def with_config(config: str) -> int:
        begin = now(machine)
        machine.write(CONFIG, config)
        machine.run("systemctl", "start", UNIT)
        return begin

    yield with_config
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("adopted") == {}


def now(machine: Machine) -> int:
    return int(machine.run("date", "+%s%6N").stdout)


def since(begin: int) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: int(entry["__REALTIME_TIMESTAMP"]) > begin


def agents(machine: Machine) -> dict[int, str]:
    """The processes of the agents: not the tmux server, its pipes and the worker."""
    found = machine.processes("adopted")
    return {pid: line for pid, line in found.items() if "tmux" not in line and "worker" not in line and line != "cat "}


def state(machine: Machine, agent: str) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(machine.read(f"/run/forge-supervisor/agents/{agent}.json"))
    return saved


def kill(machine: Machine, number: str) -> int:
    begin = now(machine)
    machine.run("systemctl", "kill", f"--signal={number}", UNIT)
    machine.wait_for("EVENT=supervisor_ready", until=since(begin))
    return begin


def restart(machine: Machine) -> int:
    begin = now(machine)
    machine.run("systemctl", "restart", UNIT)
    return begin


WAYS: dict[str, Callable[[Machine], int]] = {
    "restart": restart,
    "kill": lambda machine: kill(machine, "KILL"),
    "term": lambda machine: kill(machine, "TERM"),
    "abort": lambda machine: kill(machine, "ABRT"),
}


@pytest.mark.parametrize("way", WAYS)
def test_agents_outlive_their_supervisor(machine: Machine, start: Callable[[str], int], way: str) -> None:
    machine.wait_for("EVENT=agent_failed", "AGENT=adopted-crash", until=since(start(AGENTS + STUBBORN)))
    before = agents(machine)
    crashed = state(machine, "adopted-crash")
    begin = WAYS[way](machine)
    ready = machine.wait_for("EVENT=supervisor_ready", until=since(begin))
    assert (ready["RUNNING"], ready["FAILED"]) == ("2", "1")
    after = agents(machine)
    stays = {pid: line for pid, line in before.items() if line != "sleep 1 "}
    assert stays.items() <= after.items(), "the very same processes"
    assert sorted(stays.values()) == sorted(line for line in after.values() if line != "sleep 1 "), "and no others"
    assert state(machine, "adopted-crash") == crashed, "with its restarts and its start limit"
    adopted = machine.journal("EVENT=agent_adopted", "RUN_AS=adopted")
    assert {entry["AGENT"] for entry in adopted if since(begin)(entry)} == {"adopted-calm", "adopted-stubborn"}
    started = [entry for entry in machine.journal("EVENT=agent_started", "RUN_AS=adopted") if since(begin)(entry)]
    assert started == []


def test_an_exit_while_there_was_no_supervisor_is_told_exactly(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    pid = state(machine, "adopted-calm")["session"]["pid"]
    begin = now(machine)
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    machine.run("kill", "-USR1", str(pid))
    exited = machine.wait_for("EVENT=agent_exited", "AGENT=adopted-calm", until=since(begin))
    assert (exited["SIGNAL"], exited["RESULT"]) == ("10", "signal")
    assert exited["PID"] == str(pid)


def test_a_restart_that_was_due_comes_when_it_was_due(machine: Machine, start: Callable[[str], int]) -> None:
    started = start(AGENTS.replace("delay_sec = 0.1", "delay_sec = 6"))
    waiting = machine.wait_for("EVENT=agent_restarting", "AGENT=adopted-crash", until=since(started))
    restart(machine)
    begin = int(waiting["__REALTIME_TIMESTAMP"])
    again = machine.wait_for("EVENT=agent_started", "AGENT=adopted-crash", until=since(begin))
    waited = (int(again["__REALTIME_TIMESTAMP"]) - begin) / 1_000_000
    assert 5.9 < waited < 9, "six seconds, and not six from the restart on"
    assert again["N_RESTARTS"] == "1"


def test_what_changed_in_the_config_meanwhile_becomes_true(machine: Machine, start: Callable[[str], int]) -> None:
    machine.run("useradd", "--create-home", "adopted2", check=False)
    leaver = '[agents.adopted-leaver]\nrun_as = "adopted2"\ncommand = ["/bin/sleep", "infinity"]\n'
    start(AGENTS + STUBBORN + leaver)
    stubborn = state(machine, "adopted-stubborn")["session"]["pid"]
    machine.write(CONFIG, (AGENTS + STUBBORN).replace('sleep", "infinity', 'sleep", "1234567'))
    begin = restart(machine)
    assert machine.processes("adopted2") == {}, "its agent is declared no more, and so its tmux server has gone too"
    gone = machine.wait_for("EVENT=agent_exited", "AGENT=adopted-leaver", until=since(begin))
    assert (gone["SIGNAL"], gone["NEXT"]) == ("15", "stopped as requested")
    assert "/bin/sleep 1234567 " in agents(machine).values()
    assert "/bin/sleep infinity " not in agents(machine).values()
    assert state(machine, "adopted-stubborn")["session"]["pid"] == stubborn


def test_a_config_that_has_broken_meanwhile_ends_no_agent(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    before = agents(machine)
    machine.write(CONFIG, "broken = =")
    begin = now(machine)
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    # What PID 1 says when it gives up, systemd.exec(5) EXIT_CONFIG.
    machine.wait_for(f"UNIT={UNIT}", until=lambda e: since(begin)(e) and e.get("EXIT_STATUS") == "78")
    unwatched = machine.wait_for("EVENT=agents_unwatched", until=since(begin))
    assert unwatched["AGENTS"] == "adopted-calm"
    assert agents(machine).keys() & before.keys()
    machine.run("sh", "-c", f"until systemctl --quiet is-failed {UNIT}; do sleep 0.05; done")
    machine.write(CONFIG, AGENTS)
    machine.run("systemctl", "start", UNIT)
    assert state(machine, "adopted-calm")["life"]["state"] == "running"
    calm = [pid for pid, line in before.items() if line == "/bin/sleep infinity "]
    assert state(machine, "adopted-calm")["session"]["pid"] == calm[0]


@pytest.mark.parametrize("damage", ["", '{"boot": "x"}'])
def test_a_state_file_that_cannot_be_read_starts_its_agent_anew(
    machine: Machine, start: Callable[[str], int], damage: str
) -> None:
    start(AGENTS)
    old = state(machine, "adopted-calm")["session"]["pid"]
    begin = now(machine)
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    machine.write("/run/forge-supervisor/agents/adopted-calm.json", damage, mode=0o600)
    machine.wait_for("EVENT=supervisor_ready", until=since(begin))
    told = machine.wait_for("EVENT=state_problem", until=since(begin))
    assert "/run/forge-supervisor/agents/adopted-calm.json cannot be read" in told["MESSAGE"]
    sleeping = [pid for pid, line in agents(machine).items() if line == "/bin/sleep infinity "]
    assert len(sleeping) == 1
    assert sleeping != [old], "nobody could know what that was"


def test_another_process_with_the_old_ones_pid_is_left_alone(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    saved = state(machine, "adopted-calm")
    machine.run("systemctl", "stop", UNIT)
    bystander = machine.run(
        "sh", "-c", "setpriv --reuid=adopted --regid=adopted --clear-groups sleep 999 >/dev/null 2>&1 & echo $!"
    )
    pid = int(bystander.stdout)
    saved["session"]["pid"] = saved["life"]["pid"] = pid
    machine.write("/run/forge-supervisor/agents/adopted-calm.json", json.dumps(saved), mode=0o600)
    begin = now(machine)
    machine.run("systemctl", "start", UNIT)
    exited = machine.wait_for("EVENT=agent_exited", "AGENT=adopted-calm", until=since(begin))
    assert exited["RESULT"] == "lost"
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("adopted").get(pid) == "sleep 999 "
    machine.run("kill", "-KILL", str(pid))


def test_the_plan_is_shown_beforehand_and_comes_true(machine: Machine, start: Callable[[str], int]) -> None:
    def diff() -> list[str]:
        said = machine.run("forge-supervisor", "--check", "--diff").stdout.splitlines()
        return said[next(n for n, line in enumerate(said) if line.endswith(" would:")) :]

    start(AGENTS.replace("exit 7", "sleep 9999"))
    assert diff() == ["a reload would:", "  adopted-calm: leave alone", "  adopted-crash: leave alone"]
    changed = AGENTS.replace('"infinity"', '"77777"').replace("exit 7", "sleep 9999").replace("0.1", "0.2")
    machine.write(CONFIG, changed + '[agents.adopted-new]\ncommand = ["/bin/sleep", "88888"]\n')
    assert diff() == [
        "a reload would:",
        "  adopted-calm: restart (changed: command)",
        "  adopted-crash: take over without a restart: restart",
        "  adopted-new: start",
    ]
    crash = state(machine, "adopted-crash")["session"]["pid"]
    begin = now(machine)
    machine.run("systemctl", "reload", UNIT)
    for name in ("adopted-calm", "adopted-new"):
        machine.wait_for("EVENT=agent_started", f"AGENT={name}", until=since(begin))
    lines = agents(machine)
    assert {"/bin/sleep 77777 ", "/bin/sleep 88888 "} <= set(lines.values())
    assert "/bin/sleep infinity " not in lines.values()
    assert crash in lines
    machine.run("systemctl", "stop", UNIT)
    assert diff()[0] == "nothing runs here; a start would:"


def test_limits_change_while_an_agent_runs(machine: Machine, start: Callable[[str], int]) -> None:
    def limits() -> dict[str, str]:
        scope = "forge-agent-adopted-calm.scope"
        return {name: machine.property(scope, name) for name in ("MemoryMax", "TasksMax", "CPUWeight")}

    limited = AGENTS.replace('"infinity"]\n', '"infinity"]\nresources = {memory_max = "100M", tasks_max = 5}\n', 1)
    start(limited)
    pid = state(machine, "adopted-calm")["session"]["pid"]
    assert limits() == {"MemoryMax": str(100 * 1024**2), "TasksMax": "5", "CPUWeight": "[not set]"}
    machine.write(CONFIG, limited.replace("100M", "200M").replace("tasks_max = 5", "cpu_weight = 50"))
    begin = now(machine)
    machine.run("systemctl", "reload", UNIT)
    # systemd does not wait for it where the signal's sender ends before the supervisor has told that it reloads.
    machine.wait_for("EVENT=supervisor_reloaded", until=since(begin))
    assert limits() == {"MemoryMax": str(200 * 1024**2), "TasksMax": "infinity", "CPUWeight": "50"}
    machine.write(CONFIG, limited)
    machine.run("systemctl", "restart", UNIT)
    assert limits() == {"MemoryMax": str(100 * 1024**2), "TasksMax": "5", "CPUWeight": "[not set]"}
    assert state(machine, "adopted-calm")["session"]["pid"] == pid


def test_a_user_whose_name_no_unit_can_bear(machine: Machine, start: Callable[[str], int]) -> None:
    machine.run("useradd", "--create-home", "adopted$", check=False)
    start('[agents.adopted-odd]\nrun_as = "adopted$"\nharness = "command"\ncommand = ["/bin/sleep", "infinity"]\n')
    begin = restart(machine)
    adopted = machine.wait_for("EVENT=agent_adopted", "AGENT=adopted-odd", until=since(begin))
    assert [entry for entry in machine.journal("EVENT=tmux_server_shared") if since(begin)(entry)] == []
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("adopted$") == {}
    assert adopted["RUN_AS"] == "adopted$"


def test_a_stop_while_systemd_waits_to_start_the_next_supervisor(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    machine.run("sh", "-c", f"until systemctl show -P SubState {UNIT} | grep -qx auto-restart; do sleep 0.01; done")
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("adopted") == {}
    assert machine.run("find", "/run/forge-supervisor", "-mindepth", "1").stdout == "/run/forge-supervisor/lock\n"


def test_a_stop_of_a_supervisor_that_would_not_start(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    machine.write(CONFIG, "broken = =")
    machine.run("systemctl", "restart", UNIT, check=False)
    ready = f"systemctl --quiet is-failed {UNIT} && systemctl --quiet is-active forge-agents.service"
    machine.run("sh", "-c", f"until {ready}; do sleep 0.05; done")
    assert agents(machine)
    machine.run("systemctl", "stop", UNIT)
    assert machine.processes("adopted") == {}
    machine.run("systemctl", "reset-failed", UNIT)


def test_the_sockets_are_gone_with_the_agents(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS)
    uid = machine.run("id", "-u", "adopted").stdout.strip()
    socket = f"/tmp/tmux-{uid}/forge"
    assert machine.run("test", "-S", socket, check=False).returncode == 0
    machine.run("systemctl", "stop", UNIT)
    assert machine.run("test", "-e", socket, check=False).returncode != 0


def test_a_supervisor_in_the_foreground_keeps_its_agents(machine: Machine, start: Callable[[str], int]) -> None:
    start("")
    machine.run("systemctl", "stop", UNIT)
    machine.write(CONFIG, AGENTS)
    command = machine.command("/usr/local/bin/forge-supervisor", "--log-format", "json")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as foreground:
        assert foreground.stderr is not None
        while b"supervisor_ready" not in foreground.stderr.readline():
            pass
        before = agents(machine)
        machine.run("systemctl", "start", UNIT, check=False)
        machine.run("systemctl", "stop", UNIT)
        assert [pid for pid, line in before.items() if line == "/bin/sleep infinity " and pid in agents(machine)]
        machine.run("pkill", "-INT", "-f", "bin/forge-supervisor --log-format json")
        foreground.stderr.read()
    assert machine.processes("adopted") == {}


SLOW = """
[agents.adopted-slow]
command = ["/bin/bash", "-c", "trap : TERM; while :; do sleep 0.1; done"]
stop_timeout_sec = 25
"""


def test_a_slow_stop_holds_up_neither_a_reload_nor_a_restart(machine: Machine, start: Callable[[str], int]) -> None:
    start(AGENTS + SLOW)
    slow = state(machine, "adopted-slow")["session"]["pid"]
    begin = now(machine)
    machine.write(CONFIG, AGENTS)
    machine.run("systemctl", "reload", UNIT, timeout=12)
    machine.write(CONFIG, AGENTS + '[agents.adopted-new]\ncommand = ["/bin/sleep", "4711"]\n')
    machine.run("systemctl", "reload", UNIT, timeout=12)
    machine.wait_for("EVENT=agent_started", "AGENT=adopted-new", until=since(begin), timeout=12)
    assert "/bin/sleep 4711 " in agents(machine).values()
    machine.run("systemctl", "restart", UNIT, timeout=12)
    assert slow in agents(machine), "it has its time"
    # Declared again while it stops: it runs again when it has stopped, whichever supervisor sees that.
    machine.write(CONFIG, AGENTS + SLOW)
    machine.run("systemctl", "reload", UNIT, timeout=12)
    machine.run("systemctl", "restart", UNIT, timeout=12)
    exited = machine.wait_for("EVENT=agent_exited", "AGENT=adopted-slow", until=since(begin))
    assert (exited["SIGNAL"], exited["RESULT"], exited["PID"]) == ("9", "timeout", str(slow))
    machine.wait_for("EVENT=agent_started", "AGENT=adopted-slow", until=since(begin))
    machine.write(CONFIG, AGENTS + SLOW.replace("25", "1"))
    machine.run("systemctl", "reload", UNIT, timeout=12)


def test_what_an_agent_has_tmux_start_for_it_ends_with_it(machine: Machine, start: Callable[[str], int]) -> None:
    windows = "tmux new-window -d 'exec sleep 5555'; tmux split-window -d 'exec sleep 6666'; exec sleep 60"
    start(f"""
[agents.adopted-calm]
run_as = "adopted"
harness = "command"
command = ["/bin/sh", "-c", "{windows}"]
restart = {{delay_sec = 0.1}}
""")
    begin = now(machine)
    until = "until pgrep -x -u adopted -f 'sleep 5555' && pgrep -x -u adopted -f 'sleep 6666'; do sleep 0.05; done"
    machine.run("timeout", "20", "sh", "-c", until)
    machine.run("kill", "-KILL", str(state(machine, "adopted-calm")["session"]["pid"]))
    machine.wait_for("EVENT=agent_started", "AGENT=adopted-calm", until=since(begin))
    machine.run("timeout", "20", "sh", "-c", until)
    lines = list(agents(machine).values())
    assert [lines.count(line) for line in ("sleep 5555 ", "sleep 6666 ")] == [1, 1]
