"""Enable and disable: which agents are started, kept in a drop-in of our own beside what the operator wrote."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import harness
from forge_supervisor.cli import client
from forge_supervisor.cli.agents import expanded
from forge_supervisor.config import ConfigError, load
from forge_supervisor.config_files import DROP_INS
from forge_supervisor.config_library import meant
from forge_supervisor.main import default_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from forge_supervisor.config import Config

_HEAD = "# Written by forgectl enable and disable.\n"


def change(options: argparse.Namespace) -> int:
    """Enable or disable agents in the configuration, then have it made true."""
    path = Path(options.config) if options.config else default_config()
    if not options.config and not path.exists() and client.socket_path() == client.SYSTEMS and os.geteuid() != 0:
        raise client.ForgectlError(f"only root may do that (sudo forgectl {options.verb} {' '.join(options.agents)})")
    try:
        config = load(path, harnesses=harness.HARNESSES)
    except ConfigError as error:
        raise client.ForgectlError(f"nothing was changed, as the configuration is broken:\n{error}") from error
    names = expanded(options.agents, config.agents, lambda pattern: meant(pattern, config.agents))
    drop_in = path.parent / DROP_INS / "disabled.toml"
    if options.verb == "enable":
        _check_own_tables(names, config, _read(drop_in))
    note(drop_in, options.verb, names)
    return _make_true(names, drop_in, options)


def note(drop_in: Path, verb: str, names: Collection[str]) -> None:
    """Have the drop-in name these agents, or name them no more."""
    with _alone(drop_in):
        before = _read(drop_in)
        after = sorted({*before, *names}) if verb == "disable" else [name for name in before if name not in names]
        if after != before:
            _write(drop_in, after)


def _check_own_tables(names: Iterable[str], config: Config, disabled: Iterable[str]) -> None:
    for name in names:
        if not config.agents[name].enabled and name not in disabled:
            key, file = config.origin(name, "enabled")
            raise client.ForgectlError(f"{file or 'its file'}: {key}: this is false, and yours to change")


@contextlib.contextmanager
def _alone(drop_in: Path) -> Iterator[None]:
    """Keep others from changing what we have read and not yet written."""
    try:
        drop_in.parent.mkdir(mode=0o755, exist_ok=True)
        # Not the directory itself: whoever may read that can lock it, for as long as they like.
        lock = os.open(drop_in.with_name(f".{drop_in.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(lock, "wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise client.ForgectlError(f"{drop_in} cannot be written: {error.strerror} (sudo forgectl …)") from error


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
    if not text:
        drop_in.unlink()
        return
    new = drop_in.with_name(f".{drop_in.name}.new")  # no drop-in: its name does not end in .toml
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
        file.write(f"{_HEAD}disabled = [\n{text}]\n")
    new.replace(drop_in)


def _make_true(names: Sequence[str], drop_in: Path, options: argparse.Namespace) -> int:
    """Have the supervisor, if there is one, do what is written; tell what has come of it."""
    why_not = ""
    is_error = False
    try:
        client.call("Reload", {"dry_run": False})
    except client.NotThereError:
        why_not = "no supervisor is running"
    except client.CallError as error:
        why_not, is_error = f"which is yet to come true: {error}", True
    if options.json:
        enabled = options.verb == "enable"
        print(json.dumps({"agents": names, "enabled": enabled, "file": str(drop_in), "why_not_yet": why_not or None}))
    else:
        print("; ".join(filter(None, (f"{', '.join(names)}: {options.verb}d in {drop_in}", why_not))))
    return 1 if is_error else 0
