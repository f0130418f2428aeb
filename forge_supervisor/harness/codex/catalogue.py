"""The models that an installed codex knows of, as it tells them itself, without asking anybody."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from forge_supervisor.harness import run_bare


@dataclass(frozen=True, slots=True)
class Model:
    efforts: tuple[str, ...]
    upgrade: str
    """The one that codex would have the user change to, by a dialog whose first answer is yes; may be empty."""


def of(program: Path) -> dict[str, Model]:
    """List them by name; none if it cannot be asked."""
    try:
        return _of(str(program), os.stat(program).st_mtime_ns)  # noqa: PTH116 - one like the other
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def asked(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in an empty home, with next to no environment. Raises OSError and subprocess.SubprocessError."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        return run_bare([program, *arguments], {"HOME": home, "CODEX_HOME": home}, cwd=Path(home))


@lru_cache(maxsize=4)
def _of(program: str, _mtime: int) -> dict[str, Model]:
    answer = asked(program, "debug", "models", "--bundled")
    answer.check_returncode()
    models = json.loads(answer.stdout).get("models", [])
    return {str(model["slug"]): _model(model) for model in models if isinstance(model, dict) and "slug" in model}


def _model(model: dict[str, Any]) -> Model:
    upgrade = model.get("upgrade")
    levels = model.get("supported_reasoning_levels") or []
    return Model(
        efforts=tuple(str(level["effort"]) for level in levels if isinstance(level, dict) and "effort" in level),
        upgrade=str(upgrade.get("model") or "") if isinstance(upgrade, dict) else "",
    )
