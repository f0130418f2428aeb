"""What the configuration says of one agent, and the question to its user's worker that follows from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from forge_supervisor import harness, mailbox, secrets
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

    @classmethod
    def of_all(cls, config: Config) -> dict[str, Declared]:
        """Give the agents that are to run, by name."""
        return {name: cls.of(agent, config) for name, agent in config.agents.items() if agent.enabled}

    def fingerprint(self) -> dict[str, str]:
        """Make a digest of each key that is not left at its default, by which another supervisor sees what has changed.

        Of the defaults it says nothing, so that a version that adds a key does not change all agents.
        """
        return {**self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> dict[str, str]:
        keys = _said(self.agent)
        keys[f"harnesses.{self.agent.harness}"] = _said(self.settings)
        keys.update({f"{key}.*": value for key, value in _said(self.granted).items()})
        return {key: _digest(value) for key, value in keys.items() if value != {} and key != "name"}

    def secrets(self) -> dict[str, SecretRef]:
        """Name the agent's secrets, by variable."""
        return secrets.of_agent(self.agent, harness.load(self.agent.harness).secrets(self.granted))


def _said(table: BaseModel) -> dict[str, object]:
    """Give what differs from the defaults."""
    values = {name: getattr(table, name) for name in type(table).model_fields}
    usual = {name: field.get_default(call_default_factory=True) for name, field in type(table).model_fields.items()}
    return {name: value for name, value in values.items() if value != usual[name]}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=_plain, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, BaseModel):
        return _said(value)
    return dataclasses.asdict(value)


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
    fresh: bool = False,
    conceal: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> Preparation:
    """Read the agent's secrets and have its user's worker do the rest of `worker.messages.Prepare`.

    `conceal` is told those that root has read before anything can be said about them. Raises WorkerError, and
    LaunchError if there is no such user.
    """
    try:
        wanted = declared.secrets()
        # When the configuration was read one that fails was only warned of.
        for _ in harness.load(declared.agent.harness).check(declared.agent, declared.granted):
            pass
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
        report_socket=str(mailbox.path_of(realm.user.uid)),
        secrets=read,
        secret_files=left,
        dry_run=dry_run,
        consult=consult,
        fresh=fresh,
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
