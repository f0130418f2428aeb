"""Agents as io.forge.Supervisor tells them."""

from __future__ import annotations

from typing import Any

NOW = 1_790_000_000.0
"""Seconds since 1970."""


def agent(name: str, **keys: Any) -> dict[str, Any]:
    """Describe an agent as the interface does; it runs unless told otherwise."""
    usual = {
        "name": name, "run_as": "team", "harness": "claude-code", "model": None, "enabled": True,
        "state": "running", "since_usec": int((NOW - 200) * 1e6), "activity": None, "result": "success",
        "exit_code": None, "signal": None, "start_limit_hit": False, "daily_limit_hit": False, "n_restarts": 0,
        "pid": 4711, "invocation": "a" * 32, "started_usec": None, "restart_usec": None, "memory": None, "scope": None,
        "socket_name": "forge", "declared_otherwise": False,
    }
    return {**usual, **keys}
