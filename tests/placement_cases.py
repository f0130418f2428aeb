"""What every Placement promises, as coroutines that any of them can be held against.

`python -m placement_cases CASE USER` does so on a machine with systemd; in a test's own process they run without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import select
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sdnotify

from forge_supervisor import units
from forge_supervisor.config_resources import Resources
from forge_supervisor.pidfd import Pidfd
from forge_supervisor.units import Cleared, Placement, PlacementError, Process, SystemdPlacement, User
from forge_supervisor.units.manager import Manager
from forge_supervisor.units.systemd import manager_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

TIMEOUT = 30
HOSTILE_ARGUMENTS = ["$HOME ${HOME} $$ %h %% a\\b \"q\" 'x'", "", "-", "é\n\t*"]
HOSTILE_ENVIRONMENT = {"A": "$HOME %h", "B": "\\x \"'\n two", "EMPTY": "", "PATH": "/somewhere", "E": "é"}


class Line:
    """Our end of the socket that a process has as its stdin."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours = ours

    async def read(self, size: int = 1 << 16) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await asyncio.get_running_loop().sock_recv(self._ours, size)

    async def read_all(self) -> bytes:
        """Let the process go on (its `read` ends), and return all that it writes until it has ended."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)
        read = b""
        while more := await self.read():
            read += more
        return read


@asynccontextmanager
async def shell(
    placement: Placement, user: User, script: str, *arguments: str, env: Mapping[str, str], name: str = "case"
) -> AsyncIterator[tuple[Process, Line]]:
    """Run a shell script that has a socket as its descriptor 0, to write to as well."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            process = await placement.run(
                name, user, ["/bin/sh", "-c", script, "sh", *arguments], env=env, stdin=theirs.fileno()
            )
        try:
            yield process, Line(ours)
        finally:
            await process.stop(5)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def stdin_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/fd/0").readlink())


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


class Death:
    """Pins a process, ours or not, and waits for its end; a zombie has ended."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    def wait(self) -> None:
        assert select.select([self._pidfd], [], [], TIMEOUT)[0], "it lives on"
        os.close(self._pidfd)


async def the_environment_and_arguments_are_exactly_those_given(placement: Placement, user: User) -> None:
    script = "/bin/cat /proc/$$/environ >&0; printf '|%s' \"$@\" >&0; read line"
    async with shell(placement, user, script, *HOSTILE_ARGUMENTS, env=HOSTILE_ENVIRONMENT) as (_, line):
        environ, _, arguments = (await line.read_all()).partition(b"|")
    assert arguments.decode().split("|") == HOSTILE_ARGUMENTS
    variables = dict(variable.split("=", 1) for variable in environ.decode().split("\0")[:-1])
    assert variables == HOSTILE_ENVIRONMENT, variables


async def an_empty_environment_is_empty(placement: Placement, user: User) -> None:
    async with shell(placement, user, "/bin/cat /proc/$$/environ >&0; read line", env={}) as (_, line):
        assert await line.read_all() == b""


async def it_runs_as_the_user_in_the_root_directory(placement: Placement, user: User) -> None:
    script = "exec >&0; id -u; id -g; id -G; pwd; umask; grep SigIgn /proc/$$/status; read line"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (_, line):
        uid, gid, groups, cwd, umask, ignored = (await line.read_all()).decode().splitlines()
    assert (int(uid), int(gid)) == (user.uid, user.gid)
    assert {int(group) for group in groups.split()} == set(user.groups)
    assert cwd == "/"
    # A user's own manager may have another one, from pam_umask(8). What matters sets its own.
    assert umask in {"0022", "0002"}
    assert not int(ignored.split()[1], 16) & 1 << 12, "SIGPIPE is ignored"


async def without_stdin_it_reads_nothing(placement: Placement, user: User) -> None:
    process = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
    assert stdin_of(process.pid) == "/dev/null"
    await process.stop(5)


async def it_ends_on_sigterm_and_its_death_is_seen(placement: Placement, user: User) -> None:
    script = "trap 'echo bye >&0; exit' TERM; echo up >&0; while :; do sleep 0.01; done"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (process, line):
        assert await line.read() == b"up\n"
        assert exists(process.pid)
        await process.stop(TIMEOUT)
        assert await line.read_all() == b"bye\n"
        assert not exists(process.pid), "it is a zombie"
        await process.stop(TIMEOUT)


async def what_ignores_sigterm_is_killed_with_all_its_children(placement: Placement, user: User) -> None:
    script = "trap '' TERM; sleep 1000 & echo $! >&0; wait"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (process, line):
        child = Death(int(await line.read()))
        await process.stop(0.1)
        child.wait()
        assert await line.read_all() == b""


async def children_do_not_outlive_a_main_process_that_dies(placement: Placement, user: User) -> None:
    script = "sleep 1000 & echo $! >&0; read line"
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        argv = ["/bin/sh", "-c", script]
        process = await placement.run("case", user, argv, env={"PATH": "/usr/bin:/bin"}, stdin=theirs.fileno())
    child, main = Death(int(await Line(ours).read())), Death(process.pid)
    ours.close()
    await asyncio.to_thread(main.wait)
    await asyncio.to_thread(child.wait)
    await process.stop(5)
    assert not exists(process.pid), "it is a zombie"


async def stopping_the_old_one_does_not_hurt_a_new_one(placement: Placement, user: User) -> None:
    script = "trap '' TERM; echo up >&0; while :; do sleep 0.1; done"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (old, line):
        assert await line.read() == b"up\n"
        stopping = asyncio.create_task(old.stop(0.2))
        await asyncio.sleep(0)
        new = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
        await stopping
        await old.stop(0.1)
        assert not exists(old.pid)
        assert exists(new.pid)
        await new.stop(5)


async def a_program_that_cannot_be_executed_is_an_error_that_names_it(placement: Placement, user: User) -> None:
    before = descriptors()
    for program in ("/nowhere/program", "/etc/passwd"):
        with pytest.raises(PlacementError, match=program):
            await placement.run("case", user, [program], env={})
    assert descriptors() == before


async def descriptors_are_not_leaked_and_names_are_free_again(placement: Placement, user: User) -> None:
    before = descriptors()
    for _ in range(3):
        async with shell(placement, user, "echo up >&0; read line", env={}) as (_, line):
            assert await line.read() == b"up\n"
    await placement.close(leave=False)
    await asyncio.sleep(0)  # a transport that was closed is let go in the next round of the loop
    assert descriptors() == before


async def many_start_at_once(placement: Placement, user: User) -> None:
    async def one(number: int) -> bytes:
        script = f"echo {number} >&0; read line"
        async with shell(placement, user, script, env={}, name=f"case{number}") as (_, line):
            return await line.read()

    assert await asyncio.gather(*(one(n) for n in range(8))) == [b"%d\n" % n for n in range(8)]


@contextlib.contextmanager
def text_file(text: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("text")
    try:
        os.write(descriptor, text)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def errand(placement: Placement, user: User, script: str, text: bytes = b"") -> None:
    with text_file(text) as stdin:
        env = {"PATH": "/usr/bin:/bin"}
        await placement.complete("errand", user, ["/bin/sh", "-c", script], env=env, stdin=stdin, within=TIMEOUT)


async def an_errand_reads_what_it_is_given_and_may_end_at_once(placement: Placement, user: User) -> None:
    before = descriptors()
    for _ in range(3):
        await errand(placement, user, '[ "$(cat)" = told ] && [ "$(pwd)" = / ]', b"told")
        await errand(placement, user, f'[ "$(id -u)" = {user.uid} ]')
        # As programs do that take the name of a file.
        await errand(placement, user, '[ "$(cat /dev/stdin)" = told ]', b"told")
    await placement.close(leave=False)
    await asyncio.sleep(0)
    assert descriptors() == before


async def an_errand_that_fails_says_how(placement: Placement, user: User) -> None:
    for script, how in (("exit 3", "exit code 3"), ("kill -KILL $$", "signal 9"), ("kill $$", "signal 15")):
        with pytest.raises(PlacementError, match=how):
            await errand(placement, user, script)
    with text_file(b"") as stdin, pytest.raises(PlacementError, match="/nowhere/program"):
        await placement.complete("errand", user, ["/nowhere/program"], env={}, stdin=stdin, within=TIMEOUT)


async def an_errand_that_takes_too_long_is_ended_with_all_its_children(placement: Placement, user: User) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    line = Line(ours)
    with ours:
        with theirs:
            argv = ["/bin/sh", "-c", "sleep 1000 & echo $! >&0; wait"]
            ending = asyncio.create_task(
                placement.complete(
                    "errand", user, argv, env={"PATH": "/usr/bin:/bin"}, stdin=theirs.fileno(), within=1
                )
            )
            child = Death(int(await line.read()))
        with pytest.raises(PlacementError, match="it had not ended after 1 s, and was ended"):
            await ending
        await asyncio.to_thread(child.wait)


CASES: dict[str, Callable[[Placement, User], Awaitable[None]]] = {
    case.__name__: case
    for case in (
        the_environment_and_arguments_are_exactly_those_given,
        an_empty_environment_is_empty,
        it_runs_as_the_user_in_the_root_directory,
        without_stdin_it_reads_nothing,
        it_ends_on_sigterm_and_its_death_is_seen,
        what_ignores_sigterm_is_killed_with_all_its_children,
        children_do_not_outlive_a_main_process_that_dies,
        stopping_the_old_one_does_not_hurt_a_new_one,
        a_program_that_cannot_be_executed_is_an_error_that_names_it,
        descriptors_are_not_leaked_and_names_are_free_again,
        many_start_at_once,
        an_errand_reads_what_it_is_given_and_may_end_at_once,
        an_errand_that_fails_says_how,
        an_errand_that_takes_too_long_is_ended_with_all_its_children,
    )
}


async def one_left_from_an_earlier_supervisor_is_ended_first(placement: Placement, user: User) -> None:
    script = "echo up >&0; while :; do sleep 1; done"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (left, line):
        assert await line.read() == b"up\n"
        death = Death(left.pid)
        another = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
        death.wait()
        assert another.unit == left.unit
        assert exists(another.pid)
        await another.stop(5)


async def a_start_that_is_cancelled_leaves_nothing(placement: Placement, user: User) -> None:
    starting = asyncio.create_task(placement.run("case", user, ["/bin/sleep", "1000"], env={}))
    await asyncio.sleep(0)  # to where it waits for systemd
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await is_gone("forge-case-*")


async def a_program_that_ends_at_once_has_started_or_says_so(placement: Placement, user: User) -> None:
    before = descriptors()
    for _ in range(5):
        try:
            process = await placement.run("case", user, ["/bin/true"], env={})
        except PlacementError as error:
            said = str(error)
            assert "ended as soon as it was started" in said
        else:
            await process.stop(5)
    assert descriptors() == before


async def an_unknown_user_of_systemd_is_an_error(placement: Placement, user: User) -> None:
    nobody = dataclasses.replace(user, name="no-such-user", uid=user.uid + 1)
    with pytest.raises(PlacementError, match="does not know that user|only root may"):
        await placement.run("case", nobody, ["/bin/true"], env={})


async def it_says_two_lines(placement: Placement, user: User) -> None:
    async with shell(placement, user, "echo said; echo said more >&2; read line", env={}) as (_, line):
        await line.read_all()


async def a_unit_has_these_properties(placement: Placement, user: User) -> None:
    process = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
    assert process.unit == f"forge-case-{user.name}.service"
    names = "Slice,OOMPolicy,CollectMode,KillMode,Before,MainPID,Description,StandardOutput,StandardError,Type"
    shown = dict(line.split("=", 1) for line in (await systemctl("show", "-p", names, process.unit)).splitlines())
    assert "forge-supervisor.service" in shown.pop("Before").split()
    assert shown == {
        "Slice": "forge.slice",
        "OOMPolicy": "continue",
        "CollectMode": "inactive-or-failed",
        "KillMode": "control-group",
        "MainPID": str(process.pid),
        "Description": f"forge case of {user.name}",
        "StandardOutput": "journal",
        "StandardError": "journal",
        "Type": "exec",
    }
    await process.stop(5)
    assert await systemctl("list-units", "--all", "--no-legend", "forge-case-*") == ""


async def an_errand_that_is_cancelled_comes_to_its_end(placement: Placement, user: User) -> None:
    """Hooks outlive a supervisor that is restarted, and the next one waits with one of that name."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    line = Line(ours)
    with ours:
        argv = ["/bin/sh", "-c", "echo up >&0; read line; echo done >&0"]
        doing = asyncio.create_task(
            placement.complete("errand", user, argv, env={}, stdin=theirs.fileno(), within=TIMEOUT)
        )
        assert await line.read() == b"up\n"
        theirs.close()
        doing.cancel()
        await asyncio.wait([doing])
        unit = f"forge-errand-{user.name}.service"
        assert "Type=oneshot\nActiveState=activating" in await systemctl("show", "-p", "Type,ActiveState", unit)
        assert "forge-supervisor" not in await systemctl("show", "-p", "Before", unit)
        another = asyncio.create_task(errand(placement, user, "true"))
        assert await line.read_all() == b"done\n"
        await another


async def systemd_may_be_reexecuted_at_any_time(placement: Placement, user: User) -> None:
    script = "trap '' TERM; echo up >&0; while :; do sleep 0.1; done"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (process, line):
        assert await line.read() == b"up\n"
        await systemctl("daemon-reexec")
        stopping = asyncio.create_task(process.stop(TIMEOUT))
        await asyncio.sleep(0)  # to where it waits for systemd
        await systemctl("daemon-reexec")
        async with asyncio.timeout(TIMEOUT):
            await stopping  # it cannot know, says so in the log, and does not wait for an answer that will not come
        assert exists(process.pid)
        await process.stop(0.1)
        assert not exists(process.pid)


async def a_unit_has_not_ended_because_systemd_reloads(placement: Placement, user: User) -> None:
    script = "trap '' TERM; echo up >&0; while :; do sleep 0.1; done"
    async with shell(placement, user, script, env={"PATH": "/usr/bin:/bin"}) as (process, line):
        assert await line.read() == b"up\n"
        stopping = asyncio.create_task(process.stop(1))
        await asyncio.sleep(0)  # to where it waits for systemd
        await systemctl("daemon-reload")
        await stopping
        assert not exists(process.pid)


async def systemctl(*arguments: str) -> str:
    scope = ["--system"] if os.geteuid() == 0 else ["--user"]
    argv = ["systemctl", *scope, *arguments]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, argv
    return output.decode()


async def is_gone(pattern: str) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await systemctl("list-units", "--all", "--no-legend", pattern):
            pass


async def asking_for_units_that_are_gone_costs_no_memory(placement: Placement, _user: User) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ask(times: int) -> None:
        for _ in range(times):
            placement.scope("gone")
            with Manager(manager_path()) as manager:
                assert manager.count_processes("forge-agent-gone.scope") == 0

    ask(50)
    before = resident()
    ask(300)
    assert resident() < before + 500_000


async def a_scope_is_over_once_nothing_is_in_it(placement: Placement, user: User) -> None:
    process = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
    pinned = Pidfd(process.pid, user.uid)
    scope = await placement.enclose("case", pinned, Resources())
    assert not scope.is_over()
    assert not placement.scope("case").is_over()
    pinned.signal(signal.SIGKILL)
    await is_gone("forge-agent-case.scope")
    assert scope.is_over()
    assert placement.scope("case").is_over()
    assert await scope.end(0) == Cleared()
    pinned.close()


SYSTEMD_CASES: dict[str, Callable[[Placement, User], Awaitable[None]]] = {
    case.__name__: case
    for case in (
        one_left_from_an_earlier_supervisor_is_ended_first,
        a_start_that_is_cancelled_leaves_nothing,
        a_program_that_ends_at_once_has_started_or_says_so,
        an_unknown_user_of_systemd_is_an_error,
        it_says_two_lines,
        a_unit_has_these_properties,
        an_errand_that_is_cancelled_comes_to_its_end,
        systemd_may_be_reexecuted_at_any_time,
        a_unit_has_not_ended_because_systemd_reloads,
        asking_for_units_that_are_gone_costs_no_memory,
        a_scope_is_over_once_nothing_is_in_it,
    )
}


async def supervise(placement: Placement, user: User) -> None:
    """Act as forge-supervisor.service does: start units before being ready, end them on SIGTERM."""
    process = await placement.run("case", user, ["/bin/sleep", "1000"], env={})
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sdnotify.SystemdNotifier().notify("READY=1")
    await stop.wait()
    await process.stop(60)


async def main(case: str, user: str) -> None:
    placement = units.detect(Path("/run"))
    assert isinstance(placement, SystemdPlacement)
    await (CASES | SYSTEMD_CASES | {"supervise": supervise})[case](placement, units.lookup(user))
    await placement.close(leave=False)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
