"""What forgectl leaves to other programs: tmux, journalctl, ssh. It becomes them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from forge_supervisor.cli import client
from forge_supervisor.cli.agents import chosen

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

_RUNUSER = "/usr/sbin/runuser"
_PATH = "/usr/local/bin:/usr/bin:/bin"
# Of the caller's environment only what its terminal is: as root it holds what is nobody else's business, and an agent's
# user can read it of a process of its own.
_OF_THE_TERMINAL = ("TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE")
_WITH_A_TERMINAL = frozenset({"attach", "shell", "watch"})


def attach(options: argparse.Namespace) -> NoReturn:
    agent = client.call("Show", {"agent": options.agent})["agent"]
    user = _user(agent["run_as"])
    command = ["tmux", "-u", "-L", agent["socket_name"], "attach-session", *(["-r"] if options.read_only else [])]
    # With "=" it is no prefix of another's name.
    command += ["-t", f"=agent-{agent['name']}"]
    if os.geteuid() == 0:
        # A server can have its clients open files: never as root.
        command = [_RUNUSER, "--pty", "-u", user.pw_name, "--", *command]
    elif os.geteuid() != user.pw_uid:
        raise client.ForgectlError(f"{agent['name']} is {user.pw_name}'s: sudo forgectl attach {agent['name']}")
    if not (os.isatty(0) and os.isatty(1)):
        # runuser would type the end of its input into the agent's terminal, and the agent take it for Ctrl-d.
        raise client.ForgectlError(f"attach needs a terminal (forgectl screen {agent['name']} shows what is there)")
    _keep_descriptors()
    _become(command, _environment(user))


def logs(options: argparse.Namespace) -> NoReturn:
    command = [*_journalctl(), *(f"AGENT={name}" for name in _names(options.agents))]
    command += ["--follow"] if options.follow else []
    command += [f"--lines={options.lines}"] if options.lines else []
    command += [f"--since={options.since}"] if options.since else []
    command += ["--output=json"] if options.json else []
    _become(command, os.environ)


def _names(patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return []
    try:
        return [agent["name"] for agent in chosen(patterns, client.call("List")["agents"])]
    except client.NotThereError:
        # Why none runs may be what is looked for. Without one nobody knows what a pattern means.
        if any(character in pattern for pattern in patterns for character in "*?["):
            raise
        return list(patterns)


def events(options: argparse.Namespace) -> NoReturn:
    _become([*_journalctl(), "--lines=50", *(["--output=json"] if options.json else [])], os.environ)


def remote(host: str, arguments: Sequence[str], verb: str | None) -> NoReturn:
    """Have the forgectl of another machine do it."""
    terminal = ["-t"] if verb in _WITH_A_TERMINAL and os.isatty(0) else []
    _become(["ssh", *terminal, "--", host, shlex.join(["forgectl", *arguments])], os.environ)


def _journalctl() -> list[str]:
    systems = client.socket_path() == client.SYSTEMS
    return ["journalctl", "--unit=forge-supervisor" if systems else "--user-unit=forge-supervisor"]


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise client.ForgectlError(f'there is no user "{name}" any more') from None


def _environment(user: pwd.struct_passwd) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _OF_THE_TERMINAL if name in os.environ}
    own = {"TMUX_TMPDIR": os.environ["TMUX_TMPDIR"]} if os.geteuid() and "TMUX_TMPDIR" in os.environ else {}
    login = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}
    return {"TERM": "xterm-256color", **kept, **own, **login, "PATH": _PATH}


def _keep_descriptors() -> None:
    """Pass on none but the terminal: the user could take them out of its process, whoever may open what they are of."""
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            if int(entry.name) > 2:
                os.set_inheritable(int(entry.name), False)


def _become(command: Sequence[str], env: Mapping[str, Any]) -> NoReturn:
    program = shutil.which(command[0], path=f"{env.get('PATH', _PATH)}:/usr/sbin:/sbin")
    if program is None:
        raise client.ForgectlError(f"{command[0]} is not installed")
    sys.stdout.flush()
    os.execve(program, list(command), dict(env))  # noqa: S606 - a list, no shell
