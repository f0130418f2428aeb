"""What the configuration says of one agent, and the question to its user's worker that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forge_supervisor import harness, secrets
from forge_supervisor.handshake import LaunchError
from forge_supervisor.worker.messages import Finding, Prepare, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from forge_supervisor.config import Agent, Config, HarnessSettings, Library
    from forge_supervisor.realm import Realm
    from forge_supervisor.secrets import SecretRef


@dataclass(frozen=True)
class Declared:
    """An agent with all that was granted and told to it."""

    agent: Agent
    settings: HarnessSettings
    granted: Library

    @classmethod
    def of(cls, agent: Agent, config: Config) -> Declared:
        return cls(agent, config.settings(agent), config.library.granted(agent))

    def secrets(self) -> dict[str, SecretRef]:
        """Name the agent's secrets, by variable."""
        return secrets.of_agent(self.agent, harness.load(self.agent.harness).secrets(self.granted))


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the worker says, and the agent's secrets: those that root has read, and those that its user has."""

    prepared: Prepared
    roots: Mapping[str, str] = field(default_factory=dict, repr=False)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> dict[str, str]:
        return {**self.users, **self.roots}


async def prepare(
    realm: Realm,
    declared: Declared,
    *,
    dry_run: bool = False,
    consult: bool = False,
    conceal: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> Preparation:
    """Read the agent's secrets and have its user's worker do the rest of `worker.messages.Prepare`.

    `conceal` is told those that root has read before anything can be said about them. Raises WorkerError, and
    LaunchError if there is no such user.
    """
    try:
        wanted = declared.secrets()
    except LookupError as error:
        raise LaunchError("harness", str(error)) from error
    read: dict[str, str] = {}
    left: list[SecretRef] = []
    findings: list[Finding] = []
    for ref in wanted.values():
        try:
            secret = secrets.read_as_root(ref.file)
        except secrets.SecretError as error:
            findings.append(Finding(key=ref.key, text=str(error), fatal=True))
            continue
        if secret is None:
            left.append(ref)
            continue
        read[ref.variable] = secret.value
        if secret.warning is not None:
            findings.append(Finding(key=ref.key, text=secret.warning, fatal=False))
    if any(finding.fatal for finding in findings):
        return Preparation(Prepared(argv=[], cwd="/", env={}, findings=findings))
    conceal(read)
    request = Prepare.of(
        declared.agent,
        declared.settings,
        declared.granted,
        secrets=read,
        secret_files=left,
        dry_run=dry_run,
        consult=consult,
    )
    prepared = await realm.ask(request)
    users = _answered(prepared, left)
    prepared = prepared.model_copy(update={"findings": [*findings, *prepared.findings]})
    return Preparation(prepared, read, users)


def _answered(prepared: Prepared, left: Iterable[SecretRef]) -> dict[str, str]:
    """Take of the worker's answer what it was asked for: no variables of its own choice, and none without an end."""
    users = {ref.variable: prepared.secrets[ref.variable] for ref in left if ref.variable in prepared.secrets}
    if any(len(value) > secrets.MOST_BYTES for value in users.values()):
        raise LaunchError("secrets", f"the worker says that one is larger than {secrets.MOST_BYTES} bytes")
    return users
