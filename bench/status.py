"""How long `forgectl status` takes beside `systemctl status`, for twenty agents, in a booted machine.

Both are run in turns, inside of it; the figure is the ratio of the medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import booted

AGENTS = 20
ROUNDS = 40
CONFIG = """
[defaults]
run_as = "bench"
harness = "command"
command = ["/bin/sleep", "100000"]
"""
# Inside, so that neither has to get into the machine first.
CLOCK = """
import json, subprocess, sys, time
commands, rounds = json.loads(sys.argv[1]), int(sys.argv[2])
taken = {name: [] for name in commands}
for _ in range(rounds):
    for name, command in commands.items():
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
        taken[name].append(time.perf_counter() - began)
print(json.dumps(taken))
"""
NAMES = [f"bench-{number}" for number in range(AGENTS)]
COMMANDS = {
    "forgectl status": ["forgectl", "status"],
    "systemctl status, the agents' units": [
        "systemctl",
        "status",
        "--no-pager",
        *(f"forge-agent-{name}.scope" for name in NAMES),
    ],
    "systemctl status, one unit": ["systemctl", "status", "--no-pager", "forge-supervisor"],
    "systemctl list-units, the agents'": ["systemctl", "list-units", "--no-pager", "forge-agent-*"],
    "python3 -c pass": ["/opt/forge-supervisor/bin/python3", "-c", "pass"],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, booted.booted(Path(directory)) as machine:
        machine.dev("install")
        machine.add_user("bench")
        machine.write("/etc/forge-supervisor/config.toml", CONFIG + "".join(f"[agents.{name}]\n" for name in NAMES))
        machine.run("systemctl", "start", "forge-supervisor")
        told = machine.run("python3", "-c", CLOCK, json.dumps(COMMANDS), str(ROUNDS), env={"LC_ALL": "C.UTF-8"})
        machine.run("systemctl", "stop", "forge-supervisor")
    taken = {name: statistics.median(times) * 1000 for name, times in json.loads(told.stdout).items()}
    ours = taken["forgectl status"]
    print(f"{AGENTS} agents, median of {ROUNDS} runs in turns")
    for name, milliseconds in taken.items():
        print(f"{name:38} {milliseconds:6.1f} ms   forgectl takes {ours / milliseconds:.2f} times that")


if __name__ == "__main__":
    main()
