"""The arguments of forgectl: what --help, the man page and the completions are made of."""

from __future__ import annotations

import argparse

EXIT_CODES = """\
0: well done. 1: it could not be done. 2: wrong arguments. 3: an agent that was asked about is not running.
4: there is no such agent."""
SEES_AGENTS = "agents"
"""By which a completion knows an argument that is an agent's name."""


def make() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "forgectl",
        description="Look at, and act on, the agents that forge-supervisor runs.",
        epilog=f"Agents may be given as patterns ('scout-*'). Exit codes: {EXIT_CODES}",
    )
    parser.add_argument("-H", "--host", metavar="[USER@]HOST", help="do it there, by ssh")
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    _looking(verbs)
    _acting(verbs)
    _terminals(verbs)
    _configuring(verbs)
    return parser


Verbs = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no other name


def _looking(verbs: Verbs[argparse.ArgumentParser]) -> None:
    status = _verb(verbs, "status", "tell how agents are: all in a table, those that are named in detail")
    _agents(status, "*")
    status.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="lines of the screen (default: 10)")
    _json(status)
    logs = _verb(verbs, "logs", "show what the journal has of agents")
    _agents(logs, "*")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what happens")
    logs.add_argument("-n", "--lines", metavar="N", help="the last N entries")
    logs.add_argument("--since", metavar="TIME", help='"1 hour ago", "2026-11-25 08:00": as journalctl(1)')
    _json(logs)
    screen = _verb(verbs, "screen", "show what an agent's terminal shows now")
    _agent(screen)
    _json(screen)
    events = _verb(verbs, "events", "show what has happened to agents")
    events.add_argument("-f", "--follow", action="store_true", help="show what happens, as it happens")
    _json(events)
    _verb(verbs, "watch", "show all agents and their screens, as they change")
    doctor = _verb(verbs, "doctor", "look for what keeps agents from working, and tell what mends it")
    _config(doctor)
    _json(doctor)


def _acting(verbs: Verbs[argparse.ArgumentParser]) -> None:
    for name, text in (
        ("start", "start agents; returns when they run, or have failed to"),
        ("stop", "stop agents, and keep them stopped"),
        ("restart", "stop agents that run, and start them"),
        ("reset-failed", "forget that agents have failed, so that their start limit begins anew"),
    ):
        verb = _verb(verbs, name, text)
        _agents(verb, "*")
        verb.add_argument("--all", action="store_true", help="all agents that are enabled")
        _json(verb)
    send = _verb(verbs, "send", "type a text into an agent's terminal, and Enter")
    _agent(send)
    send.add_argument("text", nargs="+", metavar="TEXT", help="the text; - for standard input")
    _json(send)


def _terminals(verbs: Verbs[argparse.ArgumentParser]) -> None:
    attach = _verb(verbs, "attach", "attach to an agent's terminal (leave it with Ctrl-b d)")
    _agent(attach)
    attach.add_argument("-r", "--read-only", action="store_true", help="look, but type nothing")
    shell = _verb(verbs, "shell", "open a shell in an agent's directory, with its environment, as its user")
    _agent(shell)
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …", help="run this instead of a shell")
    _config(shell)
    completion = _verb(verbs, "completion", "print a script that has a shell complete forgectl's arguments")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))


def _configuring(verbs: Verbs[argparse.ArgumentParser]) -> None:
    for name, text in (
        ("enable", "have agents started, now and with the supervisor"),
        ("disable", "stop agents, and have them started no more"),
    ):
        verb = _verb(verbs, name, text)
        _agents(verb, "+")
        _config(verb)
    reload_ = _verb(verbs, "reload", "have the supervisor read its configuration, and make it true")
    reload_.add_argument("--dry-run", action="store_true", help="only tell what that would change")
    _json(reload_)
    explain = _verb(verbs, "explain", "print how an agent is started: command, environment, files")
    _agent(explain)
    _json(explain)
    _config(explain)


def _verb(verbs: Verbs[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _agent(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("agent", metavar="AGENT").complete = SEES_AGENTS  # type: ignore[attr-defined]


def _agents(verb: argparse.ArgumentParser, number: str) -> None:
    argument = verb.add_argument("agents", nargs=number, metavar="AGENT", help="names, or patterns such as 'scout-*'")
    argument.complete = SEES_AGENTS  # type: ignore[attr-defined]


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="for programs")


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", metavar="FILE", help="the configuration, if it is not where it is by default")
