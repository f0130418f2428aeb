"""A harness from elsewhere that raises, hangs or returns nonsense: what is asked of it ends, in a sentence or not."""

from __future__ import annotations

import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forge_harness_broken
import forge_harness_example
import pytest
from forge_harness_broken import MADE, METHODS, NAMES, WAYS, attribute

from forge_supervisor import harness
from forge_supervisor.config import Agent, Config, Library
from forge_supervisor.declared import Declared
from forge_supervisor.harness import BrokenHarnessError, File, LaunchPlan, Paths, Subject, bounded, shapes
from forge_supervisor.harness.activity import TellsActivity
from forge_supervisor.harness.guarded import Guarded, at_length
from forge_supervisor.harness.transcripts import KeepsTranscripts
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forge_supervisor.harness import Harness

PATHS = Paths(home=Path("/home/team"), forge=Path("/home/team/forge"), agent="scout", search=("/bin",))
PLAN = LaunchPlan(("/bin/true",), PATHS.state)


def agent_of(name: str) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "harness": name, "role": "r"})


# How the core calls each method.
CALLS: dict[str, Callable[[Any], object]] = {
    "check": lambda program: program.check(agent_of("x"), Library()),
    "secrets": lambda program: program.secrets(Library()),
    "plan": lambda program: program.plan(Subject(agent_of("x")), PATHS),
    "preflight": lambda program: program.preflight(Subject(agent_of("x")), PLAN, PATHS),
    "consult": lambda program: program.consult(Subject(agent_of("x")), PLAN),
    "version": lambda program: program.version(PLAN),
    "unresumable": lambda program: program.unresumable(Exit(code=1), ["gone"]),
    "watched": lambda program: program.watched(Subject(agent_of("x")), PATHS, 4711),
    "observe": lambda program: program.observe(Subject(agent_of("x")), PATHS, 4711),
    "reported": lambda program: program.reported({"words": "hello"}),
    "unsendable": lambda program: program.unsendable("hello"),
    "transcripts": lambda program: program.transcripts(agent_of("x"), PATHS),
    "usage_in": lambda program: at_length(program, lambda: program.usage_in(b"{}", Path("/x"))),
}


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All broken harnesses, found as installed ones are; those that do not come back are given less time than usual."""
    given = 0.3 if any(word in request.node.name for word in ("hangs", "spins", "hung")) else 30.0
    entries = {
        name: EntryPoint(name, f"forge_harness_broken:{attribute(name)}", harness.ENTRY_POINT_GROUP) for name in NAMES
    }
    example = EntryPoint("example", "forge_harness_example:Example", harness.ENTRY_POINT_GROUP)
    monkeypatch.setattr(harness, "entry_points", lambda **asked: [{**entries, "example": example}[asked["name"]]])
    monkeypatch.setattr(bounded, "SECONDS", dict.fromkeys((*bounded.SECONDS, "load"), given))
    monkeypatch.setattr(bounded, "WORK_SEC", given)
    monkeypatch.setattr(bounded, "_given_up", set())
    monkeypatch.setattr(bounded, "_hanging", type(bounded._hanging)(list))
    monkeypatch.setattr(bounded, "_slow", type(bounded._slow)(list))
    harness._maker.cache_clear()
    yield
    harness._maker.cache_clear()


def said(work: Callable[[], object]) -> str:
    with pytest.raises(BrokenHarnessError) as caught:
        work()
    return str(caught.value)


def test_the_calls_are_all_methods_of_the_seam() -> None:
    seam = {
        name
        for protocol in (harness.Harness, TellsActivity, KeepsTranscripts)
        for name, value in vars(protocol).items()
        if callable(value) and not name.startswith("_")
    }
    assert set(CALLS) == set(METHODS) == seam


@pytest.mark.parametrize("name", ["well", "example"])
def test_one_that_is_well_is_asked_and_answers(name: str) -> None:
    program = harness.load(name)
    assert isinstance(program, Guarded)
    assert isinstance(program, TellsActivity)
    assert isinstance(program, KeepsTranscripts) == (name == "well")
    assert list(harness.check_agent(agent_of(name), frozenset({"role"}), Library())) == []
    assert program.reported({"words": "hello", "turn": "began"}).words == "hello"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_one_that_is_well(method: str) -> None:
    CALLS[method](harness.load("well"))


@pytest.mark.parametrize("name", WAYS)
def test_each_way_to_be_broken_is_told_with_the_harness_and_the_method(name: str) -> None:
    method, _, told = WAYS[name]
    program = harness.load(name)
    sentence = said(lambda: CALLS[method](program))
    assert sentence.startswith(f'the harness "{name}" ')
    assert told in sentence
    assert f"{method}()" in sentence
    for other, call in CALLS.items():
        if other != method:
            call(program)


@pytest.mark.parametrize("name", MADE)
def test_each_way_to_be_made_badly(name: str) -> None:
    assert MADE[name][1] in said(lambda: harness.load(name))


@pytest.mark.parametrize("name", [*WAYS, *MADE])
def test_the_configuration_is_read_whatever_is_wrong(name: str) -> None:
    """Else the agents of all others would not be started for it."""
    found = list(harness.check_agent(agent_of(name), frozenset({"role"}), Library()))
    assert [problem for problem in found if problem.fatal] == []
    method = "load" if name in MADE else WAYS[name][0]
    assert [problem.key for problem in found] == (["harness"] if method in {"load", "check", "secrets"} else [])
    assert "role" in harness.meant(name)
    assert harness.stop_exit_status(name) == frozenset()


def test_what_is_slow_again_and_again_in_the_supervisor_is_not_asked_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", {"check": 0.3, "plan": 0.3})
    monkeypatch.setattr(bounded, "SLOW_SEC", 0.0)
    asked = 0

    def ask(method: str = "check") -> None:
        nonlocal asked
        bounded.bounded("slow", method, lambda: time.sleep(0.05))
        asked += 1

    def ask_often() -> None:
        while True:
            ask()

    assert said(ask_often).endswith("1 s of the last 60 for check(), and is not asked for a while")
    assert 1 < asked <= 13
    # Which nobody but the agent itself waits for.
    for _ in range(13):
        ask("plan")
    monkeypatch.setattr(bounded, "SLOW_WINDOW_SEC", 0.0)
    ask()


def test_what_can_be_iterated_over_but_once_is_not_lost() -> None:
    file = File(PATHS.state / "a", "text")
    made = LaunchPlan(argv=("/bin/true",), cwd=PATHS.state, env={}, files=(one for one in [file]))  # type: ignore[arg-type]
    assert shapes.plan(made, PATHS).files == (file,)


@pytest.mark.parametrize("way", ["hangs", "spins"])
@pytest.mark.parametrize("method", [name for name in METHODS if name in bounded.ONCE])
def test_what_hung_in_the_supervisor_is_not_asked_there_again(way: str, method: str) -> None:
    program = harness.load(f"{way}-{method}")
    said(lambda: CALLS[method](program))
    assert "is asked no more (mend it, then restart the supervisor)" in said(lambda: CALLS[method](program))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in bounded.ONCE])
def test_what_may_be_slow_is_asked_again_as_long_as_not_too_much_of_it_hangs(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST_HANGING", 2)
    program = harness.load(f"hangs-{method}")
    for _ in range(bounded.MOST_HANGING):
        assert "did not return from" in said(lambda: CALLS[method](program))
    assert "is not asked, for 2 calls of it have not returned yet" in said(lambda: CALLS[method](program))
    CALLS["plan" if method != "plan" else "preflight"](harness.load("well"))


def test_what_only_computes_is_made_to_end() -> None:
    said(lambda: CALLS["plan"](harness.load("spins-plan")))
    (thread,) = bounded._hanging["spins-plan"]
    thread.join(10)
    assert not thread.is_alive()


def test_one_that_fails_to_load_may_have_been_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    said(lambda: harness.load("raises-made"))
    monkeypatch.setitem(MADE, "raises-made", (forge_harness_broken.Well, ""))
    assert isinstance(harness.load("raises-made"), Guarded)


def test_what_the_seam_lets_it_raise_is_let_through() -> None:
    program = harness.load("example")
    with pytest.raises(LookupError, match="example-agent was not found on /bin"):
        program.plan(Subject(agent_of("x")), PATHS)
    with pytest.raises(FileNotFoundError):
        program.version(LaunchPlan(("/no/such",), PATHS.state))


def test_the_secrets_of_a_broken_one_are_not_guessed() -> None:
    declared = Declared.of(agent_of("raises-secrets"), Config())
    assert "failed in secrets()" in said(declared.secrets)


def test_the_example_is_short_and_is_what_the_seam_asks_for() -> None:
    program: Harness = forge_harness_example.Example()
    tells: TellsActivity = forge_harness_example.Example()
    assert program.requires == {"role"}
    assert tells.unsendable("/exit") is not None
    assert len(Path(forge_harness_example.__file__).read_text().splitlines()) <= 60


def test_nothing_is_left_running_that_could_be_ended() -> None:
    spinning = [thread for thread in threading.enumerate() if thread.name.startswith("spins")]
    for thread in spinning:
        thread.join(10)
    assert not any(thread.is_alive() for thread in spinning)
