"""Names that claude 2.1.330 was seen to take wrongly, in silence or with a dialog."""

from __future__ import annotations

import pytest

from forge_supervisor.harness.claude_code import names
from forge_supervisor.harness.granted import effort_problems


@pytest.mark.parametrize("effort", names.EFFORTS)
def test_the_efforts_that_claude_knows(effort: str) -> None:
    assert list(effort_problems(effort, names.EFFORTS)) == []


@pytest.mark.parametrize("effort", ["bogus", "MAX", "max "])
def test_an_effort_that_claude_would_ignore_in_silence(effort: str) -> None:
    (problem,) = effort_problems(effort, names.EFFORTS)
    assert (problem.key, problem.fatal) == ("effort", True)
    assert problem.text == f'"{effort}" is no effort level (use one of low, medium, high, xhigh, max)'


@pytest.mark.parametrize(
    "model",
    [
        None, "opus", "Sonnet", "haiku[1m]", "opusplan", "best", "claude-opus-5-5", "claude-opus-4-5-20251101[1m]",
        "anthropic/claude-opus-4-7", "us.anthropic.claude-opus-4-6-v1:0",
    ],
)  # fmt: skip
def test_models_that_claude_knows(model: str | None) -> None:
    assert list(names.model_problems(model)) == []


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("opus-4.7", 'did you mean "claude-opus-4-7"?'),
        ("claude-opus-4.7[1m]", 'did you mean "claude-opus-4-7[1m]"?'),
        ("opus-4-7", "its aliases: best, default"),
        ("gpt-5", "or a full id, claude-…"),
    ],
)
def test_models_with_which_claude_starts_by_guessing(model: str, hint: str) -> None:
    (problem,) = names.model_problems(model)
    assert (problem.key, problem.fatal) == ("model", False)
    assert hint in problem.text


@pytest.mark.parametrize("model", ["-p", "--version", "opus\n4"])
def test_what_cannot_be_a_model(model: str) -> None:
    (problem,) = names.model_problems(model)
    assert (problem.key, problem.fatal) == ("model", True)


RULES = (
    "Bash", "Bash(git *)", "Bash(npm run test:*)", "Read(~/x/**)", "Edit(//srv/x)", "WebFetch(domain:example.org)",
    "WebFetch", "WebFetch(*)", "Bash( )",
    "mcp__tracker", "mcp__tracker__*", "mcp__tracker__search", "Agent(Explore)", "UnheardOf",
)  # fmt: skip


def test_rules_that_claude_takes() -> None:
    assert list(names.rule_problems("permissions.allow", RULES, allow=True)) == []
    assert list(names.rule_problems("permissions.deny", (*RULES, "mcp__*"), allow=False)) == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("Bash(", "its parenthesis is not closed"),
        ("Bash(ls", "its parenthesis is not closed"),
        ("Bash()", "nothing in its parentheses"),
        ("bash(ls)", "begins with a capital letter"),
        ("WebFetch(http://example.org)", "names a domain"),
        ("mcp__tracker(*)", "has no parentheses"),
        ("mcp__tracker__search(x)", "has no parentheses"),
        ("mcp__*", "name one"),
        ("mcp__*__search", "name one"),
        ("*", "name them one by one"),
        ("B*", "name them one by one"),
        ("Bash(:*)", "nothing in its parentheses"),
        ("Edit(:*)", "nothing in its parentheses"),
        ("Edit(src/:*)", "not of a path"),
        ("Bash)", "is not opened"),
        ("Bash(a\\)", "is not closed"),
        ("WebFetch(domain:http://example.org)", "names a domain"),
        (" Bash", "keep it from matching"),
    ],
)
def test_rules_over_which_claude_opens_a_dialog(rule: str, why: str) -> None:
    (problem,) = names.rule_problems("allowed_tools", [rule], allow=True)
    assert (problem.key, problem.fatal) == ("allowed_tools", True)
    assert why in problem.text


@pytest.mark.parametrize("name", ["ide", "workspace", "Claude-in-Chrome"])
def test_servers_that_claude_leaves_out_in_silence(name: str) -> None:
    (problem,) = names.server_problems(["tracker", name])
    assert problem.text.startswith(f'"{name}" is a name that claude keeps for itself')


@pytest.mark.parametrize(
    "argument",
    ["--bare", "--strict-mcp-config", "--settings={}", "-p", "--setting-sources", "--model=x", "--add-dir"],
)
def test_options_that_other_keys_set_or_that_undo_them(argument: str) -> None:
    (problem,) = names.option_problems(["--verbose", argument, "value"])
    assert problem.fatal
    assert problem.text.startswith(f"{argument.partition('=')[0]} cannot be given here (")
