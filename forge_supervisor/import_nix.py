"""``forge-supervisor import-nix FILE.json``: from the Nix modules' ``services.forge`` to config.toml.

FILE.json is what ``nix eval --json …config.services.forge`` prints. The result goes to standard output, what an
operator has to know to standard error.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tomlkit

from forge_supervisor import config, harness

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tomlkit.items import Table

EX_DATAERR = 65
"""sysexits.h."""


def _ours(key: str) -> Any:
    return config.AgentTable.model_fields[key].default


_TOP = frozenset({"enable", "users", "discord", "skills", "plugins", "mcpServers", "agents"})
# Upstream's name to ours, and upstream's default, which is ours too and therefore left out.
_AGENT_KEYS: dict[str, tuple[str, Any]] = {
    "runAs": ("run_as", None),
    "role": ("role", None),
    "harness": ("harness", _ours("harness")),
    "model": ("model", None),
    "effort": ("effort", _ours("effort")),
    "discordBot": ("discord_bot", None),
    "skills": ("skills", []),
    "mcpServers": ("mcp_servers", []),
    "plugins": ("plugins", []),
    "allowedTools": ("allowed_tools", []),
    "permissions": ("permissions", {}),
}
_PERMISSION_KEYS: dict[str, tuple[str, Any]] = {
    "allow": ("allow", []),
    "deny": ("deny", []),
    "skipPrompts": ("skip_prompts", True),
}
# Upstream's default is one of these: no name that Claude Code knows, which would start with another model.
_SHORT_MODEL = re.compile(r"(opus|sonnet|haiku)-(\d+)\.(\d+)")
_CHANNEL_PLUGIN = "discord"

Json = dict[str, Any]


class _ShapeError(Exception):
    pass


def import_nix(file: Path) -> int:
    """Print the configuration that `file` (``-``: standard input) amounts to; 65 if it is not such a file."""
    try:
        raw = sys.stdin.read() if str(file) == "-" else file.read_text()
        services = json.loads(raw, object_pairs_hook=_pairs)
        imported = _Import(_object(services, "services.forge"))
        document = imported.document()
    except OSError as error:
        print(f"{file} cannot be read: {error.strerror}", file=sys.stderr)
        return EX_DATAERR
    except (ValueError, RecursionError) as error:
        print(f"{file} is no JSON ({error}); nix eval --json …config.services.forge prints it", file=sys.stderr)
        return EX_DATAERR
    except _ShapeError as error:
        print(f"{file}: {error} (is it the whole of config.services.forge?)", file=sys.stderr)
        return EX_DATAERR
    print(document, end="")
    for note in [*imported.notes, *_faults(document)]:
        print(note, file=sys.stderr)
    return 0


def _faults(document: str) -> list[str]:
    """Tell what of the result config.toml does not take, such as a name."""
    found = config.problems_of(document, harness.HARNESSES)
    return [f"{'to be mended by hand' if problem.fatal else 'warning'}: {problem}" for problem in found]


@dataclass
class _Import:
    services: Json
    notes: list[str] = field(default_factory=list)

    def document(self) -> str:
        self._note_unknown(self.services, _TOP, "")
        for name, value in _objects(self.services, "users"):
            self._note_unknown(value, {"sshKeys"}, f"users.{name}.")
        discord = _object(self.services.get("discord") or {}, "discord")
        self._note_unknown(discord, {"bots"}, "discord.")
        document = tomlkit.document()
        for line in self._head():
            document.add(tomlkit.comment(line))
        for name, value in _objects(self.services, "skills"):
            self._add(document, ("skills", name), self._some(value, f"skills.{name}", {"source", "description"}))
        for name, value in _objects(self.services, "plugins"):
            self._add(document, ("plugins", name), self._some(value, f"plugins.{name}", {"source"}))
        for name, value in _objects(self.services, "mcpServers"):
            server = self._some(value, f"mcpServers.{name}", {"command", "args", "env"})
            self._add(document, ("mcp_servers", name), server)
        for name, value in _objects(discord, "bots"):
            self._note_unknown(value, {"tokenFile"}, f"discord.bots.{name}.")
            self._add(document, ("discord", "bots", name), {"token_file": value.get("tokenFile")})
        for name, value in _objects(self.services, "agents"):
            self._add(document, ("agents", name), self._agent(name, value))
        return tomlkit.dumps(document)

    def _head(self) -> list[str]:
        lines = ["From the Nix modules' services.forge, by forge-supervisor import-nix."]
        if self.services.get("enable") is False:
            lines.append("services.forge.enable was false: nothing of this ran.")
        for name, value in _objects(self.services, "users"):
            lines.append(f"The Linux user: useradd --create-home {name}")
            lines += [f"  its ~/.ssh/authorized_keys had: {key}" for key in value.get("sshKeys") or []]
        return lines

    def _agent(self, name: str, agent: Json) -> Json:
        self._note_unknown(agent, _AGENT_KEYS, f"agents.{name}.")
        table = _renamed(agent, _AGENT_KEYS)
        if "permissions" in table:
            permissions = _object(table.pop("permissions"), f"agents.{name}.permissions")
            self._note_unknown(permissions, _PERMISSION_KEYS, f"agents.{name}.permissions.")
            if renamed := _renamed(permissions, _PERMISSION_KEYS):
                table["permissions"] = renamed
        self._translate_model(name, table)
        self._drop_channel_plugin(name, table)
        return table

    def _translate_model(self, name: str, table: Json) -> None:
        model = table.get("model")
        if isinstance(model, str) and (short := _SHORT_MODEL.fullmatch(model)):
            table["model"] = known = f"claude-{short[1]}-{short[2]}-{short[3]}"
            self.notes.append(f'agents.{name}.model: "{model}" is no name that Claude Code knows; now "{known}"')

    def _drop_channel_plugin(self, name: str, table: Json) -> None:
        """A bot's messages come by the installed plugin; a second copy of it would take the bot's connection."""
        plugins = table.get("plugins", [])
        if not table.get("discord_bot") or _CHANNEL_PLUGIN not in plugins:
            return
        table["plugins"] = [plugin for plugin in plugins if plugin != _CHANNEL_PLUGIN]
        if not table["plugins"]:
            del table["plugins"]
        user = table.get("run_as", "USER")
        self.notes.append(
            f'agents.{name}.plugins: "{_CHANNEL_PLUGIN}" is left out: loaded from a directory it delivers no messages. '
            f"Install it for the user: sudo -iu {user} claude plugin install discord@claude-plugins-official"
        )

    def _some(self, value: Json, place: str, keys: set[str]) -> Json:
        self._note_unknown(value, keys, f"{place}.")
        return {key: value.get(key) for key in ("source", "description", "command", "args", "env") if key in keys}

    def _add(self, document: tomlkit.TOMLDocument, path: tuple[str, ...], values: Json) -> None:
        table: Any = document
        for key in path[:-1]:
            if key not in table:
                table[key] = tomlkit.table(is_super_table=True)
            table = table[key]
        table[path[-1]] = _table(values)

    def _note_unknown(self, value: Json, known: Mapping[str, Any] | set[str] | frozenset[str], place: str) -> None:
        for key in value:
            if key not in known and not key.startswith("_"):
                self.notes.append(f"{place}{key}: not carried over (nothing here has this meaning)")


def _pairs(pairs: list[tuple[str, Any]]) -> Json:
    """Make an object of what has a meaning in TOML: text is Unicode, and no list holds nothing."""
    for key, value in pairs:
        texts = [key, *([value] if isinstance(value, str) else value if isinstance(value, list) else [])]
        if any(text is None for text in texts):
            raise _ShapeError(f'the list "{key}" holds null')
        if any(isinstance(text, str) and not _is_unicode(text) for text in texts):
            raise _ShapeError(f"{json.dumps(key)} holds half a character")
    return dict(pairs)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _object(value: Any, place: str) -> Json:
    if not isinstance(value, dict):
        raise _ShapeError(f"{place} is no object")
    return value


def _objects(value: Json, key: str) -> list[tuple[str, Json]]:
    table = value.get(key)
    table = {} if table is None else _object(table, key)
    return [(name, _object(item, f"{key}.{name}")) for name, item in table.items()]


def _renamed(value: Json, keys: Mapping[str, tuple[str, Any]]) -> Json:
    """Take our names for upstream's, and leave out what is null or the default."""
    return {
        ours: value[theirs]
        for theirs, (ours, default) in keys.items()
        if value.get(theirs) is not None and value[theirs] != default
    }


def _has_plain_lines(text: str) -> bool:
    # TOML drops a newline at the beginning of such a string, and may change the ends of its lines.
    return "\n" in text and not text.startswith("\n") and "\r" not in text


def _table(values: Json) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        if value is None or value in ([], {}):
            continue
        if isinstance(value, dict):
            table[key] = _table(value)
        elif isinstance(value, str) and _has_plain_lines(value):
            table[key] = tomlkit.string(value, multiline=True)
        else:
            table[key] = value
    return table
