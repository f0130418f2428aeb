"""forgectl doctor on a machine whose systemd has booted it: what it finds there, and that its ways out are some."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
SERVICE = f"unit {UNIT}"
DOCTOR = """
import sys
from forge_supervisor.cli.doctor import run
sys.exit(run(None, as_json="--json" in sys.argv))
"""
ONE = """
[agents.steady]
run_as = "patient"
harness = "command"
command = ["/bin/sleep", "infinity"]
"""
OWN = """
[agents.mine]
harness = "command"
command = ["/bin/sleep", "infinity"]
"""
HOME = "/home/patient"


class Found(NamedTuple):
    check: str
    status: str
    text: str
    fix: str


def doctor(machine: Machine, user: str | None = None, **env: str) -> tuple[int, list[Found]]:
    argv = ("/opt/forge-supervisor/bin/python3", "-I", "-c", DOCTOR, "--json")
    done = machine.run(*argv, user=user, env=env, check=False, timeout=120)
    assert done.stderr == ""
    return done.returncode, [Found(**finding) for finding in json.loads(done.stdout)]


def ailments(found: list[Found], *but: str) -> list[Found]:
    """What is not as it should be, but for the limits: those depend on the machine below."""
    return [one for one in found if one.status != "ok" and one.check not in {"limits", *but}]


@pytest.fixture
def healthy(machine: Machine) -> Iterator[Machine]:
    """The service, enabled, with one agent."""
    machine.run("useradd", "--create-home", "--user-group", "--shell", "/bin/bash", "patient", check=False)
    machine.run("rm", "-rf", "/etc/forge-supervisor/conf.d")
    machine.write(CONFIG, ONE)
    machine.run("systemctl", "enable", "--now", UNIT)
    yield machine
    machine.run("systemctl", "disable", UNIT)


def test_a_healthy_machine_has_no_problem(healthy: Machine) -> None:
    code, found = doctor(healthy)
    assert ailments(found) == []
    assert code == 0
    texts = {one.check: one.text for one in found if one.status == "ok"}
    assert texts["configuration"].endswith("agents declared: 1, enabled: 1")
    assert texts["systemd"].endswith("PID 1 answers")
    assert texts[SERVICE] == "it is enabled and active"
    assert texts["unit forge-agents.service"] == "it is active"
    assert f"pid {healthy.property(UNIT, 'MainPID')}" in texts["supervisor"]
    assert texts["agent steady"] == "/bin/sleep can be started as patient"
    assert {"tmux", "bus", "journal", "space", "forgectl", "user patient"} <= texts.keys()


def test_people_are_shown_a_line_a_finding(healthy: Machine) -> None:
    healthy.run("systemctl", "stop", UNIT)
    done = healthy.run("/opt/forge-supervisor/bin/python3", "-I", "-c", DOCTOR, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    start = "systemctl start forge-supervisor"
    assert f"problem {SERVICE}: it is inactive, so nothing looks after agents → {start}" in lines
    assert lines[-1].startswith("2 problems, ")


class Case(NamedTuple):
    breakage: str
    check: str
    status: str
    text: str
    fix: str
    """Also what mends it, up to the first comma."""


_CHOWN = f"chown $(id -u patient):$(id -g patient) {HOME}"
_TMUX = "/tmp/tmux-$(id -u patient)"
_START = "systemctl start forge-supervisor"
_RELOAD = "systemctl daemon-reload && systemctl restart forge-supervisor"
CASES = {
    "home-closed": Case(
        f"chmod u-w {HOME}", "user patient", "problem", f"it may not write its home {HOME}", f"chmod u+rwx {HOME}"
    ),
    "home-of-another": Case(
        f"chown daemon {HOME}", "user patient", "problem", f"it may not write its home {HOME}", _CHOWN
    ),
    "home-open-to-another": Case(
        f"chown daemon {HOME}; chmod 777 {HOME}",
        "user patient", "warning", f"its home {HOME} belongs to daemon, who may change what agents read there", _CHOWN,
    ),
    "home-read-only": Case(
        f"mount -t tmpfs -o ro,mode=700,uid=$(id -u patient),gid=$(id -g patient) tmpfs {HOME}",
        "user patient", "problem", f"it may not write its home {HOME}",
        f'mount -o remount,rw "$(findmnt -no TARGET -T {HOME})"',
    ),
    "home-gone": Case(
        f"mv {HOME} {HOME}.away", "user patient", "problem", f"its home {HOME} is missing",
        f"install -d -m 700 -o $(id -u patient) -g $(id -g patient) {HOME}",
    ),
    "home-gone-agent": Case(
        f"mv {HOME} {HOME}.away", "agent steady", "problem",
        f"agents.steady.run_as: the home directory {HOME} of patient is missing",
        "forge-supervisor explain steady shows what it is started with",
    ),
    "tmux-of-another": Case(
        f"systemctl stop {UNIT}; rm -rf {_TMUX}; install -d -o daemon -m 700 {_TMUX}; systemctl start {UNIT}",
        "user patient", "problem", f"{_TMUX} belongs to daemon, so no tmux server of patient can listen there",
        f"mv -T {_TMUX} {_TMUX}.not-of-$(id -u patient), and ask its owner",
    ),
    "tmux-open": Case(
        f"chmod 755 {_TMUX}", "user patient", "problem", f"{_TMUX} has mode 755, which tmux refuses",
        f"runuser -u patient -- chmod 700 {_TMUX}",
    ),
    "in-sudo": Case(
        "usermod -aG sudo patient", "user patient", "warning",
        'patient is in the group "sudo": its agents may become root',
        "gpasswd -d patient sudo, and restart what runs as patient, its tmux server included",
    ),
    "closed-python": Case(
        "chmod o-x /opt/forge-supervisor", "user patient", "problem",
        "it may not enter /opt/forge-supervisor, and /opt/forge-supervisor/bin/python3 is what its agents are"
        " started with",
        "chmod o+x /opt/forge-supervisor",
    ),
    "stopped": Case(
        f"systemctl stop {UNIT}", SERVICE, "problem", "it is inactive, so nothing looks after agents", _START
    ),
    "stopped-socket": Case(
        f"systemctl stop {UNIT}", "supervisor", "problem",
        "no supervisor is running (/run/forge-supervisor/io.forge.Supervisor)", _START,
    ),
    "disabled": Case(
        f"systemctl disable {UNIT}", SERVICE, "warning", "it is not started at boot",
        "systemctl enable forge-supervisor",
    ),
    "changed": Case(
        f"echo '#' >>{UNIT_FILE}", SERVICE, "warning", "its file has changed since systemd has read it", _RELOAD
    ),
    "masked": Case(
        "systemctl mask --runtime forge-agents.service; mv /etc/systemd/system/forge-agents.service /root;"
        " systemctl daemon-reload",
        "unit forge-agents.service", "problem", "it is masked, so that nothing can start it",
        "systemctl unmask forge-agents.service",
    ),
    "hangs": Case(
        f"systemctl kill --kill-whom=main -s STOP {UNIT}", "supervisor", "problem",
        "the supervisor does not answer within 10 s (/run/forge-supervisor/io.forge.Supervisor)",
        "systemctl restart forge-supervisor",
    ),
}  # fmt: skip
# What the operator has to do beside, or instead.
AFTERWARDS = {
    "home-open-to-another": f"chmod 700 {HOME}",
    "home-read-only": f"umount {HOME}",
    "home-gone-agent": f"mv {HOME}.away {HOME}",
    "masked": "rm -f /run/systemd/system/forge-agents.service; mv /root/forge-agents.service /etc/systemd/system;"
    f" systemctl daemon-reload; systemctl restart {UNIT}",
}


def expanded(machine: Machine, text: str) -> str:
    for part in ("$(id -u patient)", "$(id -g patient)"):
        if part in text:
            text = text.replace(part, machine.run("sh", "-c", part.removeprefix("$(").removesuffix(")")).stdout.strip())
    return text


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_found_and_its_way_out_mends_it(healthy: Machine, name: str) -> None:
    case = CASES[name]
    try:
        healthy.run("sh", "-c", case.breakage)
        code, found = doctor(healthy)
        wanted = Found(case.check, case.status, expanded(healthy, case.text), expanded(healthy, case.fix))
        assert wanted in found
        assert code == (1 if case.status == "problem" else 0)
        healthy.run("sh", "-c", wanted.fix.split(", ")[0], check=" shows " not in wanted.fix)
    finally:
        healthy.run("sh", "-c", AFTERWARDS.get(name, "true"))
    assert wanted not in doctor(healthy)[1]
    healthy.run("systemctl", "restart", UNIT)
    code, found = doctor(healthy)
    assert (code, ailments(found)) == (0, [])


def test_a_user_that_is_not_there_is_a_problem_and_its_agent_is_not_asked(healthy: Machine) -> None:
    healthy.run("systemctl", "stop", UNIT)
    healthy.run("userdel", "--remove", "patient", check=False)
    code, found = doctor(healthy)
    assert code == 1
    assert Found("user patient", "problem", "there is no such user", "useradd --create-home patient") in found
    assert Found("agent steady", "skipped", "there is no user patient to look as", "") in found
    healthy.run("useradd", "--create-home", "patient")
    assert not ailments(doctor(healthy)[1], SERVICE, "supervisor")


def test_a_misspelt_key_keeps_the_service_from_starting(healthy: Machine) -> None:
    healthy.write(CONFIG, ONE.replace("harness", "harnes"))
    healthy.run("systemctl", "restart", UNIT, check=False)
    code, found = doctor(healthy)
    assert code == 1
    fix = 'did you mean "harness"?'
    assert Found("configuration", "problem", f"{CONFIG}: agents.steady.harnes: unknown key", fix) in found
    text = "it has failed, as the configuration has errors"
    assert Found(SERVICE, "problem", text, f"forge-supervisor --check; {_START}") in found
    assert found[-1].check == "agents" and found[-1].status == "skipped"


def test_others_who_may_write_the_configuration_are_told(healthy: Machine) -> None:
    healthy.run("chmod", "g+w", "/etc/forge-supervisor", CONFIG)
    try:
        found = [one for one in doctor(healthy)[1] if one.check == "configuration"]
        for one in found:
            healthy.run(*shlex.split(one.fix))
        assert {one.fix for one in found} == {f"chmod g-w {CONFIG}", "chmod go-w /etc/forge-supervisor"}
    finally:
        healthy.run("chmod", "g-w", "/etc/forge-supervisor", CONFIG)
    assert ailments(doctor(healthy)[1]) == []


def test_a_claude_that_is_not_there_is_the_agents_problem(healthy: Machine) -> None:
    healthy.write(CONFIG, ONE + '[agents.coder]\nrole = "x"\nrun_as = "patient"\npath = ["/nowhere"]\n')
    (coder,) = [one for one in doctor(healthy)[1] if one.check == "agent coder"]
    assert coder.status == "problem"
    assert coder.text.startswith("agents.coder.harness: claude was not found on /nowhere")
    assert coder.fix == "install it, or add its directory to path"


def test_an_ordinary_user_is_told_what_can_be_seen(healthy: Machine) -> None:
    healthy.run("useradd", "--create-home", "looker", check=False)
    code, found = doctor(healthy, user="looker")
    assert code == 0
    skipped = {one.check for one in found if one.status == "skipped"}
    assert skipped == {"systemd", "user patient", "agent steady"}
    assert {one.text.endswith(" (run it as root)") for one in found if one.status == "skipped"} == {True}
    (journal,) = [one for one in found if one.check == "journal"]
    assert journal.fix.startswith("sudo usermod -aG systemd-journal looker")
    assert ailments(found, *skipped, "journal") == []
    healthy.run("chmod", "600", CONFIG)
    code, found = doctor(healthy, user="looker")
    assert code == 0
    assert Found("configuration", "skipped", f"{CONFIG}, and the agents that it declares (run it as root)", "") in found


def test_a_user_with_a_supervisor_of_its_own_is_told_of_that_one(healthy: Machine) -> None:
    healthy.run("useradd", "--create-home", "--user-group", "hermit", check=False)
    uid = healthy.run("id", "-u", "hermit").stdout.strip()
    env = {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    healthy.run("loginctl", "enable-linger", "hermit")
    healthy.run("systemctl", "start", f"user@{uid}.service")
    healthy.run("mkdir", "--parents", "/home/hermit/.config/forge-supervisor", user="hermit")
    healthy.write("/home/hermit/.config/forge-supervisor/config.toml", OWN, owner="hermit")
    healthy.run("systemctl", "--user", "enable", "--now", "forge-supervisor", user="hermit", env=env)
    code, found = doctor(healthy, user="hermit", **env)
    assert (code, ailments(found)) == (0, [])
    texts = [one.text for one in found]
    assert "the manager of hermit answers" in " ".join(texts)
    assert "/bin/sleep can be started as hermit" in texts
    assert "it lingers, so agents live on when it logs out" in texts
    healthy.run("rm", "/var/lib/systemd/linger/hermit")
    healthy.run("systemctl", "--user", "stop", "forge-supervisor", user="hermit", env=env)
    code, found = doctor(healthy, user="hermit", **env)
    assert code == 1
    assert "systemctl --user start forge-supervisor" in {one.fix for one in found}
    assert "loginctl enable-linger hermit" in {one.fix for one in found}
