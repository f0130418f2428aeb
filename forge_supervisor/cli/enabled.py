"""Enable and disable: which agents are started, kept in a drop-in of our own beside what the operator wrote."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import harness
from forge_supervisor.cli import client
from forge_supervisor.config import ConfigError, load
from forge_supervisor.config_files import DROP_INS
from forge_supervisor.config_library import meant
from forge_supervisor.main import default_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from forge_supervisor.config import Config

_HEAD = "# Written by forgectl enable and disable.\n"


def change(options: argparse.Namespace) -> int:
    """Enable or disable agents in the configuration, then have it made true."""
    path = Path(options.config) if options.config else default_config()
    try:
        config = load(path, harnesses=harness.HARNESSES)
    except ConfigError as error:
        raise client.ForgectlError(f"nothing was changed, as the configuration is broken:\n{error}") from error
    _check(options.agents, config)
    drop_in = path.parent / DROP_INS / "disabled.toml"
    before = _read(drop_in)
    after = [name for name in before if name not in options.agents]
    if options.verb == "disable":
        after = sorted({*before, *options.agents})
    else:
        _check_own_tables(options.agents, config, before)
    if after != before:
        _write(drop_in, after)
    return _make_true(options.agents, options.verb, drop_in)


def _check(names: Iterable[str], config: Config) -> None:
    for name in names:
        if name not in config.agents:
            raise client.NoSuchAgentError(f'there is no agent "{name}"{meant(name, config.agents)}')


def _check_own_tables(names: Iterable[str], config: Config, disabled: Iterable[str]) -> None:
    for name in names:
        if not config.agents[name].enabled and name not in disabled:
            key, file = config.origin(name, "enabled")
            raise client.ForgectlError(f"{file or 'its file'}: {key}: this is false, and yours to change")


def _read(drop_in: Path) -> list[str]:
    try:
        found = tomllib.loads(drop_in.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if not set(found) <= {"disabled"}:
        raise client.ForgectlError(f"{drop_in} says more than forgectl has written: move the rest to another file")
    return list(found.get("disabled", []))


def _write(drop_in: Path, names: Iterable[str]) -> None:
    text = "".join(f'  "{name}",\n' for name in names)
    try:
        drop_in.parent.mkdir(mode=0o755, exist_ok=True)
        new = drop_in.with_name(f".{drop_in.name}.new")  # no drop-in: its name does not end in .toml
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            file.write(f"{_HEAD}disabled = [\n{text}]\n")
        new.replace(drop_in)
    except OSError as error:
        raise client.ForgectlError(f"{drop_in} cannot be written: {error.strerror} (sudo forgectl …)") from error


def _make_true(names: Iterable[str], verb: str, drop_in: Path) -> int:
    done = f"{', '.join(names)}: {verb}d in {drop_in}"
    try:
        client.call("Reload", {"dry_run": False})
    except client.NotThereError:
        print(f"{done}; no supervisor is running")
        return 0
    except client.CallError as error:
        print(f"{done}, which is not true yet: {error}")
        return 1
    print(done)
    return 0
