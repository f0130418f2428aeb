"""What goes wrong around agents without anybody's ill will, and what their operator then may rely on.

Whatever it is: an agent that ended is told of truly, by its exit or as lost; it comes back by the restart rules, never
beside what is left of it; no other agent notices; the supervisor answers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from booted import Machine

UNIT = "forge-supervisor.service"
CONFIG = "/etc/forge-supervisor/config.toml"
RUNTIME = "/run/forge-supervisor"
CLAUDE = "/opt/forge-faults/claude"
DEFAULTS = f"""
[harnesses.claude-code]
binary = "{CLAUDE}"
[defaults]
harness = "command"
stop_timeout_sec = 2
restart = {{delay_sec = 0.2, limit_burst = 0}}
"""
NUMBERS = itertools.count(1)

# While any process of a session lives, it holds the lock, so a second session beside it ends with 99. Once its traps
# are set it says so in the journal by itself: what was started is known without believing the supervisor.
BEGIN = 'exec 9>>"/tmp/lock-$FORGE_AGENT-$UID"; flock --nonblock 9 || exit 99; trap "exit 5" USR1; '
LIVE = 'logger -t "$FORGE_AGENT-armed" "$$"; while :; do sleep 0.05; done'
PLAIN = f"{BEGIN} trap 'exit 42' TERM; {LIVE}"
STUBBORN = f"{BEGIN} trap '' TERM HUP; {LIVE}"
TWICE = 99


def declared(name: str, user: str, script: str = PLAIN, **keys: str) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f"[agents.{name}]\nrun_as = \"{user}\"\ncommand = ['/bin/bash', '-c', '''{script}''']\n{more}"


def with_claude(name: str, user: str, role: str = "You are tried.") -> str:
    return f'[agents.{name}]\nrun_as = "{user}"\nharness = "claude-code"\nrole = "{role}"\n'


def ended(entry: dict[str, Any]) -> str:
    """How an agent_exited says that it was: a code, a signal, or lost; whatever else would be no truth."""
    if entry["RESULT"] == "lost":
        assert not {"EXIT_CODE", "SIGNAL"} & entry.keys()
        return "lost"
    (how,) = {"EXIT_CODE", "SIGNAL"} & entry.keys()
    return f"{how} {entry[how]}"


@dataclass
class Stage:
    """A user whose agents meet with a fault, and a bystander with an agent of the same name as the user."""

    machine: Machine
    user: str
    bystander: str
    uid: int
    agents: str = ""
    begin: int = 0
    untouched: dict[str, int] = field(default_factory=dict)

    def write(self, *agents: str) -> None:
        self.machine.write(CONFIG, DEFAULTS + declared(self.bystander, self.bystander) + "".join(agents))

    def start(self, *agents: str) -> None:
        self.write(*agents)
        self.begin = self.now()
        self.machine.run("systemctl", "start", UNIT)
        self.expect_untouched(self.bystander)

    def reload(self) -> None:
        after = self.now()
        self.machine.run("systemctl", "reload", UNIT)
        self.told("supervisor_reloaded", after=after)

    def now(self) -> int:
        """Microseconds on the clock of the journal's __REALTIME_TIMESTAMP."""
        return int(self.machine.run("date", "+%s%6N").stdout)

    def told(
        self,
        event: str,
        *matches: str,
        after: int | None = None,
        until: Callable[[dict[str, Any]], object] = bool,
        timeout: float = 30,
    ) -> dict[str, Any]:
        """Wait for an event of the supervisor's own."""
        begin = self.begin if after is None else after
        return self.machine.wait_for(
            *(f"_SYSTEMD_UNIT={UNIT}", f"EVENT={event}", *matches),
            until=lambda entry: int(entry["__REALTIME_TIMESTAMP"]) > begin and until(entry),
            timeout=timeout,
        )

    def all_told(self, event: str, *matches: str, after: int | None = None) -> list[dict[str, Any]]:
        begin = self.begin if after is None else after
        found = self.machine.journal(f"_SYSTEMD_UNIT={UNIT}", f"EVENT={event}", *matches)
        return [entry for entry in found if int(entry["__REALTIME_TIMESTAMP"]) > begin]

    def armed(self, agent: str, after: int | None = None) -> int:
        """Wait until it has been started, and return its pid by its own word."""
        begin = self.begin if after is None else after
        return int(
            self.machine.wait_for(
                f"SYSLOG_IDENTIFIER={agent}-armed",
                until=lambda entry: int(entry["__REALTIME_TIMESTAMP"]) > begin,
                timeout=30,
            )["MESSAGE"]
        )

    def expect_untouched(self, agent: str) -> int:
        self.untouched[agent] = self.armed(agent)
        return self.untouched[agent]

    def exit_of(self, agent: str, after: int) -> str:
        return ended(self.told("agent_exited", f"AGENT={agent}", after=after))

    def end_by_itself(self, agent: str, pid: int) -> int:
        """Have it exit with 5, see that this is told and that it comes back; its new pid."""
        after = self.now()
        self.machine.run("kill", "-USR1", str(pid))
        assert self.exit_of(agent, after) == "EXIT_CODE 5"
        return self.armed(agent, after)

    def server(self) -> int:
        """The tmux server that is ours."""
        return int(self.machine.property(f"forge-tmux-{self.user}.service", "MainPID"))

    def tmux(self, *arguments: str) -> str:
        """What the user does on the supervisor's socket; a server is started if there is none."""
        return self.machine.run("tmux", "-L", "forge", *arguments, user=self.user).stdout

    def lives(self, pid: int) -> bool:
        state = self.machine.run("ps", "-o", "stat=", "-p", str(pid), check=False).stdout
        return state.strip() != "" and not state.startswith("Z")

    def assert_others_go_on(self) -> None:
        """Show that the daemon answers, and that no other agent has noticed anything."""
        self.reload()
        for agent, pid in self.untouched.items():
            assert self.lives(pid)
            assert self.all_told("agent_exited", f"AGENT={agent}") == []

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", UNIT, timeout=60)
        assert self.machine.property(UNIT, "Result") == "success"

    def assert_nothing_is_left(self, but: Collection[int] = ()) -> None:
        """Show, of a stopped supervisor, that nothing of any agent is left, and that none was there twice."""
        assert self.left() - {*but} == set()
        assert self.machine.run("tmux", "-L", "forge", "ls", user=self.bystander, check=False).returncode != 0
        starts = Counter(entry["INVOCATION"] for entry in self.all_told("agent_started"))
        exits = Counter(entry["INVOCATION"] for entry in self.all_told("agent_exited"))
        assert exits == starts, "each told once"
        told = [entry["PID"] for entry in self.all_told("agent_started")]
        assert Counter(self.by_their_own_word()) <= Counter(told)
        assert [e["AGENT"] for e in self.all_told("agent_exited") if e.get("EXIT_CODE") == str(TWICE)] == []
        assert self.machine.run("systemctl", "list-units", "--plain", "--no-legend", "forge-*.service").stdout == ""
        assert self.machine.run("systemctl", "list-units", "--plain", "--no-legend", "forge-*.scope").stdout == ""

    def by_their_own_word(self) -> list[str]:
        """The pids of all sessions that came to run."""
        entries = self.machine.journal(f"--since=@{self.begin // 1_000_000}", "_TRANSPORT=syslog")
        armed = [entry for entry in entries if str(entry.get("SYSLOG_IDENTIFIER", "")).endswith("-armed")]
        return [entry["MESSAGE"] for entry in armed if int(entry["__REALTIME_TIMESTAMP"]) > self.begin]

    def left(self) -> set[int]:
        """The processes of both users."""
        uids = f"{self.uid},{self.machine.run('id', '-u', self.bystander).stdout.strip()}"
        return {int(pid) for pid in self.machine.run("pgrep", "-u", uids, check=False).stdout.split()}

    def end_well(self) -> None:
        self.assert_others_go_on()
        self.stop()
        self.assert_nothing_is_left()


@pytest.fixture
def stage(machine: Machine) -> Iterator[Stage]:
    number = next(NUMBERS)
    user, bystander = f"faulty{number}", f"bystander{number}"
    uid = machine.add_user(user)
    machine.add_user(bystander)
    machine.write(CLAUDE, f"#!/bin/bash\n{PLAIN}\n", mode=0o755)
    yield Stage(machine, user, bystander, uid)
    machine.run("pkill", "-KILL", "-u", str(uid), check=False)  # what could make the stop wait
    machine.run("systemctl", "stop", UNIT, timeout=100)
    machine.run("pkill", "-KILL", "-u", f"{uid},{bystander}", check=False)


# tmux's server: killed, stopped, somebody else's.


def test_a_killed_tmux_server_takes_its_agents_with_it_and_they_come_back(stage: Stage) -> None:
    """Of what ended with it nobody can know how, and an agent without its terminal is of no use."""
    plain, stubborn = f"{stage.user}-plain", f"{stage.user}-stubborn"
    stage.start(declared(plain, stage.user), declared(stubborn, stage.user, STUBBORN))
    before = {agent: stage.armed(agent) for agent in (plain, stubborn)}
    after, server = stage.now(), stage.server()
    stage.machine.run("kill", "-KILL", str(server))
    assert stage.told("tmux_server_lost", f"RUN_AS={stage.user}")["PID"] == str(server)
    for agent, pid in before.items():
        assert stage.exit_of(agent, after) == "lost"
        assert stage.armed(agent, after) != pid
        assert not stage.lives(pid)
    assert stage.server() not in {0, server}
    stage.end_well()


def test_a_stopped_tmux_server_costs_no_exit_status(stage: Stage) -> None:
    """Whoever has stopped it, by Ctrl-Z or a debugger, has not asked for any agent's end."""
    agent = f"{stage.user}-plain"
    stage.start(declared(agent, stage.user))
    pid, server = stage.armed(agent), stage.server()
    stage.machine.run("kill", "-STOP", str(server))
    stage.end_by_itself(agent, pid)
    assert stage.server() == server
    stage.end_well()


def test_stop_while_the_tmux_server_is_stopped(stage: Stage) -> None:
    agent = f"{stage.user}-plain"
    stage.start(declared(agent, stage.user))
    stage.armed(agent)
    after = stage.now()
    stage.machine.run("kill", "-STOP", str(stage.server()))
    began = time.monotonic()
    stage.stop()
    assert time.monotonic() - began < 15
    assert stage.exit_of(agent, after) == "EXIT_CODE 42"
    stage.assert_nothing_is_left()


def test_restart_of_the_supervisor_while_the_tmux_server_is_stopped(stage: Stage) -> None:
    agent = f"{stage.user}-plain"
    stage.start(declared(agent, stage.user))
    pid, server = stage.expect_untouched(agent), stage.server()
    after = stage.now()
    stage.machine.run("kill", "-STOP", str(server))
    stage.machine.run("systemctl", "restart", UNIT)
    assert stage.told("agent_adopted", f"AGENT={agent}", after=after)["PID"] == str(pid)
    assert stage.server() == server
    stage.assert_others_go_on()
    del stage.untouched[agent]
    stage.end_by_itself(agent, pid)
    stage.end_well()


def test_a_tmux_server_of_the_users_own_is_shared_and_stays(stage: Stage) -> None:
    """Who was there first keeps what is his: at a stop our agents go, and nothing else."""
    agent = f"{stage.user}-plain"
    stage.tmux("new-session", "-d", "-s", "mine", "exec sleep 1000")
    server, mine = (int(pid) for pid in stage.tmux("display-message", "-p", "#{pid} #{pane_pid}").split())
    stage.start(declared(agent, stage.user))
    pid = stage.armed(agent)
    assert stage.told("tmux_server_shared", f"RUN_AS={stage.user}")["PID"] == str(server)
    pid = stage.end_by_itself(agent, pid)
    stage.machine.run("systemctl", "restart", UNIT)
    pid = stage.end_by_itself(agent, pid)
    stage.assert_others_go_on()
    after = stage.now()
    stage.stop()
    assert stage.exit_of(agent, after) == "EXIT_CODE 42"
    stage.assert_nothing_is_left(but={server, mine})
    assert stage.tmux("list-panes", "-a", "-F", "#{session_name} #{pane_pid}") == f"mine {mine}\n"
    stage.tmux("kill-server")


def test_our_tmux_server_takes_its_socket_back_from_one_that_was_started_by_hand(stage: Stage) -> None:
    """Whoever finds no server on the socket starts one there without meaning any harm."""
    agent = f"{stage.user}-plain"
    stage.start(declared(agent, stage.user))
    pid, server = stage.armed(agent), stage.server()

    def take_socket() -> int:
        stage.machine.run("rm", f"/tmp/tmux-{stage.uid}/forge")
        stage.tmux("new-session", "-d", "-s", "mine", "exec sleep 1000")
        return int(stage.tmux("display-message", "-p", "#{pid}"))

    others = [take_socket()]
    assert others != [server]
    pid = stage.end_by_itself(agent, pid)
    assert stage.tmux("display-message", "-p", "#{pid}") == f"{server}\n"
    others.append(take_socket())
    stage.machine.run("systemctl", "restart", UNIT)
    assert stage.tmux("display-message", "-p", "#{pid}") == f"{server}\n"
    pid = stage.end_by_itself(agent, pid)
    others.append(take_socket())
    after = stage.now()
    stage.assert_others_go_on()
    stage.stop()
    assert stage.exit_of(agent, after) == "EXIT_CODE 42"
    assert all(map(stage.lives, others)), "they are not ours to end"
    stage.machine.run("kill", *map(str, others))
    stage.machine.run("pkill", "-u", str(stage.uid), "sleep", check=False)
    stage.machine.run("timeout", "10", "sh", "-c", f"while pgrep -u {stage.uid}; do sleep 0.1; done")
    stage.assert_nothing_is_left()


# What people do to an agent's session. {agent} is its session, {pane} its pane.
HANDS = {
    "kill-session": ("kill-session -t =agent-{agent}", "lost"),
    "kill-pane": ("kill-pane -t {pane}", "lost"),
    "respawn-pane": ("respawn-pane -k -t {pane} 'exec sleep 4321'", "lost"),
    "rename-session": ("rename-session -t =agent-{agent} renamed-by-hand", None),
    "link-window": ("link-window -s {pane} -t mine:7", None),
    "link-window-kill-session": ("link-window -s {pane} -t mine:7 ; kill-session -t =agent-{agent}", None),
}


@pytest.mark.parametrize("hands", HANDS)
def test_what_people_do_to_an_agents_session(stage: Stage, hands: str) -> None:
    """An exit status that they threw away is lost; as long as the agent's pane is there, it is known."""
    agent, sibling = f"{stage.user}-plain", f"{stage.user}-sibling"
    stage.start(declared(agent, stage.user), declared(sibling, stage.user))
    stage.expect_untouched(sibling)
    pid, after = stage.armed(agent), stage.now()
    pane = stage.tmux("list-panes", "-t", f"=agent-{agent}", "-F", "#{pane_id}").strip()
    command, exit_ = HANDS[hands]
    script = f"new-session -d -s mine 'exec sleep 1000' ; {command.format(agent=agent, pane=pane)}\n"
    stage.machine.run("tmux", "-L", "forge", "source-file", "-", user=stage.user, input=script)
    if exit_ is not None:
        assert stage.exit_of(agent, after) == exit_
        pid = stage.armed(agent, after)
    pid = stage.end_by_itself(agent, pid)
    panes = stage.tmux("list-panes", "-a", "-F", "#{pane_pid} #{@forge-agent}").splitlines()
    assert {line.split()[0] for line in panes if agent in line} == {str(pid)}
    assert "sleep 4321 " not in stage.machine.processes(stage.user).values()
    stage.end_well()


@pytest.mark.parametrize("scope", ["global", "window", "pane"])
def test_people_turn_remain_on_exit_off(stage: Stage, scope: str) -> None:
    """For their own windows they may; who does it to the very pane of an agent throws its exit away."""
    agent = f"{stage.user}-plain"
    stage.start(declared(agent, stage.user))
    pid = stage.armed(agent)
    target = {"global": ("-gw",), "window": ("-w", "-t", f"=agent-{agent}:"), "pane": ("-p", "-t", f"=agent-{agent}:")}
    after = stage.now()
    stage.tmux("set-option", *target[scope], "remain-on-exit", "off")
    if scope == "pane":
        stage.machine.run("kill", "-USR1", str(pid))
        assert stage.exit_of(agent, after) == "lost"
        pid = stage.armed(agent, after)
    pid = stage.end_by_itself(agent, pid)
    stage.end_by_itself(agent, pid)
    stage.end_well()


# systemd.


def test_systemctl_stop_of_an_agents_scope_is_a_sigterm_like_anybodys(stage: Stage) -> None:
    """It is no request to the supervisor: the restart rules decide, and nothing of the scope outlives it."""
    agent, brief = f"{stage.user}-plain", f"{stage.user}-brief"
    escaped = "(trap '' TERM HUP; exec env -i setsid sleep 1000) & "
    stage.start(
        declared(agent, stage.user, PLAIN.replace(LIVE, escaped + LIVE)),
        declared(brief, stage.user, f"{BEGIN} {LIVE}"),
    )
    pid = stage.armed(agent)
    stage.armed(brief)
    (old,) = [pid for pid, line in stage.machine.processes(stage.user).items() if line == "sleep 1000 "]
    after = stage.now()
    stage.machine.run("systemctl", "stop", f"forge-agent-{agent}.scope", f"forge-agent-{brief}.scope")
    assert stage.exit_of(agent, after) == "EXIT_CODE 42"
    assert stage.exit_of(brief, after) == "SIGNAL 15"
    stopped = stage.told("agent_stopped", f"AGENT={brief}")
    assert stopped["RESULT"] == "success", "as systemd has it of a service that SIGTERM ended"
    assert stage.armed(agent, after) != pid
    assert not stage.lives(old)
    stage.end_well()


@pytest.mark.parametrize("what", ["dbus", "daemon-reexec", "daemon-reload"])
def test_dbus_or_systemd_begin_anew(stage: Stage, what: str) -> None:
    """Agents run, end and start meanwhile as ever."""
    agent, crash = f"{stage.user}-plain", f"{stage.user}-crash"
    goes, comes = f"{stage.user}-goes", f"{stage.user}-comes"
    quick = "{policy = 'always', delay_sec = 0.01, limit_burst = 0, limit_daily = 0}"
    crasher = declared(crash, stage.user, f"{BEGIN} exit 3", restart=quick)
    stage.start(crasher, declared(agent, stage.user), declared(goes, stage.user))
    stage.expect_untouched(agent)
    stage.armed(goes)
    stage.write(crasher, declared(agent, stage.user), declared(comes, stage.user))
    renew = "systemctl reset-failed dbus; systemctl restart dbus" if what == "dbus" else f"systemctl {what}"
    stage.machine.run("sh", "-euc", f"for i in 1 2 3 4; do {renew}; sleep 0.1; done")
    stage.machine.run("systemctl", "reload", UNIT)
    stage.machine.run("sh", "-euc", f"for i in 1 2 3 4; do {renew}; sleep 0.1; done")
    # It does not find the new bus by itself, and the tests that come need it.
    stage.machine.run("systemctl", "restart", "systemd-logind", check=False)
    stage.armed(comes)
    after = stage.now()
    stage.told("agent_started", f"AGENT={crash}", after=after)
    assert [entry["MESSAGE"] for entry in stage.all_told("agent_start_failed")] == []
    crashes = [ended(entry) for entry in stage.all_told("agent_exited", f"AGENT={crash}")]
    assert len(crashes) > 5 and {*crashes} == {"EXIT_CODE 3"}
    assert stage.exit_of(goes, stage.begin) == "EXIT_CODE 42"
    stage.assert_others_go_on()
    after = stage.now()
    stage.machine.run("systemctl", "stop", "--no-block", UNIT)
    stage.machine.run("sh", "-c", renew)
    stage.stop()
    assert stage.exit_of(agent, after) == "EXIT_CODE 42"
    stage.assert_nothing_is_left()


# No room, and nothing to be written.


@contextlib.contextmanager
def small(stage: Stage, directory: str, options: str) -> Iterator[None]:
    """Have the directory be a file system of its own, with little room."""
    stage.machine.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    try:
        yield
    finally:
        stage.machine.run("systemctl", "stop", UNIT, timeout=100)
        stage.machine.run("umount", directory)


def fill(stage: Stage, directory: str) -> None:
    full = stage.machine.run("dd", "if=/dev/zero", f"of={directory}/full", "bs=4k", check=False)
    assert "No space left on device" in full.stderr


@dataclass(frozen=True)
class Trouble:
    """A home in which nothing can be written."""

    begin: Callable[[Stage, str], object]
    end: Callable[[Stage, str], object]
    told: str


def remount(how: str) -> Callable[[Stage, str], object]:
    return lambda stage, home: stage.machine.run("mount", "-o", f"remount,{how}", home)


TROUBLES = {
    "full": Trouble(
        fill,
        lambda stage, home: stage.machine.run("rm", f"{home}/full"),
        "No space left on device (free some space)",
    ),
    "read-only": Trouble(
        remount("ro"), remount("rw"), "Read-only file system (it must lie on a writable filesystem)"
    ),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_home_that_cannot_be_written(stage: Stage, kind: str) -> None:
    """A start that has to write fails, with a word on what and where; who runs already runs on."""
    agent, home, trouble = f"{stage.user}-claude", f"/home/{stage.user}", TROUBLES[kind]
    with small(stage, home, f"size=256k,mode=700,uid={stage.uid},gid={stage.uid}"):
        trouble.begin(stage, home)
        stage.start(with_claude(agent, stage.user))
        failed = stage.told("agent_start_failed", f"AGENT={agent}")
        assert failed["PROBLEM"].startswith(f"{home}/") and failed["PROBLEM"].endswith(trouble.told)
        trouble.end(stage, home)
        pid, after = stage.armed(agent), stage.now()

        trouble.begin(stage, home)
        sown = stage.machine.read(f"{home}/.claude.json")
        stage.assert_others_go_on()
        assert stage.lives(pid) and stage.all_told("agent_exited", f"AGENT={agent}") == []
        pid = stage.end_by_itself(agent, pid)
        assert stage.all_told("agent_start_failed", f"AGENT={agent}", after=after) == [], "nothing was to be written"
        trouble.end(stage, home)

        state = f"{home}/.local/state/forge/agents/{agent}"
        stage.machine.run("rm", f"{state}/CLAUDE.md")
        trouble.begin(stage, home)
        after = stage.now()
        stage.machine.run("kill", "-USR1", str(pid))
        assert stage.exit_of(agent, after) == "EXIT_CODE 5"
        failed = stage.told("agent_start_failed", f"AGENT={agent}", after=after)
        assert failed["PROBLEM"] == f"{state}/CLAUDE.md: {trouble.told}"
        assert stage.machine.read(f"{home}/.claude.json") == sown
        trouble.end(stage, home)
        stage.armed(agent, after)
        assert "You are tried." in stage.machine.read(f"{state}/CLAUDE.md")
        assert stage.machine.run("find", home, "-name", "*.tmp*", "-o", "-name", ".forge*").stdout == ""
        stage.end_well()


def test_what_cannot_be_saved_for_the_next_supervisor_costs_no_agent_as_long_as_this_one_runs(stage: Stage) -> None:
    """Its own directory is full: it says so once. Once there is room, the next one knows all agents again."""
    agent, calm = f"{stage.user}-plain", f"{stage.user}-calm"
    stage.machine.run("mkdir", "-p", RUNTIME)
    with small(stage, RUNTIME, "size=64k,mode=755"):
        stage.start(declared(agent, stage.user), declared(calm, stage.user))
        pid = stage.armed(agent)
        stage.expect_untouched(calm)
        fill(stage, RUNTIME)
        for _ in range(3):
            pid = stage.end_by_itself(agent, pid)
        (problem,) = stage.all_told("state_problem")
        assert "the state of agents cannot be saved" in problem["MESSAGE"]
        assert "No space left on device" in problem["MESSAGE"]
        stage.assert_others_go_on()

        stage.machine.run("rm", f"{RUNTIME}/full")
        after = stage.now()
        stage.machine.run("systemctl", "restart", UNIT)
        adopted = {entry["AGENT"]: int(entry["PID"]) for entry in stage.all_told("agent_adopted", after=after)}
        assert adopted == {agent: pid, **stage.untouched}
        stage.end_well()


def test_a_supervisor_that_follows_on_one_that_could_not_save_starts_nothing_twice(stage: Stage) -> None:
    """What it does not know of it ends, and begins anew."""
    agent = f"{stage.user}-plain"
    stage.machine.run("mkdir", "-p", RUNTIME)
    with small(stage, RUNTIME, "size=64k,mode=755"):
        stage.start(declared(agent, stage.user, STUBBORN))
        pid = stage.armed(agent)
        fill(stage, RUNTIME)
        pid = stage.end_by_itself(agent, pid)
        after = stage.now()
        stage.machine.run("systemctl", "restart", UNIT)
        assert stage.armed(agent, after) != pid
        assert not stage.lives(pid)
        stage.assert_others_go_on()
        stage.stop()
        assert stage.left() == set()
        twice = [entry for entry in stage.all_told("agent_exited") if entry.get("EXIT_CODE") == str(TWICE)]
        assert twice == []


@pytest.mark.parametrize("kept", [0, 20])
def test_claudes_own_file_truncated_between_two_starts(stage: Stage, kept: int) -> None:
    """Another program's rewrite was cut off: the file is made whole again, and what it held is kept."""
    agent, file = f"{stage.user}-claude", f"/home/{stage.user}/.claude.json"
    stage.start(with_claude(agent, stage.user))
    pid = stage.armed(agent)
    stage.machine.run("truncate", f"--size={kept}", file, user=stage.user)
    torn, after = stage.machine.read(file), stage.now()
    stage.end_by_itself(agent, pid)
    about = f"{file} was no JSON object and was written anew"
    warning = stage.told("agent_warning", f"AGENT={agent}", after=after, until=lambda e: about in e["PROBLEM"])
    assert json.loads(stage.machine.read(file))["hasCompletedOnboarding"] is True
    saved = re.search(r"what it held is in (/\S*[^)\s])", warning["PROBLEM"])
    assert (stage.machine.read(saved[1]) if saved else "") == torn
    stage.end_well()


# Users, numbers, time.


def test_a_user_that_is_removed_and_comes_again_with_another_uid(stage: Stage) -> None:
    """Nothing is started as whoever has the name, or the number, now: the operator is told and decides."""
    agent, machine = f"{stage.user}-plain", stage.machine
    stage.start(declared(agent, stage.user))
    pid = stage.armed(agent)
    machine.run("userdel", "--force", "--remove", stage.user)
    stage.assert_others_go_on()
    assert stage.lives(pid), "it was not asked to end"
    after = stage.now()
    machine.run("kill", "-USR1", str(pid))
    assert stage.exit_of(agent, after) == "EXIT_CODE 5"
    failed = stage.told("agent_start_failed", f"AGENT={agent}", after=after)
    assert failed["PROBLEM"] == f'no such user "{stage.user}" (create it: useradd -m {stage.user})'

    uid = stage.uid + 10_000
    machine.run("useradd", "--create-home", "--user-group", f"--uid={uid}", "--shell=/bin/bash", stage.user)
    text = f'"{stage.user}" had uid {stage.uid} and has {uid} now (restart the supervisor)'
    stage.told("agent_start_failed", f"AGENT={agent}", after=after, until=lambda e: e["PROBLEM"] == text)
    assert machine.processes(stage.user) == {}
    stage.assert_others_go_on()
    machine.run("systemctl", "restart", UNIT)
    pid = stage.armed(agent, after)
    assert machine.run("stat", "-c", "%u", f"/proc/{pid}").stdout == f"{uid}\n"
    assert machine.run("pgrep", "-u", str(stage.uid), check=False).stdout == "", "nothing of the old one"
    stage.assert_others_go_on()
    stage.uid = uid
    stage.end_well()


def test_the_next_supervisor_finds_the_name_with_another_uid(stage: Stage) -> None:
    """What runs as who had the name is ended, and nothing runs beside it as who has the name now."""
    agent, machine = f"{stage.user}-plain", stage.machine
    stage.start(declared(agent, stage.user))
    pid, uid, after = stage.armed(agent), stage.uid + 10_000, stage.now()
    machine.run("userdel", "--force", "--remove", stage.user)
    machine.run("useradd", "--create-home", "--user-group", f"--uid={uid}", "--shell=/bin/bash", stage.user)
    machine.run("systemctl", "restart", UNIT)
    assert stage.exit_of(agent, after) == "lost", "its tmux server was another user's"
    again = stage.armed(agent, after)
    assert again != pid
    assert machine.run("stat", "-c", "%u", f"/proc/{again}").stdout == f"{uid}\n"
    assert machine.run("pgrep", "-u", str(stage.uid), check=False).stdout == "", "nothing of the old one"
    stage.uid = uid
    stage.end_well()


def test_the_next_supervisor_does_not_find_the_user(stage: Stage) -> None:
    """The agent runs on as the one that it is, and is ended as such."""
    agent, dying, machine = f"{stage.user}-plain", f"{stage.user}-dying", stage.machine
    stage.start(declared(agent, stage.user), declared(dying, stage.user))
    stage.expect_untouched(agent)
    pid, after = stage.armed(dying), stage.now()
    machine.run("userdel", "--force", "--remove", stage.user)
    machine.run("systemctl", "restart", UNIT)
    assert {entry["AGENT"] for entry in stage.all_told("agent_adopted", after=after)} >= {agent, dying}
    stage.assert_others_go_on()
    machine.run("kill", "-USR1", str(pid))
    assert stage.exit_of(dying, after) == "lost", "nobody is there to ask the tmux server"
    failed = stage.told("agent_start_failed", f"AGENT={dying}", after=after)
    assert failed["PROBLEM"] == f'no such user "{stage.user}" (create it: useradd -m {stage.user})'
    stage.end_well()


def test_a_supervisor_that_was_frozen_starts_nothing_twice(stage: Stage) -> None:
    """As after a suspend: what came due meanwhile is done once, late."""
    waiting, dying, calm = (f"{stage.user}-{name}" for name in ("waiting", "dying", "calm"))
    slow = "{delay_sec = 1, limit_burst = 0}"
    stage.start(*(declared(agent, stage.user, restart=slow) for agent in (waiting, dying, calm)))
    pids = {agent: stage.armed(agent) for agent in (waiting, dying)}
    stage.expect_untouched(calm)
    supervisor = stage.machine.property(UNIT, "MainPID")
    after = stage.now()
    stage.machine.run("kill", "-USR1", str(pids[waiting]))
    stage.told("agent_restarting", f"AGENT={waiting}")
    stage.machine.run("kill", "-STOP", supervisor)
    stage.machine.run("kill", "-USR1", str(pids[dying]))
    stage.machine.run("sleep", "3")  # the fault itself
    assert stage.all_told("agent_started", f"RUN_AS={stage.user}", after=after) == []
    stage.machine.run("kill", "-CONT", supervisor)
    for agent in (waiting, dying):
        assert stage.exit_of(agent, after) == "EXIT_CODE 5"
        stage.armed(agent, after)
    stage.assert_others_go_on()
    for agent in (waiting, dying):
        (started,) = stage.all_told("agent_started", f"AGENT={agent}", after=after)
        assert started["N_RESTARTS"] == "1"
    assert stage.machine.property(UNIT, "MainPID") == supervisor
    stage.end_well()


def test_1000_fast_crashes_cost_nothing(stage: Stage) -> None:
    """As many exits as starts, each exact; neither memory nor descriptors nor units pile up."""
    herd = [f"{stage.user}-{number}" for number in range(4)]
    always = "{policy = 'always', delay_sec = 0, limit_burst = 0, limit_daily = 0}"
    stage.start(*(declared(name, stage.user, f"exit {code}", restart=always) for code, name in enumerate(herd, 10)))
    worker = int(stage.machine.property(f"forge-worker-{stage.user}.service", "MainPID"))
    supervisor = int(stage.machine.property(UNIT, "MainPID"))

    def cost() -> list[tuple[int, int]]:
        """Kilobytes and descriptors of both."""
        return [
            (
                int(stage.machine.read(f"/proc/{pid}/status").partition("VmRSS:")[2].split()[0]),
                len(stage.machine.run("ls", f"/proc/{pid}/fd").stdout.split()),
            )
            for pid in (supervisor, worker)
        ]

    costs = []
    for total in (200, 1000):
        for name in herd:
            stage.told("agent_started", f"AGENT={name}", f"N_RESTARTS={total // len(herd)}", timeout=120)
        costs.append(cost())
    for (memory, descriptors), (more_memory, more_descriptors) in zip(*costs, strict=True):
        assert more_memory < memory + 1500
        assert more_descriptors < descriptors + 50, "more than of those that are on their way, less than of 800 crashes"
    assert stage.machine.property(UNIT, "MainPID") == str(supervisor)
    assert stage.machine.property(f"forge-worker-{stage.user}.service", "MainPID") == str(worker)
    stage.assert_others_go_on()
    stage.stop()
    stage.assert_nothing_is_left()
    for code, name in enumerate(herd, 10):
        exits = stage.all_told("agent_exited", f"AGENT={name}")
        assert {ended(entry) for entry in exits[:-1]} == {f"EXIT_CODE {code}"}
        assert [int(entry["N_RESTARTS"]) for entry in exits] == list(range(len(exits)))
    # The stop comes upon some in the middle of their start.
    failed = [entry for entry in stage.all_told("agent_start_failed") if entry["NEXT"] != "stopped as requested"]
    assert [entry["MESSAGE"] for entry in failed] == []
