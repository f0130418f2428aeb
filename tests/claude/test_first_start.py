"""The questions of a first start, each answered in advance: nobody presses a key, and nothing waits for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from claude_lab import said

if TYPE_CHECKING:

    from claude_lab import Lab


def first_request(lab: Lab, agent: str) -> str:
    lab.prompt(agent)
    lab.say(agent, f"[from test] {agent} speaking")
    return said(lab.request(f"{agent} speaking"))


def test_theme_trust_bypass_and_an_unknown_api_key(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.prompt("scout")


@pytest.mark.parametrize("name", ["ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_a_token(lab: Lab, name: str) -> None:
    lab.start({"scout": {"env": lab.variables(**{name: "sk-ant-oat01-dummy"})}})
    lab.prompt("scout")


def test_no_login_at_all(lab: Lab) -> None:
    """It starts all the same, so that a human can attach and log in."""
    lab.start({"scout": {"env": lab.variables()}})
    assert "not logged in: run `sudo -iu " in lab.event("agent_warning", "scout")["problem"]
    lab.prompt("scout")
    lab.say("scout", "[from test] hello")
    lab.see("scout", "Not logged in · Please run /login")


def test_a_role_that_imports_a_file_of_elsewhere(lab: Lab) -> None:
    lab.give(lab.home / "team/rules.md", "Everybody whistles.")
    lab.start({"scout": {"role": f"See @{lab.home}/team/rules.md"}})
    assert "Everybody whistles." in first_request(lab, "scout")


def test_an_agents_directory_that_is_a_git_repository(lab: Lab) -> None:
    """Trap: trust in a directory above is not used then."""
    lab.as_user("git", "init", "-q", str(lab.state_of("scout")))
    lab.start({"scout": {}})
    lab.prompt("scout")


def test_a_home_that_is_a_git_repository(lab: Lab) -> None:
    """Claude keeps what it was told of a project under the root of its repository."""
    lab.give(lab.home / "team.md", "Everybody whistles.")
    lab.as_user("git", "init", "-q", str(lab.home))
    lab.start({"scout": {"role": "Wait."}, "herald": {"role": f"See @{lab.home}/team.md"}})
    lab.prompt("scout")
    assert "Everybody whistles." in first_request(lab, "herald")


def test_a_home_behind_a_symlink(lab: Lab) -> None:
    """Trap: trust needs the realpath."""
    real = lab.home.with_name("real")
    lab.home.rename(real)
    lab.home.symlink_to(real)
    lab.start({"scout": {}})
    lab.prompt("scout")


def test_another_config_dir(lab: Lab) -> None:
    config = lab.home / "claude"
    key = {"ANTHROPIC_API_KEY": "sk-ant-api03-of-another-config-dir"}
    lab.start({"scout": {"env": lab.variables(CLAUDE_CONFIG_DIR=str(config), **key)}})
    lab.prompt("scout", sessions=config / "sessions")
    assert not (lab.home / ".claude.json").exists()


def test_a_config_file_of_old(lab: Lab) -> None:
    """It goes before ~/.claude.json wherever it is."""
    lab.give(lab.home / ".claude/.config.json", '{"theme": "dark"}')
    lab.start({"scout": {}})
    lab.prompt("scout")


def test_a_config_file_that_is_a_link_into_the_dotfiles(lab: Lab) -> None:
    lab.give(lab.home / "dotfiles/claude.json", '{"hasUsedStash": true}')
    lab.as_user("ln", "-s", "dotfiles/claude.json", str(lab.home / ".claude.json"))
    lab.start({"scout": {}})
    lab.prompt("scout")
    assert (lab.home / ".claude.json").is_symlink()
    assert json.loads((lab.home / "dotfiles/claude.json").read_text())["hasUsedStash"] is True


def test_a_corrupt_config_file(lab: Lab) -> None:
    lab.give(lab.home / ".claude.json", '{"projects": {')
    lab.start({"scout": {}})
    warning = lab.event("agent_warning", "scout")["problem"]
    assert "was no JSON object and was written anew" in warning
    lab.prompt("scout")


def test_instructions_of_elsewhere_do_not_leak_in(lab: Lab) -> None:
    """Trap: ~/CLAUDE.md, ~/.claude/CLAUDE.md and rules reach the agent although sources=project."""
    for place in ("CLAUDE.md", ".claude/CLAUDE.md", ".claude/rules/a.md", ".local/state/forge/CLAUDE.md"):
        lab.give(lab.home / place, "LEAK")
    lab.give(lab.state_of("scout") / ".claude/rules/own.md", "My own rule.")
    lab.start({"scout": {"role": "Mine."}})
    request = first_request(lab, "scout")
    assert "LEAK" not in request
    assert "My own rule." in request


def test_two_agents_of_one_user_at_once(lab: Lab) -> None:
    lab.start({"scout": {}, "herald": {}})
    assert "# scout" in first_request(lab, "scout")
    assert "# herald" in first_request(lab, "herald")
