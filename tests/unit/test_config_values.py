from __future__ import annotations

import math
import shutil
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from forge_supervisor.config_values import ExitStatuses, Statuses, duration

UNITS = {
    "us": 1e-6,
    "usec": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
    "w": 604800,
    "week": 604800,
    "weeks": 604800,
    "M": 2629800,
    "month": 2629800,
    "months": 2629800,
    "y": 31557600,
    "year": 31557600,
    "years": 31557600,
}
SPANS = [
    "5",
    "5s",
    "1min 30s",
    "500ms",
    "2h",
    "1d",
    "1y 12month",
    "55s500ms",
    "300ms20s 5day",
    "2.5h",
    ".5s",
    "1min 30",
]
SPANS += [f"3{unit}" for unit in UNITS] + ["7 min", " 5s "]
NO_SPANS = [
    "",
    " ",
    "5.",
    "5.s",
    "five",
    "-5s",
    "5parsecs",
    "1.5.5s",
    "1,5s",
    "5S",
    "s",
    "5s!",
    "1e3",
    "0x10",
    "²s",
    "٣s",
    "5s\n;",
]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (5, 5),
        (0.5, 0.5),
        (10**9, 1e9),
        ("5s", 5),
        ("1min 30s", 90),
        ("500ms", 0.5),
        ("infinity", math.inf),
        (math.inf, math.inf),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize("value", [*NO_SPANS, True, False, None, [], {}, math.nan, 10**400, "9" * 400, "-infinity"])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"number of seconds or a time span|is no unit of time"):
        duration(value)


@pytest.mark.parametrize("value", [-1, -0.001])
def test_a_negative_duration(value: float) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        duration(value)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "  "])), min_size=1
    )
)
def test_a_time_span_is_the_sum_of_its_parts(parts: list[tuple[int, str, str]]) -> None:
    text = " ".join(f"{number}{space}{unit}" for number, unit, space in parts)
    total = sum(number * UNITS[unit] for number, unit, _ in parts)
    assert duration(text) == pytest.approx(total)
    assert duration(text.replace(" ", "")) == pytest.approx(total)


@given(st.one_of(st.text(), st.text("0123456789.smhd infty"), st.floats(), st.integers()))
def test_anything_is_a_duration_or_a_sentence(value: object) -> None:
    try:
        seconds = duration(value)
    except ValueError:
        return
    assert seconds >= 0


@given(st.integers(1, 5000))
def test_a_long_run_of_digits_is_read_at_once(length: int) -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        duration("1" * length + "!")


def test_systemd_reads_the_same_time_spans() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # NO_SPANS without those that systemd would take for an option or for no argument
    for spans, good in ((SPANS, True), ([span for span in NO_SPANS if span.strip() and span[0] != "-"], False)):
        for span in spans:
            answer = subprocess.run(["systemd-analyze", "timespan", span], capture_output=True, text=True, check=False)
            assert (answer.returncode == 0) is good, span
            if good:
                micros = next(int(line.split()[-1]) for line in answer.stdout.splitlines() if "s:" in line)
                assert duration(span) == pytest.approx(micros / 1e6), span


statuses = TypeAdapter(Statuses).validate_python


def test_exit_codes_and_signals_are_two_things() -> None:
    both = statuses([15, "SIGTERM", 9, "HUP"])
    assert both == ExitStatuses(codes=frozenset({15, 9}), signals=frozenset({signal.SIGTERM, signal.SIGHUP}))
    assert all(type(number) is int for number in both.codes | both.signals)
    assert statuses([15]) != statuses(["TERM"])
    assert statuses([]) == ExitStatuses()


def test_exit_statuses_can_be_given_ready_made() -> None:
    ready = ExitStatuses(codes=frozenset({3}))
    assert statuses(ready) is ready


@given(st.sets(st.integers(0, 255)), st.sets(st.sampled_from(signal.Signals)))
def test_every_code_and_every_signal(codes: set[int], signals: set[signal.Signals]) -> None:
    names = [number.name for number in signals]
    for spelling in (names, [name.removeprefix("SIG") for name in names]):
        assert statuses([*codes, *spelling]) == ExitStatuses(frozenset(codes), frozenset(map(int, signals)))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (143, "must be a list"),
        ("SIGTERM", "must be a list"),
        ([256], "256 is no exit code (0 to 255)"),
        ([-1], "-1 is no exit code"),
        ([True], "must hold only exit codes"),
        ([1.0], "must hold only exit codes"),
        ([[1]], "must hold only exit codes"),
        (["143"], "without quotes"),
        (["SIGTREM"], 'did you mean "SIGTERM"?'),
        (["sigterm"], 'did you mean "SIGTERM"?'),
        (["SIGSIGTERM"], "is no signal"),
        (["xyz"], 'write "SIGTERM" or "TERM"'),
        ([300, "xyz"], '300 is no exit code (0 to 255); "xyz" is no signal'),
    ],
)
def test_what_is_no_exit_status(value: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        statuses(value)
    assert sentence in str(caught.value)
