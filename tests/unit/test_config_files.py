from __future__ import annotations

import os
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from config_lab import NEEDS_ROOT, ROOT, SOMEBODY, refused, write
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_supervisor.config import ConfigError, load
from forge_supervisor.config_files import Keys, Problem, dotted, merge, read

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


# Which files


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    [line] = refused(tmp_path / "config.toml")
    assert line.startswith("config.toml: there is no such file")
    assert "config.example.toml" in line


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    [line] = refused(tmp_path / "no" / "config.toml")
    assert "there is no such file" in line


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    assert refused(tmp_path)[0].endswith("is a directory (name the TOML file itself)")


def test_a_fifo_in_place_of_the_file_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    assert refused(tmp_path / "config.toml") == ["config.toml: is not a regular file (name the TOML file itself)"]


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to("config.toml")
    assert "cannot be read: Too many levels of symbolic links" in refused(tmp_path / "config.toml")[0]


@NEEDS_ROOT
def test_a_file_that_one_may_not_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0)
    tmp_path.chmod(0o711)
    with acting_as(SOMEBODY.pw_uid):
        lines = refused(path)
    assert all("cannot be read: Permission denied" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (b"socket_name = \n", "config.toml:1:15", "Invalid value"),
        (b"\n[agents\n", "config.toml:2:8", "Expected ']'"),
        (b"[agents.a]\n[agents.a]\n", "config.toml:2:10", "twice"),
        (b"a = 1\na = 2\n", "config.toml:2:6", "Cannot overwrite a value"),
        (b'a = """', "config.toml", "(end of document)"),
        (b"a = " + b"[" * 5000, "config.toml", "nested too deeply"),
        (b"a = " + b"9" * 5000, "config.toml", "digits"),
    ],
)
def test_broken_toml(tmp_path: Path, content: bytes, name: str, text: str) -> None:
    [line] = refused(write(tmp_path, content))
    assert line.startswith(f"{name}: not valid TOML: ")
    assert text in line


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    [line] = refused(write(tmp_path, '# ok\n\nsocket_name = "förge"'.encode("latin-1")))
    assert line == "config.toml:3: not UTF-8, as TOML has to be (save it with that encoding)"


def test_drop_ins_are_the_toml_files_of_conf_d_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("20.toml", "10.toml", "notes.txt", ".#10.toml", "30.toml~"):
        write(tmp_path, "", f"conf.d/{name}")
    documents, problems = read(tmp_path / "config.toml", uid=os.geteuid())
    assert list(documents) == [str(tmp_path / name) for name in ("config.toml", "conf.d/10.toml", "conf.d/20.toml")]
    assert not problems


def test_a_file_in_place_of_conf_d(tmp_path: Path) -> None:
    write(tmp_path, "", "conf.d")
    assert refused(write(tmp_path))[0].startswith("conf.d: cannot be read: Not a directory")


def test_all_broken_files_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "x y")
    write(tmp_path, "x y", "conf.d/1.toml")
    (tmp_path / "conf.d/2.toml").mkdir()
    (tmp_path / "conf.d/3.toml").symlink_to("nowhere")
    names = [line.split(": ")[0] for line in refused(path)]
    assert names == ["config.toml:1:3", "conf.d/1.toml:1:3", "conf.d/2.toml", "conf.d/3.toml"]


@settings(deadline=None)  # it writes files
@given(content=st.one_of(st.binary(), st.text().map(str.encode)))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any", content)
    documents, problems = read(path, uid=os.geteuid())
    assert len(documents) + len(problems) == 1


# Whom root trusts


def told(path: Path) -> str:
    """The one problem with the file or the way to it."""
    [line] = refused(path, uid=0)
    return line


@NEEDS_ROOT
def test_root_reads_what_is_roots(tmp_path: Path) -> None:
    assert load(write(tmp_path), uid=0).socket_name == "forge"


@NEEDS_ROOT
def test_root_refuses_a_config_of_somebody_else(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.chown(path, SOMEBODY.pw_uid, 0)
    assert told(path) == f"config.toml: belongs to {SOMEBODY.pw_name}, who could change it (chown root {path})"


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("mode", "text"), [(0o664, "its group may write it (chmod g-w"), (0o646, "everybody may write it (chmod o-w")]
)
def test_root_refuses_a_config_that_others_may_write(tmp_path: Path, mode: int, text: str) -> None:
    path = write(tmp_path)
    path.chmod(mode)
    assert told(path).startswith(f"config.toml: {text}")


@NEEDS_ROOT
def test_root_tells_all_that_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.chown(path, SOMEBODY.pw_uid, 0)
    path.chmod(0o666)
    tmp_path.chmod(0o777)
    assert len(refused(path, uid=0)) == 4


@NEEDS_ROOT
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_root_refuses_a_directory_that_others_may_write(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "open")
    (tmp_path / "open").chmod(mode)
    assert f"{tmp_path}/open: others than root may write this directory" in str(_error(path))


@NEEDS_ROOT
def test_root_refuses_a_directory_further_up(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    path = write(tmp_path / "up" / "etc")
    os.chown(tmp_path / "up", SOMEBODY.pw_uid, 0)
    assert f"{tmp_path}/up: belongs to {SOMEBODY.pw_name}, who could replace the configuration" in str(_error(path))


@NEEDS_ROOT
def test_root_reads_below_a_sticky_directory_but_not_in_it(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    below = write(tmp_path / "tmp" / "etc")
    inside = write(tmp_path / "tmp")
    (tmp_path / "tmp").chmod(0o1777)
    load(below, uid=0)
    assert told(inside).startswith("config.toml: lies in a directory that everybody may write")


@NEEDS_ROOT
def test_root_reads_a_file_in_a_store_that_only_a_group_may_add_to(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    (tmp_path / "store").chmod(0o1775)  # as /nix/store is
    load(path, uid=0)


@NEEDS_ROOT
def test_root_follows_links_with_care(tmp_path: Path) -> None:
    """Whoever may turn a link on the way decides what is read, so every directory on the way counts."""
    real = write(tmp_path / "real")
    for name in ("between", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "between" / "link.toml").symlink_to("../real/config.toml")
    path = tmp_path / "etc" / "config.toml"
    path.symlink_to(tmp_path / "between" / "link.toml")
    load(path, uid=0)

    (tmp_path / "between").chmod(0o777)
    assert f"{tmp_path}/between: others than root may write" in str(_error(path))
    (tmp_path / "between").chmod(0o755)

    os.lchown(tmp_path / "between" / "link.toml", SOMEBODY.pw_uid, 0)
    assert f"between/link.toml: belongs to {SOMEBODY.pw_name}" in str(_error(path))
    os.lchown(tmp_path / "between" / "link.toml", 0, 0)

    os.chown(real.parent, SOMEBODY.pw_uid, 0)
    assert f"{tmp_path}/real: belongs to {SOMEBODY.pw_name}" in str(_error(path))
    os.chown(real.parent, 0, 0)
    load(path, uid=0)


@NEEDS_ROOT
def test_root_checks_a_relative_path_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "up" / "etc").mkdir(parents=True)
    write(tmp_path / "up")
    monkeypatch.chdir(tmp_path / "up" / "etc")
    load("../config.toml", uid=0)
    (tmp_path / "up").chmod(0o777)
    with pytest.raises(ConfigError, match="others than root may write"):
        load("../config.toml", uid=0)


@NEEDS_ROOT
def test_root_checks_drop_ins_too(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.chown(write(tmp_path, "", "conf.d/1.toml"), SOMEBODY.pw_uid, 0)
    assert told(path).startswith("conf.d/1.toml: belongs to")


@NEEDS_ROOT
@pytest.mark.parametrize("names", [(), ("1.toml", "2.toml")])
def test_root_tells_once_that_conf_d_is_open(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Even when it is empty: whoever may write it could have taken an agent away."""
    path = write(tmp_path)
    (tmp_path / "conf.d").mkdir()
    for name in names:
        write(tmp_path / "conf.d", "", name)
    (tmp_path / "conf.d").chmod(0o777)
    assert told(path).startswith("conf.d: others than root may write this directory")


# Whom everybody else trusts


def test_a_user_reads_a_file_of_the_own_group_with_umask_002(tmp_path: Path) -> None:
    path = write(tmp_path)
    if ROOT:
        os.chown(path, SOMEBODY.pw_uid, SOMEBODY.pw_gid)
    path.chmod(0o664)
    load(path, uid=SOMEBODY.pw_uid)


def test_a_user_refuses_a_file_that_everybody_may_write(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0o606)
    assert refused(path, uid=SOMEBODY.pw_uid)[0].startswith("config.toml: everybody may write it (chmod o-w")


@NEEDS_ROOT
def test_a_user_refuses_a_file_that_another_group_may_write(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.chown(path, SOMEBODY.pw_uid, 0)
    path.chmod(0o660)
    assert refused(path, uid=SOMEBODY.pw_uid)[0].startswith("config.toml: its group may write it (chmod g-w")


@NEEDS_ROOT
def test_a_user_refuses_a_file_of_a_third_user(tmp_path: Path) -> None:
    path = write(tmp_path)
    load(path, uid=SOMEBODY.pw_uid)  # root's is fine
    os.chown(path, 12345, 0)
    assert "config.toml: belongs to 12345, who could change it" in refused(path, uid=SOMEBODY.pw_uid)[0]


def _error(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, uid=0)
    return caught.value


# What they say together

PLACES: list[Keys] = [
    ("socket_name",),
    ("defaults", "model"),
    ("defaults", "restart", "policy"),
    ("defaults", "restart", "steps"),
    ("defaults", "env", "A"),
    ("defaults", "env", "B"),
    ("agents", "a"),
    ("agents", "b"),
    ("harnesses", "h", "binary"),
    ("harnesses", "h", "version"),
    ("harnesses", "i", "version"),
]


def document(places: dict[Keys, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for place, value in places.items():
        inner = table
        for key in place[:-1]:
            inner = inner.setdefault(str(key), {})
        inner[str(place[-1])] = value
    return table


@given(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(["x.toml", "y.toml", "z.toml"])))
def test_keys_may_be_spread_over_files_at_will(files: dict[Keys, str]) -> None:
    value = {"role": "r"}
    documents = {name: document({place: value for place in files if files[place] == name}) for name in files.values()}
    before = repr(documents)
    merged = merge(documents)
    assert merged.table == document(dict.fromkeys(files, value))
    assert not merged.problems
    assert all(merged.origin(place) == file for place, file in files.items())
    assert repr(documents) == before


@given(st.sampled_from(PLACES), st.sets(st.sampled_from(PLACES)), st.sets(st.sampled_from(PLACES)))
def test_a_key_in_two_files_is_told_with_both(place: Keys, one: set[Keys], two: set[Keys]) -> None:
    one, two = one | {place}, two - one | {place}
    merged = merge({"x.toml": document(dict.fromkeys(one, 1)), "y.toml": document(dict.fromkeys(two, 2))})
    [problem] = merged.problems
    assert (problem.file, problem.key) == ("y.toml", dotted(place))
    assert "in x.toml too (remove one of the two)" in problem.text


def test_an_agent_in_two_files_is_told_once() -> None:
    one, two = {"agents": {"a": {"role": "r"}}}, {"agents": {"a": {"model": "m", "role": "s"}, "b": {}}}
    merged = merge({"x.toml": one, "y.toml": two})
    assert list(map(str, merged.problems)) == [
        "y.toml: agents.a: an agent of this name is declared in x.toml too (remove one of the two)"
    ]
    assert merged.table == {"agents": {"a": {"role": "r"}, "b": {}}}


def test_a_table_in_one_file_and_a_value_in_another() -> None:
    [problem] = merge({"x.toml": {"defaults": {"env": {}}}, "y.toml": {"defaults": {"env": 1}}}).problems
    assert problem.key == "defaults.env"


def test_deep_tables_do_not_exhaust_the_stack() -> None:
    deep = tomllib.loads("a." * 2000 + "a = 1")
    assert [problem.key for problem in merge({"x": deep, "y": deep}).problems] == ["a.a.a"]


def test_a_key_that_nobody_set_belongs_to_the_file_of_its_table() -> None:
    merged = merge({"x.toml": {"defaults": {}}, "y.toml": {"agents": {"a": {"role": "r"}}}})
    assert merged.origin(("agents", "a", "run_as")) == "y.toml"
    assert merged.origin(("defaults", "run_as")) == "x.toml"
    assert merged.origin(("harnesses",)) == "x.toml"
    assert merge({}).origin(("a",)) == ""


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (("agents", "scout", "restart", "delay_sec"), "agents.scout.restart.delay_sec"),
        (("agents", "a", "command", 1), "agents.a.command[1]"),
        (("agents", "Ä b"), 'agents."Ä b"'),
        (("agents", ""), 'agents.""'),
        (("a.b",), '"a.b"'),
        (("a\n\x1b",), '"a\\u000A\\u001B"'),
        ((), ""),
    ],
)
def test_key_paths_are_written_as_in_toml(keys: Keys, path: str) -> None:
    assert dotted(keys) == path


def test_a_problem_is_one_line() -> None:
    assert str(Problem("a.b", "is wrong", file="f")) == "f: a.b: is wrong"
    assert str(Problem("", "is wrong", file="f")) == "f: is wrong"
    one, two = Problem("a", "x"), Problem("b", "y")
    error = ConfigError([one, two, one])
    assert error.problems == (one, two)
    assert str(error) == "a: x\nb: y"


def test_nothing_is_left_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    write(tmp_path, "x")
    read(tmp_path / "config.toml", uid=os.geteuid())
    read(tmp_path, uid=os.geteuid())
    assert len(list(descriptors.iterdir())) == before
