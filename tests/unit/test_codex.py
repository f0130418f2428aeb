"""The plan of a codex agent: arguments, environment, files; and what is refused beforehand."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from codex_plan_lab import config_of, home_of, plan_of, preflight
from hypothesis import given
from hypothesis import strategies as st
from plan_lab import agent_of, file_of, json_in, program, subject_of, write

from forge_supervisor import harness
from forge_supervisor.config import Library
from forge_supervisor.harness.codex import Codex, toml

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths

KEY = "sk-proj-0123456789-abcdefghij"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def refused(**keys: Any) -> list[tuple[str, str]]:
    agent = agent_of(harness="codex", **keys)
    return [(problem.key, problem.text) for problem in harness.check_agent(agent, frozenset(keys), Library())]


class TestArguments:
    def test_the_server_that_all_would_share_is_never_used(self, paths: Paths) -> None:
        assert "--no-daemon" in plan_of(paths).argv
        assert config_of(paths)["features"]["daemon_auto_start"] is False

    def test_model_and_effort_are_options(self, paths: Paths) -> None:
        argv = plan_of(paths, model="gpt-new", effort="low").argv
        assert argv[argv.index("--model") + 1] == "gpt-new"
        assert argv[argv.index("-c") + 1] == 'model_reasoning_effort="low"'
        assert "--model" not in plan_of(paths).argv

    def test_it_works_in_its_directory_in_a_home_of_its_own(self, paths: Paths) -> None:
        plan = plan_of(paths, extra_args=("--search",))
        assert plan.cwd == paths.state
        assert dict(plan.env) == {"CODEX_HOME": str(paths.state / ".codex")}
        assert plan.argv[-3:] == ("--cd", str(paths.state), "--search")

    def test_the_program_behind_npms_launcher_is_run(self, paths: Paths, tmp_path: Path) -> None:
        """Trap: on an older node the launcher stays in between, with exit codes and signals of its own."""
        modules = tmp_path / "lib/node_modules/@openai"
        launcher = program(modules / "codex/bin/codex.js", "exit 1")
        link = paths.home / ".local/bin/codex"
        link.unlink()
        link.symlink_to(launcher)
        assert plan_of(paths).argv[0] == str(launcher)
        assert next("launcher without its program" in problem.text for problem in preflight(paths))
        for place in (modules, modules / "codex/node_modules/@openai"):
            native = program(place / "codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex", "exit 0")
            assert plan_of(paths).argv[0] == str(native)
            native.unlink()

    def test_a_version_is_a_number(self, paths: Paths) -> None:
        assert Codex().version(plan_of(paths)) == "0.169.0"


class TestSessions:
    ID = "01a21f4d-156e-7c52-a46d-445d50fec4cf"

    def known(self, paths: Paths, session: str = ID, *, there: bool = True) -> None:
        write(paths.launch / "session", f"{session}\n")
        if there:
            write(paths.state / f".codex/sessions/2026/11/27/rollout-2026-11-27T23-17-55-{session}.jsonl", "x\n")

    def test_the_one_before_is_gone_on_with(self, paths: Paths) -> None:
        self.known(paths)
        plan = plan_of(paths)
        assert (plan.argv[-2:], plan.resumes) == (("resume", self.ID), True)
        assert file_of(plan, paths.launch / "session").text == f"{self.ID}\n"

    @pytest.mark.parametrize("kind", ["fresh", "gone", "nonsense", "none"])
    def test_otherwise_a_new_one_begins_and_the_old_one_is_forgotten(self, paths: Paths, kind: str) -> None:
        if kind != "none":
            self.known(paths, "--last" if kind == "nonsense" else self.ID, there=kind != "gone")
        plan = plan_of(paths, fresh=kind == "fresh")
        assert "resume" not in plan.argv
        assert not plan.resumes
        assert file_of(plan, paths.launch / "session").text == ""


class TestLogin:
    def test_it_is_a_link_to_the_users(self, paths: Paths) -> None:
        (link,) = plan_of(paths).links
        assert (link.path, link.target) == (paths.state / ".codex/auth.json", paths.home / ".codex/auth.json")

    @pytest.mark.parametrize("place", ["env", "secrets"])
    def test_a_key_of_its_own_is_named_and_written_nowhere(self, paths: Paths, place: str) -> None:
        """Trap: codex ignores the variable, unless a provider names it."""
        plan = plan_of(paths, **{place: {"OPENAI_API_KEY": KEY}})
        config = config_of(paths, **{place: {"OPENAI_API_KEY": KEY}})
        provider = config["model_providers"][config["model_provider"]]
        assert (provider["env_key"], provider["base_url"]) == ("OPENAI_API_KEY", "https://api.openai.com/v1")
        assert not [file.path for file in plan.files if KEY in file.text]
        assert KEY not in "".join(plan.argv)
        assert "OPENAI_API_KEY" in config["shell_environment_policy"]["exclude"]

    def test_without_any_that_is_told(self, paths: Paths) -> None:
        (problem,) = preflight(paths)
        assert problem.text.startswith("not logged in: run `sudo -iu team ")
        assert not problem.fatal
        write(paths.home / ".codex/auth.json", {"OPENAI_API_KEY": KEY})
        assert preflight(paths) == []

    def test_another_place_of_the_api(self, paths: Paths) -> None:
        env = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
        assert config_of(paths, env=env)["openai_base_url"] == env["OPENAI_BASE_URL"]


class TestGrants:
    def test_a_servers_secret_is_passed_on_and_written_nowhere(self, paths: Paths) -> None:
        library = {"mcp_servers": {"tracker": {"command": "~/bin/tracker", "args": ["-x"], "env": {"A": "b"},
                                               "secrets": {"TOKEN": "/s/token"}}}}  # fmt: skip
        config = config_of(paths, library=library, secrets={"TOKEN": "hunter2"})
        assert config["mcp_servers"]["tracker"] == {
            "command": str(paths.home / "bin/tracker"), "args": ["-x"], "env": {"A": "b"}, "env_vars": ["TOKEN"],
        }  # fmt: skip
        assert "TOKEN" in config["shell_environment_policy"]["exclude"]
        both = config_of(paths, library=library, env={"TOKEN": "mine"})
        assert "TOKEN" not in both["shell_environment_policy"]["exclude"], "it is the agent's own, too"

    def test_a_skill_is_linked_by_the_name_of_its_grant(self, paths: Paths) -> None:
        links = plan_of(paths, library={"skills": {"review": {"source": "/srv/x"}}}).links
        assert (links[1].path, str(links[1].target)) == (paths.state / ".agents/skills/review", "/srv/x")

    @pytest.mark.parametrize("text", ["x", "---\nname: x\n---\n", "---\nname: x\n"])
    def test_a_skill_that_codex_would_leave_out(self, paths: Paths, tmp_path: Path, text: str) -> None:
        source = write(tmp_path / "x/SKILL.md", text).parent
        (problem, _) = preflight(paths, library={"skills": {"x": {"source": str(source)}}})
        assert (problem.key, problem.fatal) == ("skills.x.source", True)
        assert "codex would leave it out" in problem.text

    def test_what_is_not_there(self, paths: Paths) -> None:
        library = {"skills": {"x": {"source": "/no/such"}}, "mcp_servers": {"y": {"command": "no-such"}}}
        found = [problem.key for problem in preflight(paths, library=library) if problem.fatal]
        assert found == ["skills.x.source", "mcp_servers.y.command"]

    def test_the_users_skills_are_named_to_be_left_out(self, paths: Paths) -> None:
        """Trap: codex reads ~/.agents/skills whatever its home is."""
        file = write(paths.home / ".agents/skills/a/b/SKILL.md", "x")
        linked = write(paths.home / "linked/SKILL.md", "x")
        granted = write(paths.home / "granted/SKILL.md", "x")
        (paths.home / ".agents/skills/l").symlink_to(linked.parent)
        (paths.home / ".agents/skills/a/round").symlink_to(paths.home / ".agents")
        (paths.home / ".agents/skills/g").symlink_to(granted.parent)
        library = {"skills": {"g": {"source": "~/granted"}}}
        left_out = config_of(paths, library=library)["skills"]["config"]
        assert left_out == [{"path": str(path), "enabled": False} for path in (file, linked)]
        assert config_of(paths, inherit=("user-skills",))["skills"]["config"] == []

    def test_instructions(self, paths: Paths) -> None:
        write(paths.home / ".codex/AGENTS.md", "Everybody whistles.\n")
        file = paths.state / ".codex/AGENTS.override.md"
        assert file_of(plan_of(paths), file).text == "# scout\n\nLook ahead.\n"
        inherited = file_of(plan_of(paths, inherit=("user-instructions",)), file).text
        assert inherited == "# scout\n\nLook ahead.\n\nEverybody whistles.\n"

    def test_no_environment_is_written_for_commands_to_start_faster(self, paths: Paths) -> None:
        """Trap: a shell snapshot is a file, readable to all, with every variable in it."""
        assert config_of(paths)["features"]["shell_snapshot"] is False

    def test_nothing_is_asked_that_a_message_would_answer(self, paths: Paths) -> None:
        """Traps: what became of a paused goal, and whether to change to a cheaper model near a limit."""
        config = config_of(paths)
        assert config["features"]["goals"] is False
        assert config["notice"]["hide_rate_limit_model_nudge"] is True

    def test_a_skill_brings_no_servers(self, paths: Paths) -> None:
        assert config_of(paths)["features"]["skill_mcp_dependency_install"] is False

    def test_what_the_agent_may_have_written_for_its_environment_is_emptied(self, paths: Paths) -> None:
        """Trap: codex reads .env in its home, and what stands there goes before what was declared."""
        assert file_of(plan_of(paths), paths.state / ".codex/.env").text == ""


class TestKeys:
    LIBRARY: ClassVar[dict[str, Any]] = {
        "mcp_servers": {"images": {"command": "x", "secrets": {"OPENAI_API_KEY": "/k", "OPENAI_BASE_URL": "/u"}}}
    }
    SECRETS: ClassVar[dict[str, str]] = {"OPENAI_API_KEY": "a server's", "OPENAI_BASE_URL": "http://elsewhere"}

    def test_a_servers_key_is_not_the_agents(self, paths: Paths) -> None:
        config = config_of(paths, library=self.LIBRARY, mcp_servers=("images",), secrets=self.SECRETS)
        assert "model_provider" not in config
        assert "openai_base_url" not in config
        found = preflight(paths, library=self.LIBRARY, mcp_servers=("images",), secrets=self.SECRETS)
        assert any("not logged in" in problem.text for problem in found)


class TestModels:
    def test_an_offer_to_change_to_a_newer_one_is_declined(self, paths: Paths) -> None:
        assert config_of(paths, model="gpt-old")["notice"]["model_migrations"] == {"gpt-old": "gpt-new"}
        assert config_of(paths)["notice"]["model_migrations"] == {}

    def test_what_the_program_does_not_know_is_told(self, paths: Paths) -> None:
        def consulted(**keys: Any) -> list[str]:
            subject = subject_of(**keys)
            return [problem.key for problem in Codex().consult(subject, Codex().plan(subject, paths))]

        assert consulted(model="gpt-new") == consulted() == []
        assert consulted(model="gpt-old", effort="max") == ["effort"]
        assert consulted(model="gpt-unheard-of") == ["model"]


    def test_a_sandbox_that_cannot_be_made_is_told(self, paths: Paths) -> None:
        def consulted(**permissions: Any) -> list[tuple[str, str]]:
            subject = subject_of(permissions=permissions)
            found = Codex().consult(subject, Codex().plan(subject, paths))
            return [(problem.key, problem.text) for problem in found if not problem.fatal]

        assert consulted(skip_prompts=False) == []
        write(paths.home / ".local/bin/codex.no-sandbox", "")
        assert consulted(skip_prompts=True) == []
        ((key, text),) = consulted(skip_prompts=False)
        assert key == "permissions.skip_prompts"
        assert text.endswith("fail: bwrap: no")


class TestRefused:
    def test_what_only_others_have(self) -> None:
        assert refused(discord_bot="x", plugins=("y",), cwd="/srv") == [
            (key, 'means nothing to the harness "codex" (remove it)') for key in ("cwd", "discord_bot", "plugins")
        ]
        assert refused(inherit=("auto-memory", "user-skills")) == [
            ("inherit", '"auto-memory" means nothing to the harness "codex" (remove it)')
        ]

    @pytest.mark.parametrize(
        "argument",
        [
            *("-m", "--model=x", "--yolo", "-s", "resume", "exec", "unarchive", "--", "-p"),
            "--dangerously-bypass-approvals-and-sandbox",
        ],
    )
    def test_options_that_other_keys_set(self, argument: str) -> None:
        ((key, text),) = refused(extra_args=(argument,))
        assert key == "extra_args"
        assert text.startswith(f"{argument.partition('=')[0]} cannot be given here")

    def test_the_home_of_codex_is_not_theirs_to_choose(self) -> None:
        assert [key for key, _ in refused(env={"CODEX_HOME": "/x"})] == ["env.CODEX_HOME"]

    def test_models_and_efforts(self) -> None:
        assert [key for key, _ in refused(effort="harder", model="-x")] == ["effort", "model"]
        assert [key for key, _ in refused(model="opus")] == ["model"]
        assert refused(effort="ultra", model="gpt-6-sol") == []

    def test_a_variable_in_a_servers_environment(self) -> None:
        library = Library.model_validate({"mcp_servers": {"x": {"command": "x", "env": {"A": "a ${B}"}}}})
        (problem,) = Codex().check(agent_of(harness="codex"), library)
        assert problem.key == "mcp_servers.x.env.A"


class TestPermissions:
    def rules(self, paths: Paths, **permissions: Any) -> list[str]:
        file = paths.state / ".codex/rules/default.rules"
        return file_of(plan_of(paths, permissions=permissions), file).text.splitlines()

    def test_rules_for_commands(self, paths: Paths) -> None:
        allow = ("Bash(git *)", "Bash(npm run test:*)", 'Bash("a b" c *)', "WebSearch")
        assert self.rules(paths, skip_prompts=False, allow=allow, deny=("Bash(git push *)",)) == [
            'prefix_rule(pattern = ["git"], decision = "allow")',
            'prefix_rule(pattern = ["npm", "run", "test"], decision = "allow")',
            'prefix_rule(pattern = ["a b", "c"], decision = "allow")',
            'prefix_rule(pattern = ["git", "push"], decision = "forbidden")',
        ]
        assert self.rules(paths, allow=("Bash(git *)",), deny=("Bash(curl *)",)) == [
            'prefix_rule(pattern = ["curl"], decision = "forbidden")'
        ]

    @pytest.mark.parametrize(
        "rule", ["Bash", "Bash(*)", "Bash(git)", "Bash(git st*)", "Bash(a * b *)", "Edit", "Edit(./**)", "Read(x)",
                 "mcp__*", "WebSearch(x)", "bash(ls *)", "Bash('a *)", "WebFetch(domain:a.org)"]
    )  # fmt: skip
    def test_what_is_no_rule(self, rule: str) -> None:
        ((key, text),) = refused(permissions={"deny": (rule,)})
        assert (key, text.startswith(f"{json.dumps(rule)} is no permission rule")) == ("permissions.deny", True)

    def test_modes(self, paths: Paths) -> None:
        argv = plan_of(paths, permissions={"skip_prompts": False}).argv
        assert argv[argv.index("--ask-for-approval") + 1] == "never"
        assert argv[argv.index("--sandbox") + 1] == "workspace-write"
        argv = plan_of(paths, permissions={"skip_prompts": False, "unlisted": "ask"}).argv
        assert argv[argv.index("--ask-for-approval") + 1] == "on-request"
        assert "--dangerously-bypass-approvals-and-sandbox" in plan_of(paths).argv

    def test_searching_the_web(self, paths: Paths) -> None:
        assert "web_search" not in config_of(paths)
        assert config_of(paths, permissions={"deny": ("WebSearch",)})["web_search"] == "disabled"
        assert config_of(paths, permissions={"skip_prompts": False})["web_search"] == "disabled"
        allowed = {"skip_prompts": False, "allow": ("WebSearch",)}
        assert "web_search" not in config_of(paths, permissions=allowed)

    def test_tools_of_servers(self, paths: Paths) -> None:
        library = {"mcp_servers": {name: {"command": "x"} for name in ("a", "b_c", "d", "e")}}
        allow = ("mcp__a", "mcp__b_c__one", "mcp__d__*")
        deny = ("mcp__b_c__two", "mcp__e")
        permissions = {"skip_prompts": False, "allow": allow, "deny": deny}
        servers = config_of(paths, library=library, permissions=permissions)["mcp_servers"]
        common = {"command": "x", "args": [], "env": {}, "env_vars": []}
        assert servers == {
            "a": {**common, "default_tools_approval_mode": "approve"},
            "b_c": {**common, "disabled_tools": ["two"], "tools": {"one": {"approval_mode": "approve"}}},
            "d": {**common, "default_tools_approval_mode": "approve"},
            "e": {**common, "enabled": False},
        }

    def test_hooks(self, paths: Paths) -> None:
        file = paths.state / ".codex/hooks.json"
        assert set(json_in(plan_of(paths), file)["hooks"]) == {"UserPromptSubmit", "Stop"}
        asking = {"skip_prompts": False, "unlisted": "ask"}
        hooks = json_in(plan_of(paths, permissions=asking), file)["hooks"]
        assert set(hooks) == {"UserPromptSubmit", "Stop", "PermissionRequest"}


VALUES = st.recursive(
    st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_as_toml_is_read_as_it_was(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml.written(table)) == table


def test_what_toml_has_not_is_refused() -> None:
    with pytest.raises(TypeError):
        toml.written({"key": None})
