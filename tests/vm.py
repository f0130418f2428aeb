"""What takes a kernel of one's own: limits of cgroups, boots, clocks that jump, sleep. Run by `./dev vm`, as root.

A Debian made a minute ago, with forge-supervisor installed and enabled, is booted in a virtual machine that is emulated
in software. The scenarios share it, in their order.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import vm_image
import vm_machine
from vm_machine import LostError, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from booted import Machine
    from vm_machine import Entry, Guest

CONFIG = """
[defaults]
run_as = "team"
harness = "command"

# They run on whatever happens to the others.
[agents.calm]
command = ["/bin/sleep", "infinity"]
[agents.crowd]
command = ["/usr/bin/python3", "-c", '''
import os, signal, syslog
for number in range(200):
    try:
        if not os.fork():
            signal.pause()
    except BlockingIOError as error:
        refused = error
syslog.openlog("crowd")
syslog.syslog(f"the last of 200: {refused}")
signal.pause()
''']
resources = {tasks_max = 20}

[agents.glutton]
command = ["/usr/bin/python3", "-c", "b'x' * (200 << 20)"]
resources = {memory_max = "64M"}

# As far as anybody looks, claude; too large as soon as it has worked.
[harnesses.claude-code]
binary = "/home/team/claude"
[agents.grower]
harness = "claude-code"
role = "You grow."
env = {ANTHROPIC_API_KEY = "none"}
resources = {restart_above = "64M"}

[agents.patient]
command = ["/bin/sleep", "infinity"]
restart = {delay_sec = 20, limit_burst = 0}
"""
CLAUDE = """#!/usr/bin/python3
import itertools, os, pathlib, sys, syslog, time
if "--version" in sys.argv:
    print("2.1.330 (Claude Code)")
    sys.exit()
syslog.openlog("grower")
file = pathlib.Path.home() / f".claude/sessions/{os.getpid()}.json"
file.parent.mkdir(parents=True, exist_ok=True)
large = b"x" * (100 << 20)
for turn, status in enumerate(itertools.cycle(("busy", "idle"))):
    syslog.syslog(f"{status} in turn {turn // 2}")
    file.with_suffix(".new").write_text(f'{{"status": "{status}"}}')
    file.with_suffix(".new").rename(file)
    time.sleep(5)
"""
BYSTANDERS = ("calm", "crowd")
AT_BOOT = (*BYSTANDERS, "glutton", "patient")
DELAY_SEC = 20
# Less than SLEEP_SEC, so that a sleep would spend it.
WATCHDOG = "[Service]\nWatchdogSec=20\n"
SLEEP_SEC = 30
# Units of agents and their users, and what systemd says when it begins to stop a unit (SD_MESSAGE_UNIT_STOPPING).
OURS = re.compile(r"forge-(agent|tmux|worker)-")
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
UNWANTED_AT_THE_END = {"agent_restarting", "agent_started", "tmux_server_lost", "worker_lost"}
# What the emulated machine takes beyond what it is told to wait.
SLACK_SEC = 15
DAY_SEC = 86_400
LAST_LINES = 40


def controllers(guest: Guest) -> None:
    """The kernel has the controllers that limits take (cgroup v2)"""
    there = guest.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"memory", "pids"} <= set(there), f"the controllers are {there}"


def boot(guest: Guest) -> None:
    """Agents start with the machine, and nobody has to log in"""
    guest.wait_for("EVENT=supervisor_ready", timeout=120)
    for agent in AT_BOOT:
        guest.wait_for("EVENT=agent_started", f"AGENT={agent}", "N_RESTARTS=0", timeout=0)
    sessions = guest.run("loginctl", "list-sessions", "--no-legend").stdout
    assert sessions == "", f"somebody is logged in: {sessions}"
    assert guest.property("forge-supervisor", "ActiveState") == "active"


def memory(guest: Guest) -> None:
    """An agent over its memory_max is killed for it, restarted by the rules, and failed after its third start"""
    failed = guest.wait_for("EVENT=agent_failed", "AGENT=glutton", timeout=120)
    exits = guest.journal("EVENT=agent_exited", "AGENT=glutton")
    starts = guest.journal("EVENT=agent_started", "AGENT=glutton")
    results = [exit_["RESULT"] for exit_ in exits]
    assert results == ["oom-kill"] * 3, f"its exits have the results {results}"
    assert failed["RESULT"] == "oom-kill", f"it failed with result {failed['RESULT']}"
    assert "start limit hit" in failed["MESSAGE"], f"it failed otherwise: {failed['MESSAGE']}"
    waits = [seconds(start) - seconds(exit_) for exit_, start in zip(exits, starts[1:], strict=False)]
    assert len(starts) == 3, f"it was started {len(starts)} times"
    assert all(4 < wait < 5 + SLACK_SEC for wait in waits), f"it was restarted after {waits} s"
    kills = [entry["MESSAGE"] for entry in guest.journal("_TRANSPORT=kernel") if "oom-kill:" in str(entry["MESSAGE"])]
    assert len(kills) == 3, f"the kernel has killed {len(kills)} times"
    for kill in kills:
        assert "CONSTRAINT_MEMCG" in kill and "forge-agent-glutton.scope" in kill, f"it was not its own limit: {kill}"
    unharmed(guest)


def tasks(guest: Guest) -> None:
    """An agent that forks 200 times never has more than its tasks_max"""
    last = guest.wait_for("SYSLOG_IDENTIFIER=crowd", timeout=60)
    assert "Resource temporarily unavailable" in last["MESSAGE"], last["MESSAGE"]
    scope = "forge-agent-crowd.scope"
    assert last["_SYSTEMD_UNIT"] == scope, f"it runs in {last['_SYSTEMD_UNIT']}"
    current = guest.property(scope, "TasksCurrent")
    assert current == "20", f"it has {current} tasks"
    peak = guest.run("cat", f"/sys/fs/cgroup{guest.property(scope, 'ControlGroup')}/pids.peak").stdout.strip()
    assert peak == "20", f"it once had {peak} tasks"
    unharmed(guest)


def growth(guest: Guest) -> None:
    """An agent over its restart_above is restarted once it is idle, and not again and again"""
    large = guest.wait_for("EVENT=agent_too_large", "AGENT=grower", timeout=120)
    assert int(large["MEMORY"]) > 100 << 20, f"it had {large['MEMORY']} bytes"
    # By then it has been idle twice more.
    for matches in (("EVENT=agent_started", "AGENT=grower"), ("SYSLOG_IDENTIFIER=grower", "MESSAGE=busy in turn 2")):
        guest.wait_for(*matches, until=lambda entry: seconds(entry) > seconds(large), timeout=120)
    times = len(guest.journal("EVENT=agent_too_large", "AGENT=grower"))
    assert times == 1, f"it was restarted {times} times"
    assert guest.journal("EVENT=agent_started", "AGENT=grower")[-1]["N_RESTARTS"] == "0"
    unharmed(guest)


def sleep(guest: Guest) -> None:
    """Agents and supervisor outlive a sleep of the machine that is longer than the watchdog's time"""
    before = slept(guest)
    guest.sleep(SLEEP_SEC)
    asleep = slept(guest) - before
    assert asleep > SLEEP_SEC - 5, f"it slept for {asleep} s"
    # It answers once its loop has turned.
    guest.run("systemctl", "reload", "forge-supervisor")
    unharmed(guest)


def clock(guest: Guest) -> None:
    """A restart comes when its delay is over, wherever the time of day is set to meanwhile"""
    for number, (jump, jump_sec) in enumerate((("+1 day", DAY_SEC), ("-1 day", -DAY_SEC)), 1):
        was = time_of_day(guest)
        exited = kill(guest, "patient")
        guest.run("date", f"--set={jump}")
        jumped = time_of_day(guest) - was
        assert abs(jumped - jump_sec) < 3600, f"the clock went by {jumped} s, not by {jump}"
        started = guest.wait_for("EVENT=agent_started", "AGENT=patient", f"N_RESTARTS={number}", timeout=120)
        waited = seconds(started) - seconds(exited)
        assert DELAY_SEC - 1 < waited < DELAY_SEC + SLACK_SEC, f"{jump}: restarted after {waited:.1f} s"
    # Nor was the watchdog misled; and by now it would have noticed a supervisor that a sleep before has upset.
    unharmed(guest)


def reboot(guest: Guest) -> None:
    """A reboot has the supervisor stop the agents, before systemd would, and starts each once"""
    before = guest.boot
    # It waits for its restart, which a shutdown must not bring about.
    kill(guest, "patient")
    guest.reboot()
    stopped_in_order(guest, before)
    back(guest)


def power_cut(guest: Guest) -> None:
    """After a power cut each agent starts once"""
    guest.reset()
    back(guest)


SCENARIOS = (controllers, boot, memory, tasks, growth, sleep, clock, reboot, power_cut)


def kill(guest: Guest, agent: str) -> Entry:
    """End it as a crash would; how the supervisor tells it."""
    pid = guest.journal("EVENT=agent_started", f"AGENT={agent}")[-1]["PID"]
    guest.run("kill", "-KILL", pid)
    return guest.wait_for("EVENT=agent_exited", f"AGENT={agent}", f"PID={pid}")


def stopped_in_order(guest: Guest, boot: str) -> None:
    """At the end of that boot the supervisor has stopped the bystanders, then itself, and only then came the rest."""
    log = guest.journal("_SYSTEMD_UNIT=forge-supervisor.service", boot=boot)
    events = [entry.get("EVENT") for entry in log]
    assert "supervisor_stopping" in events, "it was not asked to stop"
    last = log[events.index("supervisor_stopping") :]
    told = "\n".join(entry["MESSAGE"] for entry in last)
    stopped = {entry["AGENT"]: entry["NEXT"] for entry in last if entry.get("EVENT") == "agent_exited"}
    assert stopped == dict.fromkeys((*BYSTANDERS, "grower"), "stopped as requested"), f"{stopped}, and in all:\n{told}"
    assert last[-1].get("EVENT") == "supervisor_stopped", f"it was cut off:\n{told}"
    unwanted = UNWANTED_AT_THE_END & {entry.get("EVENT") for entry in last}
    assert not unwanted, f"{unwanted} while stopping:\n{told}"
    jobs = guest.journal(f"MESSAGE_ID={STOPPING}", boot=boot)
    first = [job["UNIT"] for job in jobs if "UNIT" in job and seconds(job) < seconds(last[-1])]
    assert "forge-supervisor.service" in first, f"systemd stopped {first}"
    early = [unit for unit in first if OURS.match(unit)]
    assert not early, f"systemd stopped {early} before the supervisor had"


def unharmed(guest: Guest) -> None:
    """Those that do no harm still run as they were first started in this boot, and so does the supervisor."""
    for agent in BYSTANDERS:
        starts = guest.journal("EVENT=agent_started", f"AGENT={agent}")
        assert len(starts) == 1, f"{agent} was started {len(starts)} times"
        lives = guest.run("test", "-d", f"/proc/{starts[0]['PID']}", check=False).returncode == 0
        assert lives, f"{agent} runs no more"
    state = guest.property("forge-supervisor", "ActiveState"), guest.property("forge-supervisor", "NRestarts")
    assert state == ("active", "0"), f"the supervisor is {state[0]} after {state[1]} restarts"


def back(guest: Guest) -> None:
    """After a boot each agent was started, and none twice."""
    boot(guest)
    unharmed(guest)
    sleepers = guest.run("pgrep", "--count", "--full", "--uid=team", "^/bin/sleep infinity").stdout.strip()
    assert sleepers == "2", f"calm and patient are {sleepers} processes"


def slept(guest: Guest) -> float:
    """For how long the machine has slept since its boot."""
    return float(inside(guest, "time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()"))


def time_of_day(guest: Guest) -> float:
    return float(inside(guest, "time.time()"))


def inside(guest: Guest, expression: str) -> str:
    return guest.run("python3", "-c", f"import time; print({expression})").stdout


def set_up(machine: Machine) -> None:
    machine.add_user("team")
    machine.write("/etc/forge-supervisor/config.toml", CONFIG, mode=0o600)
    machine.write("/home/team/claude", CLAUDE, mode=0o755)
    machine.write("/etc/systemd/system/forge-supervisor.service.d/watchdog.conf", WATCHDOG)
    machine.run("systemctl", "enable", "forge-supervisor")


def main() -> int:
    # Whoever ends us by a signal wants no virtual machine to be left.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="forge-vm-", dir="/var/tmp") as name:  # root's own disk: it takes 3 GB
        directory = Path(name)
        directory.chmod(0o755)
        since = time.monotonic()
        with vm_image.installing(directory) as machine:
            set_up(machine)
        image = vm_image.image(directory)
        say(f"made in {time.monotonic() - since:.0f} s")
        failed = play(image, directory)
    say(f"after {time.monotonic() - since:.0f} s: {f'{failed} FAILED' if failed else 'all is well'}")
    return 1 if failed else 0


def play(image: vm_image.Image, files: Path) -> int:
    """Play all scenarios; how many have failed."""
    failed = 0
    began = time.monotonic()
    try:
        with vm_machine.running(image, files) as guest:
            say(f"booted in {time.monotonic() - began:.0f} s")
            failed = sum(not passes(scenario, guest) for scenario in SCENARIOS)
    except LostError as error:
        say(f"FAILED: {error}\nqemu says:\n{(files / 'qemu').read_text()}")
        failed += 1
    if failed:
        console = (files / "serial").read_text(errors="replace").splitlines()[-LAST_LINES:]
        say("the console ends with:\n" + "\n".join(printable(line) for line in console))
    return failed


def passes(scenario: Callable[[Guest], None], guest: Guest) -> bool:
    began = time.monotonic()
    try:
        scenario(guest)
    except AssertionError as error:
        say(f"FAILED: {scenario.__doc__}: {error}\nThe journal at that time:\n" + "\n".join(guest.said()[-LAST_LINES:]))
        return False
    say(f"{scenario.__doc__} ({time.monotonic() - began:.0f} s)")
    return True


def printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())


def say(text: str) -> None:
    sys.stdout.write(f"vm: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
