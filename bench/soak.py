"""Agents crash in all ways, ten thousand times; each is told as it was, and memory and files stay flat.

Arguments: how many agents (200), and how often each crashes (50).
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
UNITS = ("forge-supervisor", "forge-worker-bench", "forge-tmux-bench")
SAMPLE_SEC = 5.0
WARM = 0.2
"""What part of all crashes comes before memory is compared: pools fill, caches too."""
FLAT_MIB = 2.0
FLAT_FILES = 8
MOST_SEC = 7200.0
DEFAULTS = """
[defaults]
run_as = "bench"
harness = "command"
restart = {policy = "always", delay_sec = 0.2, limit_burst = 0, limit_daily = 0}
"""
# Inside, in one go: the crashes that are written down, and of each unit's main process RSS in KiB and open files.
SAMPLE = """
import pathlib, subprocess, sys
home = pathlib.Path("/home/bench/ledger")
print(sum(file.read_bytes().count(b"\\n") for file in home.iterdir()))
for unit in sys.argv[1:]:
    pid = subprocess.check_output(["systemctl", "show", "-P", "MainPID", unit], text=True).strip()
    rss = pathlib.Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    print(rss, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())))
"""


def sample(machine: booted.Machine) -> tuple[int, list[tuple[float, int]]]:
    """How many crashes there were, and MiB and open files of each unit."""
    first, *rest = machine.run("python3", "-c", SAMPLE, *UNITS, timeout=120).stdout.splitlines()
    return int(first), [(int(rss) / 1024, int(files)) for rss, files in map(str.split, rest)]


def prepare(machine: booted.Machine, agents: int, each: int) -> None:
    machine.dev("install")
    machine.add_user("bench")
    machine.run("mkdir", "-p", "/opt/bench", "/home/bench/ledger")
    machine.run("chown", "bench:", "/home/bench/ledger")
    machine.run("gcc", "-O2", "-static", "-o", "/opt/bench/crash", BENCH / "crash.c")
    # All of it is to be counted at the end.
    machine.write("/etc/systemd/journald.conf.d/all.conf", "[Journal]\nSystemMaxUse=4G\nRuntimeMaxUse=4G\n")
    machine.run("systemctl", "restart", "systemd-journald")
    names = [f"a{number}" for number in range(agents)]
    declared = [f'[agents.{name}]\ncommand = ["/opt/bench/crash", "{name}", "{each}"]\n' for name in names]
    machine.write("/etc/forge-supervisor/config.toml", DEFAULTS + "".join(declared))


def run(machine: booted.Machine, total: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Have them crash; how things stood when all was warm, and at the end."""
    began = time.monotonic()
    machine.run("systemctl", "start", "forge-supervisor", timeout=600)
    warm: list[tuple[float, int]] = []
    while True:
        crashes, now = sample(machine)
        told = ", ".join(f"{unit} {mib:.1f} MiB {files} files" for unit, (mib, files) in zip(UNITS, now, strict=True))
        print(f"{time.monotonic() - began:6.0f} s {crashes:6} crashes  {told}", flush=True)
        if not warm and crashes >= total * WARM:
            warm = now
        if crashes >= total:
            time.sleep(SAMPLE_SEC)
            return warm, sample(machine)[1]
        assert time.monotonic() - began < MOST_SEC, f"{crashes} crashes only"
        time.sleep(SAMPLE_SEC)


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
    total = agents * each
    with tempfile.TemporaryDirectory() as directory, booted.booted(Path(directory)) as machine:
        prepare(machine, agents, each)
        warm, end = run(machine, total)
        running = machine.property("forge-supervisor", "StatusText")
        exact, wrong = differences(machine)
        machine.run("systemctl", "stop", "forge-supervisor", timeout=300)
    print(f"{exact} of {total} exits told exactly; {running}")
    for what, times in wrong.items():
        print(f"{times:6} times {what}")
    flat = running.startswith(f"{agents} running")
    for unit, (mib, files), (mib_end, files_end) in zip(UNITS, warm, end, strict=True):
        print(f"{unit}: {mib:.1f} MiB, {files} files; at the end {mib_end:.1f} MiB, {files_end} files")
        flat &= mib_end - mib <= FLAT_MIB and files_end - files <= FLAT_FILES
    if exact != total or wrong or not flat:
        sys.exit("failed")


if __name__ == "__main__":
    main()
