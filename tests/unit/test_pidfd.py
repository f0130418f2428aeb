from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forge_supervisor.pidfd import Pidfd

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "infinity"]) as process:
        yield process
        process.kill()


def test_death_is_an_event_for_all_who_wait(sleeper: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        pinned = Pidfd(sleeper.pid, os.getuid())
        waiting = [asyncio.create_task(pinned.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pinned.signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)
        assert pinned.dead
        await asyncio.wait_for(pinned.wait(), 1)
        pinned.close()

    asyncio.run(scenario())
    assert sleeper.wait() == -signal.SIGTERM


def test_a_zombie_is_dead_and_takes_signals_in_silence(sleeper: subprocess.Popen[bytes]) -> None:
    pinned = Pidfd(sleeper.pid, os.getuid())
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert pinned.dead
    pinned.signal(signal.SIGTERM)
    sleeper.wait()
    pinned.signal(signal.SIGTERM)
    pinned.close()


def test_a_closed_one_remembers_and_keeps_nobody_waiting(sleeper: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        pinned, other = (Pidfd(sleeper.pid, os.getuid()) for _ in range(2))
        waiting = asyncio.create_task(pinned.wait())
        await asyncio.sleep(0)
        other.close()
        assert not other.dead
        other.signal(signal.SIGKILL)
        assert sleeper.poll() is None
        sleeper.kill()
        await asyncio.to_thread(os.waitid, os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        pinned.close()
        pinned.close()
        await asyncio.wait_for(waiting, 1)
        await asyncio.wait_for(pinned.wait(), 1)
        assert pinned.dead

    asyncio.run(scenario())


def test_what_has_died_cannot_be_pinned(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        Pidfd(sleeper.pid, os.getuid())
    sleeper.wait()
    with pytest.raises(ProcessLookupError):
        Pidfd(sleeper.pid, os.getuid())


def test_another_users_process_is_refused_and_no_descriptor_left(sleeper: subprocess.Popen[bytes]) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    with pytest.raises(PermissionError, match=f"belongs to uid {os.getuid()}, not to {os.getuid() + 1}"):
        Pidfd(sleeper.pid, os.getuid() + 1)
    assert list(Path("/proc/self/fd").iterdir()) == before
