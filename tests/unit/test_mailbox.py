from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import mailbox, report
from forge_supervisor.mailbox import Letter, Mailbox, path_of

if TYPE_CHECKING:
    from pathlib import Path

UID = os.geteuid()
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


class Box:
    def __init__(self) -> None:
        self.letters: asyncio.Queue[Letter] = asyncio.Queue()
        self.mailbox = Mailbox(self.letters.put_nowait)
        self.mailbox.open(UID)

    async def next(self) -> Letter:
        async with asyncio.timeout(PATIENCE):
            return await self.letters.get()


async def reported(told: bytes, *argv: str, invocation: str = "c0ffee") -> tuple[int, bytes]:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", report.SCRIPT, *(argv or (str(path_of(UID)),)),
        env={"INVOCATION_ID": invocation}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await program.communicate(told)
    return program.returncode or 0, said


def test_what_a_hook_is_told_arrives() -> None:
    async def scene() -> None:
        box = Box()
        assert await reported(b'{"hook_event_name": "Stop"}') == (0, b"")
        assert await box.next() == (UID, "c0ffee", {"hook_event_name": "Stop"})
        box.mailbox.close()
        assert not path_of(UID).exists()

    asyncio.run(scene())


def test_nobody_else_can_send_to_it() -> None:
    async def scene() -> None:
        box = Box()
        status = path_of(UID).stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o600, UID)
        box.mailbox.close()

    asyncio.run(scene())


def test_what_is_too_long_is_shortened() -> None:
    async def scene() -> None:
        box = Box()
        told = {"hook_event_name": "UserPromptSubmit", "prompt": "x" * 300_000, "other": ["y" * 1000]}
        assert await reported(json.dumps(told).encode()) == (0, b"")
        _, _, letter = await box.next()
        assert letter == {"hook_event_name": "UserPromptSubmit", "prompt": "x" * 1000}
        box.mailbox.close()

    asyncio.run(scene())


HALF_A_CHARACTER = (b'{"a": "\\ud800"}', b'{"\\ud800": 1}', b'{"a": [{"b": "\\udfff"}]}')


@pytest.mark.parametrize(
    "told", [b"", b"[]", b"{", b'{"a":' * 100_000, b"\xff\xfe", b"x" * 300_000, *HALF_A_CHARACTER]
)
def test_nonsense_is_dropped_and_the_next_one_read(told: bytes) -> None:
    async def scene() -> None:
        box = Box()
        assert await reported(told) == (0, b"")
        await reported(b"{}")
        assert await box.next() == (UID, "c0ffee", {})
        box.mailbox.close()

    asyncio.run(scene())


def test_a_hook_fails_for_no_reason_at_all() -> None:
    """Trap: of a hook that fails claude tells in the conversation, and one that hangs holds up the turn."""

    async def scene() -> None:
        for argv in ((), ("/nowhere",), ("/etc/passwd",)):
            assert await reported(b"{}", *argv) == (0, b"")

    asyncio.run(scene())


def test_one_that_nobody_reads_holds_nobody_up() -> None:
    async def scene() -> None:
        path_of(UID).parent.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
            full.bind(str(path_of(UID)))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sender.sendto(b"x", str(path_of(UID)))
                async with asyncio.timeout(PATIENCE):
                    assert await reported(b"{}") == (0, b"")

    asyncio.run(scene())


def test_a_flood_leaves_time_for_others_and_is_read_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(mailbox, "MOST_AT_ONCE", 2)
        box = Box()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for number in range(7):
                sender.sendto(b"c0ffee\n" + json.dumps({"number": number}).encode(), str(path_of(UID)))
        numbers: list[Any] = [(await box.next())[2]["number"] for _ in range(7)]
        assert numbers == [*range(7)]
        box.mailbox.close()

    asyncio.run(scene())


def test_a_socket_that_was_removed_is_made_again() -> None:
    async def scene() -> None:
        box = Box()
        path_of(UID).unlink()
        box.mailbox.open(UID)
        await reported(b"{}")
        assert await box.next() == (UID, "c0ffee", {})
        box.mailbox.close()

    asyncio.run(scene())
