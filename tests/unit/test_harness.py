"""The seam, and the smallest harness behind it."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from forge_supervisor import harness
from forge_supervisor.config import Agent, Library
from forge_supervisor.harness import Paths, Subject
from forge_supervisor.harness.command import Command

HOME = Path("/home/team")


def agent(**keys: Any) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "harness": "command", **keys})


def paths(*search: str) -> Paths:
    return Paths(home=HOME, forge=HOME / "forge", agent="scout", search=search)


def problems(declared: Agent, *explicit: str) -> list[tuple[str, str]]:
    return [(problem.key, problem.text) for problem in harness.check_agent(declared, frozenset(explicit), Library())]


def test_no_package_takes_the_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = EntryPoint("command", "forge_supervisor.harness.command:Command", harness.ENTRY_POINT_GROUP)
    strangers = EntryPoint("command", "stranger:Command", harness.ENTRY_POINT_GROUP)
    monkeypatch.setattr(harness, "entry_points", lambda **_: [strangers, ours])
    harness._maker.cache_clear()
    assert isinstance(harness.load("command"), Command)


def test_two_packages_with_a_harness_of_one_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [EntryPoint("other", f"{module}:Other", harness.ENTRY_POINT_GROUP) for module in ("one", "another")]
    monkeypatch.setattr(harness, "entry_points", lambda **_: two)
    with pytest.raises(LookupError, match=r'has a harness "other" \(another:Other, one:Other\): uninstall all but one'):
        harness.load("other")


def test_harnesses_are_found_by_their_entry_points() -> None:
    assert harness.names() == ["claude-code", "codex", "command"]
    assert isinstance(harness.load("command"), Command)


def test_a_harness_from_elsewhere_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EntryPoint("other", "forge_supervisor.harness.command:Command", harness.ENTRY_POINT_GROUP)
    monkeypatch.setattr(harness, "entry_points", lambda **_: [other])
    assert isinstance(harness.load("other"), Command)


def test_the_core_names_no_harness() -> None:
    core = [path for path in Path(harness.__file__).parents[1].rglob("*.py") if "harness" not in path.parts]
    assert core
    naming = [path.name for path in core if re.search(r"claude[-_]code|\bcodex\b", path.read_text())]
    assert naming == ["config.py"], "the default of a key, and what it says of it"


def test_an_unknown_harness_is_told_with_those_that_are_there() -> None:
    assert problems(agent(harness="vi")) == [
        ("harness", 'no harness "vi" is installed (installed: claude-code, codex, command)')
    ]


def test_a_key_that_means_nothing_is_refused_where_it_is_the_agents_own() -> None:
    forgetful = agent(command=("true",), resume={"policy": "never"})
    assert problems(forgetful, "command", "resume") == [
        ("resume", 'means nothing to the harness "command" (remove it)')
    ]
    declared = agent(command=("true",), model="opus")
    assert problems(declared, "command", "model") == [
        ("model", 'means nothing to the harness "command" (remove it)')
    ]
    assert problems(declared, "command") == [], "it stands in [defaults]"


def test_a_key_that_is_needed_is_missed() -> None:
    assert problems(agent()) == [("command", 'is missing, and the harness "command" needs it')]
    assert problems(agent(harness="claude-code")) == [("role", 'is missing, and the harness "claude-code" needs it')]


def test_a_command_with_a_relative_path_is_refused_when_it_is_read() -> None:
    ((key, text),) = problems(agent(command=("./tool",)))
    assert (key, text.partition(" (")[0]) == ("command", "./tool is a relative path")
    assert problems(agent(command=("~/tool",))) == []


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, mode in (("tool", 0o755), ("data", 0o644)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_a_program_is_found_on_the_agents_path_in_its_order(programs: Path) -> None:
    assert harness.find_program("tool", ["/nowhere", str(programs), "/bin"], home=HOME) == programs / "tool"
    assert harness.find_program("sh", [str(programs), "/bin"], home=HOME) == Path("/bin/sh")
    assert harness.find_program("~/tool", [], home=programs) == programs / "tool"
    assert harness.find_program(str(programs / "tool"), [], home=HOME) == programs / "tool"


@pytest.mark.parametrize("program", ["data", "folder", "absent"])
def test_what_cannot_be_executed_is_not_found(programs: Path, program: str) -> None:
    with pytest.raises(LookupError, match=f"{program} was not found on {programs}:/nowhere"):
        harness.find_program(program, [str(programs), "/nowhere"], home=HOME)
    with pytest.raises(LookupError, match="is not an executable file"):
        harness.find_program(f"{programs}/{program}", [], home=HOME)


def test_a_relative_program_is_refused(programs: Path) -> None:
    with pytest.raises(LookupError, match="relative"):
        harness.find_program("./tool", [str(programs)], home=HOME)


def test_the_path_is_the_users_programs_and_the_systems_or_what_is_declared() -> None:
    assert harness.search_path(agent(), HOME) == ("/home/team/.local/bin", "/usr/local/bin", "/usr/bin", "/bin")
    assert harness.search_path(agent(path=("~/bin", "/opt/x")), HOME) == ("/home/team/bin", "/opt/x")


def test_a_command_runs_in_its_state_directory_or_where_it_is_told() -> None:
    plan = Command().plan(Subject(agent(command=("sh", "-c", "true"))), paths("/bin"))
    assert (plan.argv, plan.cwd) == (("/bin/sh", "-c", "true"), HOME / "forge/agents/scout")
    assert (plan.files, plan.seeds, dict(plan.env)) == ((), (), {})
    for cwd, expected in (("~/work", HOME / "work"), ("/srv", Path("/srv"))):
        plan = Command().plan(Subject(agent(command=("sh",), cwd=cwd)), paths("/bin"))
        assert plan.cwd == expected
