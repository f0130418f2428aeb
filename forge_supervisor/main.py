"""The command ``forge-supervisor``: its arguments, and what each of its verbs does."""

from __future__ import annotations

import forge_supervisor.lean  # noqa: F401 - before all that loads what it does

# isort: split
import argparse
import asyncio
import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from forge_supervisor import check, config, daemon, harness, journal, units, version
from forge_supervisor.memory import Memory, begins_anew
from forge_supervisor.runtime import UnusableRuntimeError, only_one, runtime_directory, state_directory
from forge_supervisor.saved import Store
from forge_supervisor.spend import prices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forge_supervisor.config import Config

EX_CONFIG = 78
"""sysexits.h; the unit lists it in RestartPreventExitStatus=."""
EX_TEMPFAIL = 75


def main() -> None:
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has seen enough. Not by sys.stdout: python would try to write what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    if threading.active_count() > 1:
        # A harness has begun what does not end, and python may wait for it.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if options.diff and not options.check:
        made.error("--diff goes with --check")
    if options.version:
        print(f"forge-supervisor {version()}")
        return 0
    if options.schema:
        print(json.dumps(config.schema(), indent=2))
        return 0
    if options.verb == "import-nix":
        from forge_supervisor.import_nix import import_nix  # noqa: PLC0415 - what it loads no supervisor needs

        return import_nix(options.file)
    journal.configure(options.log_format)
    supervises = options.verb is None and not options.check
    try:
        loaded = load(options.config)
    except config.ConfigError as error:
        if supervises:
            daemon.refuse(error)
        else:
            print(error, file=sys.stderr)
        return EX_CONFIG
    if supervises:
        return _supervise(loaded, options.config)
    return _look(loaded, options)


def _look(loaded: Config, options: argparse.Namespace) -> int:
    if options.verb == "explain":
        fresh = _begins_anew(loaded, options.agent)
        return asyncio.run(check.explain(loaded, options.agent, as_json=options.json, fresh=fresh))
    if options.verb == "shell":
        seat = asyncio.run(check.seat(loaded, options.agent))
        return seat if isinstance(seat, int) else check.enter(seat, options.command)
    code = asyncio.run(check.check(loaded))
    if options.diff:
        saved, problems = Store(state_directory(runtime_directory())).load(any_boot=True)
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        check.diff(loaded, saved)
    return code


def _begins_anew(loaded: Config, name: str) -> bool:
    """Tell whether the agent's next session will; of one that runs, if it were to fail."""
    if name not in loaded.agents:
        return False
    saved, _ = Store(state_directory(runtime_directory())).load(any_boot=True)
    memory = saved[name].life if name in saved else Memory()
    if memory.alive:
        memory = dataclasses.replace(memory, ended_cleanly=False)
    return begins_anew(loaded.agents[name].resume.policy, memory)


def _supervise(loaded: Config, path: Path) -> int:
    try:
        with only_one(runtime_directory()) as directory:
            return asyncio.run(daemon.Daemon(loaded, lambda: load(path), directory, path.parent / prices.NAME).run())
    except (UnusableRuntimeError, units.PlacementError, OSError) as error:
        print(error, file=sys.stderr)
        return EX_TEMPFAIL


def load(path: Path, *, uid: int | None = None) -> Config:
    """Read the configuration, with what the installed harnesses say of it; `uid` as in config.load().

    Raises ConfigError.
    """
    loaded = config.load(path, uid=uid, harnesses=harness.HARNESSES)
    idle = [name for name in loaded.harnesses if name not in harness.names()]
    text = f"no such harness is installed (installed: {', '.join(harness.names())})"
    warnings = [config.Problem(f"harnesses.{name}", text, fatal=False, file=str(path)) for name in idle]
    return dataclasses.replace(loaded, warnings=(*loaded.warnings, *warnings))


def default_config() -> Path:
    if os.geteuid() == 0:
        return Path("/etc/forge-supervisor/config.toml")
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "forge-supervisor/config.toml"


def parser() -> argparse.ArgumentParser:
    described = "Supervise coding agents in tmux sessions. Without a command: run, until a signal ends it."
    made = argparse.ArgumentParser("forge-supervisor", description=described)
    _add_config(made, default_config())
    made.add_argument("--check", action="store_true", help="validate, print what would run, and exit")
    made.add_argument("--diff", action="store_true", help="with --check: print what a reload would do, too")
    made.add_argument("--schema", action="store_true", help="print the configuration's JSON Schema, and exit")
    made.add_argument(
        "--log-format",
        choices=get_args(journal.LogFormat),
        default="auto",
        help="auto: journal fields where stderr is the journal, otherwise lines for people",
    )
    made.add_argument("--version", action="store_true", help="print the version, and exit")
    verbs = made.add_subparsers(dest="verb", metavar="COMMAND")
    explain = verbs.add_parser("explain", help="print how an agent is started: command, environment, files")
    explain.add_argument("agent", metavar="AGENT")
    explain.add_argument("--json", action="store_true", help="for programs")
    shell = verbs.add_parser("shell", help="open a shell in an agent's directory, with its environment, as its user")
    shell.add_argument("agent", metavar="AGENT")
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …", help="run this instead of a shell")
    nix = verbs.add_parser("import-nix", help="print the configuration that the Nix modules' services.forge amounts to")
    nix.add_argument("file", type=Path, metavar="FILE.json", help="what nix eval --json printed; - for standard input")
    for verb in (explain, shell):
        # Not to undo what stood before the verb.
        _add_config(verb, argparse.SUPPRESS)
    return made


def _add_config(parser: argparse.ArgumentParser, default: Path | str) -> None:
    usual = f"configuration (default: {default_config()})"
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help=usual)


if __name__ == "__main__":
    main()
