"""What would run, without starting or writing it: ``--check`` of all agents, ``explain`` and ``shell`` of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forge_supervisor import realm, shell
from forge_supervisor.config_files import key_path
from forge_supervisor.config_library import meant
from forge_supervisor.declared import Declared, prepare
from forge_supervisor.explain import Explanation
from forge_supervisor.handshake import LaunchError
from forge_supervisor.journal import printable
from forge_supervisor.plan import plan
from forge_supervisor.realm import Realm
from forge_supervisor.secrets import masked, parts
from forge_supervisor.units import DirectPlacement
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import FindServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from forge_supervisor.config import Config
    from forge_supervisor.declared import Preparation
    from forge_supervisor.events import Event
    from forge_supervisor.saved import Saved
    from forge_supervisor.units import User

NO_SUCH_AGENT = 4
"""As systemctl's exit code for a unit that there is not."""


async def check(config: Config) -> int:
    """Print every agent and all findings; return 1 if an enabled one could not be started, else 0."""
    for warning in config.warnings:
        _say(f"{warning.file}: {warning.key}: warning: {warning.text}")
    good = True
    async with realms(config) as realm_of:
        for agent in config.agents.values():
            good &= await _check_agent(Declared.of(agent, config), realm_of(agent.run_as)) or not agent.enabled
    return 0 if good else 1


def diff(config: Config, saved: Mapping[str, Saved]) -> None:
    """Print what a reload would do, or a restart of the supervisor, to the agents that it has left or watches now."""
    known = {name: left.declared for name, left in saved.items()}
    lines = plan(Declared.of_all(config), known).lines()
    _say("a reload would:" if saved else "nothing runs here; a start would:")
    for line in lines or ["do nothing"]:
        _say(f"  {line}")


async def explain(config: Config, name: str, *, as_json: bool, fresh: bool = False) -> int:
    """Print how that agent is started, with a session that begins anew if `fresh`.

    Return 1 if it could not be, 4 if there is none, else 0.
    """
    found = await _look_at(config, name, fresh=fresh)
    if isinstance(found, int):
        return found
    explanation = Explanation(config, found.declared, found.user, found.preparation)
    if as_json:
        print(json.dumps(explanation.as_json(), indent=2))
    else:
        for line in explanation.lines():
            _say(line)
    return 1 if any(finding.fatal for finding in found.preparation.prepared.findings) else 0


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an agent works, and with what environment."""

    user: User
    cwd: str
    env: Mapping[str, str] = field(repr=False)


async def seat(config: Config, name: str) -> Seat | int:
    """Find an agent's seat, for a shell of an operator's; or the exit code, where what is wrong has been printed."""
    found = await _look_at(config, name)
    if isinstance(found, int):
        return found
    prepared, secret = found.preparation.prepared, parts(found.preparation.secrets.values())
    for finding in prepared.findings:
        kind = "error" if finding.fatal else "warning"
        _complain(masked(f"{kind}: {keyed(name, finding.key, finding.text)}", secret))
    if not prepared.argv:
        return 1
    env = realm.agent_environment(found.user, found.declared.agent, prepared.env, found.preparation.secrets, "")
    # A process with a session's id is one of the session's, and ends with it.
    del env["INVOCATION_ID"]
    return Seat(found.user, prepared.cwd, env)


def enter(at: Seat, argv: Sequence[str]) -> int:
    """Run a shell, or `argv`, in that seat, and return its exit code."""
    try:
        return shell.run(at.user, argv, at.cwd, at.env)
    except (OSError, ValueError) as error:
        _complain(f"the shell cannot be started: {error}")
        return 1


@dataclass(frozen=True, slots=True)
class _Found:
    declared: Declared
    user: User
    preparation: Preparation


async def _look_at(config: Config, name: str, *, fresh: bool = False) -> _Found | int:
    """Prepare one agent without writing anything; the exit code, where what is wrong has been printed."""
    if name not in config.agents:
        hint = meant(name, config.agents) or f" (declared: {', '.join(config.agents) or 'none'})"
        _complain(f'there is no agent "{name}"{hint}')
        return NO_SUCH_AGENT
    declared = Declared.of(config.agents[name], config)
    async with realms(config) as realm_of:
        users = realm_of(declared.agent.run_as)
        try:
            preparation = await prepare(users, declared, dry_run=True, consult=True, fresh=fresh)
            return _Found(declared, users.user, preparation)
        except (LaunchError, WorkerError) as error:
            _complain(f"{name} cannot be started: {reason(name, error)}")
            return 1


@contextlib.asynccontextmanager
async def realms(config: Config) -> AsyncIterator[Callable[[str], Realm]]:
    """Give each user, by name, a worker of our own, which ends with us. Within a running event loop only."""
    placement = DirectPlacement()
    opened: dict[str, Realm] = {}

    def realm_of(user: str) -> Realm:
        if user not in opened:
            opened[user] = Realm(user, placement, config.socket_name, _ignore)
        return opened[user]

    try:
        yield realm_of
    finally:
        await asyncio.gather(*(one.close() for one in opened.values()))
        await placement.close(leave=False)


async def _check_agent(declared: Declared, users: Realm) -> bool:
    agent = declared.agent
    head = f"{agent.name}: {agent.harness} as {agent.run_as}" + ("" if agent.enabled else ", disabled")
    try:
        preparation = await consult(users, declared)
    except (LaunchError, WorkerError) as error:
        _say(f"{head}\n  cannot be started: {reason(agent.name, error)}")
        return False
    prepared, secret = preparation.prepared, parts(preparation.secrets.values())
    _say(head)
    if prepared.argv:
        _say(masked(f"  in {prepared.cwd}: {shlex.join(prepared.argv)}", secret))
    for finding in prepared.findings:
        kind = "cannot be started" if finding.fatal else "warning"
        _say(masked(f"  {kind}: {keyed(agent.name, finding.key, finding.text)}", secret))
    return not any(finding.fatal for finding in prepared.findings)


async def consult(users: Realm, declared: Declared) -> Preparation:
    """Find out all that would keep an agent from its work, writing nothing. Raises LaunchError and WorkerError."""
    await users.ask(FindServer(wait=False))
    return await prepare(users, declared, dry_run=True, consult=True)


def reason(agent: str, error: LaunchError | WorkerError) -> str:
    """Say why an agent cannot be started, with the key that it is about."""
    return keyed(agent, error.problem.key, error.problem.text) if isinstance(error, LaunchError) else str(error)


def _say(line: str) -> None:
    # It quotes what the agents' users and their programs say, and goes to root's terminal.
    print(printable(line))


def _complain(line: str) -> None:
    print(printable(line), file=sys.stderr)


def keyed(agent: str, key: str, text: str) -> str:
    """Put the key that a sentence is about before it."""
    return f"{key_path(agent, key)}: {text}" if key else text


def _ignore(_event: Event) -> None:
    pass
