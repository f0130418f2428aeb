from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from placement_cases import CASES, TIMEOUT

from forge_supervisor import units
from forge_supervisor.units import DirectPlacement, PlacementError, User, direct
from forge_supervisor.units.properties import unit_name

ROOT = os.geteuid() == 0
SOMEBODY = "nobody" if ROOT else pwd.getpwuid(os.geteuid()).pw_name


async def hold(case: str) -> None:
    placement = DirectPlacement()
    await CASES[case](placement, units.lookup(SOMEBODY))
    await placement.close(leave=False)


@pytest.mark.parametrize("case", CASES)
def test_children_without_systemd(case: str) -> None:
    asyncio.run(hold(case))


@pytest.mark.skipif(not ROOT, reason="only root can be in a group that the child must leave")
def test_our_groups_do_not_reach_a_child() -> None:
    ours = os.getgroups()
    os.setgroups([*ours, 4])
    try:
        asyncio.run(hold("it_runs_as_the_user_in_the_root_directory"))
    finally:
        os.setgroups(ours)


def test_our_stdin_and_umask_do_not_reach_a_child() -> None:
    stdin, umask = os.dup(0), os.umask(0o077)
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    try:
        asyncio.run(hold("without_stdin_it_reads_nothing"))
        asyncio.run(hold("it_runs_as_the_user_in_the_root_directory"))
    finally:
        os.umask(umask)
        os.dup2(stdin, 0)
        for descriptor in (stdin, reader, writer):
            os.close(descriptor)


class LogLines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put_nowait(record.getMessage())


def test_what_a_child_writes_is_logged_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[str]:
        log = LogLines()
        monkeypatch.setattr(direct._log, "handlers", [log])
        script = "echo out; echo err >&2; printf 'long%09000d\\n' 0; printf 'bad \\377 byte, no end'"
        placement = DirectPlacement()
        process = await placement.run(
            "worker", units.lookup(SOMEBODY), ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}
        )
        lines: list[str] = []
        async with asyncio.timeout(TIMEOUT):
            while not lines or "no end" not in lines[-1]:
                lines.append(await log.lines.get())
        await process.stop(5)
        await placement.close(leave=False)
        return lines

    lines = [line.removeprefix(f"worker of {SOMEBODY}: ") for line in asyncio.run(run())]
    assert lines[:2] == ["out", "err"]
    assert "".join(lines[2:-1]) == "long" + "0" * 9000
    assert lines[-1] == "bad \ufffd byte, no end"


def links(pid: int) -> set[str]:
    return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_no_descriptor_of_our_terminal_reaches_a_child() -> None:
    async def run() -> set[str]:
        placement = DirectPlacement()
        process = await placement.run("worker", units.lookup(SOMEBODY), ["/bin/sleep", "1000"], env={})
        found = links(process.pid)
        await process.stop(5)
        await placement.close(leave=False)
        return found

    assert {link.partition(":")[0] for link in asyncio.run(run())} == {"/dev/null", "pipe"}


@pytest.mark.skipif(ROOT, reason="root may")
def test_only_root_starts_processes_of_others() -> None:
    with pytest.raises(PlacementError, match="only root may start processes as root"):
        asyncio.run(DirectPlacement().run("worker", units.lookup("root"), ["/bin/true"], env={}))


def test_a_user_is_found_with_all_groups() -> None:
    entry = pwd.getpwnam(SOMEBODY)
    user = units.lookup(SOMEBODY)
    assert user == User(
        name=SOMEBODY,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=user.groups,
        home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
    )
    assert user.gid in user.groups


def test_no_shell_in_the_password_file_is_bin_sh(monkeypatch: pytest.MonkeyPatch) -> None:
    without = pwd.struct_passwd(("odd", "x", 4242, 4242, "", "/home/odd", ""))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: without)
    assert units.lookup("odd").shell == "/bin/sh"  # passwd(5)


def test_who_is_known_is_asked_for_groups_again_only_if_something_else_has_changed() -> None:
    user = units.lookup(SOMEBODY)
    known = replace(user, groups=(4_000_000,))
    assert units.lookup(SOMEBODY, known) is known
    assert units.lookup(SOMEBODY, replace(known, home="/elsewhere")) == user
    assert units.lookup(SOMEBODY, replace(known, uid=4_000_000)) == user


@pytest.mark.parametrize("name", ["no-such-user-here", "", "a\0b"])
def test_no_such_user_says_how_to_make_one(name: str) -> None:
    with pytest.raises(LookupError, match="no such user") as raised:
        units.lookup(name)
    assert str(raised.value) == f'no such user "{name}" (create it: useradd -m {name})'


@pytest.mark.parametrize(
    ("user", "unit"),
    [
        ("team", "forge-tmux-team.service"),
        ("j.doe_2-x", "forge-tmux-j.doe_2-x.service"),
        ("DOM\\ann@corp$", "forge-tmux-DOM\\x5cann\\x40corp\\x24.service"),
        ("rené", "forge-tmux-ren\\xc3\\xa9.service"),
    ],
)
def test_unit_names_are_escaped(user: str, unit: str) -> None:
    assert unit_name("tmux", user) == unit


async def detect(runtime: Path) -> units.Placement:
    placement = units.detect(runtime)
    await placement.close(leave=True)
    return placement


def test_without_a_systemd_that_answers_there_are_plain_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "private"
    monkeypatch.setattr(units, "manager_path", lambda: str(path))
    assert isinstance(asyncio.run(detect(tmp_path)), DirectPlacement)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.exists()
    assert isinstance(asyncio.run(detect(tmp_path)), DirectPlacement)
