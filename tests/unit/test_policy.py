from __future__ import annotations

import signal
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor.config import ExitStatuses, Restart
from forge_supervisor.policy import Exit, RateLimit, Result, is_clean, restart_delay, result_of, should_restart

if TYPE_CHECKING:
    from collections.abc import Iterable

POLICIES = ("no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog")
NOTHING = ExitStatuses(codes=frozenset(), signals=frozenset())


def statuses(codes: Iterable[int] = (), signals: Iterable[int] = ()) -> ExitStatuses:
    return ExitStatuses(codes=frozenset(codes), signals=frozenset(signals))


def restart(policy: str = "on-failure", **settings: Any) -> Restart:
    return Restart.model_validate({"policy": policy, **settings})


codes = st.integers(0, 255)
signals = st.integers(1, 64)
exits = st.one_of(codes.map(lambda code: Exit(code=code)), signals.map(lambda number: Exit(signal=number)))
exits_or_lost = st.one_of(exits, st.just(Exit(lost=True)))
exit_statuses = st.builds(ExitStatuses, codes=st.frozensets(codes), signals=st.frozensets(signals))
results = st.sampled_from(Result)
restarts = st.builds(
    lambda policy, prevent, force, success: restart(
        policy, prevent_exit_status=prevent, force_exit_status=force, success_exit_status=success
    ),
    st.sampled_from(POLICIES),
    exit_statuses,
    exit_statuses,
    exit_statuses,
)


def test_an_exit_is_exactly_one_thing() -> None:
    wrongs: list[dict[str, Any]] = [
        {},
        {"code": 0, "signal": 9},
        {"code": 0, "lost": True},
        {"signal": 9, "lost": True},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="a code or a signal or lost"):
            Exit(**wrong)


def test_exits_read_as_words() -> None:
    assert str(Exit(code=1)) == "exit code 1"
    assert str(Exit(code=0)) == "exit code 0"
    assert str(Exit(signal=9)) == "signal 9 (SIGKILL)"
    assert str(Exit(signal=40)) == "signal 40"
    assert str(Exit(lost=True)) == "lost"


# Rule 1: what is clean.


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE])
def test_rule_1_four_signals_are_clean_and_their_exit_codes_are_not(number: int) -> None:
    assert is_clean(Exit(signal=number), NOTHING)
    assert not is_clean(Exit(code=128 + number), NOTHING)
    assert is_clean(Exit(code=128 + number), statuses(codes={128 + number}))


@given(exits_or_lost)
def test_rule_1_nothing_else_is_clean_by_itself(exit_: Exit) -> None:
    assert is_clean(exit_, NOTHING) == (exit_.code == 0 or exit_.signal in {1, 2, 13, 15})


@given(exits_or_lost, exit_statuses)
def test_rule_1_listing_only_adds_and_codes_and_signals_are_apart(exit_: Exit, success: ExitStatuses) -> None:
    listed = exit_.code in success.codes or exit_.signal in success.signals
    assert is_clean(exit_, success) == (listed or is_clean(exit_, NOTHING))


@given(exits_or_lost)
def test_a_stop_exit_status_is_clean_only_where_it_is_passed(exit_: Exit) -> None:
    also = frozenset({143})
    assert is_clean(exit_, NOTHING, also=also) == (exit_.code == 143 or is_clean(exit_, NOTHING))
    assert result_of(Exit(code=143), restart()) is Result.EXIT_CODE
    assert result_of(Exit(code=143), restart(), also=also) is Result.SUCCESS


@pytest.mark.parametrize(
    ("exit_", "result"),
    [
        (Exit(code=0), "success"),
        (Exit(code=3), "exit-code"),
        (Exit(code=143), "exit-code"),
        (Exit(code=7), "success"),
        (Exit(signal=signal.SIGTERM), "success"),
        (Exit(signal=signal.SIGUSR1), "success"),
        (Exit(signal=signal.SIGKILL), "signal"),
        (Exit(signal=signal.SIGABRT), "signal"),
        (Exit(lost=True), "lost"),
    ],
)
def test_results(exit_: Exit, result: str) -> None:
    listed = restart(success_exit_status=statuses(codes={7}, signals={signal.SIGUSR1}))
    assert result_of(exit_, listed) == result


# Rule 2: whether a restart follows.


# systemd.service(5), table 'Exit causes and the effect of the Restart= settings', whole but for 'watchdog', which no
# result of ours is. The last three rows are not in that table; they follow from service_shall_restart().
TABLE = [
    # Restart=: no, always, on-success, on-failure, on-abnormal, on-abort, on-watchdog
    ("clean exit code", Exit(code=0), Result.SUCCESS, ".XX...."),
    ("clean signal", Exit(signal=15), Result.SUCCESS, ".XX...."),
    ("unclean exit code", Exit(code=1), Result.EXIT_CODE, ".X.X..."),
    ("unclean signal", Exit(signal=9), Result.SIGNAL, ".X.XXX."),
    ("timeout", Exit(signal=9), Result.TIMEOUT, ".X.XX.."),
    ("out of memory", Exit(signal=9), Result.OOM_KILL, ".X.XX.."),
    ("could not be set up", None, Result.RESOURCES, ".X.XX.."),
    ("lost", Exit(lost=True), Result.LOST, ".X.XX.."),
]


@pytest.mark.parametrize(("exit_", "result", "row"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_rule_2_the_table_of_the_manual(exit_: Exit | None, result: Result, row: str) -> None:
    assert (
        "".join(
            "X" if should_restart(restart(policy), result, exit_, stop_requested=False) else "." for policy in POLICIES
        )
        == row
    )
    if exit_ is not None and result not in {Result.TIMEOUT, Result.OOM_KILL}:
        assert result_of(exit_, restart()) is result


def test_the_table_knows_every_policy_and_every_result() -> None:
    annotation = Restart.model_fields["policy"].annotation
    assert set(get_args(annotation)) == set(POLICIES)
    assert {row[2] for row in TABLE} == set(Result)


@given(restarts, results, exits_or_lost)
def test_rule_2_a_requested_stop_is_never_undone(settings: Restart, result: Result, exit_: Exit) -> None:
    assert not should_restart(settings, result, exit_, stop_requested=True)
    assert not should_restart(settings, Result.RESOURCES, None, stop_requested=True)


@given(restarts, results, exits_or_lost)
def test_rule_2_prevent_before_force_before_policy(settings: Restart, result: Result, exit_: Exit) -> None:
    prevent, force = settings.prevent_exit_status, settings.force_exit_status
    restarted = should_restart(settings, result, exit_, stop_requested=False)
    if exit_.code in prevent.codes or exit_.signal in prevent.signals:
        assert not restarted
    elif exit_.code in force.codes or exit_.signal in force.signals:
        assert restarted
    else:
        assert restarted == should_restart(restart(settings.policy), result, exit_, stop_requested=False)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("exit_", [Exit(code=3), Exit(signal=9)])
def test_rule_2_what_is_prevented_and_forced_is_prevented(policy: str, exit_: Exit) -> None:
    listed = statuses(codes={3}, signals={9})
    both = restart(policy, prevent_exit_status=listed, force_exit_status=listed)
    assert not should_restart(both, result_of(exit_, both), exit_, stop_requested=False)


def test_rule_2_codes_and_signals_are_apart() -> None:
    on_code = restart("always", prevent_exit_status=statuses(codes={9}))
    on_signal = restart("always", prevent_exit_status=statuses(signals={9}))
    for settings, prevented, not_prevented in (
        (on_code, Exit(code=9), Exit(signal=9)),
        (on_signal, Exit(signal=9), Exit(code=9)),
    ):
        assert not should_restart(settings, result_of(prevented, settings), prevented, stop_requested=False)
        assert should_restart(settings, result_of(not_prevented, settings), not_prevented, stop_requested=False)


def test_rule_2_forced_by_a_clean_exit_and_against_policy_no() -> None:
    forced = restart("no", force_exit_status=statuses(codes={0}, signals={15}))
    assert should_restart(forced, Result.SUCCESS, Exit(code=0), stop_requested=False)
    assert should_restart(forced, Result.SUCCESS, Exit(signal=15), stop_requested=False)
    assert not should_restart(forced, Result.RESOURCES, None, stop_requested=False)


# Rules 3 and 4: the start limit.


def allowed(limit: RateLimit, *starts: float) -> list[bool]:
    return [limit.allow(now) for now in starts]


def test_rule_4_the_start_at_15_is_refused() -> None:
    assert allowed(RateLimit(60, 3), 0, 5, 10, 15) == [True, True, True, False]


def test_rule_3_a_window_ends_strictly_after_its_interval() -> None:
    assert allowed(RateLimit(60, 3), 0, 5, 10, 60) == [True, True, True, False]
    assert allowed(RateLimit(60, 3), 0, 5, 10, 60.000001) == [True, True, True, True]


def test_rule_3_the_window_is_fixed_and_refused_starts_do_not_prolong_it() -> None:
    assert allowed(RateLimit(60, 3), 0, 5, 10, *range(15, 61)) == [True] * 3 + [False] * 46
    limit = RateLimit(60, 3)
    assert allowed(limit, 0, 5, 10, 20, 50) == [True, True, True, False, False]
    # The next window opens with its first start and has its own three, however close those before it were.
    assert allowed(limit, 61, 62, 63, 64, 121, 121.5) == [True, True, True, False, False, True]


def test_a_slow_crash_loop_passes_as_it_does_in_systemd() -> None:
    # FACTS of the default: 3 in 60 s trips only for what lives under 15 s (restart after 5 s).
    assert all(allowed(RateLimit(60, 3), *(25.0 * n for n in range(1000))))


def test_rule_6_reset_gives_a_whole_new_window() -> None:
    limit = RateLimit(60, 3)
    assert allowed(limit, 0, 1, 2, 3) == [True, True, True, False]
    limit.reset()
    assert allowed(limit, 4, 5, 6, 7, 61) == [True, True, True, False, False]


@pytest.mark.parametrize("limit", [RateLimit(0, 3), RateLimit(60, 0)])
def test_no_interval_or_no_burst_is_no_limit(limit: RateLimit) -> None:
    assert all(allowed(limit, *([1.0] * 100)))


gaps = st.lists(st.one_of(st.floats(0, 100), st.sampled_from([0.0, 5.0, 60.0])), max_size=60)


@given(st.floats(0.001, 100), st.integers(1, 6), gaps)
def test_rule_3_against_a_model_that_keeps_the_whole_history(interval: float, burst: int, waits: list[float]) -> None:
    limit = RateLimit(interval, burst)
    now = 1000.0
    window: list[float] = []
    for wait in waits:
        now += wait
        if window and now - window[0] > interval:
            window = []
        window.append(now)
        assert limit.allow(now) == (len(window) <= burst)


@given(st.floats(0.001, 100), st.integers(1, 6), gaps)
def test_never_more_than_two_bursts_in_any_interval(interval: float, burst: int, waits: list[float]) -> None:
    # A fixed window allows burst at its end and burst at the start of the next, and no more than that.
    limit = RateLimit(interval, burst)
    now = 1000.0
    starts: list[float] = []
    for wait in waits:
        now += wait
        if limit.allow(now):
            starts.append(now)
    for start in starts:
        assert sum(1 for other in starts if start <= other and other - start <= interval) <= 2 * burst


# Rule 9: growing delays.


def delays(**settings: Any) -> list[float]:
    return [restart_delay(restart(**settings), n) for n in range(6)]


def test_rule_9_delays_grow_geometrically_to_the_maximum() -> None:
    assert delays(delay_sec=1, steps=4, max_delay_sec=16) == pytest.approx([1, 2, 4, 8, 16, 16])
    assert delays(delay_sec=5, steps=1, max_delay_sec=60) == [5, 60, 60, 60, 60, 60]
    # Where 1.3 * (25.3 / 1.3) falls short of 25.3.
    assert delays(delay_sec=1.3, steps=2, max_delay_sec=25.3)[2:] == [25.3] * 4


def test_rule_9_without_steps_or_without_a_maximum_the_delay_stays() -> None:
    assert delays(delay_sec=5) == [5] * 6
    assert restart_delay(unchecked(delay_sec=5.0, steps=3, max_delay_sec=None), 4) == 5
    assert restart_delay(unchecked(delay_sec=5.0, steps=0, max_delay_sec=60.0), 4) == 5


def test_rule_9_a_delay_of_0_stays_0_and_a_maximum_below_the_delay_is_the_delay() -> None:
    assert restart_delay(unchecked(delay_sec=0.0, steps=3, max_delay_sec=60.0), 2) == 0
    for n in range(5):
        assert restart_delay(unchecked(delay_sec=5.0, steps=3, max_delay_sec=2.0), n) == 2
        assert restart_delay(unchecked(delay_sec=5.0, steps=3, max_delay_sec=5.0), n) == 5


def unchecked(**settings: Any) -> Restart:
    """Settings that the config may refuse, for which the arithmetic must still be systemd's."""
    return restart().model_copy(update=settings)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 50), st.integers(0, 60))
def test_rule_9_delays_never_shrink_and_stay_within_their_bounds(delay: float, most: float, steps: int, n: int) -> None:
    settings = unchecked(delay_sec=delay, steps=steps, max_delay_sec=most)
    this, following = restart_delay(settings, n), restart_delay(settings, n + 1)
    assert min(delay, most) <= this * (1 + 1e-12)
    assert this <= following * (1 + 1e-12)
    assert following <= most
    if n >= steps > 0 and 0 < delay <= most:
        assert this == most


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 50), st.integers(0, 60))
def test_rule_9_against_systemds_arithmetic_in_microseconds(delay: int, more: int, steps: int, n: int) -> None:
    # service_restart_usec_next(), which counts n_restarts_next from 1 and cuts to whole microseconds.
    most = delay + more
    if n == 0:
        expected = delay
    elif n + 1 > steps:
        expected = most
    else:
        expected = int(Decimal(delay) * (Decimal(most) / delay) ** (Decimal(n) / steps))
    settings = unchecked(delay_sec=delay / 1e6, steps=steps, max_delay_sec=most / 1e6)
    assert abs(restart_delay(settings, n) * 1e6 - expected) <= 1.001
