"""Asks the systemd of this machine: does to services what a timetable says, and writes down what it sees.

    python3 oracle_inside.py ASKED.json ANSWERED.json

Standard library and libsystemd only: it runs with the python of whatever machine was booted.
"""

from __future__ import annotations

import ctypes
import heapq
import json
import sys
import time
from pathlib import Path
from typing import Any

SYSTEMD = b"org.freedesktop.systemd1"
MANAGER = b"/org/freedesktop/systemd1"
UNITS = Path("/run/systemd/system")
LOOKED_AT = ("ActiveState", "SubState", "Result")
# PID 1 may serve a timer up to 250 ms late, to serve several at once (DEFAULT_ACCURACY_USEC in its sd-event.c). It
# looks for due timers whenever it wakes up, though, so it is kept awake.
PING_SEC = 0.008

sd = ctypes.CDLL("libsystemd.so.0")


class BusError(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("message", ctypes.c_char_p), ("need_free", ctypes.c_int))


class Bus:
    """A connection to PID 1. Its own socket is the quicker way, the bus the only one on which units can be held."""

    def __init__(self, *, direct: bool) -> None:
        self._bus = ctypes.c_void_p()
        if not direct:
            _check(sd.sd_bus_open_system(ctypes.byref(self._bus)))
            return
        _check(sd.sd_bus_new(ctypes.byref(self._bus)))
        _check(sd.sd_bus_set_address(self._bus, b"unix:path=/run/systemd/private"))
        _check(sd.sd_bus_start(self._bus))

    def call(self, path: bytes, interface: bytes, member: bytes, *arguments: bytes | int) -> str:
        """Call a method; what it returns, if that is an object's path."""
        error, reply = BusError(), ctypes.c_void_p()
        types = "".join("s" if isinstance(each, bytes) else "i" for each in arguments).encode()
        status = sd.sd_bus_call_method(
            self._bus, SYSTEMD, path, interface, member, ctypes.byref(error), ctypes.byref(reply), types, *arguments
        )
        _check(status, error)
        returned = ctypes.c_char_p()
        if sd.sd_bus_message_has_signature(reply, b"o"):
            _check(sd.sd_bus_message_read(reply, b"o", ctypes.byref(returned)))
        value = (returned.value or b"").decode()
        sd.sd_bus_message_unref(reply)
        return value

    def manager(self, member: bytes, *arguments: bytes | int) -> str:
        return self.call(MANAGER, SYSTEMD + b".Manager", member, *arguments)

    def ping(self) -> None:
        self.call(MANAGER, b"org.freedesktop.DBus.Peer", b"Ping")

    def word(self, path: bytes, interface: bytes, name: str) -> str:
        error, value = BusError(), ctypes.c_char_p()
        status = sd.sd_bus_get_property_string(
            self._bus, SYSTEMD, path, SYSTEMD + interface, name.encode(), ctypes.byref(error), ctypes.byref(value)
        )
        _check(status, error)
        return (value.value or b"").decode()

    def number(self, path: bytes, interface: bytes, name: str) -> int:
        error, value = BusError(), ctypes.c_uint32()
        status = sd.sd_bus_get_property_trivial(
            *(self._bus, SYSTEMD, path, SYSTEMD + interface, name.encode()),
            *(ctypes.byref(error), ctypes.c_char(b"u"), ctypes.byref(value)),
        )
        _check(status, error)
        return value.value


def _check(status: int, error: BusError | None = None) -> None:
    if status < 0:
        raise OSError(-status, (error.message or b"").decode() if error is not None else "no bus")


class Service:
    """One scenario's unit. Its moments are nanoseconds after its beginning."""

    def __init__(self, asked: dict[str, Any], held: Bus, bus: Bus) -> None:
        self.asked = asked
        self.held = held
        self.bus = bus
        self.unit = f"{asked['name']}.service".encode()
        self.directory = Path(asked["directory"])
        self.looks: list[dict[str, Any]] = []
        self.late: dict[str, int] = {}
        self.path = b""
        self.zero = 0

    def prepare(self) -> None:
        self.directory.mkdir(parents=True)
        (self.directory / "lives").write_text(self.asked["lives"])
        (self.directory / "environment").touch()
        (UNITS / self.unit.decode()).write_text(self.asked["text"])

    def begin(self, zero: int) -> None:
        self.zero = zero
        (self.directory / "zero").write_text(str(zero))
        self.path = self.bus.manager(b"LoadUnit", self.unit).encode()
        # A unit at rest that nobody wants is unloaded, and its start limit and n_restarts with it.
        self.held.call(self.path, SYSTEMD + b".Unit", b"Ref")

    def act(self, moment: int, verb: str) -> None:
        late = time.monotonic_ns() - self.zero - moment
        match verb:
            case "look":
                self.looks.append({**self._seen(), "moment": moment})
            case "break":
                (self.directory / "environment").unlink(missing_ok=True)
            case "mend":
                (self.directory / "environment").touch()
            case "reset-failed":
                self.bus.manager(b"ResetFailedUnit", self.unit)
            case "start" if self.asked["hurry"]:
                hurried = self.bus.word(self.path, b".Unit", "ActiveState") in {"activating", "deactivating"}
                self.bus.manager(b"RestartUnit" if hurried else b"StartUnit", self.unit, b"replace")
            case _:
                self.bus.manager(verb.capitalize().encode() + b"Unit", self.unit, b"replace")
        took = time.monotonic_ns() - self.zero - moment
        kind = "look" if verb == "look" else "operation"
        self.late[kind] = max(self.late.get(kind, 0), late, took)

    def _seen(self) -> dict[str, Any]:
        words = [self.bus.word(self.path, b".Service" if name == "Result" else b".Unit", name) for name in LOOKED_AT]
        return {"words": words, "n_restarts": self.bus.number(self.path, b".Service", "NRestarts")}

    def end(self) -> dict[str, Any]:
        self.bus.manager(b"StopUnit", self.unit, b"replace")
        try:
            self.bus.manager(b"KillUnit", self.unit, b"all", 9)
        except OSError:
            pass  # nothing runs
        self.held.call(self.path, SYSTEMD + b".Unit", b"Unref")
        (UNITS / self.unit.decode()).unlink()
        record = self.directory / "starts"
        moments = [int(line) for line in record.read_text().split()] if record.exists() else []
        return {
            "name": self.asked["name"],
            "looks": self.looks,
            "starts": [moment - self.zero for moment in moments if moment > 0],
            "ends": [-moment - self.zero for moment in moments if moment < 0],
            "late": self.late,
        }


def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Run all services, `parallel` of them at a time, each begun a little after the one before."""
    bus, held = Bus(direct=True), Bus(direct=False)
    waiting = [Service(each, held, bus) for each in asked["services"]]
    for service in waiting:
        service.prepare()
    waiting.reverse()
    stagger = max(each["until"] for each in asked["services"]) // asked["parallel"]
    agenda: list[tuple[int, int, Service, int, str]] = []
    answers: list[dict[str, Any]] = []
    running = order = 0
    next_begin = time.monotonic_ns()
    while waiting or agenda:
        now = time.monotonic_ns()
        if waiting and running < asked["parallel"] and now >= next_begin:
            service = waiting.pop()
            running += 1
            next_begin = now + stagger
            # Preparing it takes a while.
            service.begin(now + 50_000_000)
            for moment, verb in [*service.asked["timetable"], (service.asked["until"], "end")]:
                order += 1
                heapq.heappush(agenda, (service.zero + moment, order, service, moment, verb))
        while agenda and agenda[0][0] <= time.monotonic_ns():
            _, _, service, moment, verb = heapq.heappop(agenda)
            if verb == "end":
                answers.append(service.end())
                running -= 1
            else:
                service.act(moment, verb)
        due = agenda[0][0] if agenda else next_begin
        time.sleep(min(PING_SEC, max(0, due - time.monotonic_ns()) / 1e9))
        bus.ping()
    return answers


def main(asked: str, answered: str) -> None:
    Path(answered).write_text(json.dumps(ask(json.loads(Path(asked).read_text()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
