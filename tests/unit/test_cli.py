"""forgectl with a supervisor that is played: arguments, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agents_lab import agent

from forge_supervisor import version
from forge_supervisor.cli import agents, client, enabled, main
from forge_supervisor.config import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Calls = list[tuple[str, dict[str, Any]]]
FAILED = {"state": "failed", "result": "exit-code", "exit_code": 3, "pid": None}


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Calls]:
    """What is answered, method by method, to be changed; and what was asked."""
    answers: dict[str, Any] = {
        "List": {"agents": [agent("scout"), agent("scout-2"), agent("coder", **FAILED)]},
        "Capture": {"screen": ["", "  ready", ""]},
    }
    calls: Calls = []

    def call(method: str, parameters: dict[str, Any] | None = None) -> Any:
        calls.append((method, parameters or {}))
        answer = answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer(parameters) if callable(answer) else answer

    def stream(method: str) -> Iterator[Any]:
        yield from answers[method]

    monkeypatch.setattr(client, "call", call)
    monkeypatch.setattr(client, "stream", stream)
    return answers, calls


def acts(state: str = "running") -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda parameters: {"agents": [agent(name, state=state) for name in parameters["agents"]]}


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The programs that it would have become, and their environments."""
    seen: list[tuple[list[str], dict[str, str]]] = []

    def execve(_path: str, argv: list[str], env: dict[str, str]) -> None:
        seen.append((argv, env))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(shutil, "which", lambda program, **_: program)
    return seen


@pytest.mark.usefixtures("supervisor")
def test_status_of_all_is_well_whatever_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["status"]) == 0
    said = capsys.readouterr().out
    assert "failed (exit code 3)" in said
    assert said.endswith("2 running, 1 failed\n")


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize(
    ("names", "code"), [(["scout"], 0), (["scout*"], 0), (["coder"], 3), (["scout", "coder"], 3), (["nobody"], 4)]
)
def test_status_of_some_tells_by_its_exit_code(names: list[str], code: int) -> None:
    assert main.run(["status", *names]) == code


@pytest.mark.usefixtures("supervisor")
def test_status_of_one_shows_its_screen(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["status", "scout"])
    assert capsys.readouterr().out.endswith("    |   ready\n")
    main.run(["status", "-n0", "scout"])
    assert "|" not in capsys.readouterr().out


@pytest.mark.usefixtures("supervisor")
def test_json_is_what_the_supervisor_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["status", "--json", "scout-*"]) == 0
    assert json.loads(capsys.readouterr().out) == [agent("scout-2")]


@pytest.mark.parametrize(
    ("verb", "method"),
    [("start", "Start"), ("stop", "Stop"), ("restart", "Restart"), ("reset-failed", "ResetFailed")],
)
def test_the_verbs_act_on_those_that_patterns_mean(supervisor: Any, verb: str, method: str) -> None:
    answers, calls = supervisor
    answers[method] = acts()
    assert main.run([verb, "scout*", "scout"]) == 0
    assert calls[-1] == (method, {"agents": ["scout", "scout-2"]})


def test_a_restart_may_begin_anew(supervisor: Any) -> None:
    answers, calls = supervisor
    answers["Restart"] = acts()
    assert main.run(["restart", "--fresh", "scout"]) == 0
    assert calls[-1] == ("Restart", {"agents": ["scout"], "fresh": True})
    with pytest.raises(SystemExit):
        main.run(["start", "--fresh", "scout"])


def test_a_start_that_fails_is_a_failure_and_a_stop_is_none(
    supervisor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, _ = supervisor
    answers["Start"] = {"agents": [agent("coder", **FAILED, start_limit_hit=True)]}
    answers["Stop"] = acts("inactive")
    assert main.run(["start", "coder"]) == 1
    said = capsys.readouterr()
    assert said.out == "coder: failed (start limit)\n"
    assert "forgectl reset-failed coder" in said.err
    answers["Start"] = {"agents": [agent("coder", **FAILED, daily_limit_hit=True)]}
    assert main.run(["start", "coder"]) == 1
    said = capsys.readouterr()
    assert said.out == "coder: failed (daily limit)\n"
    assert "forgectl reset-failed coder" in said.err
    assert main.run(["stop", "coder"]) == 0


def test_all_are_those_that_are_enabled_and_for_a_stop_all(supervisor: Any) -> None:
    answers, calls = supervisor
    answers["List"]["agents"][1]["enabled"] = False
    answers["Start"], answers["Stop"] = acts(), acts("inactive")
    main.run(["start", "--all"])
    assert calls[-1][1] == {"agents": ["scout", "coder"]}
    main.run(["stop", "--all"])
    assert calls[-1][1] == {"agents": ["scout", "scout-2", "coder"]}


def test_nobody_is_not_everybody(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, calls = supervisor
    assert main.run(["stop"]) == 1
    assert calls == [("List", {})]
    assert "--all" in capsys.readouterr().err


def test_all_and_some_is_a_contradiction(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, calls = supervisor
    assert main.run(["stop", "--all", "scout"]) == 1
    assert calls == []
    assert "not both" in capsys.readouterr().err


def test_one_that_is_not_there_keeps_all_as_they_are(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, calls = supervisor
    assert main.run(["stop", "scout", "nobody"]) == 4
    assert calls == [("List", {})]
    assert 'there is no agent "nobody" (there are: scout, scout-2, coder)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (client.CallError("NoSuchAgent", {"agent": "x", "hint": '(did you mean "y"?)'}), 4, 'no agent "x" (did you'),
        (client.CallError("NotPermitted", {"reason": "only root may do that"}), 1, "only root may"),
        (client.CallError("Disabled", {"agent": "x"}), 1, "forgectl enable x"),
        (client.CallError("NotRunning", {"agent": "x", "state": "failed"}), 1, "it is failed"),
        (client.CallError("BadConfiguration", {"problems": ["one", "two"]}), 1, "broken:\none\ntwo"),
        (client.CallError("org.varlink.service.MethodNotFound", {"method": "M"}), 1, "MethodNotFound"),
        (client.NotThereError("no supervisor is running"), 1, "no supervisor"),
    ],
)
def test_what_is_refused_is_a_sentence_and_an_exit_code(
    supervisor: Any, capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    supervisor[0]["Capture"] = error
    assert main.run(["screen", "scout"]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_a_text_is_sent_word_by_word_or_from_standard_input(
    supervisor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers, calls = supervisor
    answers["Send"] = {"agent": agent("scout")}
    assert main.run(["send", "scout", "look", "at", "the build"]) == 0
    assert calls[-1] == ("Send", {"agent": "scout", "text": "look at the build"})
    piped = tmp_path / "text"
    piped.write_text("two\nlines\n")
    with piped.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        main.run(["send", "scout", "-"])
    assert calls[-1][1]["text"] == "two\nlines\n"


def test_what_is_far_too_long_is_not_even_read(
    supervisor: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, calls = supervisor
    with open("/dev/zero") as endless:  # noqa: PTH123 - as a shell would
        monkeypatch.setattr("sys.stdin", endless)
        assert main.run(["send", "scout", "-"]) == 1
    assert "100000 characters is the most" in capsys.readouterr().err
    assert main.run(["send", "scout", "x" * 100_001]) == 1
    assert calls == []


def test_a_dry_run_only_tells(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answers, calls = supervisor
    answers["Reload"] = {"plan": ["scout: restart (model)"]}
    assert main.run(["reload", "--dry-run"]) == 0
    assert calls == [("Reload", {"dry_run": True})]
    assert capsys.readouterr().out == "scout: restart (model)\n"


def test_events_are_told_as_they_come(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"name": "agent_started", "time_usec": 1, "message": "scout started", "fields": {}}
    supervisor[0]["Monitor"] = [{"event": None, "agent": agent("scout")}, {"event": event, "agent": agent("scout")}]
    assert main.run(["events", "-f"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(" scout started")
    main.run(["events", "-f", "--json"])
    assert json.loads(capsys.readouterr().out) == event


def test_root_attaches_as_the_user_with_nothing_of_its_own_environment(
    supervisor: Any, became: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor[0]["Show"] = {"agent": agent("scout", run_as="daemon", socket_name="other")}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "root's own")
    monkeypatch.setenv("TERM", "xterm-kitty")
    with pytest.raises(SystemExit):
        main.run(["attach", "-r", "scout"])
    ((argv, env),) = became
    assert argv[:5] == ["/usr/sbin/runuser", "--pty", "-u", "daemon", "--"]
    assert argv[5:] == ["tmux", "-u", "-L", "other", "attach-session", "-r", "-t", "=agent-scout"]
    assert (env["TERM"], env["USER"]) == ("xterm-kitty", "daemon")
    assert "root's own" not in env.values()


@pytest.mark.parametrize("terminal", [0, 1])
def test_without_a_terminal_nobody_attaches(
    supervisor: Any, became: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: int
) -> None:
    # runuser --pty would type the end of the input into the agent's terminal, and the agent would take it for ^D.
    supervisor[0]["Show"] = {"agent": agent("scout", run_as="daemon")}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == terminal)
    assert main.run(["attach", "scout"]) == 1
    assert "attach needs a terminal" in capsys.readouterr().err
    assert became == []


def test_an_agents_user_gets_none_of_the_descriptors_of_who_attaches(
    supervisor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor[0]["Show"] = {"agent": agent("scout", run_as=pwd.getpwuid(os.geteuid()).pw_name)}
    monkeypatch.setattr(os, "isatty", lambda _: True)
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)  # as a shell's "exec 3<file" does
    left: list[bool] = []

    def execve(*_: object) -> None:
        left.append(os.get_inheritable(secret))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(shutil, "which", lambda program, **_: program)
    with pytest.raises(SystemExit):
        main.run(["attach", "scout"])
    os.close(secret)
    assert left == [False]


def test_nobody_attaches_to_what_is_anothers(
    supervisor: Any, became: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor[0]["Show"] = {"agent": agent("scout", run_as="daemon")}
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert main.run(["attach", "scout"]) == 1
    assert "sudo forgectl attach scout" in capsys.readouterr().err
    assert became == []


@pytest.mark.usefixtures("supervisor")
def test_logs_are_journalctls(became: Any) -> None:
    with pytest.raises(SystemExit):
        main.run(["logs", "scout*", "-f", "-n", "5", "--since", "1 hour ago"])
    ((argv, _),) = became
    assert argv[0] == "journalctl"
    assert argv[2:] == ["AGENT=scout", "AGENT=scout-2", "--follow", "--lines=5", "--since=1 hour ago"]


def test_logs_can_be_read_while_no_supervisor_runs(
    supervisor: Any, became: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor[0]["List"] = client.NotThereError("no supervisor is running")
    with pytest.raises(SystemExit):
        main.run(["logs", "scout"])
    ((argv, _),) = became
    assert argv[2:] == ["AGENT=scout"]
    assert main.run(["logs", "scout*"]) == 1
    assert "no supervisor is running" in capsys.readouterr().err


def test_an_option_is_written_out(became: Any) -> None:
    # Else the machine that is asked would be given it once more, and ask the next.
    with pytest.raises(SystemExit) as ended:
        main.run(["--hos", "far", "status"])
    assert ended.value.code == 2
    assert became == []


@pytest.mark.parametrize("written", [["-H", "ann@far"], ["-Hann@far"], ["--host=ann@far"], ["--host", "ann@far"]])
def test_another_machine_is_asked_by_ssh_word_for_word(became: Any, written: list[str]) -> None:
    with pytest.raises(SystemExit):
        main.run([*written, "send", "scout", "it's $HOME; -H"])
    ((argv, _),) = became
    assert argv == ["ssh", "--", "ann@far", """forgectl send scout 'it'"'"'s $HOME; -H'"""]


def test_another_machine_may_be_named_behind_the_verb(became: Any) -> None:
    with pytest.raises(SystemExit):
        main.run(["status", "--json", "-H", "far", "scout"])
    with pytest.raises(SystemExit):
        main.run(["-H", "far", "shell", "scout", "ls", "-H", "x"])
    assert [argv[-1] for argv, _ in became] == ["forgectl status --json scout", "forgectl shell scout ls -H x"]


def test_a_supervisor_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORGE_SOCKET", str(tmp_path / "deaf"))
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        assert main.run(["status"]) == 1
    assert "does not answer within 0.05 s" in capsys.readouterr().err


def test_completions_get_names_and_no_complaints(supervisor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["__names"]) == 0
    assert capsys.readouterr().out.split() == ["scout", "scout-2", "coder"]
    supervisor[0]["List"] = client.NotThereError("none")
    assert main.run(["__names"]) == 1
    assert capsys.readouterr() == ("", "")


def test_without_a_verb_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert "usage: forgectl" in capsys.readouterr().err
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"forgectl {version()}\n"


def test_a_broken_configuration_is_a_failure_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["explain", "--config", str(tmp_path / "none.toml"), "scout"]) == 1
    assert "there is no such file" in capsys.readouterr().err


# As a program of its own


def ends(script: str, tmp_path: Path, **env: str) -> tuple[int, str]:
    """Have a shell run forgectl, without a supervisor; the exit code, and what was said."""
    environment = {**os.environ, "FORGE_SOCKET": str(tmp_path / "none"), **env}
    script = script.replace("forgectl", f"{sys.executable} -m forge_supervisor.cli.main")
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("forgectl --version >&-", 0, ""),
        ("forgectl --version >/dev/full", 1, "No space left on device"),
        ("forgectl send scout - <&-", 1, "no supervisor is running"),
        (r"printf 'a\xff' | PYTHONIOENCODING=utf-8:strict forgectl send scout -", 1, "no supervisor is running"),
    ],
)
def test_whatever_its_standard_streams_are_it_ends_with_a_sentence(
    script: str, code: int, words: str, tmp_path: Path
) -> None:
    ended, said = ends(script, tmp_path)
    assert (ended, "Traceback" in said) == (code, False), said
    assert words in said


def test_what_the_terminal_cannot_show_is_no_error(
    supervisor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert supervisor
    with (tmp_path / "out").open("w", encoding="ascii") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        monkeypatch.setattr("sys.argv", ["forgectl", "status", "scout"])
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert ended.value.code == 0
    assert (tmp_path / "out").read_text().startswith("? scout")


# Enable and disable


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    user = "daemon" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    file.write_text(f'[defaults]\nrun_as = "{user}"\nrole = "r"\n[agents.a]\n[agents.b]\nenabled = false\n')
    file.chmod(0o600)
    tmp_path.chmod(0o755)
    return file


def test_what_is_disabled_is_in_a_drop_in_and_what_is_enabled_is_no_more(supervisor: Any, config: Path) -> None:
    answers, calls = supervisor
    answers["Reload"] = {"plan": []}
    drop_in = config.parent / "conf.d/disabled.toml"
    assert main.run(["disable", "a", "--config", str(config)]) == 0
    assert 'disabled = [\n  "a",\n]' in drop_in.read_text()
    assert not load(config).agents["a"].enabled
    assert main.run(["enable", "a", "--config", str(config)]) == 0
    assert load(config).agents["a"].enabled
    assert not drop_in.exists(), "it would say nothing"
    assert calls == [("Reload", {"dry_run": False})] * 2


def test_patterns_mean_agents_that_are_declared(
    supervisor: Any, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor[0]["Reload"] = {"plan": []}
    assert main.run(["disable", "[ab]", "a", "--config", str(config)]) == 0
    assert "a, b: disabled in" in capsys.readouterr().out
    assert 'disabled = [\n  "a",\n  "b",\n]' in (config.parent / "conf.d/disabled.toml").read_text()
    assert main.run(["disable", "c*", "--config", str(config)]) == 4


def test_two_at_once_do_not_undo_each_other(config: Path) -> None:
    config.write_text(config.read_text() + "".join(f"[agents.c{number}]\n" for number in range(20)))
    path = Path(config.parent / "conf.d/disabled.toml")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: enabled.note(path, "disable", [f"c{number}"]), range(20)))
    assert sum(not agent.enabled for agent in load(config).agents.values()) == 21


def test_what_has_come_of_it_is_told_to_programs_too(
    supervisor: Any, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor[0]["Reload"] = client.NotThereError("none")
    assert main.run(["disable", "a", "--json", "--config", str(config)]) == 0
    told = json.loads(capsys.readouterr().out)
    drop_in = str(config.parent / "conf.d/disabled.toml")
    assert told == {"agents": ["a"], "enabled": False, "file": drop_in, "why_not_yet": "no supervisor is running"}
    supervisor[0]["Reload"] = client.CallError("BadConfiguration", {"problems": ["one"]})
    assert main.run(["enable", "a", "--config", str(config)]) == 1
    assert "a: enabled in" in capsys.readouterr().out


@pytest.mark.usefixtures("supervisor")
def test_one_that_its_own_table_disables_is_the_operators(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["enable", "b", "--config", str(config)]) == 1
    assert f"{config}: agents.b.enabled: this is false" in capsys.readouterr().err
    assert main.run(["disable", "bb", "--config", str(config)]) == 4
    assert 'there is no agent "bb" (did you mean "b"?)' in capsys.readouterr().err


@pytest.mark.usefixtures("supervisor")
def test_a_drop_in_that_says_more_is_not_overwritten(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop_in = config.parent / "conf.d/disabled.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('socket_name = "other"\n')
    assert main.run(["disable", "a", "--config", str(config)]) == 1
    assert "move the rest" in capsys.readouterr().err
    assert drop_in.read_text() == 'socket_name = "other"\n'


def test_patterns_keep_the_order_in_which_they_were_given() -> None:
    known = [agent("a"), agent("b-1"), agent("b-2")]
    assert [found["name"] for found in agents.chosen(["b-*", "a", "b-1"], known)] == ["b-1", "b-2", "a"]
