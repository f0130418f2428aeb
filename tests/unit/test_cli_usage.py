"""What forgectl usage prints, and which times it understands."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from forge_supervisor.cli import client, main, usage

TOKYO = timezone(timedelta(hours=9))
NOW = datetime(2026, 11, 25, 14, 30, tzinfo=TOKYO)


def row(**keys: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("day", "model", "agent", "run_as", "session"))
    counts = dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), 0)
    return {**empty, **counts, "messages": 1, "cost_usd": None, "unpriced_models": [], **keys}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def call(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        calls.append((method, parameters))
        return {"rows": ROWS}

    monkeypatch.setattr(client, "call", call)
    return calls


ROWS = [
    row(agent="scout", input=1_234_567, output=9_000, cost_usd=1234.5),
    row(agent="coder", input=1, output=20, cost_usd=0.00012, unpriced_models=["mystery"]),
    row(agent="other", output=3, unpriced_models=["mystery"]),
]


def test_a_table_has_sums_and_marks_where_a_price_is_not_known(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["usage"]) == 0
    assert asked == [("Usage", {"by": "agent"})]
    assert capsys.readouterr().out == (
        "AGENT      INPUT  OUTPUT         USD\n"
        "scout  1,234,567   9,000    1,234.50\n"
        "coder          1      20    0.0001+?\n"
        "other          0       3           ?\n"
        "TOTAL  1,234,568   9,023  1,234.50+?\n"
        "\n"
        "?: no price is known of mystery (add it to prices.toml, beside config.toml)\n"
    )


def test_one_row_is_its_own_sum() -> None:
    assert usage.table([row(day="2026-11-25", input=5, cost_usd=2.0)], "day") == [
        "DAY         INPUT   USD",
        "2026-11-25      5  2.00",
    ]


def test_a_session_is_told_with_its_agent() -> None:
    assert usage.table([row(session="s1", agent="scout", input=5, cost_usd=2.0)], "session")[1].startswith("s1 (scout)")


def test_agents_of_one_name_are_told_apart_by_their_users() -> None:
    rows = [row(agent="scout", run_as=user, input=5, cost_usd=2.0) for user in ("a", "b")]
    assert [line.split("  ")[0] for line in usage.table(rows, "agent")[1:3]] == ["scout (a)", "scout (b)"]


def test_where_nothing_was_used_that_is_said() -> None:
    assert usage.table([], "day") == ["nothing was used"]


def test_a_program_gets_what_the_supervisor_has_told(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["usage", "--by", "model", "--json", "--since", "2026-11-25T00:00:00+00:00"]) == 0
    assert json.loads(capsys.readouterr().out) == ROWS
    assert asked == [("Usage", {"by": "model", "since_usec": 1_795_564_800_000_000})]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("7 days ago", NOW - timedelta(days=7)),
        ("7d", NOW - timedelta(days=7)),
        ("1 hour ago", NOW - timedelta(hours=1)),
        ("90 min ago", NOW - timedelta(minutes=90)),
        ("2 weeks", NOW - timedelta(weeks=2)),
        ("30s", NOW - timedelta(seconds=30)),
        ("2026-11-25 08:00+09:00", datetime(2026, 11, 25, 8, tzinfo=TOKYO)),
    ],
)
def test_a_time_is_understood(written: str, meant: datetime) -> None:
    assert usage.moment(written, NOW) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("today", datetime(2026, 11, 25)),  # noqa: DTZ001 - of the host's time zone
        ("Yesterday", datetime(2026, 11, 24)),  # noqa: DTZ001
        ("2026-11-25", datetime(2026, 11, 25)),  # noqa: DTZ001
        ("2026-11-25 08:00", datetime(2026, 11, 25, 8)),  # noqa: DTZ001
    ],
)
def test_a_day_is_one_of_this_host(written: str, meant: datetime) -> None:
    assert usage.moment(written, datetime(2026, 11, 25, 14, 30).astimezone()) == meant.astimezone()


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("written", ["", "soon", "7", "7 parsecs ago", "2026-13-01", "999999 weeks ago", "9" * 400])
def test_what_is_no_time_is_refused(capsys: pytest.CaptureFixture[str], written: str) -> None:
    assert main.run(["usage", "--since", written]) == 1
    assert f'"{written}" is no time' in capsys.readouterr().err


def test_it_is_summed_up_by_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.run(["usage", "--by", "moon"])
    assert "invalid choice" in capsys.readouterr().err
