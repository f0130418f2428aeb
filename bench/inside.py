"""Measures, inside the machine, one supervisor after the other in turns; prints a line of JSON for each round of each.

    python3 inside.py ROUNDS N …

Standard library only. N = 0 measures the daemon alone, where it can be without programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peers

CLOCK = "/run/bench/clock"
START_TIMEOUT = 120.0
IDLE_SEC = 30.0
SETTLE_SEC = 3.0
STATUS_RUNS = 8
# runit does not start at once what has run for less than a second, so all programs get to live that long.
AGE_SEC = 1.1
PAUSE_SEC = 0.1


class Clock:
    """What the programs say of their own start: name to pid and monotonic seconds."""

    def __init__(self) -> None:
        Path(CLOCK).parent.mkdir(exist_ok=True)
        Path(CLOCK).unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(CLOCK)
        Path(CLOCK).chmod(0o666)
        self.running: dict[str, tuple[int, float]] = {}

    def forget(self) -> None:
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(256)
        self.running.clear()

    def read(self, timeout: float) -> str:
        """Return the name of the next program that says something."""
        if not select.select([self._socket], [], [], max(0.0, timeout))[0]:
            raise TimeoutError(f"nothing started; {len(self.running)} run")
        name, pid, nanoseconds = self._socket.recv(256).decode().split()
        self.running[name] = (int(pid), int(nanoseconds) / 1e9)
        return name

    def wait_for_all(self, names: list[str]) -> float:
        """Return when the last began to run."""
        deadline = time.monotonic() + START_TIMEOUT
        while len(self.running) < len(names):
            self.read(deadline - time.monotonic())
        return max((began for _, began in self.running.values()), default=time.monotonic())

    def wait_for(self, name: str) -> float:
        deadline = time.monotonic() + START_TIMEOUT
        while self.read(deadline - time.monotonic()) != name:
            pass
        return self.running[name][1]


def measure(peer: peers.Peer, names: list[str], clock: Clock, *, idle: bool) -> dict[str, Any]:
    peer.prepare(names)
    clock.forget()
    began = time.monotonic()
    peer.start()
    figures: dict[str, Any] = {"peer": peer.name, "n": len(names), "start": clock.wait_for_all(names) - began}
    time.sleep(SETTLE_SEC)
    if names:
        figures["restart"] = [kill(names[k % len(names)], clock, peer.spread) for k in range(peer.kills)]
        time.sleep(PAUSE_SEC)
        figures["status"] = [timed(peer.status()) for _ in range(STATUS_RUNS)]
    if idle:
        time.sleep(SETTLE_SEC)
        figures |= at_rest(peer)
    if names:
        figures["start_all"] = start_all(peer, names, clock)
    time.sleep(1)
    peer.stop()
    peers.gone()
    return figures


def kill(name: str, clock: Clock, spread: float) -> float:
    """Seconds from SIGKILL until the next one runs."""
    pid, began = clock.running[name]
    time.sleep(max(PAUSE_SEC, began + AGE_SEC - time.monotonic()) + random.uniform(0, spread))
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return clock.wait_for(name) - killed


def timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def start_all(peer: peers.Peer, names: list[str], clock: Clock) -> float:
    """Seconds to start all in a daemon that runs."""
    peers.call(*peer.stop_all())
    peers.gone()
    time.sleep(1)
    clock.forget()
    began = time.monotonic()
    with subprocess.Popen(peer.start_all(), stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        last = clock.wait_for_all(names)
        process.wait(START_TIMEOUT)
    return last - began


def at_rest(peer: peers.Peer) -> dict[str, Any]:
    ours, beside = peer.pids(), peer.beside()
    before = [used(pids) for pids in (ours, beside)]
    time.sleep(IDLE_SEC)
    after = [used(pids) for pids in (ours, beside)]
    (cpu, wakes), (beside_cpu, beside_wakes) = (
        (now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)
    )
    return {
        "cpu": cpu / IDLE_SEC,
        "wakes": wakes / IDLE_SEC,
        "beside_cpu": beside_cpu / IDLE_SEC,
        "beside_wakes": beside_wakes / IDLE_SEC,
        "rss": sum(memory(pid, "Rss") for pid in ours),
        "pss": sum(memory(pid, "Pss") for pid in ours),
        "beside_rss": sum(memory(pid, "Rss") for pid in beside),
        "beside_pss": sum(memory(pid, "Pss") for pid in beside),
    }


def used(pids: list[int]) -> tuple[float, int]:
    """CPU seconds, and how often they have been put on a CPU, of all threads together."""
    seconds, times = 0.0, 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                on_cpu, _, slices = (task / "schedstat").read_text(encoding="ascii").split()
                seconds += int(on_cpu) / 1e9
                times += int(slices)
    return seconds, times


def memory(pid: int, what: str) -> int:
    """Bytes, proc(5) smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(text.partition(f"\n{what}:")[2].split()[0]) * 1024


def main() -> None:
    rounds, numbers = int(sys.argv[1]), list(map(int, sys.argv[2:]))
    clock = Clock()
    for n in numbers:
        names = [f"a{number}" for number in range(n)]
        for number in range(rounds):
            for make in peers.PEERS:
                if n or make is peers.Forge:
                    print(json.dumps(measure(make(), names, clock, idle=number == 0)), flush=True)


if __name__ == "__main__":
    main()
