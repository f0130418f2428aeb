"""With real processes: what an agent's session leaves behind is found and ended, and nothing else."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import processes
from forge_supervisor.processes import Cleared, clear, clear_pane, lives, survivors

if TYPE_CHECKING:
    from collections.abc import Iterator

# More than any process here needs to obey a SIGTERM; and none, for those that do not.
GRACE = 20.0
NO_GRACE = 0.2

# Programs. `say()` tells the test a pid; whoever says something is ready.
WAIT = "say(); time.sleep(300)"
DEAF = "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]"
SCRUBBED = "import sys; os.execve(sys.executable, [*sys.orig_argv[:-1], f'{preamble}; say(); time.sleep(300)'], {})"


class Session:
    """As a pane's: a leader, its kernel session, and an invocation in the environment."""

    def __init__(self) -> None:
        self.invocation = uuid.uuid4().hex
        self._hears, self._says = os.pipe()
        self._leaders: list[subprocess.Popen[bytes]] = []

    def lead(self, program: str, *, user: int | None = None, before: str = "") -> int:
        preamble = f"import os, signal, time; say = lambda: os.write({self._says}, b'%d\\n' % os.getpid())"
        argv = [sys.executable, "-I", "-S", "-c", f"{preamble}; preamble = {preamble!r}; {program}"]
        env = {"BEFORE": before, "INVOCATION_ID": self.invocation}
        leader = subprocess.Popen(argv, env=env, user=user, start_new_session=True, pass_fds=[self._says], cwd="/")
        self._leaders.append(leader)
        return leader.pid

    def hear(self, count: int = 1) -> list[int]:
        said: list[int] = []
        while len(said) < count:
            assert select.select([self._hears], [], [], 30)[0], "nobody said anything"
            said += map(int, os.read(self._hears, 65536).split())
        return sorted(said)

    def end_leader(self) -> None:
        self._leaders[-1].kill()
        self._leaders[-1].wait()

    def close(self) -> None:
        for leader in self._leaders:
            clear(self.invocation, leader.pid, 0)
            leader.kill()
            leader.wait()
        os.close(self._hears)
        os.close(self._says)


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()


def test_children_of_a_dead_leader_are_terminated(session: Session) -> None:
    sid = session.lead(f"os.fork(); os.fork(); {WAIT}")
    everyone = session.hear(4)
    session.end_leader()
    assert survivors(session.invocation, sid) == [pid for pid in everyone if pid != sid]
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=3)
    assert survivors(session.invocation, sid) == []


def test_processes_that_ignore_hup_and_term_are_killed(session: Session) -> None:
    sid = session.lead(f"{DEAF}; os.fork(); {WAIT}")
    session.hear(2)
    assert clear(session.invocation, sid, NO_GRACE) == Cleared(killed=2)
    assert survivors(session.invocation, sid) == []


def test_the_obedient_are_counted_apart_from_the_deaf(session: Session) -> None:
    sid = session.lead(f"os.fork() or {DEAF}; {WAIT}")
    session.hear(2)
    assert clear(session.invocation, sid, NO_GRACE) == Cleared(terminated=1, killed=1)


def test_daemon_is_found_by_its_environment(session: Session) -> None:
    """Forked twice and in a session of its own: what `kill -- -PGID` and SIGHUP never reach."""
    sid = session.lead(f"\nif not os.fork():\n  os.setsid()\n  os.fork() and os._exit(0)\n{WAIT}")
    daemon = next(pid for pid in session.hear(2) if pid != sid)
    session.end_leader()
    assert os.getsid(daemon) != sid
    assert survivors(session.invocation, sid) == [daemon]
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=1)


def test_outsiders_are_those_that_surely_do_not_belong(session: Session, other: Session) -> None:
    leader = session.lead(f"\nif not os.fork():\n  os.setsid()\n{WAIT}")
    scrubbed = session.lead(SCRUBBED.replace("{})", "{'OTHER': 'x'})"))
    stranger = other.lead(WAIT)
    daemon = next(pid for pid in session.hear(3) if pid not in {leader, scrubbed})
    other.hear()
    found = processes.outsiders(session.invocation, scrubbed, ())
    assert stranger in found
    assert not found & {leader, daemon, scrubbed}


def test_who_was_forked_by_the_tmux_server_is_no_outsider_before_it_is_executed(
    session: Session, other: Session
) -> None:
    """Trap: until then its environment is the server's, and what it will be executed with may be the session's."""
    leader = session.lead(WAIT)
    session.hear()
    server = other.lead(f"os.fork() or os.setsid(); {WAIT}")
    both = set(other.hear(2))
    assert both <= processes.outsiders(session.invocation, leader, ())
    assert not both & processes.outsiders(session.invocation, leader, (server,))


def test_outsiders_are_not_looked_at_again(session: Session) -> None:
    pid = session.lead(WAIT)
    session.hear()
    assert clear(session.invocation, pid, GRACE, outsiders={pid}) == Cleared()
    assert lives(pid)
    assert clear(session.invocation, pid, GRACE, outsiders={os.getpid()}) == Cleared(terminated=1)


def test_an_environment_need_not_fit_into_one_reading(session: Session) -> None:
    # So that the second one begins within the invocation.
    pid = session.lead(WAIT, before="x" * (processes._READ_SIZE - 30))
    session.hear()
    assert survivors(session.invocation, None) == [pid]


def test_orphan_without_environment_is_found_by_its_session(session: Session) -> None:
    sid = session.lead(f"\nif os.fork(): {WAIT}\n{SCRUBBED}")
    orphan = next(pid for pid in session.hear(2) if pid != sid)
    session.end_leader()
    assert survivors(session.invocation, sid) == [orphan]
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=1)


def test_child_that_left_the_session_without_environment_is_found_by_its_parent(session: Session) -> None:
    sid = session.lead(f"\nif os.fork(): {WAIT}\nos.setsid(); {SCRUBBED}")
    both = session.hear(2)
    assert survivors(session.invocation, sid) == both
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=2)


def test_out_of_reach_without_environment_session_and_parent(session: Session) -> None:
    """The limit of this module, as its docstring says; a cgroup has no such limit."""
    sid = session.lead(f"\nif os.fork(): {WAIT}\nos.setsid(); {SCRUBBED}")
    orphan = next(pid for pid in session.hear(2) if pid != sid)
    session.end_leader()
    try:
        assert survivors(session.invocation, sid) == []
        assert lives(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_stopped_process_can_obey(session: Session) -> None:
    sid = session.lead(WAIT)
    (stopped,) = session.hear()
    os.kill(stopped, signal.SIGSTOP)
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=1)


def test_process_that_forks_when_told_to_end(session: Session) -> None:
    then = "os.fork() and os._exit(0) or signal.signal(signal.SIGTERM, signal.SIG_DFL)"
    sid = session.lead(f"signal.signal(signal.SIGTERM, lambda *_: {then}); {WAIT}")
    session.hear()
    # Python drops a signal that reaches a child before it has returned from fork: then the child is killed.
    cleared = clear(session.invocation, sid, GRACE)
    assert cleared.terminated + cleared.killed > 1
    assert survivors(session.invocation, sid) == []


def test_more_processes_than_we_may_open_descriptors(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_MOST_PINNED", 8)
    sid = session.lead(f"{DEAF}; [os.fork() for _ in range(5)]; {WAIT}")
    session.hear(32)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, hard))
    try:
        assert clear(session.invocation, sid, NO_GRACE) == Cleared(killed=32)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_other_sessions_are_left_alone(session: Session, other: Session) -> None:
    sid, stranger = session.lead(WAIT), other.lead(WAIT)
    session.hear()
    other.hear()
    assert clear(session.invocation, sid, GRACE) == Cleared(terminated=1)
    assert lives(stranger)


def test_reused_pid_is_not_our_session(session: Session, other: Session) -> None:
    """Our leader and all its children are gone, and another agent's leader has got its pid."""
    reused = other.lead(f"os.fork(); {WAIT}")
    other.hear(2)
    assert survivors(session.invocation, reused) == []
    assert clear(session.invocation, reused, GRACE) == Cleared()
    assert lives(reused)


def test_spared_process_and_its_children(session: Session) -> None:
    """As the tmux server, if someone started it from within an agent's session."""
    server = session.lead(f"\nif not os.fork(): {SCRUBBED}\n{WAIT}")
    session.hear(2)
    assert survivors(session.invocation, None, spare=[server]) == []
    assert len(survivors(session.invocation, None)) == 2


def test_it_never_ends_itself() -> None:
    me = uuid.uuid4().hex
    program = f"import os; from forge_supervisor.processes import clear; print(clear('{me}', os.getsid(0), 1))"
    argv = [sys.executable, "-c", program]
    done = subprocess.run(
        argv, env={"INVOCATION_ID": me}, start_new_session=True, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{Cleared()}\n"


def test_another_users_processes_are_left_alone(session: Session) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    if not os.access(Path(sys.executable).resolve().parents[1], os.X_OK):
        pytest.skip("needs a Python that other users may run")
    sid = session.lead(WAIT, user=65534)
    session.hear()
    assert survivors(session.invocation, sid) == []


def test_zombie_does_not_live(session: Session) -> None:
    sid = session.lead(f"\nif os.fork(): {WAIT}\nsay()")
    zombie = next(pid for pid in session.hear(2) if pid != sid)
    fd = os.pidfd_open(zombie)
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)
    assert Path(f"/proc/{zombie}").exists()
    assert not lives(zombie)
    assert lives(sid)
    assert survivors(session.invocation, sid) == [sid]


def test_process_with_an_odd_name(session: Session) -> None:
    sid = session.lead(f"open('/proc/self/comm', 'w').write('a) Z 1 (b'); {WAIT}")
    assert session.hear() == [sid]
    assert survivors(None, sid) == [sid]


def test_clear_pane_finds_the_invocation(session: Session) -> None:
    pane_pid = session.lead(f"\nif not os.fork():\n  os.setsid()\n  os.fork() and os._exit(0)\n{WAIT}")
    session.hear(2)
    assert clear_pane(pane_pid, GRACE) == Cleared(terminated=2)


def test_nothing_to_clear() -> None:
    assert clear(uuid.uuid4().hex, None, GRACE) == Cleared()


def test_an_invocation_that_is_no_utf_8_is_one_like_others() -> None:
    """Trap: whose it is, its user says."""
    argv, pipe = ["/bin/sh", "-c", "echo up; read _"], subprocess.PIPE
    odd = subprocess.Popen(argv, env={b"INVOCATION_ID": b"\xff"}, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        assert odd.stdout is not None
        # Before it has said so its environment may still be empty.
        assert odd.stdout.readline() == b"up\n"
        assert clear_pane(odd.pid, GRACE) == Cleared(terminated=1)
    finally:
        odd.kill()
        odd.communicate()
