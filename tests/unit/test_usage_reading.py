"""What was used is read from transcripts that grow, are cut, replaced, broken, and never to be trusted."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor.config import Agent
from forge_supervisor.harness.claude_code import ClaudeCode
from forge_supervisor.worker import usage
from forge_supervisor.worker.messages import Mark, ReadUsage, UsageRead, UsageRecord

if TYPE_CHECKING:
    from pathlib import Path

    from pytest import MonkeyPatch, TempPathFactory  # noqa: PT013 - in annotations only

OTHER = b'{"type":"user","message":{"role":"user","content":"\\"usage\\" of words"}}\n'


def entry(message: str = "msg_1", output: int = 7, **more: Any) -> bytes:
    counts = {"input_tokens": 3, "cache_read_input_tokens": 11, "cache_creation_input_tokens": 50}
    split = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 20}
    used = {**counts, "output_tokens": output, "cache_creation": split, **more.pop("usage", {})}
    said = {"id": message, "model": "claude-opus-5-5", "usage": used, **more.pop("said", {})}
    line = {"parentUuid": None, "type": "assistant", "sessionId": "s1", "timestamp": "2026-11-25T03:36:55.701Z"}
    return json.dumps({**line, "message": said, **more}, separators=(",", ":")).encode() + b"\n"


class Counter:
    """Counts as whoever asks does: by the messages' ids, and with the marks of the last answer."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.marks: dict[str, Mark] = {}
        self.records: dict[str, UsageRecord] = {}
        self.told = 0

    def read(self) -> int:
        """Return how many records were told."""
        before = self.told
        while True:
            answer = usage.Reading(ClaudeCode(), self.marks).run(self.paths)
            # It is told over a socket.
            answer = UsageRead.model_validate_json(answer.model_dump_json())
            self.marks |= answer.marks
            for path in answer.gone:
                self.marks.pop(path)
            for record in answer.records:
                self.told += 1
                known = self.records.get(record.message)
                self.records[record.message] = record if known is None else usage.larger(known, record)
            if not answer.more:
                return self.told - before

    @property
    def outputs(self) -> dict[str, int]:
        return {message: record.output for message, record in self.records.items()}


def test_a_message_is_told_with_all_its_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(OTHER + entry())
    counter = Counter(file)
    assert counter.read() == 1
    (record,) = counter.records.values()
    assert record == UsageRecord(
        message="msg_1", session="s1", model="claude-opus-5-5", time_usec=1_795_577_815_701_000,
        input=3, output=7, cache_read=11, cache_write_5m=30, cache_write_1h=20,
    )  # fmt: skip
    assert counter.read() == 0


def test_what_is_written_to_the_cache_lasts_5_minutes_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    odd = entry("odd", usage={"cache_creation_input_tokens": 5})
    file.write_bytes(entry("old", usage={"cache_creation": None}) + odd)
    counter = Counter(file)
    counter.read()
    counts = {name: (one.cache_write_5m, one.cache_write_1h) for name, one in counter.records.items()}
    assert counts == {"old": (50, 0), "odd": (0, 5)}


def test_a_message_has_as_many_lines_as_blocks_and_is_counted_once_with_its_last_count(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry(output=1) + OTHER + entry(output=900))
    counter = Counter(file)
    assert counter.read() == 1
    with file.open("ab") as more:
        more.write(entry(output=901) + entry(output=1))
    counter.read()
    assert counter.outputs == {"msg_1": 901}


def test_a_message_that_stands_in_two_files_is_counted_once(tmp_path: Path) -> None:
    for name in ("parent", "fork"):
        (tmp_path / f"{name}.jsonl").write_bytes(entry("msg_1"))
    counter = Counter(tmp_path / "parent.jsonl", tmp_path / "fork.jsonl")
    counter.read()
    assert counter.outputs == {"msg_1": 7}


def test_what_claude_says_itself_was_used_by_nobody(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry(said={"model": "<synthetic>"}))
    assert Counter(file).read() == 0


def test_a_faster_model_is_another_one_as_it_has_another_price(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry(usage={"speed": "fast"}))
    counter = Counter(file)
    counter.read()
    assert [record.model for record in counter.records.values()] == ["claude-opus-5-5/fast"]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    line = entry()
    file.write_bytes(line[:40])
    counter = Counter(file)
    assert counter.read() == 0
    with file.open("ab") as more:
        more.write(line[40:])
    assert counter.read() == 1


def test_a_last_line_that_lacks_nothing_but_its_end_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1").rstrip())
    counter = Counter(file)
    assert counter.read() == 1
    with file.open("ab") as more:
        more.write(b"\n" + entry("msg_2"))
    assert counter.read() == 1
    assert counter.outputs == {"msg_1": 7, "msg_2": 7}


def test_a_whole_line_behind_half_a_one_of_a_killed_writer_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("killed")[:70])
    counter = Counter(file)
    assert counter.read() == 0
    with file.open("ab") as more:
        more.write(entry("next"))
    counter.read()
    assert counter.outputs == {"next": 7}


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\xff\xfe\n",
        b'{"usage": [[[[[\n',
        b'{"usage":' + b"[" * 100_000 + b"\n",
        b'["usage"]\n',
        b'{"type":"assistant","usage":1,"message":[]}\n',
        entry(""),
        entry("with space"),
        entry("x" * 129),
        entry(sessionId=None),
        entry(said={"model": "caf\u00e9"}),
        entry(usage={"input_tokens": 10**9}),
        entry(timestamp="9999-12-31T00:00:00Z"),
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_of_no_use_keeps_nobody_from_the_next(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(line + entry("good"))
    counter = Counter(file)
    counter.read()
    assert counter.outputs == {"good": 7}


@pytest.mark.parametrize("count", [-1, 1.5, True, "9", None, [1]])
def test_what_is_no_number_of_tokens_counts_for_none(tmp_path: Path, count: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry(output=count))
    counter = Counter(file)
    counter.read()
    assert counter.outputs == {"msg_1": 0}


def test_a_file_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1") + entry("msg_2"))
    counter = Counter(file)
    counter.read()
    file.write_bytes(entry("msg_3"))
    assert counter.read() == 1
    assert counter.outputs == {"msg_1": 7, "msg_2": 7, "msg_3": 7}


def test_a_file_that_was_written_anew_in_its_own_place_is_read_anew_though_it_is_longer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1"))
    counter = Counter(file)
    counter.read()
    file.write_bytes(entry("msg_2") + entry("msg_3"))
    counter.read()
    assert counter.outputs == {"msg_1": 7, "msg_2": 7, "msg_3": 7}


def test_another_file_in_its_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1") + OTHER * 100)
    counter = Counter(file)
    counter.read()
    # The same bytes before the mark: only its inode tells that it is another file.
    (tmp_path / "new").write_bytes(entry("msg_2") + OTHER * 100)
    assert len(entry("msg_1")) == len(entry("msg_2"))
    (tmp_path / "new").replace(file)
    counter.read()
    assert counter.outputs == {"msg_1": 7, "msg_2": 7}


def test_of_a_file_that_is_gone_no_mark_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry())
    counter = Counter(file)
    counter.read()
    file.unlink()
    counter.read()
    assert counter.marks == {}


def test_a_file_that_is_found_no_more_is_read_on(tmp_path: Path) -> None:
    # Its directory is the harness's choice, which a change of the agent's environment may move.
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1"))
    counter = Counter(file)
    counter.read()
    counter.paths = ()
    with file.open("ab") as more:
        more.write(entry("msg_2"))
    assert counter.read() == 1


def test_a_line_that_is_too_long_is_skipped_whenever_it_comes_to_its_end(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "LONGEST_LINE", 1000)
    file = tmp_path / "a.jsonl"
    file.write_bytes(entry("msg_1") + b"x" * 1500)
    counter = Counter(file)
    assert counter.read() == 1
    for more in (b"y" * 400, b"z" * 3000, b"\n" + entry("msg_2"), b"x" * 999 + b"\n" + entry("msg_3")):
        with file.open("ab") as open_:
            open_.write(more)
        counter.read()
    assert counter.outputs == {"msg_1": 7, "msg_2": 7, "msg_3": 7}


def test_no_answer_has_too_much_and_none_is_lost_by_that(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_USAGE", 3)
    monkeypatch.setattr(usage, "MOST_BYTES", 2 * len(entry("msg_0")))
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for place, path in enumerate(paths):
        path.write_bytes(b"".join(entry(f"msg_{place}{number}") for number in range(10)))
    counter = Counter(*paths)
    first = usage.Reading(ClaudeCode(), {}).run(paths)
    assert first.more
    assert len(first.records) == 2
    assert counter.read() == 20


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "nowhere.jsonl").symlink_to("/nonexistent")
    (tmp_path / "a.jsonl").write_bytes(entry())
    assert Counter(*sorted(tmp_path.iterdir())).read() == 1


def test_of_very_many_transcripts_the_newest_are_read(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_TRANSCRIPTS", 2)
    for number in range(4):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(entry(f"msg_{number}"))
        os.utime(file, (number, number))
    counter = Counter(*tmp_path.iterdir())
    counter.read()
    assert counter.outputs.keys() == {"msg_2", "msg_3"}


LINES = st.one_of(
    st.builds(entry, st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 1000)),
    st.just(OTHER),
    st.sampled_from([b"\n", b"}\n", b'{"usage":\n', b"\x00" * 40 + b"\n", b"x" * 300 + b"\n"]),
)


@given(st.lists(LINES, max_size=12), st.data())
def test_however_a_transcript_grows_the_same_is_counted(
    tmp_path_factory: TempPathFactory, lines: list[bytes], data: st.DataObject
) -> None:
    content = b"".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    directory = tmp_path_factory.mktemp("grows")
    whole, grown = directory / "whole.jsonl", directory / "grown.jsonl"
    whole.write_bytes(content)
    at_once = Counter(whole)
    at_once.read()
    grown.touch()
    bit_by_bit = Counter(grown)
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with grown.open("ab") as file:
            file.write(content[begin:end])
        bit_by_bit.read()
    assert bit_by_bit.outputs == at_once.outputs


def test_an_agents_transcripts_are_those_of_its_directory_and_of_its_sub_agents(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    projects = tmp_path / ".claude/projects"
    agents = os.path.realpath(tmp_path / ".local/state/forge/agents")
    state = "".join(char if char.isalnum() else "-" for char in agents)
    for number, place in enumerate(
        (
            f"{state}-scout/one.jsonl",
            f"{state}-scout/one/subagents/agent-1.jsonl",
            f"{state}-scout--claude-worktrees-fix/two.jsonl",
            f"{state}-scout-2/another-agents.jsonl",
            f"{state}-scout/one.json",
        )
    ):
        (projects / place).parent.mkdir(parents=True, exist_ok=True)
        (projects / place).write_bytes(entry(f"msg_{number}"))
    agent = Agent.model_validate({"name": "scout", "run_as": "team", "role": "x"})
    answer = usage.read(ReadUsage.of(agent, {}), tmp_path)
    assert {record.message for record in answer.records} == {"msg_0", "msg_1", "msg_2"}


def test_a_harness_without_transcripts_tells_of_no_usage(tmp_path: Path) -> None:
    agent = Agent.model_validate({"name": "a", "run_as": "team", "harness": "command", "command": ["x"]})
    answer = usage.read(ReadUsage.of(agent, {}), tmp_path)
    assert answer == UsageRead(records=[], marks={}, gone=[], more=False)
