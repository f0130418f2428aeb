from __future__ import annotations

import json
import math
import os
import pwd
import re
import signal
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from config_lab import NEEDS_ROOT, ROOT, RUN_AS, SOMEBODY, loaded, refused, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forge_supervisor.config import (
    Agent,
    Config,
    ConfigError,
    ExitStatuses,
    Harnesses,
    Library,
    Problem,
    Restart,
    load,
    schema,
)
from forge_supervisor.config_restart import Policy, Resume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
ME = SOMEBODY.pw_name

# What is read


def test_an_agent_has_systemds_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, "[agents.scout]")
    assert config.socket_name == "forge"
    assert config.harnesses == {}
    assert config.warnings == ()
    agent = config.agents["scout"]
    assert (agent.name, agent.run_as, agent.harness, agent.effort) == ("scout", ME, "claude-code", "max")
    assert (agent.role, agent.model, agent.command, agent.cwd, agent.path) == (None, None, None, None, None)
    assert (agent.env, agent.enabled, agent.stop_timeout_sec) == ({}, True, 30)
    restart = agent.restart
    assert (restart.policy, restart.delay_sec, restart.limit_burst) == ("on-failure", 5, 3)
    assert (restart.limit_interval_sec, restart.steps, restart.max_delay_sec) == (60, 0, None)
    nothing = ExitStatuses()
    assert [restart.success_exit_status, restart.prevent_exit_status, restart.force_exit_status] == [nothing] * 3


def test_every_key_is_read(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        socket_name = "other"
        [agents.scout]
        role = "r"
        harness = "command"
        model = "opus"
        effort = "low"
        env = {A = "1", B = ""}
        enabled = false
        stop_timeout_sec = "infinity"
        command = ["/bin/true", ""]
        cwd = "~/work"
        path = ["~/bin", "/bin"]
        [agents.scout.restart]
        policy = "always"
        delay_sec = "500ms"
        limit_burst = 0
        limit_interval_sec = "infinity"
        steps = 4
        max_delay_sec = "2min"
        success_exit_status = [143, "TERM"]
        prevent_exit_status = [15]
        force_exit_status = ["SIGKILL"]
        [harnesses.claude-code]
        binary = "claude"
        version = "2.1"
        """,
    )
    agent = config.agents["scout"]
    assert config.socket_name == "other"
    assert config.harnesses["claude-code"].model_dump() == {"binary": "claude", "version": "2.1"}
    assert (agent.env, agent.enabled, agent.stop_timeout_sec) == ({"A": "1", "B": ""}, False, math.inf)
    assert (agent.command, agent.cwd, agent.path) == (("/bin/true", ""), "~/work", ("~/bin", "/bin"))
    assert agent.restart == Restart(
        policy="always",
        delay_sec=0.5,
        limit_burst=0,
        limit_interval_sec=math.inf,
        steps=4,
        max_delay_sec=120,
        success_exit_status=ExitStatuses(codes=frozenset({143}), signals=frozenset({signal.SIGTERM})),
        prevent_exit_status=ExitStatuses(codes=frozenset({15})),
        force_exit_status=ExitStatuses(signals=frozenset({signal.SIGKILL})),
    )


def test_what_an_agent_remembers_is_its_own_or_the_defaults_business(tmp_path: Path) -> None:
    text = "resume.policy = 'after-failure'\n[agents.a]\n[agents.b]\nresume.policy = 'never'\n"
    config = loaded(tmp_path, "defaults." + text)
    assert {name: agent.resume.policy for name, agent in config.agents.items()} == {"a": "after-failure", "b": "never"}
    assert loaded(tmp_path, "agents.a = {}").agents["a"].resume.policy == "always"


@pytest.mark.parametrize("wrong", ["resume = 'always'", "resume.policy = 'sometimes'", "restart.limit_daily = -1"])
def test_what_cannot_be_remembered_or_counted_is_refused(tmp_path: Path, wrong: str) -> None:
    (line,) = refused(write(tmp_path, f"{RUN_AS}[agents.a]\n{wrong}\n"))
    assert f"agents.a.{wrong.partition(' ')[0]}: " in line


def test_the_configuration_cannot_be_changed(tmp_path: Path) -> None:
    agent = loaded(tmp_path, "agents.a = {}").agents["a"]
    with pytest.raises(ValidationError, match="frozen"):
        agent.enabled = False  # type: ignore[misc]


def test_defaults_are_laid_under_every_agent(tmp_path: Path) -> None:
    agents = loaded(
        tmp_path,
        """
        defaults.model = "opus"
        defaults.effort = "low"
        defaults.path = ["/bin"]
        defaults.env = {A = "default", B = "default"}
        defaults.restart = {policy = "always", delay_sec = 1}
        [agents.one]
        [agents.two]
        effort = "high"
        path = ["/usr/bin"]
        env = {B = "own"}
        restart.delay_sec = 2
        """,
    ).agents
    one, two = agents["one"], agents["two"]
    assert (one.model, one.effort, one.path, one.env) == ("opus", "low", ("/bin",), {"A": "default", "B": "default"})
    assert (two.model, two.effort, two.path, two.env) == ("opus", "high", ("/usr/bin",), {"A": "default", "B": "own"})
    assert (one.restart.policy, one.restart.delay_sec) == ("always", 1)
    assert (two.restart.policy, two.restart.delay_sec, two.restart.limit_burst) == ("always", 2, 3)


restart_keys = st.dictionaries(st.sampled_from(["delay_sec", "limit_burst", "limit_interval_sec"]), st.integers(0, 99))
agent_tables = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "n"]),
        "enabled": st.booleans(),
        "env": st.dictionaries(st.sampled_from("ABC"), st.sampled_from("xyz")),
        "restart": restart_keys,
    },
)


@settings(deadline=None)  # it writes files
@given(defaults=agent_tables, own=agent_tables)
def test_an_agents_own_keys_win_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, defaults: dict[str, Any], own: dict[str, Any]
) -> None:
    text = f"defaults = {_toml({'run_as': ME} | defaults)}\nagents.a = {_toml(own)}"
    agent = load(write(tmp_path_factory.getbasetemp() / "over", text)).agents["a"]
    usual = Agent(name="a", run_as=ME)
    for key in ("model", "enabled"):
        assert getattr(agent, key) == own.get(key, defaults.get(key, getattr(usual, key)))
    assert agent.env == defaults.get("env", {}) | own.get("env", {})
    restart = defaults.get("restart", {}) | own.get("restart", {})
    for key in ("delay_sec", "limit_burst", "limit_interval_sec"):
        assert getattr(agent.restart, key) == restart.get(key, getattr(usual.restart, key))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def test_drop_ins_add_agents_and_keys(tmp_path: Path) -> None:
    write(tmp_path, '[agents.two]\n[defaults]\nmodel = "opus"', "conf.d/1.toml")
    write(tmp_path, 'socket_name = "s"\n[harnesses.h]\nversion = "1"', "conf.d/2.toml")
    config = loaded(tmp_path, '[agents.one]\n[harnesses.h]\nbinary = "b"')
    assert list(config.agents) == ["one", "two"]
    assert {agent.model for agent in config.agents.values()} == {"opus"}
    assert config.socket_name == "s"
    assert (config.harnesses["h"].binary, config.harnesses["h"].version) == ("b", "1")


def test_no_agents_is_a_warning(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert config.agents == {}
    [warning] = config.warnings
    assert (warning.file, warning.key, warning.fatal) == (str(tmp_path / "config.toml"), "agents", False)


def test_zero_turns_the_start_limit_off(tmp_path: Path) -> None:
    restart = (
        loaded(tmp_path, "agents.a.restart = {limit_burst = 0, limit_interval_sec = 0, delay_sec = 0}")
        .agents["a"]
        .restart
    )
    assert (restart.limit_burst, restart.limit_interval_sec, restart.delay_sec) == (0, 0, 0)


def test_an_agent_can_turn_off_what_the_defaults_turn_on(tmp_path: Path) -> None:
    text = """
        defaults.restart = {steps = 5, max_delay_sec = "5min"}
        agents.one.restart.steps = 0
        agents.two.restart = {steps = 0, max_delay_sec = "infinity"}
        agents.three = {}
    """
    agents = loaded(tmp_path, text).agents
    assert [(agent.restart.steps, agent.restart.max_delay_sec) for agent in agents.values()] == [
        (0, 300),
        (0, None),
        (5, 300),
    ]


def test_the_environment_is_not_shown_by_repr(tmp_path: Path) -> None:
    assert "hunter2" not in repr(loaded(tmp_path, 'agents.a.env.PASSWORD = "hunter2"'))


# What is refused

AGENT = "agents.scout"


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        # unknown keys
        ("sockt_name = 'x'", "sockt_name", 'unknown key (did you mean "socket_name"?)'),
        ("[agent.scout]", "agent", 'unknown key (did you mean "agents"?)'),
        ("xyz = 1", "xyz", 'known here: "skills", "plugins", "mcp_servers", "discord", "socket_name", "defaults", '),
        ("agents.scout.rol = 'x'", "agents.scout.rol", 'did you mean "role"?'),
        ("agents.scout.runAs = 'x'", "agents.scout.runAs", 'did you mean "run_as"?'),
        ("agents.scout.delay_sec = 5", "agents.scout.delay_sec", 'did you mean "restart.delay_sec"?'),
        ("agents.scout.steps = 5", "agents.scout.steps", 'did you mean "restart.steps"?'),
        ("agents.scout.policy = 'no'", "agents.scout.policy", 'did you mean "restart.policy"?'),
        ("agents.scout.name = 'x'", "agents.scout.name", 'unknown key (known here: "role", "run_as"'),
        ("agents.scout.restart.delay = 5", "agents.scout.restart.delay", 'did you mean "delay_sec"?'),
        ("agents.restart.burst = 5", "agents.restart.burst", "unknown key"),
        ("defaults.env_ = {}", "defaults.env_", 'did you mean "env"?'),
        ("harnesses.claude-code.binry = 'x'", "harnesses.claude-code.binry", 'did you mean "binary"?'),
        ("agents.scout.'a b' = 1", 'agents.scout."a b"', "unknown key"),
        ("a." * 500 + "b = 1", "a", "unknown key"),
        # types
        ("socket_name = 5", "socket_name", "must be a string, not a number (put it in quotes)"),
        ("agents = 5", "agents", "must be a table, not a number"),
        ("agents.scout = []", AGENT, "must be a table, not a list"),
        ("[[agents.scout]]", AGENT, "must be a table, not a list"),
        ("defaults = true", "defaults", "must be a table, not a boolean"),
        ("harnesses.x = 'y'", "harnesses.x", "must be a table, not a string"),
        ("agents.scout.role = 1979-05-27", f"{AGENT}.role", "must be a string, not a date or time"),
        ("agents.scout.model = false", f"{AGENT}.model", "must be a string, not a boolean (put it in quotes)"),
        ("agents.scout.run_as = 1000", f"{AGENT}.run_as", "must be a string, not a number"),
        ("agents.scout.enabled = 'yes'", f"{AGENT}.enabled", "must be true or false, not a string"),
        ("agents.scout.enabled = 1", f"{AGENT}.enabled", "must be true or false, not a number"),
        ("agents.scout.restart = 'always'", f"{AGENT}.restart", "must be a table, not a string"),
        (
            "agents.scout.restart.limit_burst = '3'",
            f"{AGENT}.restart.limit_burst",
            "must be a whole number, not a string",
        ),
        (
            "agents.scout.restart.limit_burst = 3.0",
            f"{AGENT}.restart.limit_burst",
            "must be a whole number, not a number",
        ),
        ("agents.scout.restart.steps = true", f"{AGENT}.restart.steps", "must be a whole number, not a boolean"),
        ("agents.scout.command = 'ls -l'", f"{AGENT}.command", "must be a list, not a string"),
        (
            "agents.scout.command = ['ls', 1]",
            f"{AGENT}.command[1]",
            "must be a string, not a number (put it in quotes)",
        ),
        ("agents.scout.path = '/bin:/usr/bin'", f"{AGENT}.path", "must be a list, not a string"),
        ("agents.scout.env = ['A=1']", f"{AGENT}.env", "must be a table, not a list"),
        ("agents.scout.env.PORT = 80", f"{AGENT}.env.PORT", "must be a string, not a number (put it in quotes)"),
        # values
        ("socket_name = 'a/b'", "socket_name", 'must be made of letters, digits, "_" and "-" (at most 64)'),
        ("socket_name = ''", "socket_name", "must be made of"),
        ("agents.scout.role = '  '", f"{AGENT}.role", "must not be empty"),
        ("agents.scout.harness = ''", f"{AGENT}.harness", "must not be empty"),
        ("agents.scout.effort = ''", f"{AGENT}.effort", "must not be empty"),
        ("agents.scout.restart.limit_burst = -1", f"{AGENT}.restart.limit_burst", "must be at least 0"),
        ("agents.scout.restart.steps = -1", f"{AGENT}.restart.steps", "must be at least 0"),
        ("agents.scout.restart.policy = 'on-fail'", f"{AGENT}.restart.policy", 'did you mean "on-failure"?'),
        ("agents.scout.restart.policy = 1", f"{AGENT}.restart.policy", 'must be one of "no", "always", "on-success"'),
        (
            "agents.scout.restart.delay_sec = true",
            f"{AGENT}.restart.delay_sec",
            "must be a number of seconds or a time span",
        ),
        ("agents.scout.restart.delay_sec = -1", f"{AGENT}.restart.delay_sec", "must not be negative"),
        ("agents.scout.restart.delay_sec = inf", f"{AGENT}.restart.delay_sec", "must not be infinite"),
        ("agents.scout.restart.delay_sec = 'infinity'", f"{AGENT}.restart.delay_sec", "must not be infinite"),
        ("agents.scout.restart.max_delay_sec = 'x'", f"{AGENT}.restart.max_delay_sec", "must be a number of seconds"),
        (
            "agents.scout.restart.limit_interval_sec = '5 xs'",
            f"{AGENT}.restart.limit_interval_sec",
            '"xs" is no unit of time',
        ),
        (
            "agents.scout.stop_timeout_sec = 0",
            f"{AGENT}.stop_timeout_sec",
            'must be more than 0 (for no limit write "infinity")',
        ),
        (
            "agents.scout.restart.force_exit_status = 1",
            f"{AGENT}.restart.force_exit_status",
            "must be a list of exit codes",
        ),
        ("agents.scout.command = []", f"{AGENT}.command", "must not be empty"),
        ("agents.scout.command = ['']", f"{AGENT}.command", "must not be empty"),
        ("agents.scout.path = []", f"{AGENT}.path", "must not be empty"),
        ("agents.scout.path = ['bin']", f"{AGENT}.path[0]", "must be an absolute path, or begin with ~/"),
        ("agents.scout.path = ['/a:/b']", f"{AGENT}.path[0]", 'hold no ":"'),
        ("agents.scout.cwd = 'here'", f"{AGENT}.cwd", "must be an absolute path, or begin with ~/"),
        ("agents.scout.cwd = '~bob/x'", f"{AGENT}.cwd", "must be an absolute path, or begin with ~/"),
        (
            "harnesses.x.binary = 'bin/x'",
            "harnesses.x.binary",
            "must be an absolute path, begin with ~/, or be a bare name",
        ),
        ("harnesses.x.version = 2", "harnesses.x.version", "must be a string, not a number"),
        ("agents.scout.env.1A = 'x'", f"{AGENT}.env.1A", "a variable's name is made of letters"),
        ("agents.scout.env.'A=B' = 'x'", f'{AGENT}.env."A=B"', "a variable's name is made of letters"),
        ("agents.scout.run_as = 'a b'", f"{AGENT}.run_as", "must be a user's name: letters"),
        ("agents.scout.run_as = '-x'", f"{AGENT}.run_as", "must be a user's name: letters"),
        ("agents.scout.run_as = ''", f"{AGENT}.run_as", "must be a user's name: letters"),
        ("agents.scout.run_as = '" + "x" * 33 + "'", f"{AGENT}.run_as", "must be a user's name: letters"),
        ("agents.scout.run_as = '1000'", f"{AGENT}.run_as", "must be a user's name, not a number"),
        ("agents.scout.run_as = '0'", f"{AGENT}.run_as", "must be a user's name, not a number"),
        ("agents.scout.run_as = 'root'", f"{AGENT}.run_as", "an agent cannot run as root"),
        # names
        ("[agents.Scout]", "agents.Scout", "an agent's name has at most 48 of a-z"),
        ("[agents.'a.b']", 'agents."a.b"', "an agent's name has"),
        ("[agents.'a:b']", 'agents."a:b"', "an agent's name has"),
        ("[agents.-a]", "agents.-a", "an agent's name has"),
        ("[agents.'']", 'agents.""', "an agent's name has"),
        ("[agents." + "a" * 49 + "]", "agents." + "a" * 49, "an agent's name has at most 48"),
        ("[harnesses.'']", 'harnesses.""', "must not be empty"),
        # A disabled agent is checked like any other.
        ("agents.scout = {enabled = false, effort = 3}", f"{AGENT}.effort", "must be a string"),
    ],
)
def test_bad_input_is_told_with_file_key_and_way_out(tmp_path: Path, text: str, key: str, sentence: str) -> None:
    path = write(tmp_path, text)
    if "defaults" not in text and "run_as" not in text:
        write(tmp_path, RUN_AS, "conf.d/run_as.toml")
    [line] = refused(path)
    assert line.startswith(f"config.toml: {key}: ")
    assert sentence in line


@pytest.mark.parametrize(
    "text",
    [
        "socket_name = 'a_B-9'",
        "[agents.9-a-]",
        "[agents." + "a" * 48 + "]",
        "agents.a.cwd = '/'",
        "agents.a.path = ['/']",
        "harnesses.x.binary = '~/x'",
        "agents.a.env._ = ''",
        "agents.a.env.LD_PRELOAD = 'x'",
        "agents.a.role = '''\nmany\nlines\n'''",
    ],
)
def test_good_input_is_taken(tmp_path: Path, text: str) -> None:
    loaded(tmp_path, text)


@pytest.mark.parametrize("name", ["FORGE_AGENT", "INVOCATION_ID", "TMUX", "TMUX_PANE"])
@pytest.mark.parametrize("table", ["agents.scout", "defaults"])
def test_env_cannot_say_who_or_where_an_agent_is(tmp_path: Path, table: str, name: str) -> None:
    [line] = refused(write(tmp_path, f'{table}.env.{name} = "x"\n{table}.run_as = "{ME}"'))
    assert line == f"config.toml: {table}.env.{name}: is set by the supervisor itself (leave it out)"


@pytest.mark.parametrize(
    ("key", "toml"),
    [
        *((key, f'{key} = "/x\\u0000y"') for key in ("role", "harness", "model", "effort", "cwd", "env.A", "run_as")),
        ("command[1]", 'command = ["x", "\\u0000"]'),
        ("path[0]", 'path = ["/\\u0000"]'),
        ('env."A\\u0000"', 'env."A\\u0000" = "x"'),
    ],
)
def test_no_nul_character_gets_in(tmp_path: Path, key: str, toml: str) -> None:
    """A NUL would end the string early in execve(2) and open(2)."""
    [line] = refused(write(tmp_path, f"{RUN_AS}agents.scout.{toml}"))
    assert line.startswith(f"config.toml: agents.scout.{key}: ")


def test_no_message_repeats_a_value_that_may_be_a_secret(tmp_path: Path) -> None:
    text = """
        agents.a.env = {A = 314159, B = ["hunter2"], C = {x = "hunter2"}, D = "hunter2\\u0000", E = 2000-01-02}
        agents.a.command = ["x", 314159, ["hunter2"]]
        agents.a.role = ["hunter2"]
        agents.a.run_as = "hunter2 hunter2"
    """
    message = "\n".join(refused(write(tmp_path, text)))
    assert message.count("\n") == 8
    assert not re.search("hunter2|314159|2000", message)


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'x = 1\n[agents.a]\nrole = 1\nmodel = 2\n[agents.b]\nrun_as = "root"\n[defaults]\neffort = 3'
    )
    write(tmp_path, "[agents.c]\nrole = 1\n[agents.a]\nenabled = 1", "conf.d/1.toml")
    write(tmp_path, "[agents\n", "conf.d/2.toml")
    keys = [tuple(line.split(": ")[:2]) for line in refused(path)]
    assert keys == [
        ("conf.d/2.toml:1:8", "not valid TOML"),
        ("config.toml", "defaults.effort"),
        ("config.toml", "agents.a.role"),
        ("config.toml", "agents.a.model"),
        ("config.toml", "agents.b.run_as"),
        ("config.toml", "x"),
        ("conf.d/1.toml", "agents.c.role"),
        ("conf.d/1.toml", "agents.a.enabled"),
        ("conf.d/1.toml", "agents.a"),
    ]


def test_an_error_in_defaults_is_told_once(tmp_path: Path) -> None:
    text = "\n".join(f"[agents.a{number}]" for number in range(5))
    write(tmp_path, "defaults = {effort = 3, restart.delay_sec = -1, rol = 'x'}", "conf.d/1.toml")
    assert [line.split(": ")[:2] for line in refused(write(tmp_path, text))] == [
        ["conf.d/1.toml", f"defaults.{key}"] for key in ("effort", "restart.delay_sec", "rol")
    ]


def test_an_error_in_defaults_is_told_even_if_no_agent_uses_it(tmp_path: Path) -> None:
    assert refused(write(tmp_path, "defaults.effort = 3"))[0].startswith("config.toml: defaults.effort: ")


KEYS = ["socket_name", "defaults", "agents", "harnesses", "binary", "version", "a", "B", "[key]", ""]
KEYS += [*Agent.model_fields, *Restart.model_fields]
words = st.sampled_from(["a", "", "root", "5s", "SIGTERM", "no", "/", "\0"])
values = st.recursive(
    st.one_of(
        words,
        st.integers(),
        st.integers(10**30, 10**31),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
)
tables = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
files = st.fixed_dictionaries(
    {},
    optional={
        "socket_name": values,
        "defaults": st.one_of(tables, values),
        "agents": st.one_of(st.dictionaries(st.sampled_from(["a", "b", "C"]), st.one_of(tables, values)), values),
        "harnesses": st.one_of(st.dictionaries(words, tables), values),
        "xyz": values,
    },
)


@settings(deadline=None)  # it writes files
@given(files, files)
def test_any_file_is_taken_or_refused_in_sentences(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], two: dict[str, Any]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any-two"
    for name, document in (("config.toml", one), ("conf.d/1.toml", two)):
        write(directory, "\n".join(f"{key} = {_toml(value)}" for key, value in document.items()), name)
    problems: Iterable[Problem] = ()
    try:
        load(directory / "config.toml", harnesses=Harnesses())
    except ConfigError as error:
        problems = error.problems
    assert all(problem.file.startswith(str(directory)) and problem.key and problem.text for problem in problems)


# Restarts that would not do what they say


@pytest.mark.parametrize(
    ("defaults", "own", "key", "sentence"),
    [
        ("", "steps = 5", "agents.a.restart.steps", "has no effect without restart.max_delay_sec"),
        ("", "max_delay_sec = '5min'", "agents.a.restart.max_delay_sec", "has no effect without restart.steps"),
        (
            "",
            "steps = 5, max_delay_sec = 1",
            "agents.a.restart.max_delay_sec",
            "restart.max_delay_sec (1 s) must be at least restart.delay_sec (5 s)",
        ),
        ("steps = 5, max_delay_sec = 9", "delay_sec = 10", "agents.a.restart.delay_sec", "(9 s) must be at least"),
        ("steps = 5", "", "defaults.restart.steps", "has no effect without restart.max_delay_sec"),
        ("steps = 5, max_delay_sec = 1", "", "defaults.restart.max_delay_sec", "(1 s) must be at least"),
        ("max_delay_sec = 9", "policy = 'no'", "defaults.restart.max_delay_sec", "has no effect without restart.steps"),
        ("steps = 5", "max_delay_sec = 1", "agents.a.restart.max_delay_sec", "(1 s) must be at least"),
    ],
)
def test_a_growing_delay_needs_an_end(tmp_path: Path, defaults: str, own: str, key: str, sentence: str) -> None:
    path = write(tmp_path, f"agents.a.restart = {{{own}}}\nagents.b.restart = {{steps = 1, max_delay_sec = 9}}")
    write(tmp_path, f"[defaults]\nrun_as = '{ME}'\nrestart = {{{defaults}}}", "conf.d/defaults.toml")
    [line] = refused(path)
    assert line.startswith(f"{'conf.d/defaults.toml' if key.startswith('defaults') else 'config.toml'}: {key}: ")
    assert sentence in line


def test_what_defaults_say_by_halves_agents_may_complete(tmp_path: Path) -> None:
    agent = loaded(tmp_path, "defaults.restart.steps = 5\nagents.a.restart.max_delay_sec = 60").agents["a"]
    assert (agent.restart.steps, agent.restart.max_delay_sec) == (5, 60)


@pytest.mark.parametrize("keys", ["steps = 5, max_delay_sec = 5", "steps = 0, max_delay_sec = 1"])
def test_a_delay_may_grow_by_nothing_or_not_at_all(tmp_path: Path, keys: str) -> None:
    assert loaded(tmp_path, f"agents.a.restart = {{{keys}}}").agents["a"].restart.delay_sec == 5


# As whom agents run


def test_a_user_who_does_not_exist_yet_is_no_error(tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("needs root, whose agents alone run as others")
    assert loaded(tmp_path, "agents.a.run_as = 'no-such-user'", uid=0).agents["a"].run_as == "no-such-user"


@NEEDS_ROOT
def test_run_as_root_is_refused_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pwd.getpwnam
    monkeypatch.setattr(pwd, "getpwnam", lambda name: real("root" if name == "toor" else name))
    [line] = refused(write(tmp_path, "agents.a.run_as = 'toor'"), uid=0)
    assert line.startswith("config.toml: agents.a.run_as: an agent cannot run as root")


@NEEDS_ROOT
def test_root_must_say_as_whom(tmp_path: Path) -> None:
    path = write(tmp_path, "[agents.a]\n[agents.b]\nrun_as = 'x'\n[agents.c]\nenabled = false")
    assert [line.partition(" (")[0] for line in refused(path, uid=0)] == [
        "config.toml: agents.a.run_as: is missing",
        "config.toml: agents.c.run_as: is missing",
    ]
    assert "here or in [defaults]" in refused(path, uid=0)[0]


@NEEDS_ROOT
def test_a_misspelt_key_is_not_missed_as_well(tmp_path: Path) -> None:
    [line] = refused(write(tmp_path, "agents.a.run_a = 'x'"), uid=0)
    assert 'did you mean "run_as"?' in line


@NEEDS_ROOT
def test_nothing_is_missed_that_a_broken_file_may_hold(tmp_path: Path) -> None:
    write(tmp_path, "[defaults\n", "conf.d/1.toml")
    strict = Harnesses(lambda *_: [Problem("role", "is missing")])
    [line] = refused(write(tmp_path, "[agents.a]"), uid=0, harnesses=strict)
    assert line.startswith("conf.d/1.toml:1:10: not valid TOML")


def test_a_users_agents_run_as_that_user(tmp_path: Path) -> None:
    text = f"[agents.a]\n[agents.b]\nrun_as = '{ME}'"
    agents = load(write(tmp_path, text), uid=SOMEBODY.pw_uid).agents
    assert {agent.run_as for agent in agents.values()} == {ME}


@pytest.mark.parametrize("name", ["daemon", "no-such-user"])
def test_a_user_cannot_run_agents_as_others(tmp_path: Path, name: str) -> None:
    [line] = refused(write(tmp_path, f"defaults.run_as = '{name}'\n[agents.a]"), uid=SOMEBODY.pw_uid)
    assert line.startswith("config.toml: defaults.run_as: only root can run agents as other users")


def test_a_uid_without_a_name_runs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "[agents.a]\nrole = 1")
    uid = 4_000_000_000 if ROOT else os.geteuid()
    if not ROOT:
        pytest.skip("needs root, whose files are read by any uid")
    named, role = refused(path, uid=uid)
    assert "the supervisor runs as uid 4000000000, which has no user name" in named
    assert role.startswith("config.toml: agents.a.role: ")


# What the harness has to say


def checked(
    tmp_path: Path,
    check: Callable[[Agent, frozenset[str], Library], Iterable[Problem]],
    own: str = "",
    drop_in: str = "",
) -> Config:
    write(tmp_path, drop_in, "conf.d/1.toml")
    return loaded(tmp_path, f"[agents.a]\nrole = 'r'\n{own}", harnesses=Harnesses(check))


def test_the_check_is_told_which_keys_are_the_agents_own(tmp_path: Path) -> None:
    seen: dict[str, frozenset[str]] = {}

    def check(agent: Agent, own: frozenset[str], _granted: Library) -> Iterator[Problem]:
        assert agent.model == "opus"
        seen[agent.name] = own
        yield from ()

    checked(tmp_path, check, "restart.policy = 'no'\n[agents.b]", "defaults.model = 'opus'")
    assert seen == {"a": frozenset({"role", "restart"}), "b": frozenset()}


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("role", "config.toml: agents.a.role"),
        ("command", "config.toml: agents.a.command"),
        ("command[0]", "config.toml: agents.a.command[0]"),
        ("model", "conf.d/1.toml: defaults.model"),
        ("env.A", "conf.d/1.toml: defaults.env.A"),
        ("env.B", "config.toml: agents.a.env.B"),
        ("", "config.toml: agents.a"),
    ],
)
def test_a_problem_is_placed_where_the_key_was_set(tmp_path: Path, key: str, place: str) -> None:
    drop_in = "[defaults]\nmodel = 'm'\nenv.A = '1'"

    def check(*_: object) -> list[Problem]:
        return [Problem(key, "is wrong")]

    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, check, "env.B = '2'", drop_in)
    assert str(caught.value) == f"{tmp_path}/{place}: is wrong"

    def warn(*_: object) -> list[Problem]:
        return [Problem(key, "is odd", fatal=False)]

    assert list(map(str, checked(tmp_path, warn, "env.B = '2'", drop_in).warnings)) == [f"{tmp_path}/{place}: is odd"]


def test_what_a_check_finds_in_defaults_is_told_once(tmp_path: Path) -> None:
    def check(*_: object) -> list[Problem]:
        return [Problem("model", "is odd", fatal=False)]

    assert len(checked(tmp_path, check, "[agents.b]\n[agents.c]", "defaults.model = 'm'").warnings) == 1


def test_only_valid_agents_are_checked(tmp_path: Path) -> None:
    seen = []

    def check(agent: Agent, *_: object) -> list[Problem]:
        seen.append(agent.name)
        return [Problem("role", "is wrong")]

    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, check, "[agents.b]\nmodel = 3\n[agents.c]\nxyz = 1")
    assert seen == ["a"]
    assert [problem.key for problem in caught.value.problems] == ["agents.b.model", "agents.c.xyz", "agents.a.role"]


# The schema


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_the_schema_takes_the_example_and_its_options() -> None:
    for text in (EXAMPLE.read_text(), uncommented()):
        validator().validate(tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("", True),
        (
            "agents.a.restart = {delay_sec = '5s', limit_interval_sec = 'infinity', steps = 3, max_delay_sec = 9.5}",
            True,
        ),
        ("agents.a.restart.success_exit_status = [143, 'SIGTERM', 'HUP']", True),
        ("defaults = {run_as = 'x', env.A = 'b'}", True),
        ("harnesses.h.binary = 'x'", True),
        ("xyz = 1", False),
        ("agents.a.xyz = 1", False),
        ("agents.a.name = 'a'", False),
        ("agents.'A b' = {}", False),
        ("agents.a.restart.xyz = 1", False),
        ("harnesses.h.xyz = 1", False),
        ("agents.a.restart.delay_sec = true", False),
        ("agents.a.restart.delay_sec = -1", False),
        ("agents.a.restart.delay_sec = 'infinity'", False),
        ("agents.a.stop_timeout_sec = 0", False),
        ("agents.a.restart.policy = 'sometimes'", False),
        ("agents.a.restart.success_exit_status = [256]", False),
        ("agents.a.restart.success_exit_status = ['SIGTREM']", False),
        ("agents.a.env.A = 1", False),
        ("agents.a.env.'A-B' = 'x'", False),
        ("agents.a.cwd = 'here'", False),
        ("agents.a.role = ''", False),
        ("agents.a.command = []", False),
        ("harnesses.h.binary = 'a/b'", False),
    ],
)
def test_the_schema_and_load_agree(tmp_path: Path, text: str, good: bool) -> None:
    assert validator().is_valid(tomllib.loads(text)) is good
    if "defaults" in text and good:
        return
    path = write(tmp_path, text)
    write(tmp_path, RUN_AS, "conf.d/run_as.toml")
    try:
        load(path)
    except ConfigError:
        assert not good
    else:
        assert good


def properties() -> Iterator[tuple[str, dict[str, Any]]]:
    whole = schema()
    for table in (whole, *whole["$defs"].values()):
        yield from table["properties"].items()


def test_the_schema_describes_every_key_and_knows_no_null() -> None:
    assert all(value.get("description") for _, value in properties())
    assert '"null"' not in json.dumps(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_policies_are_systemds() -> None:
    assert set(get_args(Policy)) == {
        *("no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"),
    }


# The example


def uncommented() -> str:
    return re.sub(r"^#(?=\S)", "", EXAMPLE.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), uncommented()], ids=["as it is", "with all options"])
def test_the_example_can_be_loaded(tmp_path: Path, text: str) -> None:
    text = re.sub('(run_as = |users = \\[|user = )"team"', rf'\1"{ME}"', text)
    config = load(write(tmp_path, text))
    assert config.warnings == ()
    assert len(config.agents) > 1
    assert not any(agent.enabled for agent in config.agents.values())


def test_the_example_holds_every_key() -> None:
    text = EXAMPLE.read_text()
    tables = {
        *("agents", "control", "defaults", "harnesses", "restart", "env", "permissions", "resources", "secrets"),
        *("resume", "discord", "bots", "access", "channels", "on_event"),
    }
    for key, _ in properties():
        table = rf"^#?\[+(.*\.)?{key}[.\]]"
        written = table if key in tables else rf"{table}|^#?{key} = "
        assert re.search(written, text, re.MULTILINE), key


def test_the_example_tells_the_defaults_as_they_are() -> None:
    """A line with "#" alone shows the default, unless the key has none."""
    given = tomllib.loads(uncommented())["agents"]["scout"]
    usual = Agent(name="a", run_as="x")
    for key in ("harness", "effort", "stop_timeout_sec"):
        assert given[key] == getattr(usual, key)
    restart = Restart.model_validate(given["restart"])
    for key in ("policy", "delay_sec", "limit_burst", "limit_interval_sec", "limit_daily"):
        assert getattr(restart, key) == getattr(usual.restart, key)
    assert Resume.model_validate(given["resume"]).policy == usual.resume.policy
    assert Agent(name="a", run_as="x", ready_timeout_sec=given["ready_timeout_sec"]) == usual
