"""Harnesses that are well but for one thing each. `WAYS` tells what, by the name of the harness."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.activity import Doing, Gauges, Reported, Seen
from forge_supervisor.config import Problem
from forge_supervisor.harness import File, JsonSeed, LaunchPlan, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METHODS = (
    "check",
    "secrets",
    "plan",
    "preflight",
    "consult",
    "version",
    "unresumable",
    "watched",
    "observe",
    "reported",
    "unsendable",
    "transcripts",
    "usage_in",
)
# It tells of each line that it is sent, and ends on the word.
SCRIPT = """while read -r line; do
    printf '{"turn": "began", "words": "%s"}' "$line" | $REPORT
    [ "$line" != end ] || exit 3
done"""


class Well:
    """What all of them are beside what is wrong with them."""

    honours = frozenset({"role"})
    requires: frozenset[str] = frozenset()
    stop_exit_status: frozenset[int] = frozenset()
    clearing_key = ""

    def check(self, agent: Any, granted: Any) -> Any:
        return ()

    def secrets(self, granted: Any) -> Any:
        return ()

    def plan(self, subject: Any, paths: Any) -> Any:
        return LaunchPlan(("/bin/sh", "-c", SCRIPT), paths.state, env={"REPORT": " ".join(subject.report)})

    def preflight(self, subject: Any, plan: Any, paths: Any) -> Any:
        return ()

    def consult(self, subject: Any, plan: Any) -> Any:
        return ()

    def version(self, plan: Any) -> Any:
        return "1"

    def unresumable(self, exit_: Any, screen: Any) -> Any:
        return False

    def watched(self, subject: Any, paths: Any, pid: int) -> Any:
        return [paths.state / "status"]

    def observe(self, subject: Any, paths: Any, pid: int) -> Any:
        return Seen(Doing.IDLE, login="well")

    def reported(self, told: Any) -> Any:
        return Reported(turn="began", words=told["words"])

    def unsendable(self, text: str) -> Any:
        return None

    def transcripts(self, agent: Any, paths: Any) -> Any:
        return [Path("/etc/hostname")]

    def usage_in(self, line: bytes, transcript: Path) -> Any:
        return None


def _raise(*_: Any) -> Any:
    raise RuntimeError("it is out of order")


def _hang(*_: Any) -> Any:
    while True:
        time.sleep(3600)


def _spin(*_: Any) -> Any:
    while True:
        pass


def _exit(*_: Any) -> Any:
    raise SystemExit(3)


def _endless(*_: Any) -> Iterator[Problem]:
    while True:
        yield Problem("role", "is wrong", fatal=False)


def _halfway(*_: Any) -> Iterator[Problem]:
    yield Problem("role", "is wrong", fatal=False)
    raise RuntimeError("it is out of order")


def _instead(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _planned(how: Callable[[Any], dict[str, Any]]) -> Callable[..., Any]:
    def plan(_subject: Any, paths: Any) -> LaunchPlan:
        return LaunchPlan(**{"argv": ("/bin/sh",), "cwd": paths.state, **how(paths)})

    return plan


def _key_error(*_: Any) -> Any:
    return dict[str, str]()["program"]


def _seed(path: Path, values: Any = None) -> JsonSeed:
    return JsonSeed(path, {} if values is None else values, Path("/tmp/lock"))


OUTSIDE = Path("/tmp/outside/file")
# Method, what it does, and what is said of it in the end.
WAYS: dict[str, tuple[str, Callable[..., Any], str]] = {
    **{f"raises-{name}": (name, _raise, f"failed in {name}(): RuntimeError: it is out of order (") for name in METHODS},
    **{f"hangs-{name}": (name, _hang, f"did not return from {name}() ") for name in METHODS},
    **{f"spins-{name}": (name, _spin, f"did not return from {name}() ") for name in METHODS},
    **{f"nonsense-{name}": (name, _instead(17), "returned a int ") for name in METHODS},
    "none-check": ("check", _instead(None), "returned None instead of several Problem from check()"),
    "strings-check": ("check", _instead(["role"]), "returned a str among its Problems from check()"),
    "exits-check": ("check", _exit, "failed in check(): SystemExit: 3"),
    "exits-observe": ("observe", _exit, "failed in observe(): SystemExit: 3"),
    "endless-check": ("check", _endless, "returned more than 10000 Problems from check()"),
    "endless-preflight": ("preflight", _endless, "returned more than 10000 Problems from preflight()"),
    "halfway-check": ("check", _halfway, "failed in check(): RuntimeError: it is out of order ("),
    "halfway-preflight": ("preflight", _halfway, "failed in preflight(): RuntimeError: it is out of order ("),
    "none-plan": ("plan", _instead(None), "returned None instead of a LaunchPlan from plan()"),
    "key-error-plan": ("plan", _key_error, "failed in plan(): KeyError: 'program' (forge_harness_broken.py, line "),
    "relative-argv": ("plan", _planned(lambda _: {"argv": ("sh",)}), "an argv that does not begin with an absolute"),
    "empty-argv": ("plan", _planned(lambda _: {"argv": ()}), "an argv that does not begin with an absolute path"),
    "numbers-argv": ("plan", _planned(lambda _: {"argv": ("/bin/sh", 1)}), "returned a int among its strs from plan()"),
    "nul-argv": ("plan", _planned(lambda _: {"argv": ("/bin/sh\0",)}), "a word of argv with a character"),
    "half-argv": ("plan", _planned(lambda _: {"argv": ("/bin/sh", "\ud800")}), "a word of argv with a character"),
    "relative-cwd": ("plan", _planned(lambda _: {"cwd": Path("here")}), "the cwd here, which is no absolute path"),
    "wrong-env": ("plan", _planned(lambda _: {"env": {"A=B": "c"}}), "a variable whose name is empty or has a '='"),
    "file-outside": ("plan", _planned(lambda _: {"files": (File(OUTSIDE, ""),)}), f"{OUTSIDE}, which is in none of"),
    "file-climbs": (
        "plan",
        _planned(lambda paths: {"files": (File(paths.state / "../../x", ""),)}),
        "/../../x, which is in none of the agent's directories",
    ),
    "folder-outside": ("plan", _planned(lambda _: {"folders": (OUTSIDE,)}), f"{OUTSIDE}, which is in none of"),
    "link-outside": (
        "plan",
        _planned(lambda paths: {"links": (Link(paths.launch / "x", OUTSIDE),)}),
        "/x, which is in none of the agent's directories",
    ),
    "seed-relative": ("plan", _planned(lambda _: {"seeds": (_seed(Path("x")),)}), "a JsonSeed in x, which is no abs"),
    "seed-no-json": ("plan", _planned(lambda _: {"seeds": (_seed(OUTSIDE, {"a": object()}),)}), "that are no JSON"),
    "working-blocked": ("observe", _instead(Seen(Doing.BLOCKED)), "a Seen that does <Doing.BLOCKED: 'blocked'>"),
    "relative-watched": ("watched", _instead([Path("x")]), "x, which is no absolute path, from watched()"),
    "wrong-turn": ("reported", _instead(Reported(turn="over")), "the turn 'over' from reported()"),  # type: ignore[arg-type]
    "wrong-gauges": ("reported", _instead(Reported(gauges=Gauges(float("nan")))), "a float instead of a number"),
}


def _made(name: str) -> Any:
    method, does, _ = WAYS[name]
    return type(name, (Well,), {method: staticmethod(does)})()


def _lacking(name: str, method: str) -> Any:
    there = {key: value for key, value in vars(Well).items() if key != method and not key.startswith("__")}
    return type(name, (), there)()


# What is wrong with how they are made, and what is said of it.
MADE: dict[str, tuple[Callable[..., Any], str]] = {
    "raises-made": (_raise, "cannot be loaded: RuntimeError: it is out of order (forge_harness_broken.py, line "),
    "hangs-made": (_hang, "could not be loaded within "),
    "spins-made": (_spin, "could not be loaded within "),
    "nonsense-made": (_instead(17), "cannot be used: it lacks the method check()"),
    "lacks-plan": (partial(_lacking, "lacks-plan", "plan"), "cannot be used: it lacks the method plan()"),
    "lacks-observe": (partial(_lacking, "lacks-observe", "observe"), "cannot be used: it has clearing_key, and lacks"),
    "lacks-honours": (partial(_lacking, "lacks-honours", "honours"), "cannot be used: it has None for honours instead"),
}


NAMES = ("well", *WAYS, *MADE)


def attribute(name: str) -> str:
    """Name what makes a harness, as an entry point can."""
    return "make_" + name.replace("-", "_")


def __getattr__(wanted: str) -> Callable[..., Any]:
    for name in NAMES:
        if wanted == attribute(name):
            if name in WAYS:
                return partial(_made, name)
            return MADE[name][0] if name in MADE else Well
    raise AttributeError(wanted)
