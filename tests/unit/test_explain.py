from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from config_lab import SOMEBODY, loaded, write

from forge_supervisor import harness, units
from forge_supervisor.declared import Declared, Preparation
from forge_supervisor.explain import Explanation
from forge_supervisor.harness import NEW_EACH_TIME
from forge_supervisor.secrets import MASK
from forge_supervisor.worker.messages import Finding, Prepared, Written

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hunter2-correct-horse-battery-staple"  # noqa: S105
CONFIG = """
defaults.env.TZ = "UTC"
[agents.scout]
role = "Look ahead."
path = ["/opt/bin"]
env.COLOUR = "red"
secrets.TOKEN = "/s/token"
"""


def explanation(directory: Path, **keys: Any) -> Explanation:
    config = loaded(directory, CONFIG, harnesses=harness.HARNESSES)
    prepared = Prepared(
        **{
            "argv": ["/opt/bin/claude", "--flag", "two words"],
            "cwd": "/home/team/scout",
            "env": {"QUIET": "1", "COLOUR": "blue"},
            "findings": [Finding(key="secrets.TOKEN", text=f"it is {TOKEN}", fatal=False)],
            "written": [
                Written(kind="file", path="/s/CLAUDE.md", text="# scout\n\nx", origin=["role"]),
                Written(kind="link", path="/s/skills/a", text="/srv/a", origin=["skills.a"]),
                Written(kind="folder", path="/s/.git", text=""),
                Written(kind="seed", path="/h/.claude.json", text=json.dumps({"approved": [TOKEN[-20:]]})),
            ],
            **keys,
        }
    )
    user = units.User("team", 1001, 1001, (1001,), "/home/team", "/bin/bash")
    declared = Declared.of(config.agents["scout"], config)
    return Explanation(config, declared, user, Preparation(prepared, {"TOKEN": TOKEN}))


def test_the_environment_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    told = explanation(tmp_path).as_json()
    file = tmp_path / "config.toml"
    assert told["env"] == {
        "HOME": "/home/team", "USER": "team", "LOGNAME": "team", "SHELL": "/bin/bash", "LANG": "C.UTF-8",
        "PATH": "/opt/bin", "QUIET": "1", "TZ": "UTC", "COLOUR": "red", "TOKEN": MASK,
        "FORGE_AGENT": "scout", "INVOCATION_ID": NEW_EACH_TIME,
    }  # fmt: skip
    origins = told["env_origins"]
    assert origins["HOME"] == "the account of team"
    assert origins["PATH"] == f"agents.scout.path in {file}"
    assert origins["QUIET"] == "the harness claude-code"
    assert origins["TZ"] == f"defaults.env.TZ in {file}"
    assert origins["COLOUR"] == f"agents.scout.env.COLOUR in {file}"
    assert origins["TOKEN"] == f"/s/token, agents.scout.secrets.TOKEN in {file}"


def test_files_are_told_with_what_they_follow_from(tmp_path: Path) -> None:
    file, link, folder, seed = explanation(tmp_path).as_json()["written"]
    assert file["origin"] == f"agents.scout.role in {tmp_path}/config.toml"
    assert link["origin"] == "skills.a"
    assert folder["origin"] == seed["origin"] == "the harness claude-code"


@pytest.mark.parametrize("part", [TOKEN, TOKEN[-20:]])
def test_no_secret_is_told_nor_the_end_by_which_a_program_remembers_it(tmp_path: Path, part: str) -> None:
    told = explanation(tmp_path)
    assert part not in json.dumps(told.as_json())
    assert part not in "\n".join(told.lines())


def test_people_read_the_same(tmp_path: Path) -> None:
    lines = list(explanation(tmp_path).lines())
    assert lines[0] == f"scout: claude-code as {SOMEBODY.pw_name}"
    assert lines[1] == f"  warning: agents.scout.secrets.TOKEN: it is {MASK}"
    assert "  /opt/bin/claude --flag 'two words'" in lines
    assert f"  TOKEN={MASK}    # /s/token, agents.scout.secrets.TOKEN in {tmp_path}/config.toml" in lines
    assert "  TERM, TMUX, TMUX_PANE    # tmux" in lines
    assert f"File /s/CLAUDE.md (from agents.scout.role in {tmp_path}/config.toml):" in lines
    assert "  | # scout" in lines
    assert "Link /s/skills/a -> /srv/a (from skills.a)" in lines


def test_one_that_cannot_be_started_is_told_so_and_no_more(tmp_path: Path) -> None:
    findings = [Finding(key="skills.a.source", text="is gone", fatal=True)]
    lines = list(explanation(tmp_path, argv=[], findings=findings).lines())
    assert lines[1:] == ["  cannot be started: skills.a.source: is gone"]


def test_a_key_that_looks_like_a_secret_stays_a_key(tmp_path: Path) -> None:
    """Only values are masked: a secret may be any word."""
    config = loaded(tmp_path, CONFIG)
    write(tmp_path, CONFIG)
    user = units.User("team", 1001, 1001, (1001,), "/home/team", "/bin/bash")
    prepared = Prepared(argv=["/x"], cwd="/", env={}, findings=[])
    told = Explanation(
        config, Declared.of(config.agents["scout"], config), user, Preparation(prepared, {"TOKEN": "argv"})
    ).as_json()
    assert told["argv"] == ["/x"]
