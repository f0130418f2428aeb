"""Agents crash in all ways, ten thousand times; each is told as it was, and memory and files stay flat.

Arguments: how many agents (200), and how often each crashes (50). That is in laps: at the end of each all run, which is
when memory and files are looked at.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import booted

BENCH = Path(__file__).resolve().parent
TMUX = "forge-tmux-bench"
UNITS = ("forge-supervisor", "forge-worker-bench", TMUX)
LAPS = 5
LOOK_SEC = 5.0
# From the end of the first lap to that of the last: pools fill before, caches too.
FLAT_MIB = 2.0
FLAT_FILES = 8
MOST_SEC = 7200.0
DEFAULTS = """
[defaults]
run_as = "bench"
harness = "command"
restart = {policy = "always", delay_sec = 0.2, limit_burst = 0, limit_daily = 0}
"""
# Inside, of each unit's main process: RSS in KiB and open files.
SAMPLE = """
import pathlib, subprocess, sys
for unit in sys.argv[1:]:
    pid = subprocess.check_output(["systemctl", "show", "-P", "MainPID", unit], text=True).strip()
    rss = pathlib.Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    print(rss, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())), pid)
"""
# What people would scroll back to is kept by design, 10,000 lines a pane, and is not to be taken for a leak. Nor does
# tmux's memory count: 3.3a itself loses some 40 bytes with each command, whoever gives it.
CLEAR = "tmux -L forge list-panes -a -F '#{pane_id}' | xargs -n 1 tmux -L forge clear-history -t"


def sample(machine: booted.Machine) -> list[tuple[float, int, int]]:
    """MiB, open files and pid of each unit."""
    machine.run("sh", "-c", CLEAR, user="bench", timeout=120)
    lines = machine.run("python3", "-c", SAMPLE, *UNITS, timeout=120).stdout.splitlines()
    return [(int(rss) / 1024, int(files), int(pid)) for rss, files, pid in map(str.split, lines)]


def crashes(machine: booted.Machine) -> tuple[int, int]:
    """How many there were, and how many agents run and wait for the next lap."""
    done = int(machine.run("sh", "-c", "cat /home/bench/ledger/* | wc -l", timeout=120).stdout)
    return done, int(machine.run("pgrep", "-c", "-x", "waits", check=False, timeout=120).stdout)


def prepare(machine: booted.Machine, agents: int, each_lap: int) -> None:
    machine.dev("install")
    machine.add_user("bench")
    machine.run("mkdir", "-p", "/opt/bench", "/home/bench/ledger")
    machine.run("chown", "bench:", "/home/bench/ledger")
    machine.run("gcc", "-O2", "-static", "-o", "/opt/bench/crash", BENCH / "crash.c")
    # All of it is to be counted at the end.
    machine.write("/etc/systemd/journald.conf.d/all.conf", "[Journal]\nSystemMaxUse=4G\nRuntimeMaxUse=4G\n")
    machine.run("systemctl", "restart", "systemd-journald")
    names = [f"a{number}" for number in range(agents)]
    declared = [f'[agents.{name}]\ncommand = ["/opt/bench/crash", "{name}", "{each_lap}"]\n' for name in names]
    machine.write("/etc/forge-supervisor/config.toml", DEFAULTS + "".join(declared))


def run(machine: booted.Machine, agents: int, each_lap: int) -> list[list[tuple[float, int, int]]]:
    """Have them crash; how things stood at the end of each lap."""
    began = time.monotonic()
    machine.run("systemctl", "start", "forge-supervisor", timeout=600)
    laps = []
    for lap in range(1, LAPS + 1):
        while (now := crashes(machine)) != (agents * each_lap * lap, agents):
            assert time.monotonic() - began < MOST_SEC, f"{now[0]} crashes, and {now[1]} agents wait"
            time.sleep(LOOK_SEC)
        laps.append(sample(machine))
        units = zip(UNITS, laps[-1], strict=True)
        told = ", ".join(f"{unit} {mib:.1f} MiB {files} files" for unit, (mib, files, _) in units)
        print(f"{time.monotonic() - began:6.0f} s {now[0]:6} crashes  {told}", flush=True)
        if lap < LAPS:
            machine.run("pkill", "-USR1", "-x", "waits")
    return laps


def differences(machine: booted.Machine) -> tuple[int, Counter[str]]:
    """How many exits are told exactly as they were written down, and what is wrong with the others."""
    lines = machine.run("sh", "-c", "cat /home/bench/ledger/*").stdout.splitlines()
    written = dict(line.split() for line in lines)
    assert len(written) == len(lines), "an invocation ended twice"
    exact, wrong = 0, Counter[str]()
    for entry in machine.journal("EVENT=agent_exited"):
        how = f"c{entry['EXIT_CODE']}" if "EXIT_CODE" in entry else f"s{entry.get('SIGNAL')}"
        meant = written.pop(entry["INVOCATION"], None)
        if meant == how:
            exact += 1
        else:
            wrong[f"{meant} was told as {how}"] += 1
    wrong.update(f"{how} was not told" for how in written.values())
    return exact, wrong


def main() -> None:
    agents, each = (*map(int, sys.argv[1:]), *(200, 50)[len(sys.argv) - 1 :])
    if each % LAPS:
        sys.exit(f"each crashes as often in all of {LAPS} laps")
    total = agents * each
    with tempfile.TemporaryDirectory() as directory, booted.booted(Path(directory)) as machine:
        prepare(machine, agents, each // LAPS)
        first, *_, last = run(machine, agents, each // LAPS)
        exact, wrong = differences(machine)
        machine.run("systemctl", "stop", "forge-supervisor", timeout=300)
    print(f"{exact} of {total} exits told exactly")
    for what, times in wrong.items():
        print(f"{times:6} times {what}")
    replaced = [unit for unit, now, then in zip(UNITS, last, first, strict=True) if now[2] != then[2]]
    if replaced:
        sys.exit(f"failed: another process by the end: {', '.join(replaced)}")
    grown = [
        f"{unit} has grown: {mib:.1f} MiB and {files} files, at the end {mib_end:.1f} MiB and {files_end} files"
        for unit, (mib, files, _), (mib_end, files_end, _) in zip(UNITS, first, last, strict=True)
        if (mib_end - mib > FLAT_MIB and unit != TMUX) or files_end - files > FLAT_FILES
    ]
    if exact != total or wrong or grown:
        sys.exit("\n".join(["failed", *grown]))


if __name__ == "__main__":
    main()
