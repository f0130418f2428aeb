"""Config files for tests, and whom their agents may run as."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor.config import Config, ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.geteuid() == 0
NEEDS_ROOT = pytest.mark.skipif(not ROOT, reason="needs root, who alone can give files away")
SOMEBODY = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())
"""A user as whom the tests' agents may run, whoever runs the tests."""
RUN_AS = f'defaults.run_as = "{SOMEBODY.pw_name}"\n'


def write(directory: Path, text: str | bytes = "", name: str = "config.toml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o644)
    return path


def loaded(directory: Path, text: str = "", **options: Any) -> Config:
    return load(write(directory, RUN_AS + text), **options)


def refused(path: Path, **options: Any) -> list[str]:
    """The lines of the refusal, without the directory of the file."""
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).split("\n")]
