"""What forgectl doctor finds of the users that agents run as."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import units
from forge_supervisor.cli import doctor_users
from forge_supervisor.cli.doctor_scene import Answer, Finding, Scene, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECK = "user team"
UID = os.geteuid()
CHOWN = f"chown {UID}:{os.getegid()} /home/team"


def team(uid: int = UID, *, groups: tuple[int, ...] = (4_000_000,), shell: str = "/bin/sh") -> units.User:
    return units.User("team", uid, groups[0] if uid != UID else os.getegid(), groups, "/home/team", shell)


class Kernel:
    """Says of test(1) what is refused, and of df(1) what is given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refuses: set[str] = set()
        self.df: dict[str, str] = {}

    def ask(self, argv: Sequence[str], *, user: units.User | None = None) -> Answer:
        assert user is not None, "it is the user's right that counts"
        if argv[0] == "df":
            known = self.df.get(argv[-1])
            return Answer(1, "", "No such file or directory") if known is None else Answer(0, known, "")
        assert argv[0] == "test"
        return Answer(int(f"{argv[1]} {argv[2]}" in self.refuses), "", "")

    def scene(self, *, system: bool = True, is_root: bool = True) -> Scene:
        return Scene(system=system, is_root=is_root, ask=self.ask, root=self.root)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    (tmp_path / "home/team").mkdir(parents=True)
    return Kernel(tmp_path)


def test_a_user_that_is_not_there_is_to_be_made(kernel: Kernel) -> None:
    (check,) = doctor_users.checks(kernel.scene(), "no-such-user")
    assert list(check()) == [
        problem("user no-such-user", "there is no such user", "useradd --create-home no-such-user")
    ]


def test_lingering_matters_to_ones_own_supervisor_alone(kernel: Kernel) -> None:
    assert len(doctor_users.checks(kernel.scene(system=False), "nobody")) == 7
    assert len(doctor_users.checks(kernel.scene(), "nobody")) == 6


def grouped(monkeypatch: pytest.MonkeyPatch, names: dict[int, str]) -> None:
    monkeypatch.setattr(doctor_users, "_group_name", lambda number: names.get(number, str(number)))


@pytest.mark.parametrize("group", sorted(doctor_users.POWERFUL))
def test_a_group_that_makes_agents_powerful_is_a_warning(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    grouped(monkeypatch, {1: "team", 2: group, 3: "video"})
    user = units.User("team", 1001, 1, (1, 2, 3), "/home/team", "/bin/sh")
    (found,) = doctor_users.groups(kernel.scene(), user)
    text = f'team is in the group "{group}": {doctor_users.POWERFUL[group]}'
    assert (found.check, found.status, found.text) == (CHECK, "warning", text)
    assert found.fix.startswith(f"gpasswd -d team {group}, and restart")


def test_a_primary_group_is_left_in_another_way(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, {2: "docker"})
    user = units.User("team", 1001, 2, (2,), "/home/team", "/bin/sh")
    (found,) = doctor_users.groups(kernel.scene(), user)
    assert found.fix == "groupadd team; usermod -g team team"


def test_ones_own_account_is_not_to_be_weakened(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, {1: "team", 2: "sudo"})
    user = units.User("team", 1001, 1, (1, 2), "/home/team", "/bin/sh")
    (found,) = doctor_users.groups(kernel.scene(system=False), user)
    assert found.fix == "run them as a user of their own, by a supervisor that runs as root"


def test_a_user_in_no_such_group_is_fine(kernel: Kernel) -> None:
    (found,) = doctor_users.groups(kernel.scene(), team(groups=(4_000_000,), uid=UID + 1))
    assert found == ok(CHECK, f"uid {UID + 1}, in no group that makes it powerful")


def test_a_home_is_fine(kernel: Kernel) -> None:
    found = list(doctor_users.home(kernel.scene(), team()))
    assert found == [ok(CHECK, "its home /home/team belongs to it, and it may write there")]


def test_a_home_that_is_missing_is_to_be_made(kernel: Kernel) -> None:
    (kernel.root / "home/team").rmdir()
    (found,) = doctor_users.home(kernel.scene(), team())
    fix = f"install -d -m 700 -o {UID} -g {os.getegid()} /home/team"
    assert found == problem(CHECK, "its home /home/team is missing", fix)


def test_a_home_that_is_a_file_is_a_problem(kernel: Kernel) -> None:
    (kernel.root / "home/team").rmdir()
    (kernel.root / "home/team").touch()
    (found,) = doctor_users.home(kernel.scene(), team())
    assert (found.status, found.text) == ("problem", "its home /home/team is no directory")


@pytest.mark.parametrize("how", ["-w", "-x"])
@pytest.mark.parametrize(("mode", "fix"), [
    (0o500, "chmod u+rwx /home/team"),
    (0o700, "namei -l /home/team shows which directory it may not enter"),
])  # fmt: skip
def test_a_home_that_cannot_be_written_is_a_problem(kernel: Kernel, how: str, mode: int, fix: str) -> None:
    (kernel.root / "home/team").chmod(mode)
    kernel.refuses = {f"{how} {kernel.root}/home/team"}
    (found,) = doctor_users.home(kernel.scene(), team())
    assert found == problem(CHECK, "it may not write its home /home/team", fix)


def test_a_home_on_a_file_system_to_read_is_to_be_remounted(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(kernel.root)
    read_only = os.statvfs_result((*status[:8], status.f_flag | os.ST_RDONLY, status.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    kernel.refuses = {f"-w {kernel.root}/home/team"}
    (found,) = doctor_users.home(kernel.scene(), team())
    assert found.fix == 'mount -o remount,rw "$(findmnt -no TARGET -T /home/team)"'


def test_a_home_of_another_is_a_warning_or_worse(kernel: Kernel) -> None:
    other = units.User("team", UID + 1, 5, (5,), "/home/team", "/bin/sh")
    (found,) = doctor_users.home(kernel.scene(), other)
    assert found.status == "warning"
    assert found.fix == f"chown {UID + 1}:5 /home/team"
    kernel.refuses = {f"-w {kernel.root}/home/team"}
    (found,) = doctor_users.home(kernel.scene(), other)
    assert (found.status, found.fix) == ("problem", f"chown {UID + 1}:5 /home/team")


def test_what_another_user_may_do_takes_root(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: UID + 5)
    scene = kernel.scene(is_root=False)
    for look in (doctor_users.home, doctor_users.interpreter):
        (found,) = look(scene, team())
        assert found.status == "skipped"
        assert found.text.endswith("(run it as root)")
    kernel.df = {str(kernel.root / "home/team"): "x\n1 1 1 1\n"}
    assert list(doctor_users.space(scene, team())) == []


@pytest.mark.parametrize(("shell", "status", "words"), [
    ("/bin/bash", None, ""),
    ("/bin/gone", "warning", "is missing"),
    ("/sbin", "warning", "is missing"),
    ("/sbin/nologin", "ok", "lets nobody in"),
])  # fmt: skip
def test_a_shell_is_needed_by_people(kernel: Kernel, shell: str, status: str | None, words: str) -> None:
    for name in ("bin/bash", "sbin/nologin"):
        file = kernel.root / name
        file.parent.mkdir()
        file.touch(0o755)
    found = list(doctor_users.shell(kernel.scene(), team(shell=shell)))
    assert [one.status for one in found] == ([] if status is None else [status])
    assert all(words in one.text for one in found)


def test_who_does_not_linger_takes_the_agents_along(kernel: Kernel) -> None:
    scene = kernel.scene(system=False)
    assert list(doctor_users.linger(scene, team())) == []
    (kernel.root / "run/systemd/system").mkdir(parents=True)
    text = "it does not linger, so agents end when it logs out"
    assert list(doctor_users.linger(scene, team())) == [warning(CHECK, text, "loginctl enable-linger team")]
    (kernel.root / "var/lib/systemd/linger").mkdir(parents=True)
    (kernel.root / "var/lib/systemd/linger/team").touch()
    assert [one.status for one in doctor_users.linger(scene, team())] == ["ok"]


def tmux(kernel: Kernel, uid: int = UID, mode: int | None = 0o700, **scene: bool) -> Finding:
    directory = kernel.root / f"tmp/tmux-{uid}"
    if mode is not None:
        directory.mkdir(parents=True)
        directory.chmod(mode)
    (found,) = doctor_users.tmux_directory(kernel.scene(**scene), team(uid))
    return found


@pytest.fixture(autouse=True)
def _tmux_is_where_it_always_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX_TMPDIR", raising=False)


@pytest.mark.parametrize("mode", [0o700, None])
def test_the_tmux_directory_is_its_own_or_not_there(kernel: Kernel, mode: int | None) -> None:
    assert tmux(kernel, mode=mode).status == "ok"


@pytest.mark.parametrize(("mode", "status"), [
    (0o701, "problem"), (0o755, "problem"), (0o600, "problem"), (0o770, "warning"),
])  # fmt: skip
def test_a_tmux_directory_that_is_open_is_closed_by_its_owner(kernel: Kernel, mode: int, status: str) -> None:
    found = tmux(kernel, mode=mode)
    assert found.status == status
    assert f"has mode {mode:o}" in found.text
    assert found.fix == f"runuser -u team -- chmod 700 /tmp/tmux-{UID}"


def test_a_tmux_directory_of_another_is_to_be_moved(kernel: Kernel) -> None:
    found = tmux(kernel, uid=UID + 1)
    assert found.status == "problem"
    assert found.fix.startswith(f"mv -T /tmp/tmux-{UID + 1} /tmp/tmux-{UID + 1}.not-of-{UID + 1}")


def test_a_link_in_place_of_the_tmux_directory_is_not_followed(kernel: Kernel) -> None:
    (kernel.root / "tmp").mkdir()
    (kernel.root / f"tmp/tmux-{UID}").symlink_to(kernel.root / "home/team")
    found = tmux(kernel, mode=None)
    assert found.status == "problem"
    assert "is no directory" in found.text


def test_ones_own_tmux_may_have_a_place_of_its_own(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX_TMPDIR", "/run/mine")
    assert "/run/mine/tmux-" in tmux(kernel, mode=None, system=False).text
    assert "/tmp/tmux-" in tmux(kernel, mode=None).text


def test_who_may_execute_python_is_fine(kernel: Kernel) -> None:
    assert list(doctor_users.interpreter(kernel.scene(), team())) == [ok(CHECK, f"it may execute {sys.executable}")]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "opt/bin/python3"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def test_the_outermost_directory_that_is_closed_is_named(kernel: Kernel, python: Path) -> None:
    kernel.refuses = {f"-x {path}" for path in (python, python.parent, python.parent.parent)}
    (found,) = doctor_users.interpreter(kernel.scene(), team())
    closed = python.parent.parent
    assert found.text == f"it may not enter {closed}, and {python} is what its agents are started with"
    if UID == 0:
        assert found.fix == f"chmod o+x {closed}"
        os.chown(closed, 1, 1)
        (found,) = doctor_users.interpreter(kernel.scene(), team())
    assert found.fix.startswith("sudo ./dev install")


def test_behind_a_link_it_is_the_targets_directory(kernel: Kernel, python: Path) -> None:
    real = python.parent.parent / "lib/python3"
    real.parent.mkdir()
    python.rename(real)
    python.symlink_to(real)
    kernel.refuses = {f"-x {python}", f"-x {real.parent}"}
    (found,) = doctor_users.interpreter(kernel.scene(), team())
    assert f"it may not enter {real.parent}," in found.text


def test_a_python_that_only_some_may_execute_is_named_itself(kernel: Kernel, python: Path) -> None:
    kernel.refuses = {f"-x {python}"}
    (found,) = doctor_users.interpreter(kernel.scene(), team())
    assert found.fix == f"chmod o+rX {python}"


def test_a_package_that_cannot_be_read_is_a_problem(kernel: Kernel) -> None:
    package = Path(units.__file__).parent.parent / "__init__.py"
    kernel.refuses = {f"-r {package}"}
    (found,) = doctor_users.interpreter(kernel.scene(), team())
    assert found.fix == f"chmod o+rX {package}"


@pytest.mark.parametrize("where", ["home/team/.local/state", "home/team"])
def test_space_is_asked_for_where_the_state_is_or_will_be(kernel: Kernel, where: str) -> None:
    directory = str(kernel.root / where)
    kernel.df = {directory: " Avail Size IFree Inodes\n 4 100 - -\n"}
    (found,) = doctor_users.space(kernel.scene(), team())
    assert found.status == "warning"
    assert f"only 4.0% of the file system of {directory} is free" in found.text
    kernel.df = {directory: " Avail Size IFree Inodes\n 90 100 70 100\n"}
    (found,) = doctor_users.space(kernel.scene(), team())
    assert found.status == "ok"
    assert "70%" in found.text


def test_ones_own_state_may_have_a_place_of_its_own(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    kernel.df = {"/srv/state": "x\n1 2 3 4\n", str(kernel.root / "home/team"): "x\n1 1 1 1\n"}
    (found,) = doctor_users.space(kernel.scene(system=False), team())
    assert "/srv/state" in found.text
