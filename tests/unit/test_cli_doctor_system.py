"""What forgectl doctor finds of the machine and of the supervisor's service, on machines made of files and answers."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import version
from forge_supervisor.cli import doctor_service, doctor_system
from forge_supervisor.cli.doctor_scene import Answer, Finding, Scene, ok, problem, warning
from forge_supervisor.units.manager import ManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from forge_supervisor.units import User

SERVICE = "unit forge-supervisor.service"
AGENTS = "unit forge-agents.service"
START = "systemctl start forge-supervisor"
CGROUP = "sys/fs/cgroup/cgroup.controllers"
GOOD = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "FragmentPath": "/etc/systemd/system/forge-supervisor.service",
    "ExecMainStatus": "0",
}


class Machine:
    """A machine of files below a directory, and of what programs say: the first that a command line begins with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.says: dict[str, Answer] = {}
        self.asked: list[str] = []

    def file(self, path: str, content: str | bytes = "") -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(0o755)

    def show(self, unit: str, **properties: str) -> None:
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        self.says[f"systemctl {unit}"] = Answer(0, lines, "")

    def ask(self, argv: Sequence[str], *, user: User | None = None) -> Answer:
        self.asked.append(" ".join(argv))
        assert argv[0] != "systemctl" or "--no-pager" in argv
        what = f"systemctl {argv[-1] if '--' in argv else ''}" if argv[0] == "systemctl" else argv[0]
        return self.says[what]

    def scene(self, *, system: bool = True, is_root: bool = True) -> Scene:
        return Scene(system=system, is_root=is_root, ask=self.ask, root=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One that systemd has booted."""
    made = Machine(tmp_path)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return made


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """One that systemd has not booted."""
    return Machine(tmp_path)


@pytest.mark.parametrize(("says", "built", "words"), [
    ("tmux 3.3a", "libutempter.so.0", "loses deaths; the supervisor asks for them again"),
    ("tmux 3.3a", "", "is version 3.3"),
    ("tmux 3.6", "libutempter.so.0", "is version 3.6"),
    ("tmux next-3.7", "", "is version 3.7"),
])  # fmt: skip
def test_a_tmux_that_is_new_enough_is_fine(machine: Machine, says: str, built: str, words: str) -> None:
    machine.file("usr/bin/tmux", f"#!/bin/sh\necho {says}\n#{built}\n")
    (found,) = doctor_system.tmux(machine.scene())
    assert found.status == "ok"
    assert found.text.endswith(words)


@pytest.mark.parametrize(("says", "words"), [("tmux 3.2a", "tmux 3.2a is too old"), ("huh", "cannot read the version")])
def test_a_tmux_that_is_too_old_is_a_problem(machine: Machine, says: str, words: str) -> None:
    machine.file("usr/local/bin/tmux", f"#!/bin/sh\necho {says}\n")
    (found,) = doctor_system.tmux(machine.scene())
    assert found.status == "problem"
    assert words in found.text
    assert found.fix


def test_a_tmux_that_is_missing_is_a_problem(machine: Machine) -> None:
    (found,) = doctor_system.tmux(machine.scene())
    assert (found.status, found.fix) == ("problem", "apt-get install tmux")


def test_a_machine_without_systemd_is_a_warning(bare: Machine) -> None:
    (found,) = doctor_system.systemd(bare.scene())
    assert found.status == "warning"
    for look in (doctor_system.limits, doctor_system.bus, doctor_system.journal, doctor_service.agents_unit):
        assert list(look(bare.scene())) == []
    (found,) = doctor_service.unit(bare.scene())
    assert found.status == "skipped"
    assert bare.asked == []


def test_a_systemd_that_answers_is_fine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(path: str) -> None:
        assert path == str(machine.root / "run/systemd/private")
        await asyncio.sleep(0)

    monkeypatch.setattr(doctor_system, "reach", answers)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.show("", Version="252.39-1~deb12u2")
    assert list(doctor_system.systemd(machine.scene())) == [
        ok("systemd", "version 252.39-1~deb12u2; PID 1 answers")
    ]


@pytest.mark.parametrize("version", ["247.3-7", "", "unknown"])
def test_an_old_systemd_is_a_warning(machine: Machine, version: str) -> None:
    machine.show("", Version=version)
    (found,) = doctor_system.systemd(machine.scene())
    assert found.status == "warning"
    assert "older than any that this was tested with (252)" in found.text


def test_a_manager_that_cannot_be_reached_is_a_problem(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.show("", Version="257")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (found,) = doctor_system.systemd(machine.scene())
    assert (found.status, found.fix) == ("problem", "systemctl daemon-reexec")
    assert "No such file or directory" in found.text
    with pytest.raises(ManagerError):
        asyncio.run(doctor_system.reach(str(machine.root / "run/systemd/private")))


def test_an_ordinary_user_cannot_see_whether_pid_1_starts_units(machine: Machine) -> None:
    machine.show("", Version="257")
    first, second = doctor_system.systemd(machine.scene(is_root=False))
    assert first == ok("systemd", "version 257")
    assert second.status == "skipped"
    assert second.text.endswith("(run it as root)")


def test_limits_hold_with_both_controllers(machine: Machine) -> None:
    machine.file(CGROUP, "cpuset cpu io memory pids\n")
    (found,) = doctor_system.limits(machine.scene())
    assert found.status == "ok"


@pytest.mark.parametrize(("there", "words"), [
    ("", "no controller memory and pids is delegated"),
    ("cpu pids\n", "no controller memory is delegated"),
])  # fmt: skip
def test_limits_without_a_controller_are_a_warning(machine: Machine, there: str, words: str) -> None:
    machine.file(CGROUP, there)
    (found,) = doctor_system.limits(machine.scene())
    assert found.status == "warning"
    assert found.text.startswith(words)


def test_limits_without_cgroup_v2_are_a_warning(machine: Machine) -> None:
    (found,) = doctor_system.limits(machine.scene())
    assert found.status == "warning"
    assert found.fix == "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"


def test_what_counts_for_a_users_own_supervisor_is_what_its_manager_has(machine: Machine) -> None:
    machine.file(CGROUP, "memory pids\n")
    uid = os.geteuid()
    machine.file(f"sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers", "pids\n")
    (found,) = doctor_system.limits(machine.scene(system=False))
    assert found.status == "warning"
    assert "Delegate=" in found.fix


def test_a_machine_without_a_bus_is_a_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert [one.fix for one in doctor_system.bus(machine.scene())] == ["apt-get install dbus"]
    assert [one.fix for one in doctor_system.bus(machine.scene(system=False))] == ["apt-get install dbus-user-session"]
    machine.file("run/dbus/system_bus_socket")
    assert [one.status for one in doctor_system.bus(machine.scene(system=False))] == ["warning"]
    machine.file("run/user/1000/bus")
    assert list(doctor_system.bus(machine.scene())) == [ok("bus", "D-Bus is at /run/dbus/system_bus_socket")]
    assert [one.status for one in doctor_system.bus(machine.scene(system=False))] == ["ok"]


@pytest.mark.parametrize(("answer", "is_root", "member", "status", "words"), [
    (Answer(0, "{}\n", ""), True, False, "ok", "entries of forge-supervisor.service can be read"),
    (Answer(0, "", ""), True, False, "ok", "has no entry"),
    (Answer(0, "", ""), False, True, "ok", "has no entry"),
    (Answer(0, "", ""), False, False, "warning", "may not read what the supervisor says of agents"),
    (Answer(1, "", "No journal files were opened"), False, False, "warning", "may not read"),
    (Answer(1, "", "Bad message"), True, False, "warning", "it cannot be read: Bad message"),
    (Answer(127, "", "journalctl is not installed"), True, False, "warning", "journalctl is not installed"),
])  # fmt: skip
def test_the_journal_is_readable_or_a_warning(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    is_root: Any,
    member: Any,
    status: str,
    words: str,
) -> None:
    monkeypatch.setattr(doctor_system, "_reads_journal", lambda: member)
    machine.file("run/systemd/journal/socket")
    machine.says["journalctl"] = answer
    (found,) = doctor_system.journal(machine.scene(is_root=is_root))
    assert found.status == status
    assert words in found.text
    assert bool(found.fix) == (status == "warning")


def test_a_user_looks_for_its_own_unit_in_the_journal(machine: Machine) -> None:
    machine.file("run/systemd/journal/socket")
    machine.says["journalctl"] = Answer(0, "{}", "")
    list(doctor_system.journal(machine.scene(system=False, is_root=False)))
    assert "--user-unit=forge-supervisor.service" in machine.asked[0]


def test_a_machine_without_journald_is_a_warning(machine: Machine) -> None:
    (found,) = doctor_system.journal(machine.scene())
    assert (found.status, found.fix) == ("warning", "systemctl start systemd-journald.socket")


def test_the_scarcest_counts() -> None:
    assert doctor_system.least_free((50, 100), (4, 100)) == 0.04
    assert doctor_system.least_free((50, 100), (0, 0)) == 0.5
    assert doctor_system.least_free((0, 0)) == 1.0


def test_a_file_system_that_is_nearly_full_is_a_warning(tmp_path: Path) -> None:
    assert doctor_system.of_space("space", tmp_path, 0.05).status == "ok"
    found = doctor_system.of_space("space", tmp_path, 0.049)
    assert found.status == "warning"
    assert "only 4.9%" in found.text
    assert f"du -xh {tmp_path}" in found.fix


def test_the_runtime_directory_counts_before_it_is_made(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/not-yet/there")
    (found,) = doctor_system.space(machine.scene())
    assert str(machine.root / "run") + " is" in found.text


def test_a_service_that_is_enabled_and_runs_is_fine(machine: Machine) -> None:
    machine.show("forge-supervisor.service", **GOOD)
    assert list(doctor_service.unit(machine.scene())) == [ok(SERVICE, "it is enabled and active")]


JOURNAL = "journalctl -u forge-supervisor -n 50"
INSTALL = "sudo ./dev install, in a checkout of forge-supervisor"
CHANGED = "its file has changed since systemd has read it"
VERDICTS = {
    "missing": ({"LoadState": "not-found"}, problem(SERVICE, "it is not installed", INSTALL)),
    "masked": (
        {"LoadState": "masked"},
        problem(SERVICE, "it is masked, so that nothing can start it", "systemctl unmask forge-supervisor.service"),
    ),
    "bad": (
        {"LoadState": "bad-setting"},
        problem(SERVICE, "systemd cannot load it: bad-setting", f"systemd-analyze verify {GOOD['FragmentPath']}"),
    ),
    "disabled": (
        {"UnitFileState": "disabled"},
        warning(SERVICE, "it is not started at boot", "systemctl enable forge-supervisor"),
    ),
    "changed": (
        {"NeedDaemonReload": "yes"},
        warning(SERVICE, CHANGED, "systemctl daemon-reload && systemctl restart forge-supervisor"),
    ),
    "stopped": ({"ActiveState": "inactive"}, problem(SERVICE, "it is inactive, so nothing looks after agents", START)),
    "failed": ({"ActiveState": "failed"}, problem(SERVICE, "it has failed", f"{JOURNAL}; {START}")),
    "refused": (
        {"ActiveState": "failed", "ExecMainStatus": "78"},
        problem(SERVICE, "it has failed, as the configuration has errors", f"forge-supervisor --check; {START}"),
    ),
    "crashing": (
        {"ActiveState": "activating", "SubState": "auto-restart"},
        problem(SERVICE, "it ends again and again", JOURNAL),
    ),
    "starting": ({"ActiveState": "activating", "SubState": "start"}, ok(SERVICE, "it is enabled and activating")),
}


@pytest.mark.parametrize(("differs", "found"), VERDICTS.values(), ids=VERDICTS)
def test_a_service_is_judged_by_what_systemd_says(machine: Machine, differs: dict[str, str], found: Finding) -> None:
    machine.show("forge-supervisor.service", **(GOOD | differs))
    assert list(doctor_service.unit(machine.scene())) == [found]


def test_a_service_that_neither_runs_nor_starts_at_boot_is_told_so_twice(machine: Machine) -> None:
    machine.show("forge-supervisor.service", **(GOOD | {"UnitFileState": "disabled", "ActiveState": "inactive"}))
    fixes = [one.fix for one in doctor_service.unit(machine.scene(system=False))]
    assert fixes == ["systemctl --user enable forge-supervisor", "systemctl --user enable --now forge-supervisor"]
    assert "systemctl --user --no-pager show" in machine.asked[0]


def test_systemctl_that_fails_raises_with_its_words(machine: Machine) -> None:
    machine.says["systemctl forge-supervisor.service"] = Answer(1, "", "Failed to connect to bus")
    with pytest.raises(OSError, match="Failed to connect to bus"):
        list(doctor_service.unit(machine.scene()))


DOWN = "it is not active, so a stop does not end the agents of a supervisor that is down"


@pytest.mark.parametrize(("agents", "supervisor", "found"), [
    ({}, "active", ok(AGENTS, "it is active")),
    ({"ActiveState": "inactive"}, "inactive", ok(AGENTS, "it is installed, and starts with the supervisor")),
    ({"ActiveState": "inactive"}, "active", warning(AGENTS, DOWN, "systemctl start forge-agents.service")),
    ({"NeedDaemonReload": "yes"}, "active", warning(AGENTS, CHANGED, "systemctl daemon-reload")),
    ({"LoadState": "not-found"}, "active", problem(AGENTS, "it is not installed", INSTALL)),
])  # fmt: skip
def test_the_agents_service_goes_with_the_supervisor(
    machine: Machine, agents: dict[str, str], supervisor: str, found: Finding
) -> None:
    machine.show("forge-agents.service", **(GOOD | agents))
    machine.show("forge-supervisor.service", ActiveState=supervisor)
    assert list(doctor_service.agents_unit(machine.scene())) == [found]


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have somebody answer whoever calls, once; None: with silence."""
    path = str(tmp_path / "socket")
    monkeypatch.setenv("FORGE_SOCKET", path)
    listening = socket.socket(socket.AF_UNIX)
    threads: list[threading.Thread] = []
    done = threading.Event()

    def answer(reply: dict[str, Any] | None) -> None:
        connection, _ = listening.accept()
        with connection:
            assert json.loads(connection.recv(4096).rstrip(b"\0"))["method"] == "io.forge.Supervisor.Ping"
            if reply is None:
                done.wait(30)
            else:
                connection.sendall(json.dumps(reply).encode() + b"\0")

    def start(reply: dict[str, Any] | None) -> None:
        listening.bind(path)
        listening.listen()
        threads.append(threading.Thread(target=answer, args=[reply]))
        threads[0].start()

    yield start
    done.set()
    for thread in threads:
        thread.join(10)
    listening.close()


def test_a_supervisor_of_this_version_is_fine(machine: Machine, supervisor: Any) -> None:
    supervisor({"parameters": {"version": version(), "pid": 7}})
    assert list(doctor_service.supervisor(machine.scene())) == [
        ok("supervisor", f"version {version()} answers, pid 7")
    ]


def test_a_supervisor_of_another_version_is_to_be_restarted(machine: Machine, supervisor: Any) -> None:
    supervisor({"parameters": {"version": "0.0.1", "pid": 7}})
    (found,) = doctor_service.supervisor(machine.scene())
    assert found.text == f"version 0.0.1 runs, and {version()} is installed"
    assert found.fix == "systemctl restart forge-supervisor (agents run on)"


def test_a_supervisor_that_refuses_is_a_problem(machine: Machine, supervisor: Any) -> None:
    supervisor({"error": "io.forge.Supervisor.Failed", "parameters": {"reason": "it is tired"}})
    (found,) = doctor_service.supervisor(machine.scene())
    assert found == problem("supervisor", "it is tired", "systemctl restart forge-supervisor")


def test_a_supervisor_that_hangs_does_not_hang_the_doctor(
    machine: Machine, supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_service, "TIMEOUT", 0.2)
    supervisor(None)
    (found,) = doctor_service.supervisor(machine.scene())
    assert found.status == "problem"
    assert "does not answer within 0.2 s" in found.text
    assert found.fix == "systemctl restart forge-supervisor"


@pytest.mark.parametrize(("booted", "fix"), [(True, START), (False, "forge-supervisor")])
def test_a_supervisor_that_does_not_run_is_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, booted: Any, fix: str
) -> None:
    monkeypatch.setenv("FORGE_SOCKET", str(tmp_path / "none"))
    if booted:
        (tmp_path / "run/systemd/system").mkdir(parents=True)
    (found,) = doctor_service.supervisor(Machine(tmp_path).scene())
    assert found == problem("supervisor", f"no supervisor is running ({tmp_path}/none)", fix)


def test_operators_are_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 4_000_000, ["bob", "alice"])))
    (found,) = doctor_service.operators(machine.scene())
    assert found.text == 'root and the group "forge" may do everything; its members: alice, bob'


def test_without_the_group_only_root_is_an_operator(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", absent)
    (found,) = doctor_service.operators(machine.scene())
    assert found.status == "ok"
    assert "groupadd --system forge" in found.text
    assert list(doctor_service.operators(machine.scene(system=False))) == []
