"""Nothing ever waits for somebody at an agent's terminal, whatever the agent does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from channel_lab import install

from forge_supervisor.harness.claude_code import names

if TYPE_CHECKING:
    from claude_lab import Lab

RULES = (
    "*", "**", "B*", "Bash", "Bash(git *)", "Bash(npm run test:*)", "Bash( )", "Bash(*)", "Bash(:*)", "Bash(",
    "Bash)", "Bash(ls", "Bash()", "Bash(a\\)", "bash(ls)", "Edit", "Edit(:*)", "Edit(./**)", "Edit(//srv/x)",
    "Edit(\\)", "Read(:*)", "Read(~/x/**)", "Read(a:*)", "Read(a:*b)", "Write(a:*)", "Glob(a:*)", "NotebookEdit(a:*)",
    "Grep(a:*)", "WebSearch(a:*)", "WebSearch(a*)", "WebSearch(a?)", "WebSearch(*)", "WebSearch(x)",
    "WebFetch", "WebFetch(*)", "WebFetch(domain:example.org)",
    "WebFetch(http://x.org)", "WebFetch(domain:http://x.org)", "WebFetch(domain:*)", "mcp__*", "mcp__*__y", "mcp__s",
    "mcp__s__*", "mcp__s__t*", "mcp__s__t", "mcp__s(*)", "mcp__s__t(x)", "Agent(Explore)", "Skill(x)", "UnheardOf",
    "mcp__s__t)", "Bash(a\\\\)", "Grep(:*)", "mcp_s", "WebFetch(domain:a.org/x)", "WebFetch(domain:a.org:80)",
    "WebFetch(domain:)",
)  # fmt: skip


ASK = 'cd "$2" && HOME="$2" ANTHROPIC_BASE_URL=http://127.0.0.1:1 "$0" -p --bare --settings "$1" x 2>&1 || true'


@pytest.mark.parametrize("kind", ["allow", "deny"])
def test_we_refuse_the_rules_over_which_claude_opens_a_dialog_and_no_others(lab: Lab, kind: str) -> None:
    refused = set()
    for start in range(0, len(RULES), 8):  # it tells no more than ten at once
        rules = RULES[start : start + 8]
        settings = lab.give(lab.home / "settings.json", json.dumps({"permissions": {kind: rules}}))
        said = lab.as_user("sh", "-c", ASK, lab.claude, str(settings), str(lab.home))
        refused |= {rule for rule in rules if f'Invalid permission rule "{rule}" was skipped' in said}
    ours = {rule for rule in RULES if list(names.rule_problems("x", [rule], allow=kind == "allow"))}
    assert ours == refused


def test_what_claude_asks_even_in_bypass_mode_is_answered(lab: Lab) -> None:
    """Trap: it opens a dialog for the removal of a home."""
    lab.start({"scout": {}})
    lab.prompt("scout")
    told = lab.use("scout", "Bash", "home", command="rmdir ~", description="x")
    assert "Nobody is there to answer" in told
    assert lab.home.is_dir()


@pytest.mark.parametrize("skip_prompts", [True, False])
def test_what_an_mcp_server_asks_is_declined(lab: Lab, *, skip_prompts: bool) -> None:
    library = {"mcp_servers": {"tracker": lab.mcp_server("tracker", "asking")}}
    permissions = {"skip_prompts": skip_prompts, "allow": [] if skip_prompts else ["mcp__tracker"]}
    lab.start({"scout": {"mcp_servers": ["tracker"], "permissions": permissions}}, library)
    lab.prompt("scout")
    told = lab.use("scout", "mcp__tracker__alpha", "asked")
    assert "ASKED" in told
    assert "decline" in told


def test_no_plugin_offers_itself(lab: Lab) -> None:
    """Trap: claude offers those of the official marketplace, "Yes, install" first, and takes the next words for it."""
    install(lab, lab.mcp_server("discord"))
    lab.give(lab.home / ".local/bin/pyright-langserver", "#!/bin/sh\nexit 0\n", mode="755")
    lab.start({"scout": {}})
    lab.prompt("scout")
    hint = '<claude-code-hint v="1" type="plugin" value="hinted@claude-plugins-official" />'
    lab.use("scout", "Bash", "hint", command=f"echo '{hint}' >&2; echo ok", description="x")
    lab.use("scout", "Write", "python", file_path=str(lab.state_of("scout") / "a.py"), content="x = 1\n")
    lab.idle("scout")
    lab.say("scout", "[from test] still there?")
    lab.request("still there?")
    assert "Yes, install" not in lab.screen("scout")
