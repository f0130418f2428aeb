"""The man pages, made of what --help and the JSON Schema are made of: ``python -m forge_supervisor.manual DIR``.

Written in man(7)'s macros.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor import main, version
from forge_supervisor.cli import parser as forgectl
from forge_supervisor.config import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SEE_ALSO = {
    "forge-supervisor.8": "forgectl(1), forge-supervisor.toml(5), systemd.service(5), tmux(1)",
    "forgectl.1": "forge-supervisor(8), forge-supervisor.toml(5), journalctl(1), tmux(1)",
    "forge-supervisor.toml.5": "forge-supervisor(8), forgectl(1), systemd.service(5), systemd.resource-control(5)",
}


def pages() -> dict[str, str]:
    """Return the pages, by the names of their files."""
    return {
        "forge-supervisor.8": _command("forge-supervisor.8", main.parser()),
        "forgectl.1": _command("forgectl.1", forgectl.make()),
        "forge-supervisor.toml.5": _configuration(),
    }


def write(directory: Path) -> None:
    """Write each page below the directory, where man(1) looks for it."""
    for name, text in pages().items():
        section = directory / f"man{name.rpartition('.')[2]}"
        section.mkdir(parents=True, exist_ok=True)
        (section / name).write_text(text, encoding="utf-8")


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    described = parser.description or ""
    lines = [
        *_head(name, parser.prog, described),
        ".SH SYNOPSIS",
        f".B {_plain(_usage(parser))}",
        ".SH DESCRIPTION",
        _plain(described),
        ".SH OPTIONS",
        *_arguments(parser),
    ]
    if verbs := _verbs(parser):
        lines.append(".SH COMMANDS")
        for verb, text in verbs:
            lines += [f".SS {_plain(_usage(verb).removeprefix(parser.prog).strip())}", _plain(text), *_arguments(verb)]
    if parser.epilog:
        lines += [".SH NOTES", _plain(parser.epilog)]
    return _finished(name, lines)


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage:").split())


def _verbs(parser: argparse.ArgumentParser) -> list[tuple[argparse.ArgumentParser, str]]:
    return [
        (verb, verb.description or texts.get(name, ""))
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        for texts in [{choice.dest: choice.help or "" for choice in action._choices_actions}]  # noqa: SLF001
        for name, verb in action.choices.items()
    ]


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction) or action.dest == "help":  # noqa: SLF001
            continue
        if action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(action.option_strings)
        value = "" if action.nargs == 0 else str(action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}")
        text = (action.help or "").replace("%(default)s", str(action.default))
        if not names and not text:
            continue
        yield ".TP"
        yield f".B {_plain(f'{names} {value}'.strip())}"
        yield _plain(text)


def _configuration() -> str:
    whole = schema()
    lines = [
        *_head("forge-supervisor.toml.5", "config.toml", "configuration of forge-supervisor"),
        ".SH SYNOPSIS",
        ".nf",
        "/etc/forge\\-supervisor/config.toml",
        "/etc/forge\\-supervisor/conf.d/*.toml",
        "~/.config/forge\\-supervisor/config.toml",
        ".fi",
        ".SH DESCRIPTION",
        _plain(
            "TOML. Drop-ins beside the file are read with it; no key may stand in two files. "
            "Durations are seconds, or time spans as systemd.time(7) has them. "
            "After a change: forgectl reload, which a broken configuration leaves without effect."
        ),
    ]
    for title, table in _tables("", whole, whole["$defs"]):
        lines.append(f".SH {_plain(title or 'TOP LEVEL')}")
        if table.get("description"):
            lines.append(_plain(table["description"]))
        for key, value in table.get("properties", {}).items():
            lines += [".TP", f".B {_plain(key)}", _plain(_key_text(value, whole["$defs"]))]
    return _finished("forge-supervisor.toml.5", lines)


def _tables(path: str, table: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a table and those below it; a table that is the same in two places once."""
    seen: set[str] = set()

    def below(path: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield path, table
        for key, value in table.get("properties", {}).items():
            for inner, ref in _inner(f"{path[1:-1]}.{key}".strip("."), value):
                if ref not in seen:
                    seen.add(ref)
                    yield from below(inner, defs[ref])

    # [defaults] has the keys of an agent, which are told as an agent's.
    first = {**table, "properties": {key: value for key, value in table["properties"].items() if key != "defaults"}}
    yield from below(path, first)


def _inner(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the tables that a key holds: how they are written, and their definition."""
    named = [*value.get("patternProperties", {}).values(), value.get("additionalProperties")]
    for place, held in [(path, value), *((f"{path}.NAME", item) for item in named)]:
        if isinstance(held, dict) and "$ref" in held:
            yield f"[{place}]", held["$ref"].rpartition("/")[2]
    items = value.get("items")
    if isinstance(items, dict) and "$ref" in items:
        yield f"[[{path}]]", items["$ref"].rpartition("/")[2]


def _key_text(value: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    ref = defs.get(value.get("$ref", "").rpartition("/")[2], {})
    text = str(value.get("description") or ref.get("description") or "")
    if choices := value.get("enum"):
        text += f" One of {', '.join(map(str, choices))}."
    if "default" in value:
        default = value["default"]
        text += f" Default: {str(default).lower() if isinstance(default, bool) else default}."
    return text


def _head(name: str, program: str, text: str) -> Iterator[str]:
    title, _, section = name.rpartition(".")
    yield f'.TH "{title.upper()}" "{section}" "" "forge-supervisor {version()}"'
    yield ".SH NAME"
    yield f"{_plain(program)} \\- {_plain(text[:1].lower() + text[1:].partition('. ')[0].rstrip('.'))}"


def _finished(name: str, lines: Iterable[str]) -> str:
    return "\n".join([*lines, ".SH SEE ALSO", _plain(_SEE_ALSO[name]), ""])


def _plain(text: str) -> str:
    """Have text stand for itself, groff(7): what begins a line as a control character too."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    write(Path(sys.argv[1]))
