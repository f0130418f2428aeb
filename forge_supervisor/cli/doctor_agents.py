"""What the doctor looks at of the configuration, and of each agent: by asking what --check asks."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from forge_supervisor import main, units
from forge_supervisor.check import consult, keyed, realms, reason
from forge_supervisor.cli.doctor_scene import Finding, for_root, of_sentence, ok
from forge_supervisor.config import ConfigError
from forge_supervisor.declared import Declared
from forge_supervisor.handshake import LaunchError
from forge_supervisor.secrets import masked, parts
from forge_supervisor.worker.client import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forge_supervisor.cli.doctor_scene import Scene
    from forge_supervisor.config import Config
    from forge_supervisor.declared import Preparation

CONFIGURATION = "configuration"


def configuration(scene: Scene, path: Path) -> tuple[Config | None, list[Finding]]:
    """Load it, as the supervisor that is looked at would."""
    if scene.system and not scene.is_root and os.path.exists(path) and not os.access(path, os.R_OK):
        return None, [for_root(CONFIGURATION, f"{path}, and the agents that it declares")]
    otherwise = f"mend it; forge-supervisor --check --config {path} tells when it is right"
    try:
        config = main.load(path, uid=0 if scene.system else None)
    except ConfigError as error:
        return None, [of_sentence(CONFIGURATION, "problem", str(found), otherwise) for found in error.problems]
    findings = [of_sentence(CONFIGURATION, "warning", str(found), otherwise) for found in config.warnings]
    enabled = sum(agent.enabled for agent in config.agents.values())
    text = f"{path} is right; agents declared: {len(config.agents)}, enabled: {enabled}"
    return config, [ok(CONFIGURATION, text), *findings]


def users(config: Config) -> list[str]:
    """Name the users that agents are to run as."""
    return sorted({agent.run_as for agent in config.agents.values() if agent.enabled})


def agent(scene: Scene, config: Config, name: str) -> Iterator[Finding]:
    """Ask all that would keep the agent from its work, as its user."""
    declared = Declared.of(config.agents[name], config)
    run_as = declared.agent.run_as
    try:
        user = units.lookup(run_as)
    except LookupError:
        yield Finding(check_name(name), "skipped", f"there is no user {run_as} to look as")
        return
    if not scene.may_act_as(user):
        yield for_root(check_name(name), f"whether it can be started as {run_as}")
        return
    try:
        preparation = asyncio.run(_consult(declared, config))
    except (LaunchError, WorkerError) as error:
        yield of_sentence(check_name(name), "problem", f"it cannot be started: {reason(name, error)}", _more(name))
        return
    yield from _told(declared, preparation)


def check_name(name: str) -> str:
    return f"agent {name}"


async def _consult(declared: Declared, config: Config) -> Preparation:
    async with realms(config) as realm_of:
        return await consult(realm_of(declared.agent.run_as), declared)


def _told(declared: Declared, preparation: Preparation) -> Iterator[Finding]:
    name, prepared, secret = declared.agent.name, preparation.prepared, parts(preparation.secrets.values())
    check = check_name(name)
    if not any(finding.fatal for finding in prepared.findings):
        program = f"{prepared.argv[0]} {prepared.version}".rstrip()
        yield ok(check, masked(f"{program} can be started as {declared.agent.run_as}", secret))
    for finding in prepared.findings:
        sentence = masked(keyed(name, finding.key, finding.text), secret)
        yield of_sentence(check, "problem" if finding.fatal else "warning", sentence, _more(name))


def _more(name: str) -> str:
    return f"forge-supervisor explain {name} shows what it is started with"
