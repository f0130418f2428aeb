"""Skills, MCP servers and plugins: what is put on disk for them, and what is found missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from claude_plan_lab import fatal, home_of, plan_of
from plan_lab import file_of, json_in, program, write

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def skill(directory: Path, text: str = "---\ndescription: x\n---\n") -> dict[str, Any]:
    write(directory / "SKILL.md", text)
    return {"source": str(directory)}


def plugin(directory: Path, manifest: Any) -> dict[str, Any]:
    write(directory / ".claude-plugin/plugin.json", manifest)
    return {"source": str(directory)}


class TestMcpServers:
    def test_they_are_in_mcp_json_without_their_secrets(self, paths: Paths) -> None:
        library = {
            "mcp_servers": {
                "tracker": {
                    "command": "~/bin/tracker", "args": ["--db", "x y"], "env": {"A": "b"},
                    "secrets": {"TOKEN": "/s/token"},
                },
                "plain": {"command": "npx"},
            }
        }  # fmt: skip
        plan = plan_of(paths, library=library, secrets={"TOKEN": "hunter2"})
        file = paths.state / ".mcp.json"
        assert json_in(plan, file) == {
            "mcpServers": {
                "tracker": {
                    "command": str(paths.home / "bin/tracker"),
                    "args": ["--db", "x y"],
                    "env": {"A": "b", "TOKEN": "${TOKEN}"},
                },
                "plain": {"command": "npx", "args": [], "env": {}},
            }
        }
        assert file_of(plan, file).origin == ("mcp_servers.tracker", "mcp_servers.plain")

    def test_without_any_the_file_is_there_all_the_same(self, paths: Paths) -> None:
        """Trap: --mcp-config of a missing file ends claude."""
        assert json_in(plan_of(paths), paths.state / ".mcp.json") == {"mcpServers": {}}

    def test_a_command_that_the_agent_cannot_find(self, paths: Paths) -> None:
        program(paths.home / ".local/bin/there", "")
        library = {"mcp_servers": {"a": {"command": "there"}, "b": {"command": "bun"}, "c": {"command": "/no/such"}}}
        ((key, text),) = [found for found in fatal(paths, library=library) if found[0] == "mcp_servers.b.command"]
        assert text.startswith(f"bun was not found on {paths.home}/.local/bin:/usr/bin:/bin (install it")
        assert [found[0] for found in fatal(paths, library=library)] == [key, "mcp_servers.c.command"]


class TestSkills:
    def test_they_are_linked_and_listed(self, paths: Paths) -> None:
        library = {
            "skills": {
                "review": {"source": "/srv/review", "description": "Look at\n  a change"},
                "tidy": {"source": "~/tidy"},
            }
        }
        plan = plan_of(paths, library=library)
        skills = paths.state / ".claude/skills"
        assert [(link.path, str(link.target)) for link in plan.links] == [
            (skills / "review", "/srv/review"),
            (skills / "tidy", str(paths.home / "tidy")),
        ]
        catalog = file_of(plan, paths.state / ".claude/skill-catalog.md").text
        assert catalog == "# Available skills\n\n- /review: Look at a change\n- /tidy\n"

    def test_without_any_the_catalog_says_so(self, paths: Paths) -> None:
        catalog = file_of(plan_of(paths), paths.state / ".claude/skill-catalog.md")
        assert catalog.text == "# Available skills\n\nNone.\n"

    def test_a_missing_source_and_one_that_is_no_skill(self, paths: Paths, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        library = {
            "skills": {
                "good": skill(tmp_path / "good"),
                "gone": {"source": str(tmp_path / "gone")},
                "empty": {"source": str(tmp_path / "empty")},
            }
        }
        assert fatal(paths, library=library) == [
            (
                "skills.gone.source",
                f"{tmp_path}/gone is no directory that team can see (namei -l {tmp_path}/gone)",
            ),
            (
                "skills.empty.source",
                f"{tmp_path}/empty has no SKILL.md that team can read (is it the right directory?)",
            ),
        ]

    def test_the_users_own_come_only_if_they_are_inherited(self, paths: Paths) -> None:
        write(paths.home / ".claude/skills/own/SKILL.md", "x")
        write(paths.home / ".claude/skills/review/SKILL.md", "x")
        write(paths.home / ".claude/skills/no-skill/README.md", "x")
        library = {"skills": {"review": {"source": "/srv/review"}}}
        assert [link.path.name for link in plan_of(paths, library=library).links] == ["review"]
        inherited = plan_of(paths, library=library, inherit=("user-skills",)).links
        assert {link.path.name: str(link.target) for link in inherited} == {
            "review": "/srv/review",
            "own": str(paths.home / ".claude/skills/own"),
        }


class TestPlugins:
    """Trap: claude starts without a plugin that it cannot read, and says nothing."""

    @pytest.mark.parametrize("manifest", ["", "{}", "[]", {"name": "two words"}, {"name": ""}, {"name": 3}])
    def test_a_manifest_that_claude_does_not_take(self, paths: Paths, tmp_path: Path, manifest: Any) -> None:
        ((key, text),) = fatal(paths, library={"plugins": {"x": plugin(tmp_path / "x", manifest)}})
        assert key == "plugins.x.source"
        assert 'has no usable "name"' in text

    def test_a_directory_without_a_manifest(self, paths: Paths, tmp_path: Path) -> None:
        write(tmp_path / "x/plugin.json", {"name": "x"})
        ((key, text),) = fatal(paths, library={"plugins": {"x": {"source": str(tmp_path / "x")}}})
        assert (key, "has no .claude-plugin/plugin.json that team can read" in text) == ("plugins.x.source", True)

    def test_two_of_one_name(self, paths: Paths, tmp_path: Path) -> None:
        """Claude takes the skills of the first and the servers of the last."""
        library = {"plugins": {name: plugin(tmp_path / name, {"name": "same"}) for name in ("a", "b")}}
        ((key, text),) = fatal(paths, library=library)
        assert key == "plugins.b.source"
        assert text.startswith('is the plugin "same", as plugins.a is')

    def test_one_whose_server_failed_before_is_tried_again(self, paths: Paths, tmp_path: Path) -> None:
        """Trap: claude does not start a plugin's server for 15 minutes after it failed once."""
        cache = write(
            paths.home / ".claude/mcp-needs-auth-cache.json",
            {"plugin:mine:server": {"timestamp": 1}, "plugin:other:x": {}, "remote": {"timestamp": 2}},
        )
        library = {"plugins": {"x": plugin(tmp_path / "x", {"name": "mine"})}}
        (seed,) = (seed for seed in plan_of(paths, library=library).seeds if seed.path == cache)
        assert (seed.values, seed.removed) == ({}, frozenset({"plugin:mine:server"}))
        assert not [seed for seed in plan_of(paths).seeds if seed.path == cache]
