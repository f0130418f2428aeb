"""[[on_event]]: what is read, what is refused and how that is told."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from config_lab import NEEDS_ROOT, RUN_AS, SOMEBODY, loaded, refused, write

from forge_supervisor.config import schema
from forge_supervisor.config_hooks import OnEvent

ME = SOMEBODY.pw_name


def hook(**changed: str | None) -> str:
    keys = {"events": '["failed"]', "command": '["/bin/true"]', "user": f'"{ME}"', **changed}
    return "\n".join(["[[on_event]]", *(f"{key} = {value}" for key, value in keys.items() if value), ""])


def test_hooks_are_read_in_their_order(tmp_path: Path) -> None:
    text = hook(events='["failed", "recovered"]', timeout_sec='"1min"') + hook(command='["/bin/echo", "$HOME"]')
    config = loaded(tmp_path, text + "[agents.a]")
    assert config.warnings == ()
    first, second = config.hooks
    assert first == OnEvent(events=("failed", "recovered"), command=("/bin/true",), user=ME, timeout_sec=60.0)
    assert (second.command, second.timeout_sec) == (("/bin/echo", "$HOME"), 30.0)


def test_without_hooks_there_are_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, "[agents.a]").hooks == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (hook(user=None), "on_event[0].user: is missing (add user = …)"),
        (hook(events=None), "on_event[0].events: is missing (add events = …)"),
        (hook() + hook(command=None), "on_event[1].command: is missing (add command = …)"),
        (
            hook(events="[]"),
            'on_event[0].events: must name what the command is run for, such as ["failed", "recovered"]',
        ),
        (
            hook(events='["recoverd"]'),
            (
                'on_event[0].events[0]: must be one of "failed", "start-limit", "blocked", "recovered" '
                '(did you mean "recovered"?)'
            ),
        ),
        (hook(events='"failed"'), "on_event[0].events: must be a list, not a string"),
        (
            hook(command='["page"]'),
            "on_event[0].command: must begin with an absolute path: no shell and no PATH finds the program for it",
        ),
        (
            hook(command="[]"),
            'on_event[0].command: must not be empty (its first item is the program: ["/usr/bin/thing", "--flag"])',
        ),
        (hook(command='"/bin/true"'), "on_event[0].command: must be a list, not a string"),
        (
            hook(user='"0"'),
            "on_event[0].user: must be a user's name, not a number (getent passwd NUMBER tells it)",
        ),
        (
            hook(user='"a b"'),
            'on_event[0].user: must be a user\'s name: letters, digits, "_", "." and "-" (at most 32)',
        ),
        (hook(timeout_sec="0"), 'on_event[0].timeout_sec: must be more than 0 and at most 3600 s, such as "30s"'),
        (
            hook(timeout_sec='"infinity"'),
            'on_event[0].timeout_sec: must be more than 0 and at most 3600 s, such as "30s"',
        ),
        (hook(comand='["/bin/true"]'), 'on_event[0].comand: unknown key (did you mean "command"?)'),
        ('[on_event]\nuser = "x"', "on_event: is a list of tables: write [[on_event]], with two brackets"),
        ('on_event = ["x"]', "on_event[0]: must be a table, not a string"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: str) -> None:
    assert f"config.toml: {line}" in refused(write(tmp_path, RUN_AS + text + "\n[agents.a]\n"))


def test_hooks_stand_in_one_file(tmp_path: Path) -> None:
    path = write(tmp_path, RUN_AS + hook())
    write(tmp_path, hook(), "conf.d/more.toml")
    (line,) = refused(path)
    assert line == f"conf.d/more.toml: on_event: this key is set in {path} too (remove one of the two)"


@NEEDS_ROOT
def test_a_user_that_is_not_there_yet_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, hook(user='"not-yet"'), "conf.d/hooks.toml")
    (warning,) = loaded(tmp_path, "[agents.a]").warnings
    assert str(warning) == f'{path}: on_event[0].user: no such user "not-yet" (create it: useradd -m not-yet)'


@NEEDS_ROOT
def test_root_is_taken_where_it_is_written_out(tmp_path: Path) -> None:
    assert loaded(tmp_path, hook(user='"root"') + "[agents.a]").hooks[0].user == "root"


@NEEDS_ROOT
def test_root_runs_nothing_that_others_choose(tmp_path: Path, roots: Path) -> None:
    mine, others = roots / "mine", roots / "others"
    for program in (mine, others):
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    os.chown(others, SOMEBODY.pw_uid, -1)
    good, bad = (hook(user='"root"', command=f'["{program}"]') + "[agents.a]" for program in (mine, others))
    assert len(loaded(tmp_path, good).hooks) == 1
    (line,) = refused(write(tmp_path, RUN_AS + bad))
    assert line == (
        f"config.toml: on_event[0].command: {others} is not root's alone, so others could choose what root runs "
        "(move it, or name another user)"
    )
    assert len(loaded(tmp_path, hook(command=f'["{others}"]') + "[agents.a]").hooks) == 1, "as its own user it may"


@NEEDS_ROOT
@pytest.mark.parametrize("hidden", ["/home/nobody-there/hook", "/tmp/nothing-there", "/run/user/4711/hook"])
@pytest.mark.parametrize("linked", [False, True])
def test_root_runs_nothing_from_where_the_service_does_not_see_whose_it_is(
    tmp_path: Path, roots: Path, hidden: str, linked: bool
) -> None:
    program = roots / "hook" if linked else Path(hidden)
    if linked:
        program.symlink_to(hidden)
    (line,) = refused(write(tmp_path, RUN_AS + hook(user='"root"', command=f'["{program}"]') + "[agents.a]"))
    assert line.startswith("config.toml: on_event[0].command: ")
    assert "the supervisor cannot see whose it is" in line
    missing = hook(user='"root"', command=f'["{roots}/missing"]')
    assert len(loaded(tmp_path, missing + "[agents.a]").hooks) == 1, "it may be installed later"


@NEEDS_ROOT
def test_who_is_not_root_runs_hooks_as_nobody_else(tmp_path: Path) -> None:
    path = write(tmp_path, hook(user='"root"') + "[agents.a]")
    os.chown(path, SOMEBODY.pw_uid, -1)
    line = f'only root can run hooks as other users (write "{ME}", or run forge-supervisor as root)'
    assert f"config.toml: on_event[0].user: {line}" in refused(path, uid=SOMEBODY.pw_uid)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (hook(), True),
        (hook(timeout_sec='"1min 30s"', events='["failed", "start-limit", "recovered"]'), True),
        (hook(command='["/bin/echo", "relative"]'), True),
        (hook(command='["echo"]'), False),
        (hook(command="[]"), False),
        (hook(events="[]"), False),
        (hook(events='["exited"]'), False),
        (hook(user=None), False),
        (hook(timeout_sec="0"), False),
        (hook(timeout_sec="3601"), False),
        (hook(more="1"), False),
    ],
)
def test_the_schema_and_load_agree(tmp_path: Path, text: str, good: bool) -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    assert jsonschema.Draft202012Validator(schema()).is_valid(tomllib.loads(text)) is good
    path = write(tmp_path, RUN_AS + text + "[agents.a]\n")
    if good:
        assert len(loaded(tmp_path, text + "[agents.a]").hooks) == 1
    else:
        assert refused(path) != []
