"""The command ``forgectl``: each verb is imported when it is asked for, as a look at the status has to be quick."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from forge_supervisor.cli import agents, client, parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence


def main() -> None:
    _open_streams()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has seen enough.
        _give_up_stdout()
        code = 128 + signal.SIGPIPE
    except OSError as error:
        print(f"forgectl: {error}", file=sys.stderr)
        _give_up_stdout()
        code = 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def _open_streams() -> None:
    """Have all three standard streams, whatever the caller has left of them, and no text that they cannot hold."""
    errors = {"stdin": "surrogateescape", "stdout": "replace", "stderr": "backslashreplace"}
    for name, how in errors.items():
        if getattr(sys, name) is None:
            # Closed. Else it would be the number of the next file that is opened.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=how)


def _give_up_stdout() -> None:
    # Not by sys.stdout: python would try to write what is left when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    if list(arguments) == [parser.NAMES]:
        return agents.names()
    made = parser.make(arguments[0] if arguments and arguments[0] in parser.VERBS else None)
    options = made.parse_args(arguments)
    if options.verb is None and not options.version:
        made.print_help(sys.stderr)
        return 2
    try:
        if options.host is not None:
            from forge_supervisor.cli import elsewhere  # noqa: PLC0415 - see above

            elsewhere.remote(options.host, _without_host(arguments), options.verb)
        return _version() if options.version else _VERBS[options.verb](options)
    except client.ForgectlError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _version() -> int:
    from forge_supervisor import version  # noqa: PLC0415 - see above

    print(f"forgectl {version()}")
    return 0


def _without_host(arguments: Sequence[str]) -> list[str]:
    """Leave out the first -H, in all the ways in which it can be written."""
    left = list(arguments)
    for place, argument in enumerate(left):
        if argument in {"-H", "--host"}:
            return left[:place] + left[place + 2 :]
        if argument.startswith(("-H", "--host=")):
            return left[:place] + left[place + 1 :]
    return left


def _elsewhere(options: argparse.Namespace) -> int:
    from forge_supervisor.cli import elsewhere  # noqa: PLC0415 - see above

    return {"attach": elsewhere.attach, "logs": elsewhere.logs, "events": elsewhere.events}[options.verb](options)


def _events(options: argparse.Namespace) -> int:
    return agents.follow_events(options) if options.follow else _elsewhere(options)


def _supervisors(options: argparse.Namespace) -> int:
    """Have done what forge-supervisor does under the same name."""
    from forge_supervisor import main as supervisor  # noqa: PLC0415 - see above

    config = ["--config", options.config] if options.config else []
    more = ["--json"] if getattr(options, "json", False) else []
    code = supervisor.run([options.verb, *config, *more, options.agent, *getattr(options, "command", ())])
    # What tells systemd not to try again has no meaning here; a shell's code may be its command's own.
    return 1 if (options.verb, code) == ("explain", supervisor.EX_CONFIG) else code


def _enabled(options: argparse.Namespace) -> int:
    from forge_supervisor.cli import enabled  # noqa: PLC0415 - see above

    return enabled.change(options)


def _watch(_options: argparse.Namespace) -> int:
    from forge_supervisor.cli import watch  # noqa: PLC0415 - see above

    return watch.run()


def _doctor(options: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415 - see above

    from forge_supervisor.cli import doctor  # noqa: PLC0415 - see above

    return doctor.run(Path(options.config) if options.config else None, as_json=options.json)


def _usage(options: argparse.Namespace) -> int:
    from forge_supervisor.cli import usage  # noqa: PLC0415 - see above

    return usage.show(options)


def _completion(options: argparse.Namespace) -> int:
    from forge_supervisor.cli import completion  # noqa: PLC0415 - see above

    print(completion.script(options.shell))
    return 0


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": agents.show_status,
    "start": agents.act,
    "stop": agents.act,
    "restart": agents.act,
    "reset-failed": agents.act,
    "send": agents.send,
    "screen": agents.screen,
    "reload": agents.reload,
    "attach": _elsewhere,
    "logs": _elsewhere,
    "events": _events,
    "explain": _supervisors,
    "shell": _supervisors,
    "enable": _enabled,
    "disable": _enabled,
    "watch": _watch,
    "usage": _usage,
    "doctor": _doctor,
    "completion": _completion,
}


if __name__ == "__main__":
    main()
