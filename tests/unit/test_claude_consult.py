"""What is made of claude's words; that these are its words is shown with the real one (tests/claude)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from claude_plan_lab import home_of
from plan_lab import program, subject_of

from forge_supervisor.harness.claude_code import ClaudeCode, consult

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths

SKIPPED = """These settings entries were skipped; the rest of each source is in effect:
  /tmp/s.json (permissions.allow): Invalid permission rule "B*" was skipped: No wildcards
  /tmp/s.json (permissions.allow): Invalid permission rule "C*" was skipped: Nor here
  /tmp/s.json (permissions.deny): Invalid permission rule "D" was skipped: Nor there
"""
STOP = "claude would stop at a dialog: Invalid permission rule"
UNKNOWN = '[claude-code:unrecognized_model] {"model":"claude-x","query_source":"sdk"}\n'


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def consulted(paths: Paths, script: str, **keys: Any) -> list[tuple[str, bool, str]]:
    program(paths.home / ".local/bin/claude", script)
    subject = subject_of(**keys)
    found = ClaudeCode().consult(subject, ClaudeCode().plan(subject, paths))
    return [(problem.key, problem.fatal, problem.text) for problem in found]


def test_rules_and_models_are_told_by_the_keys_that_hold_them(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(SKIPPED + UNKNOWN)
    keys = {"allowed_tools": ("B*",), "permissions": {"allow": ("C*",), "deny": ("D",)}, "model": "claude-x"}
    assert consulted(paths, f"cat {tmp_path}/said >&2; exit 1", **keys) == [
        ("allowed_tools", True, f'{STOP} "B*" was skipped: No wildcards'),
        ("permissions.allow", True, f'{STOP} "C*" was skipped: Nor here'),
        ("permissions.deny", True, f'{STOP} "D" was skipped: Nor there'),
        ("model", False, 'this claude does not know "claude-x", and would start by guessing'),
    ]


def test_it_is_asked_with_nothing_of_the_users(paths: Paths, tmp_path: Path) -> None:
    consulted(paths, f'env >{tmp_path}/env; echo "$@" >{tmp_path}/argv; pwd >>{tmp_path}/argv', model="opus")
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment["HOME"] == environment["CLAUDE_CONFIG_DIR"] != str(paths.home)
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert not {"ANTHROPIC_API_KEY", "PYTHONPATH"}.intersection(environment)
    assert "--model opus" in (tmp_path / "argv").read_text()
    assert not list(paths.home.parent.glob("tmp*"))


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", "echo nonsense >&2"])
def test_one_that_says_nothing_of_it_is_no_trouble(paths: Paths, script: str) -> None:
    assert consulted(paths, script) == []


def test_one_that_hangs_is_given_up(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consult, "TIMEOUT", 0.2)
    assert consulted(paths, "exec sleep 60") == []
