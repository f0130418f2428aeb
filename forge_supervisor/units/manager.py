"""A conversation with one systemd manager (PID 1, or a user's own), as long as one operation.

It goes over the socket that systemctl uses too, so that no D-Bus daemon is needed. No connection is left open: an
idle supervisor is not woken by every unit of the machine, and systemd may be re-executed meanwhile.

pystemd holds the GIL until an answer is there, so threads would gain nothing: calls, of a millisecond or two, are made
in the event loop, and what takes longer is awaited by its signal. Names and types: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from pystemd.dbusexc import DBusBaseError, DBusNoSuchUnitError
from pystemd.dbuslib import DBusAddress, apply_signature, path_encode
from pystemd.systemd1 import Manager as SystemdManager
from pystemd.systemd1.unit_signatures import KNOWN_UNIT_SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DESTINATION = b"org.freedesktop.systemd1"
_PATH = b"/org/freedesktop/systemd1"
_UNIT_PATH = b"/org/freedesktop/systemd1/unit"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_SERVICE = b"org.freedesktop.systemd1.Service"
_UNIT = b"org.freedesktop.systemd1.Unit"
_PROPERTIES = b"org.freedesktop.DBus.Properties"
_SCOPE = b"org.freedesktop.systemd1.Scope"
_JOB = b"org.freedesktop.systemd1.Job"

# What pystemd 0.15.3 does not know yet.
for _name, _signature in ((b"PIDs", b"au"), (b"OOMPolicy", b"s"), (b"CPUWeight", b"t"), (b"IOWeight", b"t")):
    KNOWN_UNIT_SIGNATURES.setdefault(_name, _signature)


_CHANGE = b"change"
"""What is waited for of a unit, beside the end of a job: that it changes, or is unloaded."""


class ManagerError(Exception):
    """The manager cannot be reached, or refused what it was asked for."""


class NoSuchUnitError(ManagerError):
    """No unit of that name is loaded."""


class DisconnectedError(ManagerError):
    """The manager has let go of the connection, as it does when it is re-executed: what it was asked for is unknown."""


_DISCONNECTED = frozenset({errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED})


class Manager:
    """``with Manager(path) as manager``; raises ManagerError like all its methods. Within a running event loop only."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bus = DBusAddress(b"unix:path=" + quote(path).encode(), True)  # True: no bus in between
        self._waiting: dict[tuple[bytes, bytes], asyncio.Future[bytes]] = {}
        self._changes: dict[bytes, dict[bytes, Any]] = {}

    def __enter__(self) -> Self:
        try:
            self._bus.open()
        except DBusBaseError as error:
            kind = DisconnectedError if abs(error.errno) in _DISCONNECTED else ManagerError
            raise kind(f"{self._path}: {os.strerror(abs(error.errno))}") from error
        self._fd = self._bus.get_fd()  # sd-bus no longer tells it once it is disconnected
        asyncio.get_running_loop().add_reader(self._fd, self._drain)
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        self._bus.close()
        for waiting in self._waiting.values():
            waiting.cancel()

    def environment(self) -> list[str]:
        """What the manager passes to everything that it starts, as ``NAME=value``."""
        block: list[bytes] = self._get(_PATH, _MANAGER, b"Environment", b"as") or []
        return [os.fsdecode(variable) for variable in block]

    def control_group(self) -> str:
        """Return the path of the control group that all units of this systemd are in; empty at the top."""
        path: bytes = self._get(_PATH, _MANAGER, b"ControlGroup", b"s")
        return path.decode()

    def main_pid(self, unit: str) -> int:
        """Return the pid of a service's main process, 0 if it has none (any more)."""
        pid: int = self._get(_path_of(unit), _SERVICE, b"MainPID", b"u")
        return pid

    def units(self, pattern: str) -> list[str]:
        """Name the units that are loaded and match, glob(7)."""
        found = self._call(b"ListUnitsByPatterns", b"asas", [], [pattern.encode()])
        return [row[0].decode() for row in found]

    def _is_loaded(self, unit: str) -> bool:
        # Not by asking for it: every call that is answered by an error leaks some kilobytes (the message and with it
        # the bus; pystemd 0.15.3). Nothing in the name of a unit means anything here: backslashes are taken as such.
        return bool(self.units(unit))

    def invocation(self, unit: str, *, loads: bool = False) -> bytes | None:
        """Return the InvocationID, which tells a unit from earlier ones of its name; None if none is loaded.

        It is empty as long as the unit has not been started, be it that a job is queued for that. With `loads`, which
        is quicker, also if none is loaded: systemd then loads one for as long as it takes to say so.
        """
        if not loads and not self._is_loaded(unit):
            return None
        return bytes(self._get(_path_of(unit), _UNIT, b"InvocationID", b"ay") or b"")

    async def start_transient(self, unit: str, properties: Mapping[bytes, object], *, mode: str = "fail") -> str:
        """Make and start a unit. Returns how that went: ``done``, ``failed``, ``timeout`` …, systemctl(1).

        `mode` is what systemctl calls --job-mode.
        """
        self._changes[_path_of(unit)] = {}
        with _undisturbed():
            job: bytes = SystemdManager(self._bus).StartTransientUnit(
                _MANAGER, unit.encode(), mode.encode(), properties
            )
        return (await self._wait(b"JobRemoved", job)).decode()

    def changes(self, unit: str) -> Mapping[bytes, Any]:
        """Properties of a unit started here as they were last told; those of one that is gone cannot be asked for."""
        return self._changes.get(_path_of(unit), {})

    def set_properties(self, unit: str, properties: Mapping[bytes, object]) -> None:
        """Change a unit until it ends."""
        with _undisturbed():
            SystemdManager(self._bus).SetUnitProperties(_MANAGER, unit.encode(), True, properties)

    def count_processes(self, unit: str) -> int:
        """Return how many processes a unit has; 0 if it is gone."""
        if not self._is_loaded(unit):
            return 0
        try:
            return len(self._call(b"GetUnitProcesses", b"s", unit.encode()))
        except NoSuchUnitError:
            return 0

    def unit_of(self, pid: int) -> str:
        """Name the unit that a process is in."""
        path: bytes = self._call(b"GetUnitByPID", b"u", pid)
        name: bytes = self._get(path, _UNIT, b"Id", b"s")
        return name.decode()

    def job(self, unit: str) -> str:
        """Name the type of the job that is queued for a unit (``stop``, ``restart`` …); empty if there is none."""
        for _ in range(3):
            number, path = self._get(_path_of(unit), _UNIT, b"Job", b"(uo)")
            try:
                kind: bytes = self._get(path, _JOB, b"JobType", b"s") if number else b""
            except DisconnectedError:
                raise
            except ManagerError:
                continue  # it is done by now, or another has replaced it
            return kind.decode()
        return ""

    def abandon(self, scope: str) -> None:
        """Leave what is in a scope alone."""
        with _undisturbed():
            self._bus.call_method(_DESTINATION, _path_of(scope), _SCOPE, b"Abandon", [])

    def kill(self, unit: str, invocation: bytes | None, whom: str, number: int) -> None:
        """Signal the ``main`` process of that unit, or ``all``. Raises NoSuchUnitError if it is gone."""
        if self.invocation(unit) == invocation:
            self._call(b"KillUnit", b"ssi", unit.encode(), whom.encode(), number)

    def stop(self, unit: str) -> None:
        """Have a unit stopped, whatever else is queued for it, and whatever else that would have to wait for."""
        self._call(b"StopUnit", b"ss", unit.encode(), b"ignore-dependencies")

    async def ended(self, unit: str, invocation: bytes | None) -> str:
        """Wait until that unit is gone, so that its name is free (or taken by another one).

        Returns its Result if it had failed; the memory of that is deleted.
        """
        result = b""
        # While it reloads its configuration the manager removes all units, and then has them again.
        while invocation is not None and self.invocation(unit) == invocation:
            if self._get(_path_of(unit), _UNIT, b"ActiveState", b"s") == b"failed":
                interface = _SCOPE if unit.endswith(".scope") else _SERVICE
                result = self._get(_path_of(unit), interface, b"Result", b"s")
                self._call(b"ResetFailedUnit", b"s", unit.encode())
            await self._wait(_CHANGE, unit.encode())
        return result.decode()

    async def _wait(self, member: bytes, subject: bytes) -> bytes:
        # Nothing is missed between the last call and this: answers and signals come in order, and _drain takes the
        # signals in only when the loop runs next.
        waiting = self._waiting[member, subject] = asyncio.get_running_loop().create_future()
        result: bytes = await waiting
        return result

    def _call(self, method: bytes, signature: bytes, *arguments: object) -> Any:
        with _undisturbed():
            return self._bus.call_method(
                _DESTINATION, _PATH, _MANAGER, method, apply_signature(signature, list(arguments))
            ).body

    def _get(self, path: bytes, interface: bytes, name: bytes, signature: bytes) -> Any:
        with _undisturbed():
            return self._bus.get_property(_DESTINATION, path, interface, name, signature)

    def _drain(self) -> None:
        try:
            while not (message := self._bus.process()).is_empty():
                if message.is_signal(_MANAGER, b"JobRemoved"):
                    message.process_reply(False)
                    _id, job, _unit, result = message.body
                    self._settle((b"JobRemoved", job), result)
                elif message.is_signal(_MANAGER, b"UnitRemoved"):
                    message.process_reply(False)
                    self._settle((_CHANGE, message.body[0]), b"")
                elif message.is_signal(_PROPERTIES, b"PropertiesChanged"):
                    self._take_changes(message)
        except DBusBaseError as error:
            self._fail(_told(error))
        else:
            # A connection that was closed makes itself known by having no descriptor any more, and in no other way.
            if self._bus.get_fd() < 0:
                self._fail(DisconnectedError("systemd closed the connection"))

    def _take_changes(self, message: Any) -> None:
        path = message.get_path()
        for subject in [subject for kind, subject in self._waiting if kind == _CHANGE]:
            if _path_of(subject.decode()) == path:
                self._settle((_CHANGE, subject), b"")
        if path in self._changes:
            message.process_reply(False)
            self._changes[path].update(message.body[1] or {})

    def _settle(self, key: tuple[bytes, bytes], result: bytes) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def _fail(self, error: ManagerError) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Make a call that no signal interrupts: sd-bus gives up on EINTR, having sent it. Raises ManagerError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    except DBusBaseError as error:
        raise _told(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _path_of(unit: str) -> bytes:
    path: bytes = path_encode(_UNIT_PATH, unit.encode())
    return path


def _told(error: DBusBaseError) -> ManagerError:
    text = error.err_message or os.strerror(abs(error.errno))
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    if abs(error.errno) in _DISCONNECTED:
        return DisconnectedError(words)
    return (NoSuchUnitError if isinstance(error, DBusNoSuchUnitError) else ManagerError)(words)
