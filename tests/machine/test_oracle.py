"""Whether the restart rules are systemd's: both are asked, and the real one is right."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import oracle_lab
import oracle_scenario
import pytest
from oracle_exceptions import TABLE
from oracle_scenario import FOREVER, Life, Operation, Rules, Scenario, Status
from oracle_systemd import Systemd

from forge_supervisor import agent, policy
from forge_supervisor.agent import Lifecycle
from forge_supervisor.policy import RateLimit, Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from booted import Machine
    from oracle_lab import Verdict

    from forge_supervisor.config import Restart
    from forge_supervisor.policy import Exit

SEEDS = range(60)
START = Operation(0, "start")
TRANSLATED = frozenset({"start-while-waiting", "start-while-stopping"})


@pytest.fixture(scope="module")
def systemd(bare_machine: Machine) -> Systemd:
    return Systemd(bare_machine)


@pytest.fixture(scope="module")
def sixty(systemd: Systemd) -> list[Verdict]:
    return oracle_lab.judge(systemd, [oracle_scenario.scenario(seed) for seed in SEEDS])


def test_sixty_random_scenarios_come_out_as_the_real_systemd_has_them(sixty: list[Verdict]) -> None:
    differing = [f"seed {seed}:\n{verdict}" for seed, verdict in zip(SEEDS, sixty, strict=True) if verdict.differs]
    assert not differing, "\n".join(differing)


# The sixty are worth something only as long as they find what is wrong: a few wrongs.


def _never_clean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "CLEAN_SIGNALS", frozenset())


def _without_sigpipe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "CLEAN_SIGNALS", policy.CLEAN_SIGNALS - {signal.SIGPIPE})


def _codes_of_signals_are_clean(patch: pytest.MonkeyPatch) -> None:
    true = policy.is_clean
    patch.setattr(policy, "is_clean", lambda exit_, *rest, **also: exit_.code == 143 or true(exit_, *rest, **also))


def _forced_before_prevented(patch: pytest.MonkeyPatch) -> None:
    def should_restart(restart: Restart, result: Result, exit_: Exit | None, *, stop_requested: bool) -> bool:
        if not stop_requested and policy._matches(exit_, restart.force_exit_status):
            return True
        return true(restart, result, exit_, stop_requested=stop_requested)

    true = policy.should_restart
    patch.setattr(agent, "should_restart", should_restart)


def _abort_on_any_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(policy._RESTARTED_AFTER, "on-abort", policy._FAILURES)


def _abnormal_on_any_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(policy._RESTARTED_AFTER, "on-abnormal", policy._FAILURES)


def _one_more_start(patch: pytest.MonkeyPatch) -> None:
    _allow(patch, lambda limit, _: limit.count <= limit.burst + 1)


def _one_start_less(patch: pytest.MonkeyPatch) -> None:
    _allow(patch, lambda limit, _: limit.count < limit.burst)


def _allow(patch: pytest.MonkeyPatch, allowed: Callable[[RateLimit, float], bool]) -> None:
    def allow(limit: RateLimit, now: float) -> bool:
        true(limit, now)
        return limit.interval <= 0 or limit.burst <= 0 or allowed(limit, now)

    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", allow)


def _window_slides(patch: pytest.MonkeyPatch) -> None:
    def allow(limit: RateLimit, now: float) -> bool:
        allowed = true(limit, now)
        limit.begin = now
        return allowed

    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", allow)


def _window_never_ends(patch: pytest.MonkeyPatch) -> None:
    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", lambda limit, now: true(limit, now if limit.begin is None else limit.begin))


def _starts_by_hand_do_not_count(patch: pytest.MonkeyPatch) -> None:
    def start(life: Lifecycle, *, by_hand: bool = False) -> None:
        begin, count = life._limit.window
        true(life, by_hand=by_hand)
        if by_hand and begin is not None:
            life._limit.window = begin, count

    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", start)


def _starts_by_hand_clear_nothing(patch: pytest.MonkeyPatch) -> None:
    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", lambda life, *, by_hand=False: true(life))


def _reset_failed_keeps(patch: pytest.MonkeyPatch, name: str) -> None:
    def reset_failed(life: Lifecycle) -> None:
        kept = getattr(life, name)
        true(life)
        setattr(life, name, kept)

    true = Lifecycle.reset_failed
    patch.setattr(Lifecycle, "reset_failed", reset_failed)


def _reset_failed_keeps_the_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RateLimit, "reset", lambda _: None)


def _reset_failed_keeps_n_restarts(patch: pytest.MonkeyPatch) -> None:
    _reset_failed_keeps(patch, "n_restarts")


def _reset_failed_keeps_the_result(patch: pytest.MonkeyPatch) -> None:
    _reset_failed_keeps(patch, "result")


def _a_refused_start_clears_n_restarts(patch: pytest.MonkeyPatch) -> None:
    def start(life: Lifecycle, *, by_hand: bool = False) -> None:
        life.n_restarts = 0 if by_hand else life.n_restarts
        true(life, by_hand=by_hand)

    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", start)


def _a_stop_does_not_prevent(patch: pytest.MonkeyPatch) -> None:
    def verdict(life: Lifecycle) -> Any:
        life.stop_requested = False
        return true(life)

    true = Lifecycle._verdict
    patch.setattr(Lifecycle, "_verdict", verdict)


def _a_stop_in_vain_is_no_timeout(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "stop_timed_out", property(lambda _: False, lambda *_: None))


def _a_restart_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    def due(life: Lifecycle) -> None:
        life.n_restarts -= 1
        true(life)

    true = Lifecycle._restart_due
    patch.setattr(Lifecycle, "_restart_due", due)


WRONGS = [
    _never_clean, _without_sigpipe, _codes_of_signals_are_clean, _forced_before_prevented, _abort_on_any_failure,
    _abnormal_on_any_failure, _one_more_start, _one_start_less, _window_slides, _window_never_ends,
    _starts_by_hand_do_not_count, _starts_by_hand_clear_nothing, _reset_failed_keeps_the_limit,
    _reset_failed_keeps_n_restarts, _reset_failed_keeps_the_result, _a_refused_start_clears_n_restarts,
    _a_stop_does_not_prevent, _a_stop_in_vain_is_no_timeout, _a_restart_is_not_counted,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.__name__.strip("_"))
def test_the_sixty_find_it(
    wrong: Callable[[pytest.MonkeyPatch], None],
    sixty: list[Verdict],
    systemd: Systemd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch)
    assert any(oracle_lab.verdict(each.scenario, each.seen, systemd.version).differs for each in sixty)


# The exceptions: each is one, and is needed.


def scenario(*operations: Operation, life: Life, until: int, **rules: Any) -> Scenario:
    return Scenario(Rules(**rules), (life,), (START, *operations), until)


def killed(number: int, **how: Any) -> Life:
    return Life(lasts=0, ends=Status(number, signalled=True), **how)


ABORTS = (Status(signal.SIGABRT, signalled=True),)
SUCCEEDS, FAILS = Life(lasts=0), Life(lasts=0, ends=Status(1))
LINGERS = Life(lasts=FOREVER, on_term="exits", lingers=5)
CASES = [
    ("start-limit-hit", scenario(Operation(6, "start"), life=SUCCEEDS, until=10, policy="no", burst=1, interval=20.5)),
    ("core-dump", scenario(life=killed(signal.SIGABRT, dumps=True), until=10)),
    ("core-dump", scenario(life=killed(signal.SIGABRT, dumps=True), until=10, success=ABORTS)),
    ("lost", scenario(life=killed(signal.SIGKILL, lost=True), until=10)),
    ("lost", scenario(life=killed(signal.SIGKILL, lost=True), until=10, policy="on-abort")),
    ("daily-limit", scenario(life=FAILS, until=10, daily=1)),
    ("start-while-waiting", scenario(Operation(6, "start"), life=FAILS, until=15, delay=10)),
    (
        "start-while-stopping",
        scenario(Operation(6, "stop"), Operation(8, "start"), life=LINGERS, until=15, burst=2, interval=20.5),
    ),
    ("n-restarts-kept", scenario(Operation(6, "stop"), Operation(8, "start"), life=FAILS, until=10)),
    ("no-steps", scenario(life=FAILS, until=20, steps=1, max_delay=10)),
]


def test_each_exception_is_needed(systemd: Systemd) -> None:
    needed = [each for each in CASES if systemd.version < (TABLE[each[0]].below or systemd.version + 1)]
    verdicts = oracle_lab.judge(systemd, [case for _, case in CASES])
    for (name, _), verdict in zip(CASES, verdicts, strict=True):
        assert not verdict.differs, f"{name}:\n{verdict}"
    assert {name for name, _ in CASES} == set(TABLE)
    for name, case in needed:
        assert verdicts[CASES.index((name, case))].applied == {name}
    for without in (TRANSLATED, TABLE.keys() - TRANSLATED):
        cases = [each for each in needed if each[0] in without]
        strict = oracle_lab.judge(systemd, [case for _, case in cases], without=frozenset(without), tries=1)
        assert [name for (name, _), verdict in zip(cases, strict, strict=True) if not verdict.differs] == []
