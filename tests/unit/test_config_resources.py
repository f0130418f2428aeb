from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from forge_supervisor.config_resources import Resources

UNLIMITED = 2**64 - 1


def properties(**keys: Any) -> dict[str, int]:
    told = Resources.model_validate(keys).properties()
    return {name.decode(): value for name, value in told.items() if value != UNLIMITED}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, {}),
        ({"memory_max": "4G"}, {"MemoryMax": 4 * 1024**3}),
        ({"memory_max": "1.5 M"}, {"MemoryMax": 1536 * 1024}),
        ({"memory_high": "512MB"}, {"MemoryHigh": 512 * 1024**2}),
        ({"memory_high": 65536}, {"MemoryHigh": 65536}),
        ({"memory_max": "25%"}, {"MemoryMaxScale": round(0.25 * (2**32 - 1))}),
        ({"memory_max": "infinity"}, {}),
        ({"tasks_max": 500}, {"TasksMax": 500}),
        ({"tasks_max": "10%"}, {"TasksMaxScale": round(0.1 * (2**32 - 1))}),
        ({"cpu_quota": "200%"}, {"CPUQuotaPerSecUSec": 2_000_000}),
        ({"cpu_quota": "0.5%"}, {"CPUQuotaPerSecUSec": 5000}),
        ({"cpu_weight": 50, "io_weight": 10_000}, {"CPUWeight": 50, "IOWeight": 10_000}),
        ({"cpu_weight": "idle"}, {"CPUWeight": 0}),
    ],
)
def test_what_systemd_is_told(keys: dict[str, Any], told: dict[str, int]) -> None:
    assert properties(**keys) == told


def test_a_limit_that_was_withdrawn_is_lifted() -> None:
    told = Resources().properties()
    assert set(told) == {b"MemoryMax", b"MemoryHigh", b"TasksMax", b"CPUQuotaPerSecUSec", b"CPUWeight", b"IOWeight"}
    assert set(told.values()) == {UNLIMITED}


WRONG: dict[str, list[Any]] = {
    "memory_max": ["", "4X", "-1", -1, 0, 4095, "0%", "101%", True, 1.5, [], "99999999E"],
    "tasks_max": [0, -1, "many", True, "0%", 1.5],
    "cpu_quota": [2, "2", "0%", "-5%", True],
    "cpu_weight": [0, 10_001, "some", True, 1.5],
    "io_weight": [0, 10_001, "idle"],
    "memory": ["4G"],
}


@pytest.mark.parametrize(("key", "wrong"), [(key, wrong) for key, values in WRONG.items() for wrong in values])
def test_what_means_nothing_is_refused(key: str, wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate({key: wrong})
