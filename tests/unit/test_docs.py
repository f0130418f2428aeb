"""The documentation tells what is so. What it has people type is run by tests/machine/test_docs.py."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest
from docs_lab import FILES, LANGUAGES, ROOT, blocks, commands

import forge_supervisor
from forge_supervisor.config import File

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
PACKAGE = ROOT / "tests/packages/forge-harness-example"
TABLE_HEAD = 2


@each_file
def test_every_block_is_fenced_and_says_what_it_is(path: Path) -> None:
    assert {block.language for block in blocks(path)} <= LANGUAGES
    outside = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "```" not in outside
    assert re.findall(r"(?:^|\n)\n( {4,}\S.*)", outside) == [], "an indented block"


@each_file
def test_every_command_is_one_of_a_shell(path: Path) -> None:
    for number, command in commands(path):
        done = subprocess.run(["bash", "-n", "-c", command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{path.name}:{number}: {done.stderr}"


@each_file
def test_every_table_of_a_configuration_is_taken(path: Path) -> None:
    for block in blocks(path):
        if block.language == "toml" and not block.name:
            File.model_validate(tomllib.loads(block.text), context={"uid": 0})


@each_file
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_example_of_a_harness_is_the_one_that_is_tested() -> None:
    named = {block.name: block.text for block in blocks(ROOT / "docs/writing-a-harness.md") if block.name}
    assert named == {
        f"{PACKAGE.name}/{file.name}": file.read_text()
        for file in (PACKAGE / "pyproject.toml", PACKAGE / "forge_harness_example.py")
    }


def test_every_document_is_linked_from_the_readme() -> None:
    readme = FILES[0].read_text()
    assert [file.name for file in FILES[1:] if f"(docs/{file.name})" not in readme] == []


def said() -> str:
    """All that the program may say: its texts, with a blank line where a value comes."""
    return "\n".join(
        text
        for path in ROOT.joinpath(forge_supervisor.__name__).rglob("*.py")
        for text in texts(ast.parse(path.read_text()))
    )


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\n\n" for part in node.values)


# Words of the examples, and of others' programs.
EXAMPLES = re.compile(
    r'…|"x"|\[skills\.x\]|\bteam\b|\bscout\b|claude\b|1001|45 s|discord@|'
    r'Permission denied|it is waiting|\bis (?=[a-z-]+:)|"'
)
OTHERS = {"Active: failed", "result: lost", "result: oom-kill", "/tmp/tmux-1001.not-of-1001…"}


def test_every_message_of_the_troubleshooting_is_one_that_is_said() -> None:
    known = said()
    tables = [line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    phrases = [phrase for line in tables for phrase in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    assert len(phrases) > 40
    fragments = {part.strip(" ;:,()") for phrase in phrases if phrase not in OTHERS for part in EXAMPLES.split(phrase)}
    assert sorted(part for part in fragments if part not in known) == []
