"""A virtual machine, emulated in software: it takes no KVM, no network, and nothing of this machine but its time."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import vm_image
import vm_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vm_image import Image

Entry = dict[str, Any]
MEMORY_MB = 1024
BOOT_TIMEOUT_SEC = 240.0


class LostError(Exception):
    """The machine does not answer any more, so that nothing can be said about what runs in it."""


class Channel:
    """Lines of JSON, to and from a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""
        self._lines: list[bytes] = []

    def send(self, message: dict[str, Any]) -> None:
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message; None after `deadline` on the monotonic clock. LostError if qemu has ended."""
        while True:
            while self._lines:
                # Half a line is left where a boot was cut off.
                with suppress(ValueError):
                    message: dict[str, Any] = json.loads(self._lines.pop(0))
                    return message
            if not select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            chunk = self._end.recv(65536)
            if not chunk:
                raise LostError("qemu has ended")
            *self._lines, self._rest = (self._rest + chunk).split(b"\n")


class Guest:
    """A booted virtual machine."""

    def __init__(self, commands: Channel, journal: Channel, monitor: Channel) -> None:
        self.boot = ""
        """The id of this boot."""
        self._commands = commands
        self._journal = journal
        self._monitor = monitor
        self._entries: list[Entry] = []

    def wait_for_boot(self, timeout: float = BOOT_TIMEOUT_SEC) -> None:
        """Wait until another boot than the present one runs commands. LostError if none does."""
        deadline = time.monotonic() + timeout
        while message := self._commands.receive(deadline):
            if "boot" in message:
                self.boot = message["boot"]
                return
        raise LostError(f"the machine has not booted within {timeout:g} s")

    def run(self, *argv: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run to its end, as root. AssertionError with all output if `check` and it fails."""
        self._ask(argv, timeout)
        answer = self._answer(argv, 2 * timeout + 30)
        done = subprocess.CompletedProcess(argv, answer["code"], answer["out"], answer["err"])
        assert done.returncode == 0 or not check, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def reboot(self) -> None:
        # What runs it may be stopped before it can answer.
        self._ask(["systemctl", "reboot"])
        self.wait_for_boot()

    def reset(self) -> None:
        """Cut its power and give it back."""
        self.ask_monitor("system_reset")
        self.wait_for_boot()

    def sleep(self, duration: float) -> None:
        """Suspend it to RAM for so many seconds."""
        suspend = ["sh", "-c", "echo mem >/sys/power/state"]
        self._ask(suspend)
        self._hear("SUSPEND")
        time.sleep(duration)
        self.ask_monitor("system_wakeup")
        answer = self._answer(suspend, 60)
        assert answer["code"] == 0, f"it did not sleep: {answer['err']}"

    def ask_monitor(self, command: str) -> None:
        """Give qemu's monitor a command (QMP)."""
        self._monitor.send({"execute": command})
        answer = self._hear("return", "error")
        assert "error" not in answer, f"{command}: {answer}"

    def _ask(self, argv: Sequence[str], timeout: float = 60.0) -> None:
        self._commands.send({"argv": argv, "timeout": timeout})

    def _answer(self, argv: Sequence[str], patience: float) -> dict[str, Any]:
        answer = self._commands.receive(time.monotonic() + patience)
        if answer is None:
            raise LostError(f"the machine does not answer: {argv}")
        if "boot" in answer:
            raise LostError(f"the machine has booted meanwhile: {argv}")
        return answer

    def _hear(self, *words: str) -> dict[str, Any]:
        """Wait for what qemu's monitor says: an answer of that kind, or an event of that name."""
        deadline = time.monotonic() + 60
        while message := self._monitor.receive(deadline):
            if {*message, message.get("event")} & {*words}:
                return message
        raise LostError(f"qemu's monitor says nothing of {words}")

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as systemctl show prints it."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def journal(self, *matches: str, boot: str | None = None) -> list[Entry]:
        """All entries of a boot (default: the present one), in the order in which journald got them."""
        self.run("journalctl", "--sync")
        own = f"_BOOT_ID={boot or self.boot}"
        output = self.run("journalctl", "--output=json", "--all", own, *matches, timeout=120).stdout
        # Not by the time of day, which may have been set meanwhile.
        return sorted((json.loads(line) for line in output.splitlines()), key=seconds)

    def wait_for(self, *matches: str, until: Callable[[Entry], object] = bool, timeout: float = 60.0) -> Entry:
        """The first entry of this boot, old or to come, for which `until` holds; AssertionError after `timeout`."""
        wanted = dict(match.split("=", 1) for match in matches)
        seen = []
        for entry in self._follow(time.monotonic() + timeout):
            if entry.get("_BOOT_ID") == self.boot and wanted.items() <= entry.items():
                if until(entry):
                    return entry
                seen.append(entry.get("MESSAGE"))
        raise AssertionError(f"{matches}: not within {timeout:g} s; seen:\n" + "\n".join(map(str, seen)))

    def said(self) -> list[str]:
        """What is known of the journals of all boots, for people."""
        with suppress(LostError, OSError):
            list(self._follow(time.monotonic() + 1))
        return [
            f"{seconds(entry):8.1f} {entry.get('SYSLOG_IDENTIFIER')}: {entry.get('MESSAGE')}" for entry in self._entries
        ]

    def _follow(self, deadline: float) -> Iterator[Entry]:
        yield from list(self._entries)
        while (entry := self._journal.receive(deadline)) is not None:
            self._entries.append(entry)
            yield entry


def seconds(entry: Entry) -> float:
    """When journald got it, in seconds since the boot; time that the machine slept does not count."""
    return int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6


@contextmanager
def running(image: Image, files: Path) -> Iterator[Guest]:
    """Boot it, and end it with the block. `files` is where its console's output goes."""
    with ExitStack() as stack:
        ends = [socket.socketpair() for _ in range(3)]
        for end in (end for pair in ends for end in pair):
            stack.enter_context(end)
        guest = Guest(*(Channel(ours) for ours, _ in ends))
        theirs = [end.fileno() for _, end in ends]
        # It ends even when the tests are killed.
        argv = ["setpriv", "--pdeathsig=KILL", *qemu(image, files, *theirs)]
        log = stack.enter_context((files / "qemu").open("wb"))
        process = stack.enter_context(
            subprocess.Popen(argv, pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
        stack.callback(process.kill)
        for _, end in ends:
            end.close()
        guest.ask_monitor("qmp_capabilities")
        guest.wait_for_boot()
        yield guest


def qemu(image: Image, files: Path, commands: int, journal: int, monitor: int) -> list[str]:
    """Return the argv that boots `image`; the numbers are descriptors of sockets."""
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        # One CPU: while others want ours too, emulated ones wait for each other more than they get done.
        *("-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MB)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet"),
        # Nobody needs the disk after a crash of this machine.
        *("-drive", f"file={image.disk},format=raw,if=virtio,cache=unsafe"),
        *("-serial", f"file:{files / 'serial'}"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial"),
        *("-chardev", f"socket,id=commands,fd={commands}"),
        *("-device", f"virtserialport,chardev=commands,name={vm_inside.PORT}"),
        *("-chardev", f"socket,id=journal,fd={journal}"),
        *("-device", f"virtserialport,chardev=journal,name={vm_image.JOURNAL_PORT}"),
    ]
