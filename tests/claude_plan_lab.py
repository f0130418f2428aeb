"""Plans of Claude Code for an agent in a home of the test's own; nothing runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plan_lab import json_in, program, subject_of

from forge_supervisor.harness import Paths
from forge_supervisor.harness.claude_code import ClaudeCode

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import JsonSeed, LaunchPlan, Problem

KEY = "sk-ant-api03-0123456789-abcdefghij-KLMNOPQRST"


def home_of(directory: Path) -> Paths:
    """Make a home with a claude in it."""
    home = directory / "home"
    program(home / ".local/bin/claude", "[ $1 = --version ] && echo '2.1.330 (Claude Code)'")
    search = (str(home / ".local/bin"), "/usr/bin", "/bin")
    return Paths(home=home, forge=home / ".local/state/forge", agent="scout", search=search)


def plan_of(paths: Paths, **keys: Any) -> LaunchPlan:
    return ClaudeCode().plan(subject_of(**keys), paths)


def preflight(paths: Paths, **keys: Any) -> list[Problem]:
    subject = subject_of(**keys)
    return list(ClaudeCode().preflight(subject, ClaudeCode().plan(subject, paths), paths))


def fatal(paths: Paths, **keys: Any) -> list[tuple[str, str]]:
    return [(problem.key, problem.text) for problem in preflight(paths, **keys) if problem.fatal]


def launch_settings(paths: Paths, **keys: Any) -> dict[str, Any]:
    return json_in(plan_of(paths, **keys), paths.launch / "settings.json")


def seed_of(plan: LaunchPlan, name: str = ".claude.json") -> JsonSeed:
    (seed,) = (seed for seed in plan.seeds if seed.path.name == name)
    return seed
