"""What `explain` and `shell` say is what runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from harness_lab import wait_for

if TYPE_CHECKING:
    from claude_lab import Lab
    from harness_lab import Json

SECRET = "hunter2-correct-horse-battery"  # noqa: S105


def declared(lab: Lab) -> tuple[Json, Json]:
    lab.give(lab.home / "secret", SECRET + "\n")
    lab.give(lab.home / "library/whistle/SKILL.md", "---\ndescription: x\n---\nx")
    lab.give(lab.home / "plugins/p/.claude-plugin/plugin.json", '{"name": "p"}')
    library = {
        "skills": {"whistle": {"source": str(lab.home / "library/whistle"), "description": "About it."}},
        "plugins": {"p": {"source": str(lab.home / "plugins/p")}},
        "mcp_servers": {"tracker": lab.mcp_server("tracker", secrets={"TRACKER": str(lab.home / "secret")})},
    }
    agent = {
        "skills": ["whistle"], "plugins": ["p"], "mcp_servers": ["tracker"], "model": "opus", "allowed_tools": ["Edit"],
        "permissions": {"skip_prompts": False, "deny": ["WebFetch"]}, "add_dirs": ["~/work"],
        "extra_args": ["--verbose"],
    }  # fmt: skip
    return {"scout": agent}, library


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_explain_equals_what_really_runs(lab: Lab) -> None:
    lab.start(*declared(lab))
    pid = lab.prompt("scout")
    answer = lab.command("explain", "scout", "--json")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1] == told["argv"]
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == told["cwd"]
    environment = environment_of(pid)
    assert environment.pop("TERM") == "tmux-256color"
    assert environment.pop("TMUX")
    assert environment.pop("TMUX_PANE")
    assert environment.pop("INVOCATION_ID")
    assert environment.pop("TRACKER") == SECRET
    del told["env"]["INVOCATION_ID"]
    assert told["env"].pop("TRACKER") == "[secret]"
    assert environment == told["env"]
    for written in told["written"]:
        path = Path(written["path"])
        match written["kind"]:
            case "file":
                assert path.read_text() == written["text"]
            case "link":
                assert str(path.readlink()) == written["text"]
            case "folder":
                assert path.is_dir()
            case "seed":
                seed, there = json.loads(written["text"]), json.loads(path.read_text())
                for project, values in seed["projects"].items():
                    assert values.items() <= there["projects"][project].items()


def test_for_people_it_says_the_same_and_no_secret(lab: Lab) -> None:
    lab.start(*declared(lab))
    pid = lab.prompt("scout")
    wait_for(lab.spawned, "the server is not started")
    answer = lab.command("explain", "scout")
    assert SECRET not in answer.stdout + answer.stderr
    assert Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0] in answer.stdout
    assert "TRACKER=[secret]" in answer.stdout
    assert "mcp_servers.tracker.secrets.TRACKER in " in answer.stdout
    assert "# scout" in answer.stdout


def test_a_shell_is_where_and_as_the_agent_is(lab: Lab) -> None:
    lab.start(*declared(lab))
    environment = environment_of(lab.prompt("scout"))
    answer = lab.command("shell", "scout", "sh", "-c", "pwd; id -un; env -0")
    assert answer.returncode == 0, answer.stderr
    where, who, variables = answer.stdout.split("\n", 2)
    assert (where, who) == (str(lab.state_of("scout")), lab.user)
    seen = dict(pair.split("=", 1) for pair in variables.split("\0") if pair)
    for of_one_only in ("TERM", "TMUX", "TMUX_PANE", "INVOCATION_ID"):
        environment.pop(of_one_only)
    for of_the_shell in ("PWD", "OLDPWD", "SHLVL", "_"):
        seen.pop(of_the_shell, None)
    assert seen == environment
    assert lab.command("shell", "scout", stdin="exit 3\n").returncode == 3


def test_an_agent_that_there_is_not(lab: Lab) -> None:
    lab.configure({"scout": {}})
    for verb in ("explain", "shell"):
        answer = lab.command(verb, "scuot")
        assert (answer.returncode, answer.stdout) == (4, "")
        assert 'there is no agent "scuot" (did you mean "scout"?)' in answer.stderr


def test_one_that_was_never_started_has_no_seat_yet(lab: Lab) -> None:
    lab.configure({"scout": {}})
    assert lab.command("explain", "scout").returncode == 0
    answer = lab.command("shell", "scout", "true")
    assert answer.returncode == 1
    assert "an agent's directory is made by its first start" in answer.stderr
