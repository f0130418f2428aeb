"""Agents as io.forge.Supervisor tells them."""

from __future__ import annotations

from typing import Any

NOW = 1_800_000_000.0


def agent(name: str, **keys: Any) -> dict[str, Any]:
    usual = {
        "name": name, "run_as": "team", "harness": "claude-code", "model": None, "enabled": True,
        "state": "running", "since_usec": int((NOW - 7384) * 1e6), "activity": None, "result": "success",
        "exit_code": None, "signal": None, "start_limit_hit": False, "n_restarts": 0, "pid": 4711,
        "invocation": "a" * 32, "started_usec": None, "restart_usec": None, "memory": None, "scope": None,
        "socket_name": "forge", "declared_otherwise": False,
    }
    return {**usual, **keys}
