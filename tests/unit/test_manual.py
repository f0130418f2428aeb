"""The man pages say all that --help and the schema say."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import main, manual
from forge_supervisor.cli import parser
from forge_supervisor.config import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def unescaped(page: str) -> str:
    return page.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")


def verbs(made: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [verb for verb, _ in manual._verbs(made)]


@pytest.mark.parametrize(
    ("name", "made"), [("forgectl.1", parser.make()), ("forge-supervisor.8", main.parser())], ids=["1", "8"]
)
def test_every_verb_and_option_of_a_command_is_in_its_page(name: str, made: argparse.ArgumentParser) -> None:
    page = unescaped(manual.pages()[name])
    assert len(verbs(made)) > 2
    for each in (made, *verbs(made)):
        assert f".SS {each.prog.removeprefix(made.prog).strip()}" in page or each is made
        for action in each._actions:
            if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS:
                assert re.search(rf"^\.B {', '.join(action.option_strings)}", page, re.MULTILINE), action.option_strings
                assert action.help
                assert action.help.split("%")[0] in page


def keys(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for definition in (table, *table["$defs"].values()):
        for key, value in definition.get("properties", {}).items():
            yield key, value.get("description", "")


def test_every_key_is_in_the_page_of_the_configuration() -> None:
    page = unescaped(manual.pages()["forge-supervisor.toml.5"])
    for key, described in keys(schema()):
        assert f"\n.B {key}\n" in page or key == "defaults"
        assert " ".join(described.split()) in page or key == "defaults"
    for table in ("[agents.NAME]", "[agents.NAME.restart]", "[control]", "[discord.bots.NAME.access]"):
        assert f".SH {table}\n" in page


def test_what_stands_at_the_beginning_of_a_line_is_no_request() -> None:
    assert manual._plain(".TH is text") == "\\&.TH is text"
    assert manual._plain("'so is this") == "\\&'so is this"
    assert manual._plain("back\\slash and-dash\nnew line") == "back\\eslash and\\-dash new line"


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_groff_has_nothing_to_say_of_them(tmp_path: Path) -> None:
    manual.write(tmp_path)
    written = sorted(str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.?"))
    assert written == ["man1/forgectl.1", "man5/forge-supervisor.toml.5", "man8/forge-supervisor.8"]
    for page in written:
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", "-K", "utf8", "-z", page],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
