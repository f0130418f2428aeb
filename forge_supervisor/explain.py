"""``forge-supervisor explain AGENT``: the plan by which the daemon starts it, for people or as JSON, secrets masked."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_supervisor.config_files import key_path
from forge_supervisor.harness import NEW_EACH_TIME
from forge_supervisor.realm import environment_layers
from forge_supervisor.secrets import MASK, masked, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.config import Config
    from forge_supervisor.declared import Declared, Preparation
    from forge_supervisor.realm import Layer
    from forge_supervisor.units import User
    from forge_supervisor.worker.messages import Written

FROM_TMUX = ("TERM", "TMUX", "TMUX_PANE")
_END = 20
"""Characters: by the end of a key of this length some programs remember what they were told of it."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    value: str
    origin: str


class Explanation:
    """All that is known of one agent's next start."""

    def __init__(self, config: Config, declared: Declared, user: User, preparation: Preparation) -> None:
        self._config = config
        self._declared = declared
        self._preparation = preparation
        values = preparation.secrets.values()
        self._masked = parts([*values, *(value[-_END:] for value in values if len(value) > _END)])
        agent = declared.agent
        prepared = preparation.prepared
        layers = environment_layers(user, agent, prepared.env, preparation.secrets, NEW_EACH_TIME)
        self._variables = [*self._merged(layers)]

    def as_json(self) -> dict[str, Any]:
        """Make what `--json` prints; `env` has all but what tmux adds."""
        agent, prepared = self._declared.agent, self._preparation.prepared
        document = {
            "agent": agent.name,
            "run_as": agent.run_as,
            "harness": agent.harness,
            "cwd": prepared.cwd,
            "argv": prepared.argv,
            "env": {variable.name: variable.value for variable in self._variables},
            "env_origins": {variable.name: variable.origin for variable in self._variables},
            "written": [{**written.model_dump(), "origin": self._origin(written)} for written in prepared.written],
            "findings": [
                {"key": key_path(agent.name, finding.key), "text": finding.text, "fatal": finding.fatal}
                for finding in prepared.findings
            ],
        }
        masked_document: dict[str, Any] = self._mask_all(document)
        return masked_document

    def lines(self) -> Iterator[str]:
        """Make what people read."""
        agent, prepared = self._declared.agent, self._preparation.prepared
        yield f"{agent.name}: {agent.harness} as {agent.run_as}"
        for finding in prepared.findings:
            kind = "cannot be started" if finding.fatal else "warning"
            key = key_path(agent.name, finding.key)
            yield self._mask(f"  {kind}: {f'{key}: ' if key else ''}{finding.text}")
        if not prepared.argv:
            return
        yield from ("", f"Runs in {prepared.cwd}:")
        yield self._mask(f"  {shlex.join(prepared.argv)}")
        yield from ("", "Environment (and nothing else):")
        for variable in self._variables:
            yield self._mask(f"  {variable.name}={variable.value}    # {variable.origin}")
        yield f"  {', '.join(FROM_TMUX)}    # tmux"
        for written in prepared.written:
            yield ""
            yield from map(self._mask, self._written_lines(written))

    def _written_lines(self, written: Written) -> Iterator[str]:
        source = f" (from {self._origin(written)})"
        match written.kind:
            case "folder":
                yield f"Directory {written.path}"
            case "link":
                yield f"Link {written.path} -> {written.text}{source}"
            case "file":
                yield f"File {written.path}{source}:"
                yield from (f"  | {line}" for line in written.text.splitlines())
            case "seed":
                yield f"In {written.path}{source}, beside what others have in it:"
                yield from (f"  | {line}" for line in written.text.splitlines())

    def _merged(self, layers: list[Layer]) -> Iterator[Variable]:
        variables: dict[str, Variable] = {}
        for layer in layers:
            for name, value in layer.variables.items():
                variables[name] = Variable(name, value, self._layer_origin(layer, name))
        hidden = self._preparation.secrets
        for variable in variables.values():
            yield Variable(variable.name, MASK, variable.origin) if variable.name in hidden else variable

    def _layer_origin(self, layer: Layer, name: str) -> str:
        match layer.origin:
            case "env":
                return self._where(f"env.{name}")
            case "path":
                return self._where("path")
            case "secrets":
                ref = self._declared.secrets()[name]
                return f"{ref.file}, {self._where(ref.key)}"
            case other:
                return other

    def _origin(self, written: Written) -> str:
        return ", ".join(map(self._where, written.origin)) or f"the harness {self._declared.agent.harness}"

    def _where(self, key: str) -> str:
        """Name the key in full, and the file that says it, if one does."""
        full, file = self._config.origin(self._declared.agent.name, key)
        return f"{full} in {file}" if file else full

    def _mask(self, text: str) -> str:
        return masked(text, self._masked)

    def _mask_all(self, value: Any) -> Any:
        match value:
            case str():
                return self._mask(value)
            case list():
                return [self._mask_all(item) for item in value]
            case dict():
                return {key: self._mask_all(item) for key, item in value.items()}
        return value
