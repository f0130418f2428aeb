from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor import config, harness, main
from forge_supervisor.import_nix import EX_DATAERR, _table

if TYPE_CHECKING:
    from pathlib import Path

ROLE = 'on-call agent.\nSay "hello" to C:\\temp and """everybody""".\n'
USUAL = {"allow": [], "deny": [], "skipPrompts": True}
AGENT: dict[str, Any] = {
    "role": "validation agent.\n", "harness": "claude-code", "model": "opus-4.7", "effort": "max", "runAs": "team",
    "discordBot": None, "skills": [], "mcpServers": [], "plugins": [], "allowedTools": [], "permissions": USUAL,
}  # fmt: skip
SERVICES: dict[str, Any] = {
    "enable": True,
    "users": {"anna": {"sshKeys": ["ssh-ed25519 AAAA anna"]}, "team": {"sshKeys": []}},
    "discord": {"bots": {"team": {"tokenFile": "/run/secrets/team-bot"}}},
    "skills": {"review": {"source": "/nix/store/x-review", "description": "Look at a change"}},
    "plugins": {"discord": {"source": "/nix/store/x-discord"}, "reviews": {"source": "/nix/store/x-reviews"}},
    "mcpServers": {
        "tracker": {"command": "bun", "args": ["run", "/srv/x.ts"], "env": {"DB": "/var/lib/x.db"}},
        "plain": {"command": "npx", "args": [], "env": {}},
    },
    "agents": {
        "coordinator": {
            **AGENT, "role": ROLE, "runAs": "anna", "discordBot": "team", "skills": ["review"], "effort": "high",
            "mcpServers": ["tracker", "plain"], "plugins": ["discord", "reviews"],
            "allowedTools": ["Bash(git *)", "Edit"], "permissions": {**USUAL, "deny": ["WebSearch"]},
        },
        "scout": AGENT,
    },
}  # fmt: skip


def imported(directory: Path, services: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    file = directory / "forge.json"
    file.write_text(services if isinstance(services, str) else json.dumps(services))
    code = main.run(["import-nix", str(file)])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def test_the_equivalent_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, notes = imported(tmp_path, SERVICES, capsys)
    assert code == 0
    assert tomllib.loads(text) == {
        "skills": {"review": {"source": "/nix/store/x-review", "description": "Look at a change"}},
        "plugins": {"discord": {"source": "/nix/store/x-discord"}, "reviews": {"source": "/nix/store/x-reviews"}},
        "mcp_servers": {
            "tracker": {"command": "bun", "args": ["run", "/srv/x.ts"], "env": {"DB": "/var/lib/x.db"}},
            "plain": {"command": "npx"},
        },
        "discord": {"bots": {"team": {"token_file": "/run/secrets/team-bot"}}},
        "agents": {
            "coordinator": {
                "role": ROLE, "run_as": "anna", "model": "claude-opus-4-7", "effort": "high", "discord_bot": "team",
                "skills": ["review"], "mcp_servers": ["tracker", "plain"], "plugins": ["reviews"],
                "allowed_tools": ["Bash(git *)", "Edit"], "permissions": {"deny": ["WebSearch"]},
            },
            "scout": {"role": "validation agent.\n", "run_as": "team", "model": "claude-opus-4-7"},
        },
    }  # fmt: skip
    assert "# The Linux user: useradd --create-home anna\n#   its ~/.ssh/authorized_keys had: ssh-ed25519" in text
    assert [note.partition(":")[0] for note in notes] == [
        "agents.coordinator.model",
        "agents.coordinator.plugins",
        "agents.scout.model",
        "warning",
    ]
    assert "agents.coordinator.allowed_tools: has no effect: permissions.skip_prompts allows all" in notes[3]
    assert "sudo -iu anna claude plugin install discord@claude-plugins-official" in notes[1]
    assert not [problem for problem in config.problems_of(text, harness.HARNESSES) if problem.fatal]


def test_it_can_be_piped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io  # noqa: PLC0415 - of this test alone

    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(SERVICES)))
    assert main.run(["import-nix", "-"]) == 0
    assert "[agents.scout]" in capsys.readouterr().out


def test_what_has_no_meaning_here_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services = {
        "_comment": "x", "enable": False, "dashboard": {}, "agents": {"scout": {**AGENT, "model": None, "niceness": 3}},
        "users": {"eve": {"extraGroups": ["docker"]}}, "discord": {"server": 1},
    }  # fmt: skip
    code, text, notes = imported(tmp_path, services, capsys)
    assert code == 0
    assert "services.forge.enable was false" in text
    assert notes == [
        "dashboard: not carried over (nothing here has this meaning)",
        "users.eve.extraGroups: not carried over (nothing here has this meaning)",
        "discord.server: not carried over (nothing here has this meaning)",
        "agents.scout.niceness: not carried over (nothing here has this meaning)",
    ]


def test_what_config_toml_does_not_take_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agents = {
        "Big.One": AGENT,
        "scout": {**AGENT, "skills": ["none"], "model": "opus"},
        "mute": {**AGENT, "role": None, "permissions": {**USUAL, "deny": ["Bash()"]}},
    }
    code, text, notes = imported(tmp_path, {"agents": agents}, capsys)
    assert code == 0
    assert '[agents."Big.One"]' in text
    assert [note.partition(": ")[2].partition(":")[0] for note in notes if note.startswith("to be mended")] == [
        'agents."Big.One"',
        "agents.scout.skills",
        "agents.mute.role",
        "agents.mute.permissions.deny",
    ]


@pytest.mark.parametrize(
    ("services", "told"),
    [
        ("", "is no JSON"),
        ("error: attribute 'forge' missing", "is no JSON"),
        ([], "services.forge is no object"),
        ({"agents": []}, "agents is no object"),
        ({"mcpServers": {"x": {"args": ["a", None]}}}, 'the list "args" holds null'),
        ('{"agents": {"scout": {"role": "x \\ud800 y"}}}', '"role" holds half a character'),
        ({"agents": {"scout": 3}}, "agents.scout is no object"),
        ({"agents": {"scout": {**AGENT, "permissions": []}}}, "agents.scout.permissions is no object"),
        ({"discord": {"bots": {"x": "y"}}}, "bots.x is no object"),
    ],
)
def test_what_is_no_such_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], services: Any, told: str
) -> None:
    code, text, notes = imported(tmp_path, services, capsys)
    assert (code, text, len(notes)) == (EX_DATAERR, "", 1)
    assert notes[0].startswith(str(tmp_path / "forge.json"))
    assert told in notes[0]


def test_a_missing_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["import-nix", str(tmp_path / "none")]) == EX_DATAERR
    assert capsys.readouterr().err == f"{tmp_path}/none cannot be read: No such file or directory\n"


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), min_size=1))
def test_any_text_is_written_so_that_it_reads_the_same(values: dict[str, str]) -> None:
    assert tomllib.loads(_table(values).as_string()) == values
