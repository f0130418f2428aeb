"""The long run of the oracle: what the real systemd and our rules make of random scenarios. Run by `./dev oracle`.

    oracle.py [N] [--seed FIRST] [--suite SUITE]

N scenarios (1000) of the seeds FIRST and on, by default new ones each time; in an overlay of this machine, or in a
Debian `SUITE` made for it. Exits with 1 if there is any difference that oracle_exceptions does not name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import booted
import fresh
import oracle_lab
import oracle_scenario
from oracle_ours import Look, Start
from oracle_systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oracle_lab import Verdict

AT_A_TIME = 250
"""Scenarios, after which it says how far it is."""
SHRUNK = 3
"""Differences of which the simplest case is looked for; that takes minutes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9), metavar="FIRST")
    parser.add_argument("--suite")
    told = parser.parse_args()
    if why := booted.missing():
        sys.exit(f"oracle: {why}")
    with _machine(told.suite) as machine:
        return _run(Systemd(machine), range(told.seed, told.seed + told.count))


@contextlib.contextmanager
def _machine(suite: str | None) -> Iterator[booted.Machine]:
    with tempfile.TemporaryDirectory(prefix="forge-oracle-", dir="/var/tmp") as name:  # a Debian takes 300 MB
        directory = Path(name)
        directory.chmod(0o755)
        if suite is None:
            with booted.booted(directory) as machine:
                yield machine
            return
        root = directory / suite
        given = fresh.sources(suite)
        include = "--include=systemd,systemd-sysv,dbus,python3"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", include, suite, str(root), *(["-"] if given else [])]
        subprocess.run(command, input=given, text=True, check=True)
        with booted.nspawn(root, booted.BOOT + booted.NSPAWN, (), files=directory) as machine:
            yield machine


def _run(systemd: Systemd, seeds: range) -> int:
    _say(f"systemd {systemd.version}; seeds {seeds[0]} to {seeds[-1]}")
    began = time.monotonic()
    verdicts: list[Verdict] = []
    differing: list[tuple[int, Verdict]] = []
    for at in range(0, len(seeds), AT_A_TIME):
        part = seeds[at : at + AT_A_TIME]
        judged = oracle_lab.judge(systemd, [oracle_scenario.scenario(seed) for seed in part])
        verdicts += judged
        differing += [(seed, verdict) for seed, verdict in zip(part, judged, strict=True) if verdict.differs]
        _say(f"{len(verdicts)} scenarios after {time.monotonic() - began:.0f} s, {len(differing)} differences")
    _say(_figures(verdicts))
    for number, (seed, verdict) in enumerate(differing):
        _say(f"DIFFERENCE, seed {seed}:\n{verdict}")
        if number < SHRUNK:
            _say(f"its simplest case:\n{oracle_lab.shrink(systemd, verdict)}")
    _say(f"{len(verdicts)} scenarios, {len(differing)} differences without a name, in {time.monotonic() - began:.0f} s")
    return 1 if differing else 0


def _figures(verdicts: list[Verdict]) -> str:
    events = [event for verdict in verdicts for event in verdict.expected.events]
    starts, looks = (sum(isinstance(event, kind) for event in events) for kind in (Start, Look))
    again = sum(verdict.tries > 1 for verdict in verdicts)
    asked = f"{again} asked again, as they differed or the machine was late"
    load = f"load {os.getloadavg()[0]:.1f}"
    lines = [f"compared {starts} starts and {looks} looks; {load}; {asked}; exceptions applied to:"]
    for name, count in oracle_lab.applied(verdicts).items():
        lines.append(f"  {count:5} {name}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"oracle: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
