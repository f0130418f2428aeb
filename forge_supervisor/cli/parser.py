"""The arguments of forgectl: what --help, the man page and the completions are made of."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODES = """\
0: well done. 1: it could not be done. 2: wrong arguments. 3: an agent that was asked about is not running.
4: there is no such agent."""
NAMES = "__names"
"""The verb by which completions ask for the agents' names; nobody else's, so it is in no help."""
SEES_AGENTS = "agents"
"""By which a completion knows an argument that is an agent's name."""


def make(only: str | None = None) -> argparse.ArgumentParser:
    """Make the parser; of one verb `only`, if it is known which it will be, as each takes its time."""
    parser = argparse.ArgumentParser(
        "forgectl",
        description="Look at, and act on, the agents that forge-supervisor runs.",
        epilog=f"Agents may be given as patterns ('scout-*'). Exit codes: {EXIT_CODES}",
        # --host has to be found again, to be left out where it goes.
        allow_abbrev=False,
    )
    parser.add_argument("-H", "--host", metavar="[USER@]HOST", help="do it there, by ssh")
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    # With its prog given, argparse does not make a usage text only for that.
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", prog=parser.prog)
    for name, (text, *arguments) in VERBS.items():
        if only in {None, name}:
            verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
            # Behind the verb too; not to undo what stood before it.
            verb.add_argument("-H", "--host", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
            for add in arguments:
                add(verb)
    return parser


def _agent(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("agent", metavar="AGENT").complete = SEES_AGENTS  # type: ignore[attr-defined]


def _agents(number: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(verb: argparse.ArgumentParser) -> None:
        text = "names, or patterns such as 'scout-*'"
        argument = verb.add_argument("agents", nargs=number, metavar="AGENT", help=text)
        argument.complete = SEES_AGENTS  # type: ignore[attr-defined]

    return add


def _all(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--all", action="store_true", help="all agents that are enabled")


def _fresh(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--fresh", action="store_true", help="with no memory of earlier sessions")


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="for programs")


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", metavar="FILE", help="the configuration, if it is not where it is by default")


def _screen_lines(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="lines of the screen (default: 10)")


def _of_the_journal(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-f", "--follow", action="store_true", help="go on with what happens")
    verb.add_argument("-n", "--lines", metavar="N", help="the last N entries")
    verb.add_argument("--since", metavar="TIME", help='"1 hour ago", "2026-11-25 08:00": as journalctl(1)')


def _follow(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-f", "--follow", action="store_true", help="show what happens, as it happens")


def _text(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("text", nargs="+", metavar="TEXT", help="the text; - for standard input")


def _read_only(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-r", "--read-only", action="store_true", help="look, but type nothing")


def _command(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …", help="run this instead of a shell")


def _shell(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shell", choices=("bash", "zsh", "fish"))


def _dry_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="only tell what that would change")


def _usage(verb: argparse.ArgumentParser) -> None:
    choices = ("day", "model", "agent", "session")
    verb.add_argument("--by", choices=choices, default="agent", help="what to sum up by (default: agent)")
    text = '"today", "7 days ago", "2026-11-25", "2026-11-25 08:00" (default: since it was first counted)'
    verb.add_argument("--since", metavar="TIME", help=text)


VERBS: dict[str, tuple[str, *tuple[Callable[[argparse.ArgumentParser], None], ...]]] = {
    "status": (
        "tell how agents are: all in a table, those that are named in detail",
        *(_agents("*"), _screen_lines, _json),
    ),
    "start": ("start agents; returns when they run, or have failed to", _agents("*"), _all, _json),
    "stop": ("stop agents, and keep them stopped", _agents("*"), _all, _json),
    "restart": ("stop agents that run, and start them", _agents("*"), _all, _fresh, _json),
    "reset-failed": (
        "forget that agents have failed, so that their start limit begins anew",
        *(_agents("*"), _all, _json),
    ),
    "enable": ("have agents started, now and with the supervisor", _agents("+"), _config, _json),
    "disable": ("stop agents, and have them started no more", _agents("+"), _config, _json),
    "attach": ("attach to an agent's terminal (leave it with Ctrl-b d)", _agent, _read_only),
    "screen": ("show what an agent's terminal shows now", _agent, _json),
    "send": ("type a text into an agent's terminal, and Enter", _agent, _text, _json),
    "watch": ("show all agents and their screens, as they change",),
    "logs": ("show what the journal has of agents", _agents("*"), _of_the_journal, _json),
    "events": ("show what has happened to agents", _follow, _json),
    "reload": ("have the supervisor read its configuration, and make it true", _dry_run, _json),
    "explain": ("print how an agent is started: command, environment, files", _agent, _json, _config),
    "shell": (
        "open a shell in an agent's directory, with its environment, as its user",
        *(_agent, _command, _config),
    ),
    "usage": ("tell what agents have used, in tokens and US dollars", _usage, _json),
    "doctor": ("look for what keeps agents from working, and tell what mends it", _config, _json),
    "completion": ("print a script that has a shell complete forgectl's arguments", _shell),
}
