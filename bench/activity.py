"""How long it takes until it is told what a claude is doing: to its prompt, that it works, that it is idle again.

Beside it what somebody sees who looks at the terminal every 20 ms, in the same run.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import claude_lab
import harness_lab

TURNS = 30


def main() -> None:
    if why := harness_lab.missing(claude_lab.VARIABLE):
        sys.exit(why)
    told: dict[str, list[float]] = {"it works": [], "it is idle": []}
    shown: list[float] = []
    with claude_lab.lab() as lab:
        lab.start({"scout": {}})
        lab.doing("scout", "idle")
        ready = lab.event("agent_ready", "scout")["ready_sec"]
        for turn in range(TURNS):
            begun = time.monotonic()
            lab.say("scout", f"SLOW 0.5 {turn}")
            typed = time.monotonic()
            lab.doing("scout", "working")
            told["it works"].append(time.monotonic() - typed)
            seeing = threading.Thread(target=_see, args=[lab, f"ECHO SLOW 0.5 {turn}", begun, shown])
            seeing.start()
            lab.doing("scout", "idle")
            told["it is idle"].append(time.monotonic() - begun - 0.5)
            seeing.join()
    print(f"from the start to the prompt: {ready:.2f} s")
    print(f"Enter until it is told that it works: {_figures(told['it works'])}")
    print(f"Enter until it is told that it is idle again, but for the answer's 0.5 s: {_figures(told['it is idle'])}")
    print(f"the same until the answer is seen on the screen: {_figures(shown)}")


def _see(lab: claude_lab.Lab, text: str, begun: float, shown: list[float]) -> None:
    lab.see("scout", text)
    shown.append(time.monotonic() - begun - 0.5)


def _figures(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds) * 1000:.0f} ms, longest {max(seconds) * 1000:.0f} ms"


if __name__ == "__main__":
    main()
