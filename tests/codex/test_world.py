"""What reaches an agent, and what does not: by the bodies of its requests, and by what its tools can do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from codex_lab import MODEL, body
from harness_lab import wait_for

if TYPE_CHECKING:
    from codex_lab import Lab
    from harness_lab import Json

FAST = {"model": MODEL, "effort": "low"}


def skill(lab: Lab, name: str) -> Json:
    text = f"---\nname: {name}\ndescription: About {name}.\n---\nMARK"
    return {"source": str(lab.give(lab.home / f"library/{name}/SKILL.md", text).parent)}


def ask(lab: Lab, agent: str, words: str) -> str:
    lab.prompt(agent)
    return body(lab.tell(agent, words))


def test_role_skills_and_servers_are_in_the_request(lab: Lab) -> None:
    """By the model that codex takes by itself, too."""
    library = {"skills": {"whistle": skill(lab, "whistle")}, "mcp_servers": {"tracker": lab.mcp_server("tracker")}}
    agent: Json = {"role": "You whistle.", "skills": ["whistle"], "mcp_servers": ["tracker"]}
    lab.start({"scout": agent, "herald": {**agent, **FAST}}, library)
    for name in ("scout", "herald"):
        request = ask(lab, name, f"{name} speaking")
        assert f"# {name}\\n\\nYou whistle." in request
        assert "whistle: About whistle." in request
        assert "mcp__tracker" in request
    (first,) = [request for request in lab.words() if "scout speaking" in lab.said(request)]
    assert first["reasoning"]["effort"] == "max"


def test_two_agents_of_one_user_have_each_its_own(lab: Lab) -> None:
    library = {
        "skills": {name: skill(lab, name) for name in ("whistle", "sing")},
        "mcp_servers": {name: lab.mcp_server(name) for name in ("tracker", "calendar")},
    }
    agents: Json = {
        "scout": {**FAST, "skills": ["whistle"], "mcp_servers": ["tracker"]},
        "herald": {**FAST, "skills": ["sing"], "mcp_servers": ["calendar"], "permissions": {"deny": ["WebSearch"]}},
    }
    lab.start(agents, library)
    bodies = {agent: ask(lab, agent, f"{agent} speaking") for agent in agents}
    wait_for(lambda: len(lab.spawned()) == 2, "the servers are not started")
    assert "About whistle" in bodies["scout"]
    assert "About sing" not in bodies["scout"]
    assert "About sing" in bodies["herald"]
    assert "About whistle" not in bodies["herald"]
    assert '"type": "web_search"' in bodies["scout"]
    assert '"type": "web_search"' not in bodies["herald"]
    assert "RAN calendar" in lab.use("herald", "alpha", "own", namespace="mcp__calendar")
    assert "RAN" not in lab.use("herald", "alpha", "others", namespace="mcp__tracker")
    assert "RAN" not in lab.use("scout", "alpha", "theirs", namespace="mcp__calendar")


def test_what_is_withdrawn_is_gone(lab: Lab) -> None:
    library = {"skills": {"whistle": skill(lab, "whistle")}, "mcp_servers": {"tracker": lab.mcp_server("tracker")}}
    lab.start({"scout": {**FAST, "skills": ["whistle"], "mcp_servers": ["tracker"]}}, library)
    assert "About whistle" in ask(lab, "scout", "one")
    lab.configure({"scout": FAST}, library)
    lab.reload()
    lab.forgectl("restart", "--fresh", "scout")
    number = sum(event["event"] == "agent_started" for event in lab.events())
    lab.prompt("scout", number)
    request = body(lab.tell("scout", "two"))
    assert "whistle" not in request
    assert "mcp__tracker" not in request


class TestLeaks:
    """Of the Linux user and of codex itself, nothing reaches an agent that it does not inherit."""

    def give_all(self, lab: Lab) -> None:
        text = "---\nname: {0}\ndescription: MARK-{0}\n---\nx"
        lab.give(lab.home / ".agents/skills/users/SKILL.md", text.format("users-skill"))
        lab.give(lab.home / ".agents/skills/deep/er/SKILL.md", text.format("deeper-skill"))
        lab.give(lab.home / "elsewhere/SKILL.md", text.format("linked-skill"))
        lab.as_user("ln", "-s", str(lab.home / "elsewhere"), str(lab.home / ".agents/skills/linked"))
        lab.give(lab.home / ".codex/skills/codexs/SKILL.md", text.format("codexs-skill"))
        lab.give(lab.home / ".codex/AGENTS.md", "MARK-users-instructions")
        server = lab.mcp_server("users")
        settings = f'developer_instructions = "MARK-config"\n[mcp_servers.users]\ncommand = "{server["command"]}"\n'
        lab.give(lab.home / ".codex/config.toml", f"{settings}args = {json.dumps(server['args'])}\n")
        lab.give(lab.home / ".local/state/forge/agents/AGENTS.md", "MARK-parents-instructions")
        lab.give(lab.home / "AGENTS.md", "MARK-homes-instructions")
        lab.give(lab.home / ".local/state/.codex/config.toml", 'developer_instructions = "MARK-parents-config"\n')
        lab.give(lab.home / ".claude/CLAUDE.md", "MARK-claude")
        lab.give(lab.home / ".claude/skills/c/SKILL.md", text.format("claudes-skill"))

    def test_nothing_comes_by_itself(self, lab: Lab) -> None:
        """Trap: ~/.agents/skills is read whatever the home of codex is."""
        self.give_all(lab)
        lab.start({"scout": FAST})
        request = ask(lab, "scout", "what is there?")
        assert "MARK" not in request
        assert "skill-creator" not in request, "one of codex's own"
        assert "users" not in lab.spawned()

    def test_what_is_inherited_comes(self, lab: Lab) -> None:
        self.give_all(lab)
        lab.start({"scout": {**FAST, "inherit": ["user-skills", "user-instructions", "bundled-skills"]}})
        request = ask(lab, "scout", "what is there?")
        for mark in ("MARK-users-skill", "MARK-linked-skill", "MARK-users-instructions", "skill-creator"):
            assert mark in request, mark
        for mark in ("MARK-config", "MARK-codexs-skill", "MARK-parents", "MARK-homes", "MARK-claude"):
            assert mark not in request, mark

    def test_what_the_agent_writes_for_itself_ends_with_its_session(self, lab: Lab) -> None:
        lab.start({"scout": FAST})
        pid = lab.prompt("scout")
        assert pid
        home = lab.home_of("scout")
        lab.give(home / "config.toml", 'developer_instructions = "MARK-config"\n')
        for name in ("AGENTS.md", "AGENTS.override.md"):
            lab.give(home / name, "MARK-instructions")
        lab.give(home / "rules/own.rules", 'prefix_rule(pattern = ["true"], decision = "forbidden")\n')
        lab.configure({"scout": {**FAST, "effort": "medium"}})
        lab.reload()
        lab.prompt("scout", 2)
        request = body(lab.tell("scout", "what is there?"))
        assert "MARK" not in request
        assert "# scout" in request
        assert "rejected" not in lab.run("scout", "true", "rule")
        assert any("own.rules is none of ours" in event.get("problem", "") for event in lab.events())

    def test_a_granted_skill_that_is_the_users_too(self, lab: Lab) -> None:
        """Trap: a skill that is left out by one path is left out by all."""
        granted = skill(lab, "whistle")
        lab.as_user("mkdir", "-p", str(lab.home / ".agents/skills"))
        lab.as_user("ln", "-s", granted["source"], str(lab.home / ".agents/skills/own"))
        lab.start({"scout": {**FAST, "skills": ["whistle"]}}, {"skills": {"whistle": granted}})
        assert "About whistle" in ask(lab, "scout", "what is there?")


class TestPermissions:
    def test_a_denial_holds_where_all_prompts_are_skipped(self, lab: Lab) -> None:
        library = {"mcp_servers": {"tracker": lab.mcp_server("tracker"), "calendar": lab.mcp_server("calendar")}}
        deny = ["Bash(touch *)", "mcp__tracker", "mcp__calendar__alpha"]
        agent = {**FAST, "mcp_servers": ["tracker", "calendar"], "permissions": {"deny": deny}}
        lab.start({"scout": agent}, library)
        lab.prompt("scout")
        assert "rejected" in lab.run("scout", "touch made", "denied")
        assert "rejected" in lab.run("scout", "true && touch made", "hidden")
        assert not (lab.state_of("scout") / "made").exists()
        assert "RAN" not in lab.use("scout", "alpha", "server", namespace="mcp__tracker")
        assert "RAN" not in lab.use("scout", "alpha", "tool", namespace="mcp__calendar")
        lab.run("scout", "echo x >made", "else")
        assert (lab.state_of("scout") / "made").exists()

    def test_without_skipped_prompts_there_is_a_sandbox(self, lab: Lab) -> None:
        library = {"mcp_servers": {name: lab.mcp_server(name) for name in ("tracker", "calendar", "asking")}}
        library["mcp_servers"]["asking"]["args"].append("asking")
        outside, work = lab.home / "outside", lab.home / "work"
        lab.as_user("mkdir", str(outside), str(work))
        permissions = {
            "skip_prompts": False,
            "allow": ["Bash(touch *)", "mcp__tracker", "mcp__asking__alpha"],
            "deny": ["Bash(touch -m *)"],
        }
        servers = list(library["mcp_servers"])
        agent = {**FAST, "mcp_servers": servers, "permissions": permissions, "add_dirs": ["~/work"]}
        lab.start({"scout": agent}, library)
        lab.prompt("scout")
        state = lab.state_of("scout")
        lab.run("scout", f"cp /etc/hostname inside; cp /etc/hostname {work}/inside", "inside")
        assert (state / "inside").exists()
        assert (work / "inside").exists()
        assert "Read-only" in lab.run("scout", f"cp /etc/hostname {outside}/unlisted", "unlisted")
        lab.run("scout", f"touch {outside}/allowed", "allowed")
        assert (outside / "allowed").exists()
        assert "rejected" in lab.run("scout", f"touch -m {outside}/denied", "denied")
        assert "Read-only" in lab.run("scout", "cp /etc/hostname .codex/AGENTS.override.md", "own")
        assert {path.name for path in outside.iterdir()} == {"allowed"}
        assert "RAN tracker" in lab.use("scout", "alpha", "server", namespace="mcp__tracker")
        assert "approval policy is never" in lab.use("scout", "alpha", "other", namespace="mcp__calendar")
        # What a server asks, nobody is there to answer.
        assert "decline" in lab.use("scout", "alpha", "asked", namespace="mcp__asking")
        request = body(lab.tell("scout", "hello"))
        assert '"type": "web_search"' not in request

    def test_nothing_reaches_the_network_from_the_sandbox(self, lab: Lab) -> None:
        lab.start({"scout": {**FAST, "permissions": {"skip_prompts": False}}})
        lab.prompt("scout")
        script = f"import urllib.request as u; print(u.urlopen('{lab.url}').status)"
        told = lab.run("scout", f'python3 -c "{script}"', "network")
        assert "404" not in told
        assert "URLError" in told or "PermissionError" in told, told


@pytest.mark.parametrize("skip_prompts", [True, False])
def test_what_would_ask_somebody_does_not_wait(lab: Lab, *, skip_prompts: bool) -> None:
    lab.start({"scout": {**FAST, "permissions": {"skip_prompts": skip_prompts}}})
    lab.prompt("scout")
    options = [{"label": label, "description": label} for label in ("Red", "Blue")]
    question = {"id": "q", "question": "Which?", "header": "Colour", "options": options}
    lab.use("scout", "request_user_input", "question", questions=[question])
    lab.tell("scout", "still there?")


def test_the_environment_of_commands_is_the_agents(lab: Lab) -> None:
    """Trap: a login shell's /etc/profile sets another PATH."""
    env = {**lab.keyed("scout"), "TZ": "UTC"}
    lab.start({"scout": {**FAST, "path": ["~/.local/bin", "/usr/bin", "/bin"], "env": env}})
    lab.prompt("scout")
    told = lab.run("scout", "env", "environment")
    # Codex puts programs of its own before it.
    assert re.search(rf"\\nPATH=[^\\]*/codex-path:[^\\]*:{lab.home}/.local/bin:/usr/bin:/bin\\n", told), told
    assert "TZ=UTC" in told
    assert "FORGE_AGENT=scout" in told
    assert "OPENAI_API_KEY" not in told
    assert "LEAK" not in told


def test_further_directories_are_worked_in_and_bring_nothing(lab: Lab) -> None:
    lab.give(lab.home / "work/.agents/skills/w/SKILL.md", "---\nname: w\ndescription: MARK-SKILL\n---\nx")
    lab.give(lab.home / "work/AGENTS.md", "MARK-INSTRUCTIONS")
    lab.give(lab.home / "work/.codex/config.toml", 'developer_instructions = "MARK-CONFIG"\n')
    lab.as_user("git", "init", "-q", str(lab.home / "work"))
    lab.start({"scout": {**FAST, "add_dirs": ["~/work"]}})
    assert "MARK" not in ask(lab, "scout", "what is there?")
