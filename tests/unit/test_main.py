from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from config_lab import RUN_AS

from forge_supervisor import check, main, version
from forge_supervisor.memory import Memory, State
from forge_supervisor.saved import Saved, Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"forge-supervisor {version()}\n"


def test_schema_is_what_editors_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "agents" in schema["properties"]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    config = tmp_path / "config.toml"
    config.write_text("colour = 1\n[defaults]\nrun_as = 'x'\n[agents.UPPER]\n")
    config.chmod(0o600)
    return config


def test_check_tells_every_problem_in_a_line(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--config", str(broken), "--check"]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    keys = [line.removeprefix(f"{broken}: ").split(": ")[0] for line in said.err.splitlines()]
    assert set(keys) >= {"colour", "agents.UPPER"}


def test_a_broken_config_is_an_event_a_problem_and_exit_code_78(
    broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["--config", str(broken), "--log-format", "json"]) == 78
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {(line["event"], line["level"], line["file"]) for line in told} == {("config_error", "error", str(broken))}
    assert {line["key"] for line in told} >= {"colour", "agents.UPPER"}


@pytest.mark.parametrize(
    ("policy", "memory", "anew"),
    [
        ("always", None, False),
        ("always", Memory(fresh=True), True),
        ("never", Memory(state=State.RUNNING, alive=True), True),
        ("after-failure", None, True),
        ("after-failure", Memory(state=State.INACTIVE, ended_cleanly=True), True),
        ("after-failure", Memory(state=State.AUTO_RESTART, ended_cleanly=False), False),
        ("after-failure", Memory(state=State.RUNNING, alive=True), False),
    ],
)
def test_explain_knows_what_the_supervisor_knows_of_the_last_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, memory: Memory | None, *, anew: bool
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"{RUN_AS}[agents.scout]\nrole = 'x'\nresume.policy = '{policy}'\n")
    config.chmod(0o600)
    if memory is not None:
        left = Saved(
            boot="", socket_name="forge", run_as="x", declared={}, stop_timeout_sec=1, life=memory, session=None
        )
        Store(tmp_path / "run/agents").write("scout", left)
    asked: list[bool] = []

    async def explain(*_: object, as_json: bool, fresh: bool) -> int:
        asked.append(fresh)
        return int(as_json)

    monkeypatch.setattr(check, "explain", explain)
    assert main.run(["--config", str(config), "explain", "scout"]) == 0
    assert asked == [anew]


def test_settings_of_a_harness_that_is_not_there_are_warned_of(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[harnesses.claud-code]\nversion = '1'\n[harnesses.command]\n")
    config.chmod(0o600)
    warnings = [problem for problem in main.load(config).warnings if problem.key != "agents"]
    assert [(problem.key, problem.fatal) for problem in warnings] == [("harnesses.claud-code", False)]
    assert "installed: claude-code, codex, command" in warnings[0].text


def test_the_default_config_is_the_systems_or_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(main.default_config()) == "/etc/forge-supervisor/config.toml"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/cfg")
    assert str(main.default_config()) == "/home/me/cfg/forge-supervisor/config.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(main.default_config()) == "/home/me/.config/forge-supervisor/config.toml"


def test_a_runtime_directory_that_cannot_be_made_is_exit_code_75(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    config.chmod(0o600)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(config / "run"))
    assert main.run(["--config", str(config)]) == 75
    assert f"the runtime directory {config}/run cannot be used" in capsys.readouterr().err


def test_no_supervisor_carries_what_others_load() -> None:
    """Some megabytes, as long as it runs."""
    script = (
        "import sys, forge_supervisor.main; loaded = {'rich', 'pygments', 'textual', 'tomlkit'} & sys.modules.keys(); "
        "assert not loaded, loaded; import rich"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_a_harness_has_begun_is_not_waited_for() -> None:
    """Trap: python joins the threads of a pool as it ends, whoever has made that."""
    program = (
        "import sys, time; from concurrent.futures import ThreadPoolExecutor; from forge_supervisor import main;"
        "ThreadPoolExecutor().submit(time.sleep, 300); sys.argv[1:] = ['--version']; main.main()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout.split()[0], run.stderr) == (0, "forge-supervisor", "")
