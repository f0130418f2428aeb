"""forgectl doctor: how it tells what was found, and what it makes of the configuration and of each agent's answers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from config_lab import ROOT, RUN_AS, SOMEBODY, loaded, write

from forge_supervisor.cli import doctor, doctor_agents, doctor_users
from forge_supervisor.cli.doctor_scene import Finding, Scene, ask, of_sentence, ok, problem, warning
from forge_supervisor.declared import Preparation
from forge_supervisor.handshake import LaunchError
from forge_supervisor.worker.client import WorkerLostError
from forge_supervisor.worker.messages import Finding as Told
from forge_supervisor.worker.messages import Prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forge_supervisor.config import Config

ONE = '[agents.scout]\nharness = "command"\ncommand = ["/bin/sleep", "1"]\n'
HERE = Scene(system=ROOT, is_root=ROOT)
TOKEN = "hunter2-correct-horse-battery-staple"  # noqa: S105


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the doctor find just that."""

    def find(*findings: Finding) -> None:
        monkeypatch.setattr(doctor, "examine", lambda *_: iter(findings))

    return find


def test_each_finding_is_a_line_with_its_way_out(find: Any, capsys: pytest.CaptureFixture[str]) -> None:
    find(ok("tmux", "fine"), warning("limits", "none", "reboot"), problem("user x", "is not there", "useradd x"))
    assert doctor.run(None, as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      tmux: fine",
        "warning limits: none → reboot",
        "problem user x: is not there → useradd x",
        "1 problem, 1 warning",
    ]


@pytest.mark.parametrize("status", ["ok", "warning", "skipped"])
def test_without_a_problem_the_exit_code_is_0(find: Any, status: Any, capsys: pytest.CaptureFixture[str]) -> None:
    find(Finding("x", status, "y", "z"))
    assert doctor.run(None, as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no problems, ")


def test_programs_get_a_list(find: Any, capsys: pytest.CaptureFixture[str]) -> None:
    find(problem("a", "b", "c"), ok("d", "e"))
    assert doctor.run(None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"check": "a", "status": "problem", "text": "b", "fix": "c"},
        {"check": "d", "status": "ok", "text": "e", "fix": ""},
    ]


@pytest.mark.parametrize("as_json", [True, False])
def test_what_others_say_acts_on_no_terminal(find: Any, as_json: Any, capsys: pytest.CaptureFixture[str]) -> None:
    find(problem("a\x1b[2J", "b\n\nok      faked: c\u202e", "d\x9b1m\re"))
    doctor.run(None, as_json=as_json)
    out = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(json.loads(out)[0]["text"] if as_json else out)
    assert "\nok      faked" not in out


def test_colours_are_for_terminals() -> None:
    assert doctor.line(ok("a", "b"), coloured=True) == "\033[32mok     \033[0m a: b"


def test_a_check_that_fails_is_a_problem_and_what_it_found_before_counts() -> None:
    def check() -> Iterator[Finding]:
        yield ok("a", "b")
        raise PermissionError(13, "Permission denied", "/x")

    first, second = doctor.guarded("a", check)
    assert first == ok("a", "b")
    assert (second.check, second.status) == ("a", "problem")
    assert second.text == "could not be looked at: [Errno 13] Permission denied: '/x'"
    assert second.fix


@pytest.mark.parametrize(("sentence", "text", "fix"), [
    ("no such user (useradd -m team)", "no such user", "useradd -m team"),
    ("is closed (see: namei -l /x (y))", "is closed", "see: namei -l /x (y)"),
    ("not logged in: run `sudo -iu team claude auth login`", "not logged in", "sudo -iu team claude auth login"),
    ("5 must be at least delay_sec (90 s)", "5 must be at least delay_sec (90 s)", "otherwise"),
    ("delay (5 s) is short", "delay (5 s) is short", "otherwise"),
    ("odd)", "odd)", "otherwise"),
    ("(useradd -m team)", "(useradd -m team)", "otherwise"),
    ("plain", "plain", "otherwise"),
])  # fmt: skip
def test_sentences_with_their_own_way_out_are_taken_apart(sentence: str, text: str, fix: str) -> None:
    assert of_sentence("a", "warning", sentence, "otherwise") == warning("a", text, fix)


def test_programs_are_asked_with_next_to_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMD_PAGER", "evil")
    names = {line.partition("=")[0] for line in ask(["env"]).out.splitlines()}
    assert names <= {"PATH", "LC_ALL", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"}
    assert ask(["sh", "-c", "echo no >&2; exit 3"]).err == "no"
    assert ask(["sh", "-c", "echo no >&2; exit 3"]).code == 3


def test_programs_have_no_terminal_of_ours() -> None:
    # The first of a session has no terminal.
    session, pid = ask(["sh", "-c", "read -r line; ps -o sid= -p $$; echo $$"]).out.split()
    assert session == pid


def test_programs_do_not_read_what_was_meant_for_us() -> None:
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        os.write(writing, b"ours\n")
        assert ask(["head", "-n", "1"]).out == ""
    finally:
        os.dup2(before, 0)
        for descriptor in (reading, writing, before):
            os.close(descriptor)


def test_a_program_that_is_missing_is_an_answer() -> None:
    answer = ask(["no-such-program"])
    assert (answer.code, answer.err) == (127, "no-such-program is not installed")


@pytest.mark.skipif(not ROOT, reason="needs root, who alone can become somebody else")
def test_a_program_runs_as_the_user_with_its_groups_alone() -> None:
    from forge_supervisor.units import lookup  # noqa: PLC0415 - for this one

    user = lookup(SOMEBODY.pw_name)
    said = ask(["sh", "-c", "id -u; id -g; id -G"], user=user).out.splitlines()
    assert said[:2] == [str(user.uid), str(user.gid)]
    assert {*map(int, said[2].split())} == set(user.groups)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a configuration may be, whoever runs the tests."""
    trusted: Path = request.getfixturevalue("roots") if ROOT else tmp_path
    return trusted


def test_everything_is_looked_at_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(name: str) -> Any:
        def note(*_: object) -> Iterator[Finding]:
            looked.append(name)
            return iter(())

        return note

    monkeypatch.setattr(doctor, "_SYSTEM", (("tmux", look("tmux")),))
    monkeypatch.setattr(doctor_users, "checks", lambda _, user: [look(f"user {user}")])
    monkeypatch.setattr(doctor_agents, "agent", lambda *args: look(f"agent {args[2]}")())
    path = write(place, RUN_AS + ONE + ONE.replace("scout", "idle") + "enabled = false\n")
    (found,) = doctor.examine(HERE, path)
    assert found == ok("configuration", f"{path} is right; agents declared: 2, enabled: 1")
    assert looked == ["tmux", f"user {SOMEBODY.pw_name}", "agent scout"]


def test_without_a_configuration_the_machine_is_looked_at_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SYSTEM", (("tmux", lambda _: [ok("tmux", "there")]),))
    statuses = [(one.check, one.status) for one in doctor.examine(HERE, place / "none.toml")]
    assert statuses == [("configuration", "problem"), ("tmux", "ok"), ("agents", "skipped")]


def test_every_problem_of_the_configuration_is_one(place: Path) -> None:
    path = write(place, "colour = 1\n" + RUN_AS + ONE.replace("command =", "comand ="))
    config, found = doctor_agents.configuration(HERE, path)
    assert config is None
    assert {one.status for one in found} == {"problem"}
    assert problem("configuration", f"{path}: agents.scout.comand: unknown key", 'did you mean "command"?') in found
    assert any(one.text.startswith(f"{path}: colour: unknown key") for one in found)


def test_warnings_of_the_configuration_are_some(place: Path) -> None:
    path = write(place, f'disabled = ["scuot"]\n{RUN_AS}{ONE}')
    config, (first, second) = doctor_agents.configuration(HERE, path)
    assert config is not None
    assert first.status == "ok"
    assert second == warning(
        "configuration",
        f'{path}: disabled: there is no agent "scuot"',
        f"mend it; forge-supervisor --check --config {path} tells when it is right",
    )


def test_a_configuration_that_others_may_write_is_a_problem_with_a_command(place: Path) -> None:
    path = write(place, RUN_AS + ONE)
    path.chmod(0o646)
    _, found = doctor_agents.configuration(HERE, path)
    assert problem("configuration", f"{path}: everybody may write it", f"chmod o-w {path}") in found


def test_the_systems_configuration_that_only_root_may_read_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    path = write(tmp_path, "broken")
    config, (found,) = doctor_agents.configuration(Scene(system=True, is_root=False), path)
    assert config is None
    assert found == Finding("configuration", "skipped", f"{path}, and the agents that it declares (run it as root)")


@pytest.fixture
def scout(tmp_path: Path) -> Config:
    return loaded(tmp_path, ONE)


def answered(monkeypatch: pytest.MonkeyPatch, answer: Preparation | Exception) -> None:
    async def consult(*_: object) -> Preparation:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(doctor_agents, "_consult", consult)


def test_what_an_agents_user_says_is_told_without_its_secrets(scout: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        Told(key="cwd", text=f"{TOKEN} is no directory (make it so)", fatal=True),
        Told(key="", text="not logged in: run `sudo -iu x claude auth login`", fatal=False),
        Told(key="skills.a", text="odd", fatal=False),
    ]
    answered(monkeypatch, Preparation(Prepared(argv=["/x"], cwd="/", env={}, findings=told), {"T": TOKEN}))
    assert list(doctor_agents.agent(HERE, scout, "scout")) == [
        problem("agent scout", "agents.scout.cwd: [secret] is no directory", "make it so"),
        warning("agent scout", "not logged in", "sudo -iu x claude auth login"),
        warning("agent scout", "skills.a: odd", "forge-supervisor explain scout shows what it is started with"),
    ]


def test_an_agent_that_can_be_started_is_told_with_its_program(scout: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = Prepared(argv=["/bin/claude", "-x"], cwd="/", env={}, findings=[], version="2.1")
    answered(monkeypatch, Preparation(prepared))
    (found,) = doctor_agents.agent(HERE, scout, "scout")
    assert found == ok("agent scout", f"/bin/claude 2.1 can be started as {SOMEBODY.pw_name}")


@pytest.mark.parametrize("error", [LaunchError("run_as", "it is closed (open it up)"), WorkerLostError("it ended")])
def test_an_agent_that_cannot_be_asked_is_a_problem(
    scout: Config, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answered(monkeypatch, error)
    (found,) = doctor_agents.agent(HERE, scout, "scout")
    assert found.status == "problem"
    assert found.text in {"it cannot be started: agents.scout.run_as: it is closed", "it cannot be started: it ended"}
    assert found.fix in {"open it up", "forge-supervisor explain scout shows what it is started with"}


def test_another_users_agent_takes_root(scout: Config) -> None:
    agent = scout.agents["scout"].model_copy(update={"run_as": "daemon"})
    scout.agents["scout"] = agent
    (found,) = doctor_agents.agent(Scene(system=True, is_root=False), scout, "scout")
    assert found == Finding("agent scout", "skipped", "whether it can be started as daemon (run it as root)")


def test_an_ordinary_user_without_a_supervisor_of_its_own_looks_at_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = write(tmp_path / "etc", ONE)
    own = tmp_path / "own.toml"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "SYSTEM_CONFIG", system)
    monkeypatch.setattr(doctor, "default_config", lambda: own)
    monkeypatch.setattr(doctor, "socket_path", lambda: "/run/forge-supervisor/io.forge.Supervisor")
    assert doctor.scene_of(None) == (Scene(system=True, is_root=False), system)
    assert doctor.scene_of(tmp_path / "x") == (Scene(system=False, is_root=False), tmp_path / "x")
    with monkeypatch.context() as none:
        none.setattr(doctor, "SYSTEM_CONFIG", tmp_path / "none/config.toml")
        assert doctor.scene_of(None) == (Scene(system=False, is_root=False), own)
    with monkeypatch.context() as running:
        running.setattr(doctor, "socket_path", lambda: "/run/user/1000/forge-supervisor/io.forge.Supervisor")
        assert doctor.scene_of(None) == (Scene(system=False, is_root=False), own)
    own.touch()
    assert doctor.scene_of(None) == (Scene(system=False, is_root=False), own)
