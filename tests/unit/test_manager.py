from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import pytest

from forge_supervisor.units import systemd
from forge_supervisor.units.manager import DisconnectedError, Manager, ManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREETING = b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n"


@pytest.mark.parametrize("last_words", [b"", b"no D-Bus message " * 100])
def test_a_manager_that_goes_away_or_talks_nonsense_is_not_waited_for(tmp_path: Path, last_words: bytes) -> None:
    """A stand-in answers as a D-Bus server does until the connection stands."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"BEGIN\r\n")
        writer.write(GREETING + last_words)
        writer.close()

    async def wait() -> None:
        server = asyncio.start_unix_server(serve, tmp_path / "private")
        async with await server, asyncio.timeout(30):
            with Manager(str(tmp_path / "private")) as manager:
                await manager._wait(b"JobRemoved", b"/job")

    with pytest.raises(ManagerError) as caught:
        asyncio.run(wait())
    assert isinstance(caught.value, DisconnectedError) is (last_words == b""), "what may be asked for once more"


def test_no_manager_is_an_error(tmp_path: Path) -> None:
    async def wait() -> None:
        with Manager(str(tmp_path / "private")):
            pass

    with pytest.raises(ManagerError, match="No such file or directory"):
        asyncio.run(wait())


def test_a_manager_that_is_reexecuted_is_asked_again_why_we_are_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = DisconnectedError("gone")
    answers: Iterator[DisconnectedError | str] = iter([gone, gone, "stop"])

    class Stub:
        def __init__(self, path: str) -> None:
            self.path = path

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def unit_of(self, _pid: int) -> str:
            return "forge-supervisor.service"

        def job(self, _unit: str) -> str:
            answer = next(answers)
            if isinstance(answer, str):
                return answer
            raise answer

    monkeypatch.setattr(systemd, "Manager", Stub)
    assert systemd.own_job() == "stop"
    monkeypatch.setattr(systemd, "_REEXEC_PATIENCE", 0)
    answers = iter([gone, gone])
    with pytest.raises(DisconnectedError):
        systemd.own_job()
