"""The launch, with real sockets and the real shim, but no tmux: what runs is told by what it writes to a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import handshake, launch
from forge_supervisor.handshake import Handshake, LaunchError, Ticket, hand_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TELL = (
    "import json, os, signal, sys;"
    "print(json.dumps({'argv': sys.argv[1:], 'cwd': os.getcwd(), 'env': dict(os.environ),"
    " 'fds': sorted(map(int, os.listdir('/proc/self/fd')))[:-1],"
    " 'status': open('/proc/self/status').read(), 'umask': os.umask(0)}))"
)


@contextlib.asynccontextmanager
async def listening(path: Path) -> AsyncIterator[Handshake]:
    server = Handshake(path)
    try:
        yield server
    finally:
        server.close()
        await asyncio.sleep(0.01)  # transports that were closed are gone a turn of the loop later


def at_once() -> asyncio.Future[None]:
    admitted = asyncio.get_running_loop().create_future()
    admitted.set_result(None)
    return admitted


def run_shim(ticket: Ticket, *, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(ticket.argv, env=env or {}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=True)


async def output(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    out, err = await asyncio.to_thread(process.communicate)
    return out.decode(), err.decode()


def test_the_harness_gets_exactly_what_was_declared(tmp_path: Path) -> None:
    async def scenario() -> dict[str, object]:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            shim = run_shim(ticket, env={"TERM": "tmux-256color", "TMUX_PANE": "%7", "LEAK": "1", "PATH": "/evil"})
            env = {"HOME": "/nowhere", "PATH": "/bin", "ODD": "a=b\nc ü", "TERM": "wrong"}
            argv = [sys.executable, "-I", "-S", "-c", TELL, "", "two words", "ü;"]
            await hand_over(ticket, shim.pid, str(tmp_path), argv, env, admitted=at_once())
            return json.loads((await output(shim))[0])  # type: ignore[no-any-return]

    told = asyncio.run(scenario())
    assert told["argv"] == ["", "two words", "ü;"]
    assert told["cwd"] == str(tmp_path)
    env = told["env"]
    assert isinstance(env, dict)
    env.pop("LC_CTYPE", None)  # CPython's own, where there is no locale (PEP 538)
    assert env == {"HOME": "/nowhere", "PATH": "/bin", "ODD": "a=b\nc ü", "TERM": "tmux-256color", "TMUX_PANE": "%7"}
    assert told["fds"] == [0, 1, 2]
    assert told["umask"] == 0o022
    status = dict(line.split(":\t", 1) for line in str(told["status"]).splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0


def test_the_harness_starts_with_default_signals(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            shim = run_shim(ticket)
            # cat(1) changes no signal, python would.
            await hand_over(ticket, shim.pid, "/", ["/bin/cat", "/proc/self/status"], {}, admitted=at_once())
            return (await output(shim))[0]

    ignored = next(line for line in asyncio.run(scenario()).splitlines() if line.startswith("SigIgn:"))
    assert int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0


@pytest.mark.parametrize(
    ("cwd", "program", "key", "text"),
    [
        ("/no/such", "/bin/true", "cwd", "cannot enter /no/such: No such file or directory"),
        ("/", "/no/such", "harness", "cannot run /no/such: No such file or directory"),
        ("/", "/etc/passwd", "harness", "cannot run /etc/passwd: Permission denied"),
    ],
)
def test_what_exec_refuses_is_told(tmp_path: Path, cwd: str, program: str, key: str, text: str) -> None:
    async def scenario() -> LaunchError:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            shim = run_shim(ticket)
            with pytest.raises(LaunchError) as failure:
                await hand_over(ticket, shim.pid, cwd, [program], {}, admitted=at_once())
            await output(shim)
            return failure.value

    problem = asyncio.run(scenario()).problem
    assert (problem.key, problem.text) == (key, text)


def test_a_process_that_is_not_the_panes_gets_nothing(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with listening(tmp_path) as server:
            async with server.ticket(os.getuid()) as ticket:
                shim = run_shim(ticket)
                with pytest.raises(LaunchError, match=f"process {shim.pid} asked for the launch"):
                    await hand_over(ticket, shim.pid + 1, "/", ["/bin/echo", "secret"], {}, admitted=at_once())
            return "".join(await output(shim))

    said = asyncio.run(scenario())
    assert "secret" not in said
    assert "did not take this launch" in said


def test_an_id_is_good_for_one_connection(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, str]:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            first = run_shim(ticket)
            await asyncio.wait_for(asyncio.shield(ticket.peer), 10)
            second = run_shim(ticket)
            refused = await output(second)
            await hand_over(ticket, first.pid, "/", ["/bin/echo", "mine"], {}, admitted=at_once())
            return (await output(first))[0], refused[1]

    first, second = asyncio.run(scenario())
    assert first == "mine\n"
    assert "did not take this launch" in second


@pytest.mark.parametrize("hello", [b"", b"0" * 32 + b"\n", b"x" * 5000 + b"\n", b"\xff\xfe\n"])
def test_a_client_without_a_valid_id_is_closed(tmp_path: Path, hello: bytes) -> None:
    async def scenario() -> bytes:
        async with listening(tmp_path) as server, server.ticket(os.getuid()):
            reader, writer = await asyncio.open_unix_connection(tmp_path / f"launch-{os.getuid()}.sock")
            writer.write(hello)
            writer.write_eof()
            try:
                return await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(scenario()) == b""


def test_a_socket_is_its_users_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, who alone can give a socket away")

    async def scenario() -> tuple[int, int, bytes]:
        async with listening(tmp_path) as server, server.ticket(4711) as ticket:
            # Root may connect nevertheless, and is not the one that the id was issued for.
            reader, writer = await asyncio.open_unix_connection(ticket.argv[4])
            writer.write(f"{ticket.argv[5]}\n".encode())
            try:
                answer = await asyncio.wait_for(reader.read(), 4)
            finally:
                writer.close()
            status = await asyncio.to_thread(Path(ticket.argv[4]).stat)
            return status.st_uid, stat.S_IMODE(status.st_mode), answer

    assert asyncio.run(scenario()) == (4711, 0o600, b"")


def test_a_crowd_that_says_nothing_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MOST_UNNAMED", 3)

    async def scenario() -> bytes:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            crowd = [await asyncio.open_unix_connection(ticket.argv[4]) for _ in range(4)]
            try:
                return await asyncio.wait_for(crowd[3][0].read(), 4)
            finally:
                for _, writer in crowd:
                    writer.close()

    assert asyncio.run(scenario()) == b""


def test_a_first_process_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "LAUNCH_TIMEOUT", 0.05)

    async def scenario() -> None:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            with pytest.raises(LaunchError, match="did not get to run in 0.05 s"):
                await hand_over(ticket, 4711, "/", ["/bin/true"], {}, admitted=at_once())

    asyncio.run(scenario())


def test_nothing_to_hide_stands_in_the_shims_command_line(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, ...]:
        async with listening(tmp_path) as server, server.ticket(os.getuid()) as ticket:
            return ticket.argv

    argv = asyncio.run(scenario())
    assert argv[:3] == (sys.executable, "-I", "-S")
    assert argv[3] == launch.__file__
    assert argv[4] == str(tmp_path / f"launch-{os.getuid()}.sock")
    assert len(argv) == 6
