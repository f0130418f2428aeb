from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor import json_seed
from forge_supervisor.harness import File, JsonSeed, LaunchPlan, Link, Paths
from forge_supervisor.workspace import WorkspaceError, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user or to mount")
NOBODY = 65534


@pytest.fixture
def paths() -> Iterator[Paths]:
    # Not tmp_path: other users must be able to reach it.
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "home").mkdir(mode=0o755)
    yield paths_below(root / "home")
    shutil.rmtree(root)


def paths_below(home: Path) -> Paths:
    forge = home / ".local/state/forge"
    return Paths(home=home, forge=forge, agent="scout", search=("/bin",))


def plan_of(paths: Paths, *files: File, seeds: tuple[JsonSeed, ...] = ()) -> LaunchPlan:
    return LaunchPlan(argv=("/bin/true",), cwd=paths.state, files=files, seeds=seeds)


def seed_of(paths: Paths, values: dict[str, Any]) -> JsonSeed:
    file = paths.home / ".claude.json"
    return JsonSeed(file, values, lock=Path(f"{file}.lock"))


def sow(paths: Paths, values: dict[str, Any]) -> list[str]:
    return build(plan_of(paths, seeds=(seed_of(paths, values),)), paths)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def content_of(path: Path) -> Any:
    return json.loads(path.read_bytes())


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@contextmanager
def as_nobody(home: Path) -> Iterator[None]:
    os.chown(home, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class TestDirectories:
    def test_both_are_made_for_their_user_alone(self, paths: Paths) -> None:
        assert build(plan_of(paths), paths) == []
        for directory in (paths.state, paths.launch):
            ours = (directory, *directory.parents[:2])
            assert [mode_of(part) for part in ours] == [0o700] * 3

    def test_a_mode_that_lets_others_in_is_taken_back(self, paths: Paths) -> None:
        paths.state.mkdir(parents=True)
        for part in (paths.state, *paths.state.parents[:2]):
            part.chmod(0o777)
        build(plan_of(paths), paths)
        assert [mode_of(part) for part in (paths.state, *paths.state.parents[:2])] == [0o700] * 3

    def test_what_is_above_them_keeps_its_mode(self, paths: Paths) -> None:
        (paths.home / ".local").mkdir(mode=0o755)
        build(plan_of(paths), paths)
        assert mode_of(paths.home / ".local") == 0o755

    def test_the_user_may_keep_the_state_home_elsewhere(self, paths: Paths) -> None:
        elsewhere = paths.home.parent / "disk"
        elsewhere.mkdir()
        (paths.home / ".local").mkdir()
        (paths.home / ".local/state").symlink_to(elsewhere)
        build(plan_of(paths), paths)
        assert (elsewhere / "forge/agents/scout").is_dir()

    @pytest.mark.parametrize("link", ["forge", "forge/agents", "forge/agents/scout", "forge/launch/scout"])
    @pytest.mark.parametrize("dangling", [False, True])
    def test_a_state_dir_that_is_a_symlink_to_elsewhere_is_refused(
        self, paths: Paths, link: str, *, dangling: bool
    ) -> None:
        elsewhere = paths.home.parent / "elsewhere"
        if not dangling:
            elsewhere.mkdir(mode=0o755)
        place = paths.home / ".local/state" / link
        place.parent.mkdir(parents=True)
        place.symlink_to(elsewhere)
        with pytest.raises(WorkspaceError, match=f"{place} is a symbolic link to {elsewhere} .remove it"):
            build(plan_of(paths, File(paths.state / "CLAUDE.md", "x")), paths)
        assert dangling or (mode_of(elsewhere), names_in(elsewhere)) == (0o755, [])

    def test_a_file_in_the_place_of_one_is_named(self, paths: Paths) -> None:
        paths.state.parent.mkdir(parents=True)
        paths.state.write_text("x")
        with pytest.raises(WorkspaceError, match=f"{paths.state} is no directory"):
            build(plan_of(paths), paths)

    def test_a_missing_home_is_named(self, paths: Paths) -> None:
        paths.home.rmdir()
        with pytest.raises(WorkspaceError, match=f"the home directory {paths.home} is missing"):
            build(plan_of(paths), paths)
        paths.home.mkdir()

    @needs_root
    def test_a_home_that_may_not_be_written_is_named(self, paths: Paths) -> None:
        with as_nobody(paths.home):
            paths.home.chmod(0o500)
            with pytest.raises(WorkspaceError, match=r"/\.local: Permission denied .give this user"):
                build(plan_of(paths), paths)

    @needs_root
    def test_a_read_only_home_is_named(self, paths: Paths) -> None:
        program = (
            "import sys; sys.path[:0] = sys.argv[2:]; import test_workspace as t; from pathlib import Path;"
            "p = t.paths_below(Path(sys.argv[1])); t.build(t.plan_of(p), p)"
        )
        python = [sys.executable, "-c", program, str(paths.home), str(Path(__file__).parent)]
        script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
        ran = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, str(paths.home), *python],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert "/.local: Read-only file system (it must lie on a writable filesystem)" in ran.stderr

    @needs_root
    def test_a_directory_of_another_user_is_refused(self, paths: Paths) -> None:
        paths.state.mkdir(parents=True)
        os.chown(paths.state, NOBODY, NOBODY)
        with pytest.raises(WorkspaceError, match=f"{paths.state} belongs to uid {NOBODY}"):
            build(plan_of(paths), paths)


class TestFiles:
    def write(self, paths: Paths, text: str) -> list[str]:
        return build(plan_of(paths, File(paths.state / "CLAUDE.md", text)), paths)

    def test_it_is_there_for_its_user_alone(self, paths: Paths) -> None:
        assert self.write(paths, "härtet\n") == []
        assert (paths.state / "CLAUDE.md").read_bytes() == "härtet\n".encode()
        assert mode_of(paths.state / "CLAUDE.md") == 0o600
        assert names_in(paths.state) == ["CLAUDE.md"]

    def test_it_is_replaced_and_not_written_into(self, paths: Paths) -> None:
        self.write(paths, "old")
        with (paths.state / "CLAUDE.md").open() as reader:
            self.write(paths, "new")
            assert reader.read() == "old"
        assert (paths.state / "CLAUDE.md").read_text() == "new"

    def test_what_is_already_right_is_left_alone(self, paths: Paths) -> None:
        self.write(paths, "same")
        before = (paths.state / "CLAUDE.md").stat()
        self.write(paths, "same")
        assert (paths.state / "CLAUDE.md").stat() == before

    def test_a_mode_that_lets_others_in_is_not_right(self, paths: Paths) -> None:
        self.write(paths, "same")
        (paths.state / "CLAUDE.md").chmod(0o644)
        self.write(paths, "same")
        assert mode_of(paths.state / "CLAUDE.md") == 0o600

    def test_a_symlink_is_replaced_and_never_followed(self, paths: Paths) -> None:
        victim = paths.home / "victim"
        victim.write_text("same")
        victim.chmod(0o600)
        paths.state.mkdir(parents=True)
        (paths.state / "CLAUDE.md").symlink_to(victim)
        for text in ("same", "new"):
            assert self.write(paths, text) == []
            assert not (paths.state / "CLAUDE.md").is_symlink()
        assert victim.read_text() == "same"

    def test_a_fifo_does_not_hang_it(self, paths: Paths) -> None:
        paths.state.mkdir(parents=True)
        os.mkfifo(paths.state / "CLAUDE.md")
        self.write(paths, "text")
        assert (paths.state / "CLAUDE.md").read_text() == "text"

    def test_a_directory_in_its_place_is_kept_aside(self, paths: Paths) -> None:
        for number in (1, 2):
            (paths.state / "CLAUDE.md").unlink(missing_ok=True)
            (paths.state / "CLAUDE.md").mkdir(parents=True)
            (paths.state / "CLAUDE.md/precious").write_text(str(number))
            saved = paths.state / f"CLAUDE.md.forge-saved-{number}"
            assert self.write(paths, "text") == [f"{paths.state}/CLAUDE.md was a directory, which is now {saved}"]
            assert (saved / "precious").read_text() == str(number)
        assert (paths.state / "CLAUDE.md").read_text() == "text"

    def test_none_is_written_outside_of_the_agents_directories(self, paths: Paths) -> None:
        for path in (paths.home / "x", paths.forge / "x", paths.state / "sub/../../../x"):
            with pytest.raises(WorkspaceError, match="in none of the agent's directories"):
                build(plan_of(paths, File(path, "x")), paths)

    def test_nothing_is_left_behind_when_the_disk_is_full(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(WorkspaceError, match=r"CLAUDE.md: No space left on device .free some space"):
            self.write(paths, "text")
        assert names_in(paths.state) == []


class TestFolders:
    def test_what_is_below_the_agents_directories_is_made_too(self, paths: Paths) -> None:
        plan = plan_of(paths, File(paths.state / ".claude/settings.json", "{}"))
        assert build(dataclasses.replace(plan, folders=(paths.discord,)), paths) == []
        assert (paths.state / ".claude/settings.json").read_text() == "{}"
        assert [mode_of(paths.state / ".claude"), mode_of(paths.discord)] == [0o700, 0o700]

    def test_in_one_that_is_closed_nothing_else_stays(self, paths: Paths) -> None:
        rules = paths.state / ".x/rules"
        plan = dataclasses.replace(plan_of(paths, File(rules / "ours", "x")), closed=(rules,))
        assert build(plan, paths) == []
        (rules / "theirs").write_text("y")
        (rules / "folder").mkdir()
        (rules / "link").symlink_to("/etc")
        warnings = build(plan, paths)
        assert warnings == [
            f"{rules}/{name} is none of ours, and is now {rules.parent}/rules-{name}.forge-saved-1"
            for name in ("folder", "link", "theirs")
        ]
        assert names_in(rules) == ["ours"]
        assert build(plan, paths) == []

    @pytest.mark.parametrize("obstacle", ["link", "file"])
    def test_what_an_agent_put_in_the_place_of_one_is_moved_aside(self, paths: Paths, obstacle: str) -> None:
        """A link to ~/.claude would have us write the user's own settings; an error would lock the agent out."""
        theirs = paths.home / ".claude"
        theirs.mkdir()
        paths.state.mkdir(parents=True)
        place = paths.state / ".claude"
        place.symlink_to(theirs) if obstacle == "link" else place.write_text("x")
        saved = paths.state / ".claude.forge-saved-1"
        warnings = build(plan_of(paths, File(place / "settings.json", "{}")), paths)
        assert warnings == [f"{place} was no directory, and is now {saved}"]
        assert names_in(theirs) == []
        assert saved.is_symlink() is (obstacle == "link")
        assert (place / "settings.json").read_text() == "{}"


class TestLinks:
    @pytest.fixture
    def skills(self, paths: Paths) -> Path:
        return paths.state / ".claude/skills"

    def link(self, paths: Paths, **targets: str) -> list[str]:
        links = tuple(Link(paths.state / ".claude/skills" / name, Path(target)) for name, target in targets.items())
        return build(dataclasses.replace(plan_of(paths), links=links), paths)

    def targets(self, skills: Path) -> dict[str, str]:
        return {path.name: str(path.readlink()) for path in skills.iterdir() if path.is_symlink()}

    def test_what_is_granted_is_linked_and_what_is_withdrawn_is_gone(self, paths: Paths, skills: Path) -> None:
        assert self.link(paths, a="/srv/a", b="/srv/b") == []
        assert self.targets(skills) == {"a": "/srv/a", "b": "/srv/b"}
        assert self.link(paths, b="/srv/b2", c="/srv/c") == []
        assert self.targets(skills) == {"b": "/srv/b2", "c": "/srv/c"}
        assert self.link(paths) == []
        assert names_in(skills) == []

    def test_without_any_nothing_is_made(self, paths: Paths, skills: Path) -> None:
        assert self.link(paths) == []
        assert names_in(paths.launch) == []
        assert not skills.exists()

    def test_what_the_agent_itself_wrote_stays(self, paths: Paths, skills: Path) -> None:
        self.link(paths, a="/srv/a")
        (skills / "own").mkdir()
        (skills / "own/SKILL.md").write_text("mine")
        (skills / "friend").symlink_to("/srv/friend")
        assert self.link(paths) == []
        assert names_in(skills) == ["friend", "own"]

    def test_a_withdrawn_link_that_the_agent_has_replaced_is_the_agents(self, paths: Paths, skills: Path) -> None:
        self.link(paths, a="/srv/a", b="/srv/b", c="/srv/c")
        (skills / "a").unlink()
        (skills / "a").mkdir()
        (skills / "b").unlink()
        (skills / "b").symlink_to("/srv/other")
        (skills / "c").unlink()
        assert self.link(paths) == []
        assert names_in(skills) == ["a", "b"]

    def test_what_is_in_the_place_of_a_link_is_moved_aside_and_logged(self, paths: Paths, skills: Path) -> None:
        """Not beside it, where it would be a skill by another name."""
        for number in (1, 2):
            (skills / "a").unlink(missing_ok=True)
            (skills / "a").mkdir(parents=True)
            (skills / "a/SKILL.md").write_text(str(number))
            saved = paths.state / f".claude/skills-a.forge-saved-{number}"
            assert self.link(paths, a="/srv/a") == [f"{skills}/a was no link of ours, and is now {saved}"]
            assert (saved / "SKILL.md").read_text() == str(number)
        assert self.targets(skills) == {"a": "/srv/a"}
        assert names_in(skills) == ["a"]

    def test_a_link_of_the_agents_in_its_place_is_moved_aside_as_well(self, paths: Paths, skills: Path) -> None:
        skills.mkdir(parents=True)
        (skills / "a").symlink_to("/srv/other")
        (warning,) = self.link(paths, a="/srv/a")
        assert "skills-a.forge-saved-1" in warning
        assert self.targets(skills) == {"a": "/srv/a"}

    @pytest.mark.parametrize(
        "record",
        [
            "", "[]", "not json",
            '{"/etc/passwd": "x", "../../x": "y", "x": 3, "CLAUDE.md": "z"}',
            '{"CLAUDE.md/x": "y", ".claude/a\\u0000b/c": "y", ".claude/\\ud800/x": "y"}',
            json.dumps({f".claude/{'a' * 300}/x": "y", f".claude/skills/{'b' * 300}": "y", ".claude/skills/q": []}),
        ],
        ids=[*map(str, range(6))],
    )
    def test_a_record_that_is_none_is_no_harm(self, paths: Paths, skills: Path, record: str) -> None:
        """The agent's user can write it."""
        self.link(paths, a="/srv/a")
        (paths.state / "CLAUDE.md").write_text("mine")
        (paths.launch / "links.json").write_text(record)
        assert self.link(paths, a="/srv/a") == []
        assert (paths.state / "CLAUDE.md").read_text() == "mine"
        assert content_of(paths.launch / "links.json") == {".claude/skills/a": "/srv/a"}
        assert self.targets(skills) == {"a": "/srv/a"}

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    @pytest.mark.timeout(10)
    def test_nor_is_one_that_is_no_file(self, paths: Paths, make: Callable[[Path], None]) -> None:
        paths.launch.mkdir(parents=True)
        make(paths.launch / "links.json")
        self.link(paths, a="/srv/a")
        assert content_of(paths.launch / "links.json") == {".claude/skills/a": "/srv/a"}

    @pytest.mark.parametrize("step", ["symlink", "rename", "unlink"])
    def test_after_a_crash_in_between_the_next_start_knows_all(
        self, paths: Paths, skills: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        self.link(paths, a="/srv/a")
        real = getattr(os, step)

        def crash(*args: Any, **kwargs: Any) -> Any:
            if any("links.json" in str(arg) for arg in args):
                return real(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(os, step, crash)
            with pytest.raises(KeyboardInterrupt):
                self.link(paths, b="/srv/b")
        self.link(paths)
        assert names_in(skills) == []


class TestSeeds:
    @pytest.fixture
    def file(self, paths: Paths) -> Path:
        return paths.home / ".claude.json"

    def test_a_missing_file_is_made(self, paths: Paths, file: Path) -> None:
        assert sow(paths, {"a": {"b": True}, "c": ["d"]}) == []
        assert content_of(file) == {"a": {"b": True}, "c": ["d"]}
        assert mode_of(file) == 0o600
        assert names_in(paths.home) == [".claude.json", ".local"]

    def test_keys_that_are_to_go_are_gone_and_no_others(self, paths: Paths, file: Path) -> None:
        file.write_text('{"a": 1, "b": {"a": 2}, "c": 3}')
        seed = dataclasses.replace(seed_of(paths, {}), removed=frozenset({"a", "none"}))
        assert build(plan_of(paths, seeds=(seed,)), paths) == []
        assert content_of(file) == {"b": {"a": 2}, "c": 3}

    def test_values_are_merged_and_all_else_stays_as_it_was(self, paths: Paths, file: Path) -> None:
        file.write_text(
            '{"z": 1.5, "a": {"y": "ä", "b": false}, "c": ["e"], "big": 12345678901234567890123, "n": null}'
        )
        file.chmod(0o640)
        assert sow(paths, {"a": {"b": True, "new": {}}, "c": ["d", "e"]}) == []
        assert file.read_text() == json.dumps(
            {
                "z": 1.5,
                "a": {"y": "ä", "b": True, "new": {}},
                "c": ["e", "d"],
                "big": 12345678901234567890123,
                "n": None,
            },
            indent=2,
            ensure_ascii=False,
        )
        assert mode_of(file) == 0o640
        assert names_in(paths.home) == [".claude.json", ".local"]

    @needs_root
    def test_owner_and_group_stay(self, paths: Paths, file: Path) -> None:
        file.write_text("{}")
        os.chown(file, NOBODY, 1)
        sow(paths, {"a": 1})
        assert (file.stat().st_uid, file.stat().st_gid) == (NOBODY, 1)

    def test_nothing_is_written_and_no_lock_needed_if_all_is_there(self, paths: Paths, file: Path) -> None:
        file.write_text('{"a": {"b": true, "x": 1}, "c": ["d", "e"]}')
        Path(f"{file}.lock").mkdir()
        before = file.stat()
        assert sow(paths, {"a": {"b": True}, "c": ["e"]}) == []
        assert file.stat() == before

    def test_half_a_character_survives(self, paths: Paths, file: Path) -> None:
        """JavaScript cuts strings between the halves of a surrogate pair, as in a shortened history."""
        file.write_text('{"history": "\\ud83d", "emoji": "😀"}')
        sow(paths, {"a": 1})
        assert file.read_bytes().startswith('{\n  "history": "\\ud83d",\n  "emoji": "😀"'.encode())
        assert content_of(file)["history"] == "\ud83d"

    @pytest.mark.parametrize("dangling", [False, True])
    def test_a_symlink_into_the_dotfiles_stays_one(self, paths: Paths, file: Path, *, dangling: bool) -> None:
        kept = paths.home.parent / "dotfiles.json"
        file.symlink_to("../dotfiles.json")
        if not dangling:
            kept.write_text('{"mine": 1}')
        sow(paths, {"a": 1})
        assert file.is_symlink()
        assert content_of(kept) == ({} if dangling else {"mine": 1}) | {"a": 1}

    @pytest.mark.parametrize("wrong", ['{"a": 1', "[]", "null", "\udcff", "[" * 100_000])
    def test_what_is_no_json_object_is_kept_aside(self, paths: Paths, file: Path, wrong: str) -> None:
        raw = wrong.encode(errors="surrogateescape")
        for number in (1, 2):
            file.write_bytes(raw)
            saved = f"{file}.forge-saved-{number}"
            warning = f"{file} was no JSON object and was written anew (what it held is in {saved})"
            assert sow(paths, {"a": 1}) == [warning]
            assert Path(saved).read_bytes() == raw
            assert content_of(file) == {"a": 1}

    def test_an_empty_file_is_filled(self, paths: Paths, file: Path) -> None:
        file.write_text("\n")
        assert sow(paths, {"a": 1}) == [f"{file} was no JSON object and was written anew (it was empty)"]
        assert names_in(paths.home) == [".claude.json", ".local"]

    def test_a_file_that_is_just_being_written_is_waited_for(self, paths: Paths, file: Path) -> None:
        file.write_text("")
        writer = threading.Timer(0.05, file.write_text, ['{"mine": 1}'])
        writer.start()
        assert sow(paths, {"a": 1}) == []
        writer.join()
        assert content_of(file) == {"mine": 1, "a": 1}

    def test_a_directory_in_its_place_is_named(self, paths: Paths, file: Path) -> None:
        file.mkdir()
        with pytest.raises(WorkspaceError, match=f"{file}: is no regular file .move it away"):
            sow(paths, {"a": 1})

    @needs_root
    def test_a_home_that_may_not_be_written_is_named(self, paths: Paths, file: Path) -> None:
        with as_nobody(paths.home):
            build(plan_of(paths), paths)
            paths.home.chmod(0o500)
            with pytest.raises(WorkspaceError, match=f"{file}.lock: Permission denied"):
                sow(paths, {"a": 1})


class TestLock:
    def test_it_is_waited_for(self, paths: Paths) -> None:
        """Trap: ~/.claude.json was rewritten without a lock while every claude of that user rewrites it too."""
        seed = seed_of(paths, {"ours": 1})
        seed.lock.mkdir()

        def holder() -> None:
            assert not seed.path.exists()
            seed.path.write_text('{"theirs": 1}')
            seed.lock.rmdir()

        other = threading.Timer(0.3, holder)
        other.start()
        sow(paths, {"ours": 1})
        other.join()
        assert content_of(seed.path) == {"theirs": 1, "ours": 1}
        assert not seed.lock.exists()

    def test_a_dead_holders_lock_is_broken(self, paths: Paths) -> None:
        seed = seed_of(paths, {"a": 1})
        seed.lock.mkdir()
        long_ago = time.time() - json_seed.STALE - 1
        os.utime(seed.lock, (long_ago, long_ago))
        sow(paths, {"a": 1})
        assert not seed.lock.exists()

    def test_a_live_holders_lock_is_respected_and_named(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_seed, "PATIENCE", 0.1)
        seed = seed_of(paths, {"a": 1})
        seed.lock.mkdir()
        with pytest.raises(WorkspaceError, match=f"{seed.lock} has been held by another program"):
            sow(paths, {"a": 1})
        assert seed.lock.exists()
        assert not seed.path.exists()

    def test_one_that_was_taken_from_us_is_not_removed(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if we had been stopped: another one breaks our lock, takes its own, and writes."""
        seed = seed_of(paths, {"a": 1})
        seed.path.write_text('{"before": 1}')
        serialized = json_seed.serialized
        still_there = []

        def other() -> None:
            still_there.append(seed.lock.exists())
            seed.lock.rmdir()

        def stopped(content: dict[str, Any]) -> bytes:
            monkeypatch.setattr(json_seed, "serialized", serialized)
            seed.lock.rmdir()
            seed.path.write_text('{"theirs": 1}')
            seed.lock.mkdir()
            threading.Timer(0.3, other).start()
            return serialized(content)

        monkeypatch.setattr(json_seed, "serialized", stopped)
        sow(paths, {"a": 1})
        assert content_of(seed.path) == {"theirs": 1, "a": 1}
        assert still_there == [True]

    def test_no_one_of_many_loses_a_value(self, paths: Paths) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: json_seed.sow(seed_of(paths, {"n": {str(number): number}})), range(100)))
        assert content_of(paths.home / ".claude.json") == {"n": {str(number): number for number in range(100)}}
        assert names_in(paths.home) == [".claude.json"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)
tables = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


class TestMerging:
    @given(tables, tables)
    def test_once_is_enough(self, content: dict[str, Any], seed: dict[str, Any]) -> None:
        once = json_seed.merged(content, seed)
        assert json_seed.merged(once, seed) == once

    @given(tables, tables)
    def test_keys_that_are_not_the_seeds_keep_value_and_order(
        self, content: dict[str, Any], seed: dict[str, Any]
    ) -> None:
        merged = json_seed.merged(content, seed)
        assert list(merged)[: len(content)] == list(content)
        assert {key: merged[key] for key in content if key not in seed} == {
            key: content[key] for key in content if key not in seed
        }

    @given(tables)
    def test_an_empty_table_becomes_the_seed(self, seed: dict[str, Any]) -> None:
        assert json_seed.merged({}, seed) == seed

    @given(tables)
    def test_what_is_written_reads_the_same(self, content: dict[str, Any]) -> None:
        assert json.loads(json_seed.serialized(content)) == content
