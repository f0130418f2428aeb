"""Runs the supervisors side by side in a booted machine, and tells what they take: a table, and a plot.

    beside.py [--write] [--rounds R] [N …]

--write puts both where the README has them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import booted

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = Path(__file__).resolve().parent
README = BENCH.parent / "README.md"
PICTURE = BENCH.parent / "docs" / "bench.svg"
BEGIN, END = "<!-- ./dev bench --write -->\n", "<!-- end -->\n"
PEERS = ("forge-supervisor", "systemd", "supervisord", "circus", "runit")

Figures = dict[tuple[str, int], dict[str, list[float]]]
"""Of each supervisor and number of programs, all values of each figure."""


def prepare(machine: booted.Machine) -> None:
    """Install all of them, and what they run; nothing of it outlives the machine."""
    machine.dev("install")
    machine.add_user("bench")
    machine.run("mkdir", "-p", "/opt/bench")
    machine.run("gcc", "-O2", "-static", "-o", "/opt/bench/stamp", BENCH / "stamp.c")
    machine.run("apt-get", "update", "-qq", timeout=120)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    packages = ("supervisor", "runit")
    machine.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=quiet, timeout=300)
    machine.run("systemctl", "disable", "--now", "supervisor", check=False)
    machine.run("python3", "-m", "venv", "/opt/circus")
    pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    machine.run("/opt/circus/bin/pip", "install", "-q", "circus", env=pip, timeout=300)


def rounds(machine: booted.Machine, script: str, *arguments: object) -> Iterator[dict[str, Any]]:
    """Run a script inside, and pass on what it prints."""
    command = machine.command("python3", "-B", BENCH / script, *map(str, arguments), env={"LC_ALL": "C.UTF-8"})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    assert process.returncode == 0, f"{script}: {process.returncode}"


def collect(told: Iterator[dict[str, Any]]) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for each in told:
        print(json.dumps(each), file=sys.stderr, flush=True)
        of = figures[each.pop("peer"), each.pop("n")]
        for name, value in each.items():
            of[name] += value if isinstance(value, list) else [value]
    return figures


def row(peer: str, n: int, of: dict[str, list[float]]) -> list[str]:
    restart = sorted(value * 1000 for value in of["restart"])
    worst = restart[min(len(restart) - 1, len(restart) * 99 // 100)]
    # Pages that several processes share are counted once: some have one more for each program.
    own, beside = (statistics.median(of[key]) / 2**20 for key in ("pss", "beside_pss"))
    cpu, beside_cpu = (statistics.median(of[key]) * 100 for key in ("cpu", "beside_cpu"))
    return [
        peer,
        str(n),
        f"{statistics.median(restart):.1f} ms",
        f"{worst:.0f} ms",
        f"{statistics.median(of['start']):.2f} s",
        f"{statistics.median(of['start_all']):.2f} s",
        f"{cpu:.2f} %" + (f" + {beside_cpu:.2f} %" if beside else ""),
        f"{own:.1f}" + (f" + {beside:.0f}" if beside else "") + " MiB",
        f"{statistics.median(of['status']) * 1000:.0f} ms",
    ]


def table(figures: Figures) -> str:
    head = "supervisor | programs | killed → runs | p99 | start | start --all | idle CPU | memory | status"
    columns = head.split(" | ")
    lines = [f"| {head} |", "|" + "|".join(["---", *["--:"] * (len(columns) - 1)]) + "|"]
    numbers = sorted({n for _, n in figures if n})
    lines += [f"| {' | '.join(row(peer, n, figures[peer, n]))} |" for n in numbers for peer in PEERS]
    return "\n".join(lines) + "\n"


def summary(figures: Figures) -> str:
    """What the table does not say: the supervisor without agents, and what each one adds."""
    ours = {n: of for (peer, n), of in figures.items() if peer == PEERS[0]}
    if 0 not in ours or len(ours) < 2:
        return ""
    most = max(ours)
    none = statistics.median(ours[0]["rss"])
    each = (statistics.median(ours[most]["rss"]) - none) / most / 1024
    beside = (statistics.median(ours[most]["beside_pss"]) / most) / 1024
    return (
        f"{PEERS[0]} without agents takes {none / 2**20:.1f} MiB, and {each:.0f} KiB more for each of {most}; "
        f"beside it {beside:.0f} KiB an agent (PSS).\n"
    )


def machine_size() -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    today = dt.datetime.now(dt.UTC).date()
    kernel = platform.release().partition("-")[0]
    return f"{today}, {os.cpu_count()} CPUs, {memory:.0f} GiB, {platform.machine()}, Linux {kernel}"


def put(text: str, path: Path) -> None:
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{path} has no place for the table"
    assert end, f"{path} has no end of the table"
    path.write_text(before + begin + text + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("numbers", type=int, nargs="*", metavar="N")
    arguments = parser.parse_args()
    numbers = arguments.numbers or [0, 1, 50, 200]
    with tempfile.TemporaryDirectory() as directory, booted.booted(Path(directory)) as machine:
        prepare(machine)
        figures = collect(rounds(machine, "inside.py", arguments.rounds, *numbers))
    text = table(figures) + "\n" + summary(figures) + f"({machine_size()})\n"
    print(text)
    if arguments.write:
        picture = plot.svg({key: dict(of) for key, of in figures.items()}, PEERS)
        put(text, README)
        PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
