"""``forge-supervisor --check``: what would run, and what would keep it from running, without starting or writing it."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

from forge_supervisor.agent import key_path
from forge_supervisor.config import HarnessSettings
from forge_supervisor.handshake import LaunchError
from forge_supervisor.journal import printable
from forge_supervisor.realm import Realm
from forge_supervisor.units import DirectPlacement
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import FindServer, Prepare

if TYPE_CHECKING:
    from forge_supervisor.config import Agent, Config
    from forge_supervisor.events import Event


async def check(config: Config) -> int:
    """Print every agent and all findings; return 1 if an enabled one could not be started, else 0."""
    for warning in config.warnings:
        _say(f"{warning.file}: {warning.key}: warning: {warning.text}")
    placement = DirectPlacement()
    realms = {
        user: Realm(user, placement, config.socket_name, _ignore)
        for user in {agent.run_as for agent in config.agents.values()}
    }
    good = True
    try:
        for agent in config.agents.values():
            settings = config.harnesses.get(agent.harness, HarnessSettings())
            good &= await _check_agent(agent, settings, realms[agent.run_as]) or not agent.enabled
    finally:
        await asyncio.gather(*(realm.close() for realm in realms.values()))
        await placement.close()
    return 0 if good else 1


async def _check_agent(agent: Agent, settings: HarnessSettings, realm: Realm) -> bool:
    head = f"{agent.name}: {agent.harness} as {agent.run_as}" + ("" if agent.enabled else ", disabled")
    request = Prepare.of(agent, settings, dry_run=True)
    try:
        await realm.ask(FindServer(wait=False))
        prepared = await realm.ask(request)
    except LaunchError as error:
        _say(f"{head}\n  cannot be started: {_keyed(agent.name, error.problem.key, error.problem.text)}")
        return False
    except WorkerError as error:
        _say(f"{head}\n  cannot be started: {error}")
        return False
    _say(head)
    if prepared.argv:
        _say(f"  in {prepared.cwd}: {shlex.join(prepared.argv)}")
    for finding in prepared.findings:
        kind = "cannot be started" if finding.fatal else "warning"
        _say(f"  {kind}: {_keyed(agent.name, finding.key, finding.text)}")
    return not any(finding.fatal for finding in prepared.findings)


def _say(line: str) -> None:
    # It quotes what the agents' users and their programs say, and goes to root's terminal.
    print(printable(line))


def _keyed(agent: str, key: str, text: str) -> str:
    return f"{key_path(agent, key)}: {text}" if key else text


def _ignore(_event: Event) -> None:
    pass
