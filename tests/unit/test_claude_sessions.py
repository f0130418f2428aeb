"""Which session claude goes on with; that it then has its memory is shown by tests/claude."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from claude_plan_lab import home_of, launch_settings, plan_of
from plan_lab import file_of, write

from forge_supervisor.harness import NEW_EACH_TIME, Paths
from forge_supervisor.harness.claude_code import ClaudeCode
from forge_supervisor.harness.claude_code.names import option_problems
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

OLD = "3d8599b1-7c17-4064-8c1e-6f1fcbe060f3"
NEW = "149ce70d-e1cf-404f-a1af-975a04505ee3"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return home_of(tmp_path)


def known(paths: Paths, text: str = f"{OLD}\n") -> None:
    write(paths.launch / "session", text)


def transcript(paths: Paths, config: str = ".claude") -> Path:
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in str(paths.state))
    return paths.home / config / "projects" / name / f"{OLD}.jsonl"


def options(paths: Paths, **keys: Any) -> list[str]:
    argv = plan_of(paths, new_id=NEW, **keys).argv
    return [*argv[argv.index("--disallowedTools=AskUserQuestion,EnterPlanMode,ExitPlanMode") + 1 :]]


def written(paths: Paths, **keys: Any) -> str:
    return file_of(plan_of(paths, new_id=NEW, **keys), paths.launch / "session").text


USER = '{"type":"user"}\n'
RESUMED = ["--resume", OLD, "--system-prompt-snapshot", "off"]


def test_the_first_session_has_a_name_of_ours(paths: Paths) -> None:
    assert options(paths) == ["--session-id", NEW]
    assert written(paths) == f"{NEW}\n"


def test_one_with_a_transcript_is_resumed(paths: Paths) -> None:
    known(paths)
    write(transcript(paths), USER)
    assert options(paths) == RESUMED
    assert written(paths) == f"{OLD}\n"


def test_one_to_which_nothing_was_ever_said_keeps_its_name(paths: Paths) -> None:
    known(paths)
    assert options(paths) == ["--session-id", OLD]


def test_to_begin_anew_takes_another_name(paths: Paths) -> None:
    """Claude begins no session of which there is a transcript."""
    known(paths)
    write(transcript(paths), USER)
    assert options(paths, fresh=True) == ["--session-id", NEW]
    assert written(paths, fresh=True) == f"{NEW}\n"


@pytest.mark.parametrize("garbage", ["", "\n", "x", f"{OLD} {OLD}", f"../{OLD}", "--help", f"{OLD}x", "\udcff"])
def test_what_is_no_name_is_not_believed(paths: Paths, garbage: str) -> None:
    known(paths, "")
    (paths.launch / "session").write_bytes(garbage.encode(errors="surrogateescape"))
    assert options(paths) == ["--session-id", NEW]


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "unreadable"])
def test_what_is_no_file_is_not_waited_for(paths: Paths, kind: str) -> None:
    paths.launch.mkdir(parents=True)
    file = paths.launch / "session"
    match kind:
        case "directory":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
        case "link":
            file.symlink_to("session")
        case "unreadable":
            file.write_bytes(b"\xff\xfe")
    assert options(paths) == ["--session-id", NEW]


@pytest.mark.parametrize("kind", ["directory", "dangling link", "empty", "fifo"])
def test_what_only_has_the_name_of_a_transcript_is_tried(paths: Paths, kind: str) -> None:
    """Trap: claude begins no session of that id ("is already in use"), so the try has to fail by --resume."""
    known(paths)
    file = transcript(paths)
    file.parent.mkdir(parents=True)
    match kind:
        case "directory":
            file.mkdir()
        case "dangling link":
            file.symlink_to("/nowhere")
        case "empty":
            file.touch()
        case "fifo":
            os.mkfifo(file)
    assert options(paths) == RESUMED


META = '{"type":"mode","mode":"normal"}\n{"type":"file-history-snapshot"}\n'


@pytest.mark.parametrize("text", [META, META + '{"type":"user","message":{"role":"us'])
def test_of_a_transcript_without_a_word_nothing_is_to_be_remembered(paths: Paths, text: str) -> None:
    """Trap: one that was killed early has it, and claude can neither resume it nor begin a session of that id."""
    known(paths)
    write(transcript(paths), text)
    assert options(paths) == ["--session-id", NEW]
    assert written(paths) == f"{NEW}\n"


@pytest.mark.parametrize("line", ['{"type":"user"}', '{"type":"assistant"}', "garbage", "[]", "\0", "[" * 100_000])
def test_of_one_with_words_or_damage_claude_is_the_judge(paths: Paths, line: str) -> None:
    known(paths)
    write(transcript(paths), f"{META}{line}\n")
    assert options(paths) == RESUMED


def test_transcripts_lie_where_claude_keeps_its_things(paths: Paths) -> None:
    known(paths)
    write(transcript(paths, "other"), USER)
    assert options(paths) == ["--session-id", OLD]
    assert options(paths, env={"CLAUDE_CONFIG_DIR": str(paths.home / "other")}) == RESUMED


def test_of_a_long_path_the_end_is_a_hash(paths: Paths) -> None:
    long = Paths(home=paths.home, forge=paths.home / ("x" * 120) / ("y" * 80), agent="scout", search=paths.search)
    known(long)
    name = transcript(long).parent.name
    assert len(name) > 200
    assert options(long) == ["--session-id", OLD]
    write(paths.home / ".claude/projects" / f"{name[:200]}-k3q9zz" / f"{OLD}.jsonl", USER)
    assert options(long) == RESUMED


def test_through_a_link_the_real_path_counts(paths: Paths) -> None:
    known(paths)
    write(transcript(paths), USER)
    link = paths.home / "link"
    link.symlink_to(paths.forge)
    other = Paths(home=paths.home, forge=link, agent="scout", search=paths.search)
    assert options(other) == RESUMED


def hook(paths: Paths, **env: str) -> str:
    (matcher,) = launch_settings(paths)["hooks"]["SessionStart"]
    (command,) = (hook["command"] for hook in matcher["hooks"])
    done = subprocess.run(
        ["/bin/sh", "-c", command], env={"PATH": "/usr/bin:/bin", **env}, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_claude_tells_which_session_it_is_in_and_the_model_nothing(paths: Paths) -> None:
    known(paths)
    assert hook(paths, CLAUDE_CODE_SESSION_ID=NEW) == ""
    assert [path.name for path in paths.launch.iterdir()] == ["session"]
    assert (paths.launch / "session").read_text() == f"{NEW}\n"
    assert hook(paths) == ""
    assert (paths.launch / "session").read_text() == f"{NEW}\n", "one that tells nothing changes nothing"


def test_the_hook_knows_any_path(tmp_path: Path) -> None:
    odd = home_of(tmp_path / "it's $HOME; a \"test\"")
    known(odd)
    hook(odd, CLAUDE_CODE_SESSION_ID=NEW)
    assert (odd.launch / "session").read_text() == f"{NEW}\n"


MISSING = f"No conversation found with session ID: {OLD}"
AFTER = ["Resume this session with:", f"claude --resume {OLD}"]


@pytest.mark.parametrize(
    ("code", "screen", "told"),
    [
        (1, [MISSING], True),
        (1, ["", MISSING, *AFTER, ""], True),
        (1, [MISSING[:50], MISSING[50:]], True),
        (1, [f"Failed to resume session {OLD}"], True),
        (143, [MISSING], False),
        (0, [MISSING], False),
        (1, ["No conversation found to continue"], False),
        (1, [f"Error: Session ID {OLD} is already in use."], False),
        (1, ["error: unknown option '--foo'"], False),
        (1, [], False),
    ],
)
def test_that_it_could_not_resume_is_told_by_its_last_words(code: int, screen: list[str], *, told: bool) -> None:
    assert ClaudeCode().unresumable(Exit(code=code), screen) is told


def test_one_that_was_killed_has_not_said_so() -> None:
    assert not ClaudeCode().unresumable(Exit(signal=9), [MISSING])
    assert not ClaudeCode().unresumable(Exit(lost=True), [MISSING])


def test_nobody_else_names_the_session() -> None:
    arguments = ("--resume", "-r", "--continue", "-c", "--session-id=x", "--fork-session", "--system-prompt-snapshot")
    assert [problem.text.endswith("(use resume)") for problem in option_problems(arguments)] == [True] * 7


def test_where_nothing_is_started_no_name_is_made_up(paths: Paths) -> None:
    assert plan_of(paths).argv[-2:] == ("--session-id", NEW_EACH_TIME)
