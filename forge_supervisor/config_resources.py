"""resources.*: how much of the machine an agent may use, in the words of systemd.resource-control(5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from forge_supervisor.config_values import Model

# parse_size() of systemd with base 1024.
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)B?", re.ASCII)
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%", re.ASCII)
_MOST_PERCENT = 1_000_000
"""Of one CPU: ten thousand CPUs."""
_MOST = 2**64 - 1
"""What systemd takes for no limit (CGROUP_LIMIT_MAX) and for a weight or quota that is not set."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of what the machine has, 0 to 1."""

    of_all: float

    def __str__(self) -> str:
        return f"{self.of_all * 100:g}%"


def _memory(value: object) -> int | Share | None:
    if isinstance(value, str):
        if value == "infinity":
            return None
        if share := _PERCENT.fullmatch(value):
            return _share(share[1])
        if size := _SIZE.fullmatch(value):
            return _bytes(float(size[1]) * 1024 ** " KMGTPE".index(size[2] or " "))
    elif isinstance(value, int) and not isinstance(value, bool):
        return _bytes(value)
    raise ValueError('must be a number of bytes, a size such as "4G" or "512M", a share such as "25%", or "infinity"')


def _bytes(size: float) -> int:
    # Less than a page would be no memory at all, and nobody means that.
    if not 4096 <= size < _MOST:
        raise ValueError("must be at least 4096 bytes, and less than 16 EiB")
    return int(size)


def _share(percent: str) -> Share:
    if not 0 < float(percent) <= 100:
        raise ValueError('a share is more than 0 and at most 100, such as "25%"')
    return Share(float(percent) / 100)


def _tasks(value: object) -> int | Share | None:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value < _MOST:
            raise ValueError("must be at least 1")
        return value
    if value == "infinity":
        return None
    if isinstance(value, str) and (share := _PERCENT.fullmatch(value)):
        return _share(share[1])
    raise ValueError('must be a number of processes and threads, a share such as "10%", or "infinity"')


def _quota(value: object) -> float | None:
    if value == "infinity":
        return None
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value)) and 0 < float(percent[1]) <= _MOST_PERCENT:
        return float(percent[1]) / 100
    raise ValueError('must be a percentage of one CPU, such as "50%" or "200%" (two CPUs), or "infinity"')


def _cpu_weight(value: object) -> int:
    return 0 if value == "idle" else _weight(value)


def _weight(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000:
        return value
    raise ValueError("must be a whole number from 1 to 10000 (100 is what others have)")


_PERCENTAGE = {"type": "string", "pattern": "^[0-9.]+%$"}
_ENDLESS = {"const": "infinity"}
_SIZES = [{"type": "integer", "minimum": 4096}, {"type": "string", "pattern": "^[0-9.]+ *[KMGTPE]?B?$"}]
Memory = Annotated[
    int | Share | None,
    PlainValidator(_memory),
    WithJsonSchema({"anyOf": [*_SIZES, _PERCENTAGE, _ENDLESS]}),
]
Tasks = Annotated[
    int | Share | None,
    PlainValidator(_tasks),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _PERCENTAGE, _ENDLESS]}),
]
Quota = Annotated[float | None, PlainValidator(_quota), WithJsonSchema({"anyOf": [_PERCENTAGE, _ENDLESS]})]
_WEIGHTS = {"type": "integer", "minimum": 1, "maximum": 10_000}
Weight = Annotated[int | None, PlainValidator(_weight), WithJsonSchema(_WEIGHTS)]
CpuWeight = Annotated[
    int | None, PlainValidator(_cpu_weight), WithJsonSchema({"anyOf": [_WEIGHTS, {"const": "idle"}]})
]


class Resources(Model):
    """How much an agent may use, together with all that it starts. Needs systemd; unset is unlimited."""

    memory_max: Memory = None
    """How much memory it may use: "4G", or a share of the machine's, "25%". Beyond that the kernel kills in it, which
    ends the agent with the result oom-kill (MemoryMax=)."""
    memory_high: Memory = None
    """How much memory it may use before it is slowed down (MemoryHigh=)."""
    restart_above: Memory = None
    """How much memory it may use when it becomes idle; with more it is restarted then, and remembers. systemd has no
    such key."""
    tasks_max: Tasks = None
    """How many processes and threads it may have (TasksMax=)."""
    cpu_quota: Quota = None
    """How much CPU time it may use: "200%" is two CPUs (CPUQuota=)."""
    cpu_weight: CpuWeight = None
    """Its part of the CPU time where that is short, 1 to 10000; 100 is what others have (CPUWeight=). "idle": only what
    nobody else wants."""
    io_weight: Weight = None
    """Its part of disk access where that is short, 1 to 10000; 100 is what others have (IOWeight=)."""

    def properties(self) -> dict[bytes, int]:
        """Give systemd's unit properties, all of them, so that a limit that was withdrawn is lifted."""
        return {
            **_limit(b"MemoryMax", self.memory_max),
            **_limit(b"MemoryHigh", self.memory_high),
            **_limit(b"TasksMax", self.tasks_max),
            b"CPUQuotaPerSecUSec": _MOST if self.cpu_quota is None else max(1, round(self.cpu_quota * 1_000_000)),
            b"CPUWeight": _MOST if self.cpu_weight is None else self.cpu_weight,
            b"IOWeight": _MOST if self.io_weight is None else self.io_weight,
        }


def _limit(name: bytes, value: int | Share | None) -> dict[bytes, int]:
    if isinstance(value, Share):
        # bus_cgroup_set_..._scale() in systemd's dbus-cgroup.c: of the largest 32-bit number.
        # TasksMax= takes no 100 %, and neither takes nothing at all.
        return {name + b"Scale": min(max(1, round(value.of_all * (2**32 - 1))), 2**32 - 2)}
    return {name: _MOST if value is None else value}
