"""Who has connected, by the kernel's word: real sockets, real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import pidfd
from forge_supervisor.control import peer
from forge_supervisor.units import DirectPlacement, cgroups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(os.fspath(tmp_path / "s"))
        made.listen(500)
        made.settimeout(20)
        yield made


@contextlib.contextmanager
def child(work: Callable[[], None], *, first: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Do the first and the work in another process, which lives until the end; its pid when the work is done."""
    done, tell = os.pipe()
    hear, end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(end)
            first()
            work()
            os.write(tell, b"x")
            os.read(hear, 1)
        finally:
            os._exit(0)
    os.close(hear)
    os.close(tell)
    assert os.read(done, 1) == b"x"
    os.close(done)
    try:
        yield pid
    finally:
        os.close(end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def connect(listening: socket.socket) -> Callable[[], None]:
    address = listening.getsockname()

    def work() -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(address)
        made.detach()

    return work


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


def test_one_that_lives_is_told_by_its_pid(listening: socket.socket) -> None:
    asked: list[int] = []
    with child(connect(listening)) as pid, listening.accept()[0] as connection:
        before = descriptors()
        told = peer.peer_of(connection, lambda pid: asked.append(pid) or "scout")  # type: ignore[func-returns-value]
        assert (told.uid, told.agent, asked) == (os.geteuid(), "scout", [pid])
        assert peer.peer_of(connection, lambda _: None).agent is None
        assert descriptors() == before


@needs_root
def test_user_and_groups_are_those_it_connected_with(listening: socket.socket) -> None:
    groups = [5, 27, 4711, *range(10_000, 10_060)]
    Path(listening.getsockname()).chmod(0o666)
    for directory in [Path(listening.getsockname()).parent, *Path(listening.getsockname()).parents][:4]:
        directory.chmod(0o755)

    def become() -> None:
        os.setgroups(groups)
        os.setgid(1234)
        os.setuid(2345)

    with child(connect(listening), first=become), listening.accept()[0] as connection:
        told = peer.peer_of(connection, lambda _: None)
    assert (told.uid, told.gids) == (2345, frozenset({1234, *groups}))


@needs_root
def test_of_one_with_more_groups_than_there_is_room_for_the_first_is_known(listening: socket.socket) -> None:
    def become() -> None:
        os.setgroups(range(20_000, 20_300))

    with child(connect(listening), first=become), listening.accept()[0] as connection:
        told = peer.peer_of(connection, lambda _: None)
        assert told.gids == {0}


@pytest.mark.parametrize("kernel", ["this one", "an older one", "one that tells of no dead"])
def test_one_that_has_ended_is_taken_to_come_from_within(
    listening: socket.socket, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "an older one":
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", 9999)
    with child(connect(listening)) as pid:
        pass
    if kernel == "one that tells of no dead":
        # Whose pid is another's by now.
        monkeypatch.setattr(os, "pidfd_open", lambda _pid, was=os.pidfd_open: was(os.getpid()))
    with listening.accept()[0] as connection:
        assert pid
        given: Any = Deaf(connection) if kernel == "one that tells of no dead" else connection
        before = descriptors()
        assert peer.peer_of(given, lambda _: None).agent == ""
        assert descriptors() == before


class Deaf:
    """The connection, on a kernel that refuses a pidfd of a process that was reaped."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if option == peer._SO_PEERPIDFD:
            raise OSError(errno.ESRCH, "no such process")
        return self._connection.getsockopt(level, option, *size)


def test_one_that_ends_while_it_is_looked_at_is_taken_to_come_from_within(listening: socket.socket) -> None:
    with child(connect(listening)) as pid, listening.accept()[0] as connection:

        def ends(_pid: int) -> None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

        assert peer.peer_of(connection, ends).agent == ""


def test_a_zombie_is_taken_to_come_from_within(listening: socket.socket) -> None:
    with child(connect(listening)) as pid, listening.accept()[0] as connection:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert peer.peer_of(connection, lambda _: None).agent == ""


def test_it_is_told_however_many_descriptors_are_open(listening: socket.socket) -> None:
    import resource  # noqa: PLC0415 - Linux has it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("too few descriptors may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3000, hard))
    held: list[int] = []
    try:
        with child(connect(listening)), listening.accept()[0] as connection:
            held = [os.dup(0) for _ in range(1100)]
            assert peer.peer_of(connection, lambda _: None).agent is None
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# By control groups.

OURS = "/forge.slice"
USERS = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("path", "root", "agent"),
    [
        (f"{OURS}/forge-agent-scout.scope", "", "scout"),
        (f"{OURS}/forge-agent-scout.scope", "/", "scout"),
        (f"{OURS}/forge-agent-scout.scope/below/it", "", "scout"),
        (f"{OURS}/forge-agent-a-1.scope", "", "a-1"),
        (f"{OURS}/forge-tmux-team.service", "", ""),
        (f"{OURS}/forge-worker-team.service", "", ""),
        (f"{OURS}/forge-agent-Scout.scope", "", ""),
        (f"{OURS}/forge-agent-.scope", "", ""),
        (f"{OURS}/forge-agent-scout.service", "", ""),
        (f"{OURS}/forge-agents.service/forge-agent-scout.scope", "", ""),
        (f"{OURS}/", "", ""),
        ("/", "", None),
        ("/system.slice/forge-supervisor.service", "", None),
        ("/system.slice/ssh.service", "", None),
        ("/forge.slice-not/forge-agent-scout.scope", "", None),
        (f"/docker/abc{OURS}/forge-agent-scout.scope", "/docker/abc", "scout"),
        (f"{USERS}{OURS}/forge-agent-scout.scope", USERS, "scout"),
        # What any user can have its own systemd make.
        (f"{USERS}{OURS}/forge-agent-scout.scope", "", None),
        (f"{USERS}/app.slice{OURS}/forge-agent-scout.scope", USERS, None),
    ],
)
def test_the_agent_by_the_control_group(
    path: str, root: str, agent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lines in (f"0::{path}\n", f"9:name=systemd:/\n0::{path}\n", f"9:name=systemd:{path}\n8:pids:/x\n0::/\n"):
        monkeypatch.setattr(Path, "read_text", lambda *_a, lines=lines, **_k: lines)
        assert cgroups.agent_of(1, root) == agent


def test_of_one_that_has_ended_nothing_is_believed() -> None:
    with child(lambda: None) as pid:
        pass
    assert cgroups.agent_of(pid, "") == ""
    assert cgroups.memory_of(pid) is None


@pytest.mark.parametrize(
    ("lines", "paths"),
    [
        ("0::/a/b\n", {"": "/a/b"}),
        ("9:name=systemd:/legacy\n8:pids:/x\n0::/unified\n", {"": "/unified", "name=systemd": "/legacy"}),
        ("0::/with:colon\n", {"": "/with:colon"}),
        ("8:pids:/x\n", {}),
        ("", {}),
    ],
)
def test_the_paths_of_a_group(lines: str, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_a, **_k: lines)
    assert cgroups._paths(1) == paths


def test_moves_are_eased_by_one_to_where_we_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_paths", lambda pid: {"": "/a/b"} if pid == os.getpid() else {})
    cgroups.ease_moves()  # there is no such group: no harm is done
    (tmp_path / "a/b").mkdir(parents=True)
    cgroups.ease_moves()  # it need not be a cgroup file system at all
    assert not (tmp_path / "a/b/cgroup.procs").exists()
    (tmp_path / "a/b/cgroup.procs").touch()
    cgroups.ease_moves()
    assert (tmp_path / "a/b/cgroup.procs").read_text() == "0"  # as cgroups(7) calls whoever writes
    monkeypatch.setattr(cgroups, "_paths", lambda _: {})
    cgroups.ease_moves()


# By descent.


def test_the_agent_by_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    #  1 - 10 supervisor (us) - 20 tmux - 30 agent - 40 shell - 50 client;  10 - 60 left behind;  1 - 70 login - 80
    parents = {50: 40, 40: 30, 30: 20, 20: 10, 60: 10, 80: 70, 70: 1, 10: 1, 25: 20, 90: 91, 91: 1}
    monkeypatch.setattr(os, "getpid", lambda: 10)
    monkeypatch.setattr("forge_supervisor.units.direct.parent", parents.__getitem__)
    placement = DirectPlacement()
    placement._children.add(20)
    placement._strays.add(91)
    agents = {30: "scout"}
    assert [placement.agent_of(pid, agents) for pid in (30, 40, 50)] == ["scout"] * 3
    # A window beside the agent's; what an agent left behind; what was started by an earlier supervisor's server.
    assert [placement.agent_of(pid, agents) for pid in (25, 20, 60, 10, 90, 91)] == [""] * 6
    assert [placement.agent_of(pid, agents) for pid in (80, 70, 1)] == [None] * 3


def test_one_whose_descent_cannot_be_told_comes_from_within(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr("forge_supervisor.units.direct.parent", gone)
    assert DirectPlacement().agent_of(99, {}) == ""


def test_real_processes_descend_from_us_and_we_do_not() -> None:
    placement = DirectPlacement()
    with child(lambda: None) as pid:
        assert placement.agent_of(pid, {pid: "scout"}) == "scout"
        assert placement.agent_of(pid, {}) == ""
        assert placement.agent_of(os.getpid(), {pid: "scout"}) == ""
        assert placement.agent_of(pidfd.parent(os.getpid()), {pid: "scout"}) is None
    assert placement.agent_of(pid, {}) == ""
