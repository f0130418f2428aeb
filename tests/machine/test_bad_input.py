"""Whatever is wrong: a clear message, and either an exit code or a failed agent while the others run on."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

SUPERVISOR = "/opt/forge-supervisor/bin/forge-supervisor"
CONFIG = "/etc/forge-supervisor/config.toml"
GOOD = """
[agents.good]
run_as = "team-bad"
harness = "command"
command = ["/bin/sleep", "infinity"]
"""


@pytest.fixture(scope="module", autouse=True)
def user(machine: Machine) -> None:
    machine.add_user("team-bad")


def refused(machine: Machine, config: str = CONFIG) -> str:
    """What the supervisor says of a configuration on which it does not start."""
    for arguments in ([], ["--check"]):
        done = machine.run(SUPERVISOR, "--config", config, *arguments, check=False)
        assert done.returncode == 78, done.stderr
        assert done.stdout == ""
        assert config in done.stderr
    return done.stderr


def test_no_config(machine: Machine) -> None:
    assert "/etc/forge-supervisor/none.toml: " in refused(machine, "/etc/forge-supervisor/none.toml")


def test_a_directory_for_a_config(machine: Machine) -> None:
    assert "/etc/forge-supervisor: " in refused(machine, "/etc/forge-supervisor")


def test_an_unreadable_config(machine: Machine) -> None:
    machine.write(CONFIG, GOOD, mode=0o600)
    done = machine.run(SUPERVISOR, "--config", CONFIG, user="team-bad", check=False)
    assert done.returncode == 78
    assert f"{CONFIG}: " in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agents.x\n", ":1:10: not valid TOML"),
        (GOOD + 'modell = "opus"\n', "agents.good.modell: unknown key"),
        (GOOD + 'effort = "low"\n', 'agents.good.effort: means nothing to the harness "command"'),
        (GOOD + "enabled = 1\n", "agents.good.enabled: must be true or false"),
        ('[agents.x]\nrun_as = "root"\nrole = "r"\n', "agents.x.run_as: an agent cannot run as root"),
        ('[agents.x]\nrole = "r"\n', "agents.x.run_as: is missing"),
        ('[agents.x]\nrun_as = "team-bad"\n', "agents.x.role: is missing"),
        ('[agents.x]\nrun_as = "team-bad"\nharness = "vi"\n', 'agents.x.harness: no harness "vi"'),
    ],
)
def test_a_broken_config(machine: Machine, text: str, said: str) -> None:
    machine.write(CONFIG, text)
    error = refused(machine)
    assert CONFIG in error
    assert said in error


def test_an_agent_in_two_files(machine: Machine) -> None:
    machine.write(CONFIG, GOOD)
    machine.write("/etc/forge-supervisor/conf.d/more.toml", GOOD)
    try:
        error = refused(machine)
    finally:
        machine.run("rm", "/etc/forge-supervisor/conf.d/more.toml")
    assert "agents.good" in error
    assert CONFIG in error
    assert "/etc/forge-supervisor/conf.d/more.toml" in error


def test_a_config_that_others_may_write(machine: Machine) -> None:
    machine.write(CONFIG, GOOD, mode=0o666)
    assert "chmod" in refused(machine)
    machine.write(CONFIG, GOOD, owner="team-bad")
    assert "chown" in refused(machine)


def test_the_unit_does_not_try_a_broken_config_again(machine: Machine) -> None:
    machine.write(CONFIG, "[agents.x\n")
    machine.run("systemctl", "start", "forge-supervisor", check=False)
    assert machine.property("forge-supervisor", "ExecMainStatus") == "78"
    assert machine.property("forge-supervisor", "ActiveState") == "failed"
    said = [entry["MESSAGE"] for entry in machine.journal("_SYSTEMD_UNIT=forge-supervisor.service", "PRIORITY=3")]
    said += [entry["MESSAGE"] for entry in machine.journal("_SYSTEMD_UNIT=forge-supervisor.service", "PRIORITY=6")]
    assert any(CONFIG in message for message in said)
    machine.run("systemctl", "reset-failed", "forge-supervisor")


@contextlib.contextmanager
def running(machine: Machine, text: str) -> Iterator[None]:
    """The supervisor as a service, with the good agent beside those of `text`."""
    machine.write(CONFIG, GOOD + text)
    machine.run("systemctl", "start", "forge-supervisor", timeout=120)
    try:
        yield
    finally:
        machine.run("systemctl", "stop", "forge-supervisor", timeout=120)


def problem_of(machine: Machine, agent: str) -> str:
    entry = machine.wait_for("EVENT=agent_start_failed", f"AGENT={agent}", until=bool)
    return f"{entry.get('KEY') or ''}: {entry['PROBLEM']}"


def test_each_agent_fails_by_itself(machine: Machine) -> None:
    for name in ("homeless", "readonly", "linker"):
        machine.add_user(name)
    machine.run("rm", "-r", "/home/homeless")
    machine.run("sh", "-c", "mkdir ~readonly/.local && chown root: ~readonly ~readonly/.local && chmod 755 ~readonly")
    link = "mkdir -p ~/.local/state /tmp/elsewhere && ln -s /tmp/elsewhere ~/.local/state/forge"
    machine.run("sh", "-c", link, user="linker")
    defaults = '[defaults]\nrestart = {policy = "no"}\n'
    agents = {
        "nobody": 'run_as = "nosuchuser"\nharness = "command"\ncommand = ["true"]',
        "noclaude": 'run_as = "team-bad"\nrole = "r"',
        "nocommand": 'run_as = "team-bad"\nharness = "command"\ncommand = ["no-such-program"]',
        "nocwd": 'run_as = "team-bad"\nharness = "command"\ncommand = ["true"]\ncwd = "/no/such"',
        "nohome": 'run_as = "homeless"\nharness = "command"\ncommand = ["true"]',
        "rohome": 'run_as = "readonly"\nharness = "command"\ncommand = ["true"]',
        "linked": 'run_as = "linker"\nharness = "command"\ncommand = ["true"]',
    }
    with running(machine, defaults + "".join(f"[agents.{name}]\n{keys}\n" for name, keys in agents.items())):
        problems = {name: problem_of(machine, name) for name in agents}
        status = machine.property("forge-supervisor", "StatusText")
        assert "sleep infinity" in "".join(machine.processes("team-bad").values())
        checked = machine.run(SUPERVISOR, "--check", check=False)
    machine.run("sh", "-c", "rm -r ~linker/.local/state/forge")
    assert {name for name in agents if f"{name}: " in checked.stdout and "cannot be started" in checked.stdout}
    assert checked.returncode == 1
    assert "/home/readonly/.local cannot be written by readonly" in checked.stdout
    assert 'agents.nobody.run_as: no such user "nosuchuser" (create it: useradd -m nosuchuser)' in problems["nobody"]
    assert "claude was not found on /home/team-bad/.local/bin:" in problems["noclaude"]
    assert "agents.nocommand." in problems["nocommand"]
    assert "no-such-program was not found on" in problems["nocommand"]
    assert "agents.nocwd.cwd: /no/such is no directory" in problems["nocwd"]
    assert "/home/homeless" in problems["nohome"]
    assert "/home/readonly/.local" in problems["rohome"]
    assert "/home/linker/.local/state/forge" in problems["linked"]
    assert machine.run("ls", "/tmp/elsewhere").stdout == "", "nothing is written where the link leads"
    assert status.startswith("1 running, 7 failed: ")
    for name in agents:
        assert f"{name} (resources)" in status


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo tmux 3.1c", "tmux 3.1c is too old"),
        ("exit 3", "tmux"),
        (None, "tmux"),
    ],
)
def test_no_tmux_that_can_be_used(machine: Machine, script: str | None, said: str) -> None:
    if script is None:
        machine.run("mv", "/usr/bin/tmux", "/usr/bin/tmux.away")
    else:
        machine.write("/usr/local/bin/tmux", f"#!/bin/sh\n{script}\n", mode=0o755)
    machine.write(CONFIG, GOOD + 'restart = {policy = "no"}\n')
    machine.run("journalctl", "--rotate")
    machine.run("journalctl", "--vacuum-time=1us")
    try:
        check = machine.run(SUPERVISOR, "--check", check=False)
        machine.run("systemctl", "start", "forge-supervisor")
        problem = problem_of(machine, "good")
        status = machine.property("forge-supervisor", "StatusText")
    finally:
        machine.run("systemctl", "stop", "forge-supervisor")
        if script is None:
            machine.run("mv", "/usr/bin/tmux.away", "/usr/bin/tmux")
        else:
            machine.run("rm", "/usr/local/bin/tmux")
    assert said in problem
    assert "apt-get install tmux" in problem or script == "exit 3"
    assert status == "1 failed: good (resources)"
    assert check.returncode == 1
    assert said in check.stdout


def test_only_one_supervisor(machine: Machine) -> None:
    with running(machine, ""):
        second = machine.run(SUPERVISOR, check=False)
        assert second.returncode == 75
        assert "another forge-supervisor is running" in second.stderr
        assert "sleep infinity" in "".join(machine.processes("team-bad").values())


def test_a_service_does_not_start_beside_one_in_the_foreground(machine: Machine) -> None:
    machine.write("/etc/forge-supervisor/other.toml", GOOD.replace("agents.good", "agents.other"))
    other = (SUPERVISOR, "--config", "/etc/forge-supervisor/other.toml")
    machine.run("systemd-run", "--unit=other", "--service-type=notify", *other)
    machine.write(CONFIG, GOOD)
    try:
        assert machine.run("systemctl", "start", "forge-supervisor", check=False).returncode != 0
        machine.run("systemctl", "stop", "forge-supervisor")
        assert machine.property("forge-supervisor", "ExecMainStatus") == "75"
        machine.run("pkill", "-KILL", "-u", "team-bad", "sleep")
        restarted = machine.wait_for("EVENT=agent_started", "AGENT=other", "N_RESTARTS=1", until=bool)
        assert int(restarted["PID"]) in machine.processes("team-bad")
    finally:
        machine.run("systemctl", "stop", "other")
        machine.run("systemctl", "reset-failed", "forge-supervisor", check=False)


def test_an_ordinary_user_is_refused_others_agents(machine: Machine) -> None:
    machine.add_user("plain")
    machine.write("/home/plain/config.toml", GOOD, owner="plain")
    done = machine.run(SUPERVISOR, "--config", "/home/plain/config.toml", user="plain", check=False)
    assert done.returncode == 78
    assert "agents.good.run_as: only root can run agents as other users" in done.stderr


def test_what_programs_say_does_not_reach_roots_terminal_raw(machine: Machine) -> None:
    machine.write("/home/team-bad/bin/tool", "#!/bin/sh\nprintf '\\033]0;title\\007\\033[31mred'\n", mode=0o755)
    machine.write(
        CONFIG,
        '[harnesses.command]\nversion = "1"\n[agents.loud]\nrun_as = "team-bad"\nharness = "command"\n'
        'command = ["/home/team-bad/bin/tool"]\n',
    )
    done = machine.run(SUPERVISOR, "--check")
    assert "]0;title[31mred, and 1 was meant" in done.stdout
    assert "\033" not in done.stdout


def test_a_user_that_is_removed_or_renumbered_while_its_agent_runs(machine: Machine) -> None:
    machine.add_user("fleeting")
    agent = '[agents.fleeting]\nrun_as = "fleeting"\nharness = "command"\ncommand = ["/bin/sleep", "77777"]\n'
    with running(machine, agent + "restart = {delay_sec = 0.1, limit_burst = 0}\n"):
        (pid,) = (pid for pid, line in machine.processes("fleeting").items() if "77777" in line)
        before = machine.read("/etc/passwd")
        for change, said in (
            ((r"(?m)^fleeting:.*\n", ""), 'no such user "fleeting"'),
            ((r"(?m)^fleeting:x:\d+:", "fleeting:x:54321:"), "and has 54321 now (restart the supervisor)"),
        ):
            # At once: while the user is what it was, the agent is started.
            machine.write("/etc/passwd", re.sub(*change, before))
            machine.run("sh", "-c", f"kill -9 {pid} 2>/dev/null; true")
            machine.wait_for(
                "EVENT=agent_start_failed", "AGENT=fleeting", until=lambda e, said=said: said in e["PROBLEM"]  # type: ignore[misc]
            )
        machine.write("/etc/passwd", before)
        machine.wait_for("EVENT=agent_started", "AGENT=fleeting", until=lambda e: int(e["PID"]) != pid)
