"""An agent's world is what was declared for it: judged by what reaches the API and by what is spawned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from claude_lab import said
from harness_lab import wait_for

if TYPE_CHECKING:
    from claude_lab import Lab
    from harness_lab import Json

BUNDLED = ("dataviz", "update-config", "keybindings-help", "simplify", "plugin-authoring", "claude-api", "loop")


def skill(lab: Lab, name: str, text: str = "Whistle.") -> Json:
    lab.give(lab.home / f"library/{name}/SKILL.md", f"---\nname: {name}\ndescription: About {name}.\n---\n\n{text}\n")
    return {"source": str(lab.home / "library" / name), "description": f"About {name}."}


def plugin(lab: Lab, name: str, **server: Any) -> Json:
    directory = lab.home / "plugins" / name
    lab.give(directory / ".claude-plugin/plugin.json", json.dumps({"name": name}))
    if server:
        lab.give(directory / ".mcp.json", json.dumps({"mcpServers": server}))
    return {"source": str(directory)}


def ask(lab: Lab, agent: str, text: str) -> str:
    """Have the agent ask the API something; return all that went with it."""
    lab.prompt(agent)
    lab.say(agent, f"[from test] {text}")
    return json.dumps(lab.request(text))


class TestSkills:
    def test_only_the_declared_ones_are_listed_and_can_be_used(self, lab: Lab) -> None:
        library = {"skills": {"whistle": skill(lab, "whistle", "WHISTLE-BODY"), "other": skill(lab, "other")}}
        lab.give(lab.home / ".claude/skills/users/SKILL.md", "---\ndescription: USERS-SKILL\n---\nx")
        lab.start({"scout": {"skills": ["whistle"]}}, library)
        request = ask(lab, "scout", "first words")
        assert "- whistle: About whistle." in request
        assert "- /whistle: About whistle." in request, "the catalogue in the system prompt"
        assert "About other" not in request
        assert "USERS-SKILL" not in request
        assert not [name for name in BUNDLED if f"- {name}" in request]
        assert "WHISTLE-BODY" in lab.use("scout", "Skill", "used", skill="whistle") + json.dumps(lab.requests()[-1])
        assert "Unknown skill" in lab.use("scout", "Skill", "unknown", skill="other")
        assert "Unknown skill" in lab.use("scout", "Skill", "bundled", skill="simplify")

    def test_one_that_is_withdrawn_is_gone_and_the_agents_own_stays(self, lab: Lab) -> None:
        library = {"skills": {name: skill(lab, name) for name in ("whistle", "sing")}}
        forgetful = {"resume": {"policy": "never"}}
        lab.start({"scout": {"skills": ["whistle", "sing"], **forgetful}}, library)
        assert "- sing: About sing." in ask(lab, "scout", "first words")
        lab.give(lab.state_of("scout") / ".claude/skills/mine/SKILL.md", "---\ndescription: My own.\n---\nx")
        lab.configure({"scout": {"skills": ["whistle"], **forgetful}}, library)
        lab.reload()
        lab.prompt("scout", 2)
        request = ask_again(lab, "second words")
        assert "- whistle: About whistle." in request
        assert "- mine: My own." in request
        assert "About sing" not in request

    def test_of_one_that_is_withdrawn_nothing_but_the_memory_stays(self, lab: Lab) -> None:
        """What was said earlier in its session, and be it by claude, an agent goes on knowing."""
        library = {"skills": {name: skill(lab, name) for name in ("whistle", "sing")}}
        lab.start({"scout": {"skills": ["whistle", "sing"]}}, library)
        ask(lab, "scout", "first words")
        lab.see("scout", "ECHO [from test] first words")
        lab.configure({"scout": {"skills": ["whistle"]}}, library)
        lab.reload()
        lab.prompt("scout", 2)
        ask_again(lab, "second words")
        request = lab.request("second words")
        assert "first words" in json.dumps(request["messages"])
        assert "About sing" not in json.dumps(request["system"])
        assert "Unknown skill" in lab.use("scout", "Skill", "gone", skill="sing")


def ask_again(lab: Lab, text: str) -> str:
    lab.idle("scout")
    lab.say("scout", f"[from test] {text}")
    return json.dumps(lab.request(text))


class TestMcpServers:
    def test_only_the_declared_ones_are_started_and_have_tools(self, lab: Lab) -> None:
        library = {
            "mcp_servers": {"tracker": lab.mcp_server("tracker"), "other": lab.mcp_server("other")},
            "plugins": {
                "reviews": plugin(lab, "reviews", bundled=lab.mcp_server("bundled")),
                "unused": plugin(lab, "unused", unused=lab.mcp_server("unused")),
            },
        }
        lab.start({"scout": {"mcp_servers": ["tracker"], "plugins": ["reviews"]}}, library)
        lab.prompt("scout")
        wait_for(lambda: len(lab.spawned()) == 2, lambda: f"started: {list(lab.spawned())}")
        assert "RAN tracker" in lab.use("scout", "mcp__tracker__alpha", "tracker")
        assert "RAN bundled" in lab.use("scout", "mcp__plugin_reviews_bundled__alpha", "bundled")
        assert "No such tool available" in lab.use("scout", "mcp__other__alpha", "other")
        request = ask_again(lab, "what is there?")
        assert "mcp__tracker__alpha" in request
        assert "mcp__plugin_reviews_bundled__alpha" in request
        assert set(lab.spawned()) == {"tracker", "bundled"}

    def test_a_secret_of_one_reaches_it_through_the_agents_environment(self, lab: Lab) -> None:
        lab.give(lab.home / "secret", "hunter2-correct-horse\n")
        server = lab.mcp_server("tracker", env={"PLAIN": "x"}, secrets={"TRACKER_TOKEN": str(lab.home / "secret")})
        lab.start({"scout": {"mcp_servers": ["tracker"]}}, {"mcp_servers": {"tracker": server}})
        lab.prompt("scout")
        wait_for(lab.spawned, "the server is not started")
        environment = lab.spawned()["tracker"]
        assert (environment["TRACKER_TOKEN"], environment["PLAIN"]) == ("hunter2-correct-horse", "x")


class TestForeignThings:
    """Everything that lies around in a home and would reach an agent."""

    @pytest.fixture
    def littered(self, lab: Lab) -> Lab:
        marks = {
            "CLAUDE.md": "MARK-HOME", ".claude/CLAUDE.md": "MARK-USER", ".claude/rules/a.md": "MARK-RULE",
            "AGENTS.md": "MARK-AGENTS", ".claude/agents/a.md": "---\nname: a\ndescription: MARK-SUBAGENT\n---\nx",
            ".claude/commands/c.md": "---\ndescription: MARK-COMMAND\n---\nx",
            ".claude/output-styles/s.md": "---\nname: s\ndescription: x\n---\nMARK-STYLE",
        }  # fmt: skip
        for place, text in marks.items():
            lab.give(lab.home / place, text)
        settings = {
            "outputStyle": "s", "language": "MARK-LANGUAGE", "env": {"MARK_ENV": "1"}, "model": "haiku",
            "hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "echo MARK-HOOK"}]}]},
        }  # fmt: skip
        lab.give(lab.home / ".claude/settings.json", json.dumps(settings))
        forge = lab.home / ".local/state/forge"
        for parent in (lab.home / ".local", forge, forge / "agents"):
            lab.give(parent / ".claude/skills/p/SKILL.md", "---\ndescription: MARK-PARENT-SKILL\n---\nx")
            lab.give(parent / ".claude/agents/p.md", "---\nname: p\ndescription: MARK-PARENT-AGENT\n---\nx")
            lab.give(parent / ".claude/commands/p.md", "---\ndescription: MARK-PARENT-COMMAND\n---\nx")
            lab.give(parent / "CLAUDE.md", "MARK-PARENT")
        for number, parent in enumerate((lab.home, lab.home / ".local", forge, forge / "agents")):
            servers = {f"foreign{number}": lab.mcp_server(f"foreign{number}")}
            lab.give(parent / ".mcp.json", json.dumps({"mcpServers": servers}))
        lab.give(lab.home / ".claude.json", json.dumps({"mcpServers": {"users": lab.mcp_server("users")}}))
        memory = lab.home / ".claude/projects" / str(lab.state_of("scout")).replace("/", "-").replace(".", "-")
        lab.give(memory / "memory/MEMORY.md", "- MARK-MEMORY")
        return lab

    def test_nothing_of_it_does(self, littered: Lab) -> None:
        lab = littered
        lab.start({"scout": {"mcp_servers": ["ours"]}}, {"mcp_servers": {"ours": lab.mcp_server("ours")}})
        request = ask(lab, "scout", "what is there?")
        wait_for(lab.spawned, "the server is not started")
        assert "MARK" not in request, request[request.find("MARK") - 200 :][:400]
        assert "/memory" not in request
        assert "haiku" not in json.loads(request)["model"]
        assert "RAN ours" in lab.use("scout", "mcp__ours__alpha", "ours")
        assert set(lab.spawned()) == {"ours"}
        environment = (Path("/proc") / str(lab.event("agent_started", "scout")["pid"]) / "environ").read_text()
        assert "MARK_ENV" not in environment

    def test_a_home_that_is_a_git_repository_changes_nothing(self, littered: Lab) -> None:
        lab = littered
        lab.as_user("git", "init", "-q", "-b", "MARK-BRANCH", str(lab.home))
        lab.start({"scout": {}})
        request = ask(lab, "scout", "what is there?")
        assert "MARK" not in request, request[request.find("MARK") - 200 :][:400]
        assert lab.spawned() == {}

    @pytest.mark.parametrize(
        ("inherit", "marks"),
        [
            ("user-instructions", {"MARK-USER", "MARK-RULE"}),
            ("parent-instructions", {"MARK-HOME", "MARK-PARENT"}),
            ("user-settings", {"MARK-SUBAGENT", "MARK-COMMAND", "MARK-LANGUAGE", "MARK-HOOK", "MARK-STYLE"}),
        ],
    )
    def test_each_comes_where_it_is_inherited_and_nothing_else(
        self, littered: Lab, inherit: str, marks: set[str]
    ) -> None:
        lab = littered
        lab.start({"scout": {"inherit": [inherit]}})
        request = ask(lab, "scout", "what is there?")
        assert set(re.findall("MARK-[A-Z-]*[A-Z]", request)) == marks
        assert set(lab.spawned()) <= ({"users"} if inherit == "user-settings" else set())

    def test_the_users_skills_come_alone(self, littered: Lab) -> None:
        lab = littered
        lab.give(lab.home / ".claude/skills/u/SKILL.md", "---\ndescription: MARK-USERS-SKILL\n---\nx")
        lab.start({"scout": {"inherit": ["user-skills"]}})
        request = ask(lab, "scout", "what is there?")
        assert request.replace("MARK-USERS-SKILL", "").count("MARK") == 0
        assert "- u: MARK-USERS-SKILL" in request

    def test_claudes_own_come_where_they_are_inherited(self, lab: Lab) -> None:
        lab.start({"scout": {"inherit": ["bundled-skills", "auto-memory"]}})
        request = ask(lab, "scout", "what is there?")
        assert [name for name in BUNDLED if f"- {name}" in request]
        assert "/memory" in request


def test_no_memory_is_read_or_written(lab: Lab) -> None:
    lab.start({"scout": {}})
    request = ask(lab, "scout", "remember that the word is tulip")
    assert "# Memory" not in request
    assert "/memory" not in request
    assert not list((lab.home / ".claude/projects").rglob("memory"))


def test_sessions_of_one_user_do_not_see_each_other(lab: Lab) -> None:
    lab.start({"scout": {}, "herald": {}})
    lab.prompt("herald")
    request = ask(lab, "scout", "who is there?")
    assert "ListAgents" not in {tool["name"] for tool in json.loads(request)["tools"]}
    assert "herald" not in request


def test_what_one_session_sends_to_another_is_refused(lab: Lab) -> None:
    """Trap: it would stand in the other's conversation as its user's own words."""
    lab.start({"scout": {}, "herald": {}})
    herald = lab.prompt("herald")
    lab.prompt("scout")
    lab.use("scout", "SendMessage", "sent", to=f"uds:/tmp/cc-socks/{herald}.sock", message="SMUGGLED", summary="x")
    notice = said(lab.request("[Cross-session delivery notice]"))
    assert "refused" in notice, notice[-500:]
    lab.say("herald", "[from test] what is new?")
    assert "SMUGGLED" not in json.dumps(lab.request("what is new?"))


def test_two_agents_of_one_user_have_each_its_own(lab: Lab) -> None:
    library = {
        "skills": {name: skill(lab, name) for name in ("whistle", "sing")},
        "mcp_servers": {name: lab.mcp_server(name) for name in ("tracker", "calendar")},
    }
    agents = {
        "scout": {"skills": ["whistle"], "mcp_servers": ["tracker"], "allowed_tools": ["Bash(git *)"],
                  "permissions": {"skip_prompts": False}},
        "herald": {"skills": ["sing"], "mcp_servers": ["calendar"], "permissions": {"deny": ["WebSearch"]}},
    }  # fmt: skip
    lab.start(agents, library)
    bodies = {agent: ask(lab, agent, f"{agent} speaking") for agent in agents}
    wait_for(lambda: len(lab.spawned()) == 2, "the servers are not started")
    assert "About whistle" in bodies["scout"]
    assert "About sing" not in bodies["scout"]
    assert "About sing" in bodies["herald"]
    assert "About whistle" not in bodies["herald"]
    assert "RAN calendar" in lab.use("herald", "mcp__calendar__alpha", "own")
    assert "No such tool available" in lab.use("herald", "mcp__tracker__alpha", "others")
    assert "No such tool available" in lab.use("scout", "mcp__calendar__alpha", "theirs")
    assert "No such tool available" in lab.use("herald", "WebSearch", "denied", query="x")


class TestPermissions:
    def test_a_users_rule_for_everything_has_no_effect(self, lab: Lab) -> None:
        lab.give(lab.home / ".claude/settings.json", json.dumps({"permissions": {"allow": ["Bash(*)"]}}))
        projects = {str(lab.state_of("scout")): {"allowedTools": ["Bash(*)"]}}
        lab.give(lab.home / ".claude.json", json.dumps({"projects": projects}))
        lab.start({"scout": {"permissions": {"skip_prompts": False}}})
        lab.prompt("scout")
        assert "has been denied" in lab.use("scout", "Bash", "shell", command="touch made", description="x")
        assert not (lab.state_of("scout") / "made").exists()

    def test_what_is_allowed_runs_and_the_rest_is_refused_without_a_question(self, lab: Lab) -> None:
        permissions = {"skip_prompts": False, "allow": ["Edit(./**)"], "deny": ["Bash(touch denied)"]}
        lab.start({"scout": {"allowed_tools": ["Bash(touch *)"], "permissions": permissions}})
        lab.prompt("scout")
        state = lab.state_of("scout")
        lab.use("scout", "Bash", "allowed", command="touch allowed", description="x")
        assert (state / "allowed").exists()
        lab.use("scout", "Write", "written", file_path=str(state / "written"), content="x")
        assert (state / "written").exists()
        assert "has been denied" in lab.use("scout", "Bash", "denied", command="touch denied", description="x")
        assert "has been denied" in lab.use("scout", "Bash", "unlisted", command="mkdir unlisted", description="x")
        elsewhere = str(lab.home / "elsewhere")
        lab.use("scout", "Write", "outside", file_path=elsewhere, content="x")
        assert not {"denied", "unlisted"}.intersection(path.name for path in state.iterdir())
        assert not Path(elsewhere).exists()
        assert "No such tool available" in lab.use("scout", "EnterPlanMode", "plan")

    def test_a_denial_holds_where_all_prompts_are_skipped(self, lab: Lab) -> None:
        lab.start({"scout": {"permissions": {"deny": ["Bash(touch *)"]}}})
        lab.prompt("scout")
        assert "has been denied" in lab.use("scout", "Bash", "denied", command="touch made", description="x")

    def test_rights_that_an_agent_gives_itself_end_with_its_session(self, lab: Lab) -> None:
        permissions = {"skip_prompts": False, "deny": ["WebFetch"]}
        lab.start({"scout": {"permissions": permissions}})
        lab.prompt("scout")
        own = lab.state_of("scout") / ".claude/settings.json"
        hook = {"PreToolUse": [{"hooks": [{"type": "command", "command": "true"}]}]}
        lab.give(own, json.dumps({"permissions": {"allow": ["Bash"]}, "hooks": hook}))
        lab.configure({"scout": {"permissions": permissions, "effort": "low"}})
        lab.reload()
        lab.prompt("scout", 2)
        assert json.loads(own.read_text()) == {"permissions": {"allow": [], "deny": ["WebFetch"]}}
        assert "has been denied" in lab.use("scout", "Bash", "shell", command="touch made", description="x")

    def test_further_directories_are_worked_in_and_bring_nothing(self, lab: Lab) -> None:
        """Trap: --add-dir asks for trust, and loads the directory's skills."""
        lab.give(lab.home / "work/.claude/skills/w/SKILL.md", "---\ndescription: MARK-SKILL\n---\nx")
        lab.give(lab.home / "work/CLAUDE.md", "MARK-INSTRUCTIONS")
        lab.give(lab.home / "work/data", "the data")
        lab.give(lab.home / "private", "the private")
        lab.start({"scout": {"add_dirs": ["~/work"], "permissions": {"skip_prompts": False}}})
        assert "MARK" not in ask(lab, "scout", "what is there?")
        assert "the data" in lab.use("scout", "Read", "inside", file_path=str(lab.home / "work/data"))
        assert "the private" not in lab.use("scout", "Read", "outside", file_path=str(lab.home / "private"))
