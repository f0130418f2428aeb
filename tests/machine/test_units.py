from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import booted
import pytest
from placement_cases import CASES, SYSTEMD_CASES

if TYPE_CHECKING:
    from booted import Machine

PYTHON = {"PYTHONPATH": booted.MODULES}
SECRET = "PLACEMENT_SECRET"  # noqa: S105
SUPERVISOR = f"""
[Service]
Type=notify
Environment=PYTHONPATH={PYTHON["PYTHONPATH"]}
ExecStart={sys.executable} -m placement_cases supervise placed
TimeoutStopSec=20
"""


@pytest.fixture(scope="module")
def placed(bare_machine: Machine) -> Machine:
    """A machine with a user `placed`, and managers that pass on a secret to all that they start."""
    bare_machine.add_user("placed")
    bare_machine.run("systemctl", "set-environment", f"{SECRET}=1")
    return bare_machine


@pytest.fixture(scope="module")
def runtime_dir(placed: Machine) -> str:
    """The runtime directory of `placed`, whose own manager runs."""
    uid = placed.run("id", "-u", "placed").stdout.strip()
    placed.run("loginctl", "enable-linger", "placed")
    placed.run("systemctl", "start", f"user@{uid}.service")
    own = {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    placed.run("systemctl", "--user", "set-environment", f"{SECRET}=1", user="placed", env=own)
    return own["XDG_RUNTIME_DIR"]


def hold(machine: Machine, case: str, user: str | None = None, **env: str) -> None:
    machine.run(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", "placement_cases", case, "placed"),
        user=user,
        env=PYTHON | env,
        timeout=100,
    )


@pytest.mark.parametrize("case", CASES | SYSTEMD_CASES)
def test_units_of_pid_1(placed: Machine, case: str) -> None:
    hold(placed, case)


@pytest.mark.parametrize("case", CASES | SYSTEMD_CASES)
def test_units_of_the_users_own_manager(placed: Machine, runtime_dir: str, case: str) -> None:
    hold(placed, case, user="placed", XDG_RUNTIME_DIR=runtime_dir)


def test_what_a_unit_writes_is_in_its_journal(placed: Machine) -> None:
    hold(placed, "it_says_two_lines")
    entries = placed.journal("_SYSTEMD_UNIT=forge-case-placed.service", "MESSAGE=said", "MESSAGE=said more")
    assert {entry["MESSAGE"] for entry in entries} == {"said", "said more"}


def test_units_ordered_before_the_supervisor_do_not_keep_it_from_stopping(placed: Machine) -> None:
    # Goes before the unit that another test may have installed in /etc, systemd.unit(5).
    unit = "/run/systemd/system.control/forge-supervisor.service"
    placed.write(unit, SUPERVISOR)
    placed.run("systemctl", "daemon-reload")
    try:
        placed.run("systemctl", "start", "forge-supervisor")
        for verb in ("restart", "stop"):
            assert "sleep 1000" in "".join(placed.processes("placed").values())
            placed.run("systemctl", verb, "forge-supervisor")
            assert placed.property("forge-supervisor", "Result") == "success"
    finally:
        placed.run("rm", unit)
        placed.run("systemctl", "daemon-reload")
    assert "sleep 1000" not in "".join(placed.processes("placed").values())
