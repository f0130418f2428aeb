"""The questions of a first start, each answered in advance: nobody presses a key, and nothing waits for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from codex_lab import MODEL

if TYPE_CHECKING:
    from codex_lab import Lab


def test_to_its_prompt_in_a_home_where_nothing_is(lab: Lab) -> None:
    lab.start({"scout": {}})
    lab.prompt("scout")
    lab.doing("scout", "starting", "idle")
    assert "ECHO hello" not in lab.screen("scout")
    lab.tell("scout", "hello")


def test_a_directory_that_is_a_git_repository(lab: Lab) -> None:
    """Trap: codex asks whether to trust it, and skipping all approvals does not skip that."""
    lab.as_user("git", "init", "-q", str(lab.state_of("scout")))
    lab.start({"scout": {}})
    lab.prompt("scout")


def test_a_home_that_is_a_git_repository_behind_a_symlink(lab: Lab) -> None:
    real = lab.home.with_name("real")
    lab.home.rename(real)
    lab.home.symlink_to(real)
    lab.give(lab.home / "AGENTS.md", "MARK-PARENT")
    lab.as_user("git", "init", "-q", str(lab.home))
    lab.start({"scout": {}})
    lab.prompt("scout")
    assert "MARK" not in json.dumps(lab.tell("scout", "hello"))


@pytest.mark.parametrize("model", [MODEL, "gpt-5.6-luna"])
def test_a_model_for_which_there_is_a_newer_one(lab: Lab, model: str) -> None:
    """Trap: codex offers to change to that, and its first answer is yes; only the right name declines the offer."""
    lab.start({"scout": {"model": model, "effort": "low"}})
    lab.prompt("scout")
    request = lab.tell("scout", "hello")
    assert (request["model"], request["reasoning"]["effort"]) == (model, "low")


def test_codex_accepts_all_that_is_written_for_it(lab: Lab) -> None:
    """Of a key that it does not know it says nothing, unless it is asked to be strict."""
    library = {"mcp_servers": {"tracker": lab.mcp_server("tracker", env={"PLAIN": "x"})}}
    permissions = {"skip_prompts": False, "allow": ["Bash(git *)", "mcp__tracker", "mcp__tracker__alpha"],
                   "deny": ["Bash(curl *)", "mcp__tracker__beta", "WebSearch"]}  # fmt: skip
    agent = {"model": MODEL, "effort": "high", "mcp_servers": ["tracker"], "permissions": permissions}
    lab.start({"scout": {**agent, "extra_args": ["--strict-config"]}}, library)
    lab.prompt("scout")


def test_strictness_is_what_it_is_taken_for(lab: Lab) -> None:
    lab.start({"scout": {"extra_args": ["--strict-config", "-c", "no_such_key=1"], "restart": {"policy": "no"}}})
    assert lab.event("agent_exited", "scout")["exit_code"] == 1


def test_no_login_at_all(lab: Lab) -> None:
    """It starts all the same, stands at a menu, and is told to be logged out, not to be stuck."""
    lab.start({"scout": {"env": lab.variables()}})
    assert "not logged in: run `sudo -iu " in lab.event("agent_warning", "scout")["problem"]
    blocked = lab.event("agent_blocked", "scout")
    assert blocked["activity"] == "logged-out"
    lab.see("scout", "Sign in with ChatGPT")


def test_the_users_login_is_every_agents(lab: Lab) -> None:
    lab.as_user(lab.program, "login", "--with-api-key", stdin="sk-of-the-user")
    lab.start({"scout": {"env": lab.variables()}, "herald": {"env": lab.variables()}})
    for agent in ("scout", "herald"):
        lab.prompt(agent)
        lab.tell(agent, f"{agent} speaking")
    assert set(lab.bearers()) == {"Bearer sk-of-the-user"}


def test_a_login_from_an_agents_home_is_the_users(lab: Lab) -> None:
    """Codex writes through the link, and leaves it."""
    lab.as_user("mkdir", str(lab.home / ".codex"))
    lab.start({"scout": {"env": lab.variables()}})
    lab.event("agent_started", "scout")
    lab.see("scout", "Sign in with ChatGPT")
    home = f"CODEX_HOME={lab.home_of('scout')}"
    lab.as_user("env", home, lab.program, "login", "--with-api-key", stdin="sk-of-the-user")
    assert json.loads((lab.home / ".codex/auth.json").read_text())["OPENAI_API_KEY"] == "sk-of-the-user"
    lab.forgectl("restart", "scout")
    assert lab.event("agent_recovered", "scout")["activity"] == "logged-out"
    lab.prompt("scout", 2)
    lab.tell("scout", "hello")
    assert lab.bearers()[0] == "Bearer sk-of-the-user"
