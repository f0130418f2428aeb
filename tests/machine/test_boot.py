from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from booted import Machine


def test_pid_1_is_a_systemd_of_its_own(bare_machine: Machine) -> None:
    assert bare_machine.read("/proc/1/comm") == "systemd\n"
    outside = {Path(f"/proc/{pid}/ns/pid").readlink() for pid in ("self", bare_machine.leader)}
    assert len(outside) == 2


def test_nothing_is_written_to_the_root_directory_below(bare_machine: Machine) -> None:
    bare_machine.write("/etc/forge-test-canary", "inside\n", mode=0o600)
    assert bare_machine.read("/etc/forge-test-canary") == "inside\n"
    assert not Path("/etc/forge-test-canary").exists()


def test_transient_units_of_a_new_user_are_in_the_journal(bare_machine: Machine) -> None:
    uid = bare_machine.add_user("canary")
    bare_machine.run("systemd-run", "--unit=canary", "--uid=canary", "sh", "-c", "echo tweet; exec sleep infinity")
    entry = bare_machine.wait_for("_SYSTEMD_UNIT=canary.service", until=lambda entry: entry["MESSAGE"] == "tweet")
    assert entry["_UID"] == str(uid)
    assert [seen["MESSAGE"] for seen in bare_machine.journal("_SYSTEMD_UNIT=canary.service")] == ["tweet"]
    assert list(bare_machine.processes("canary").values()) == ["sleep infinity "]
    bare_machine.run("systemctl", "stop", "canary")
    assert bare_machine.processes("canary") == {}


def test_run_as_a_user_has_its_identity_and_nothing_of_our_environment(bare_machine: Machine) -> None:
    uid = bare_machine.add_user("passer-by")
    shown = bare_machine.run("sh", "-c", "id -u; env | grep -v ^_= | cut -d = -f 1 | sort", user="passer-by").stdout
    assert shown.split() == [str(uid), "HOME", "LANG", "LOGNAME", "PATH", "PWD", "USER"]
