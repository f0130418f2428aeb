"""Restart rules that are almost systemd's. Each puts one of them in the place of ours."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from forge_supervisor import agent, policy
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import ExitStatuses
from forge_supervisor.memory import State
from forge_supervisor.policy import RateLimit, Result

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from forge_supervisor.config import Restart
    from forge_supervisor.policy import Exit


def never_clean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "CLEAN_SIGNALS", frozenset())


def without_sigpipe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "CLEAN_SIGNALS", policy.CLEAN_SIGNALS - {signal.SIGPIPE})


def codes_of_signals_are_clean(patch: pytest.MonkeyPatch) -> None:
    true = policy.is_clean
    patch.setattr(policy, "is_clean", lambda exit_, *rest, **also: exit_.code == 143 or true(exit_, *rest, **also))


def forced_before_prevented(patch: pytest.MonkeyPatch) -> None:
    def should_restart(restart: Restart, result: Result, exit_: Exit | None, *, stop_requested: bool) -> bool:
        if not stop_requested and policy._matches(exit_, restart.force_exit_status):
            return True
        return true(restart, result, exit_, stop_requested=stop_requested)

    true = policy.should_restart
    patch.setattr(agent, "should_restart", should_restart)


def success_is_not_listed(patch: pytest.MonkeyPatch) -> None:
    true = policy.is_clean
    patch.setattr(policy, "is_clean", lambda exit_, _, **also: true(exit_, ExitStatuses(), **also))


def nothing_is_prevented(patch: pytest.MonkeyPatch) -> None:
    def should_restart(restart: Restart, result: Result, exit_: Exit | None, *, stop_requested: bool) -> bool:
        unlisted = restart.model_copy(update={"prevent_exit_status": ExitStatuses()})
        return true(unlisted, result, exit_, stop_requested=stop_requested)

    true = policy.should_restart
    patch.setattr(agent, "should_restart", should_restart)


def what_cannot_be_set_up_is_no_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "_RESTARTED_AFTER", {
        name: results - {Result.RESOURCES} for name, results in policy._RESTARTED_AFTER.items()
    })  # fmt: skip


def what_cannot_be_set_up_is_judged_by_the_last_exit(patch: pytest.MonkeyPatch) -> None:
    def verdict(life: Lifecycle) -> Any:
        life.exit = last[life] = last.get(life) if life.result is Result.RESOURCES else life.exit
        return true(life)

    last: WeakKeyDictionary[Lifecycle, Exit | None] = WeakKeyDictionary()
    true = Lifecycle._verdict
    patch.setattr(Lifecycle, "_verdict", verdict)
    patch.setattr(Lifecycle, "__hash__", object.__hash__)


def abort_on_any_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(policy._RESTARTED_AFTER, "on-abort", policy._FAILURES)


def abnormal_on_any_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(policy._RESTARTED_AFTER, "on-abnormal", policy._FAILURES)


def one_more_start(patch: pytest.MonkeyPatch) -> None:
    _allow(patch, lambda limit, _: limit.count <= limit.burst + 1)


def one_start_less(patch: pytest.MonkeyPatch) -> None:
    _allow(patch, lambda limit, _: limit.count < limit.burst)


def _allow(patch: pytest.MonkeyPatch, allowed: Callable[[RateLimit, float], bool]) -> None:
    def allow(limit: RateLimit, now: float) -> bool:
        true(limit, now)
        return limit.interval <= 0 or limit.burst <= 0 or allowed(limit, now)

    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", allow)


def window_slides(patch: pytest.MonkeyPatch) -> None:
    def allow(limit: RateLimit, now: float) -> bool:
        allowed = true(limit, now)
        limit.begin = now
        return allowed

    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", allow)


def window_never_ends(patch: pytest.MonkeyPatch) -> None:
    true = RateLimit.allow
    patch.setattr(RateLimit, "allow", lambda limit, now: true(limit, now if limit.begin is None else limit.begin))


def starts_by_hand_do_not_count(patch: pytest.MonkeyPatch) -> None:
    def start(life: Lifecycle, *, by_hand: bool = False) -> None:
        begin, count = life._limit.window
        true(life, by_hand=by_hand)
        if by_hand and begin is not None:
            life._limit.window = begin, count

    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", start)


def starts_by_hand_clear_nothing(patch: pytest.MonkeyPatch) -> None:
    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", lambda life, **_: true(life))


def _reset_failed_keeps(patch: pytest.MonkeyPatch, name: str) -> None:
    def reset_failed(life: Lifecycle) -> None:
        kept = getattr(life, name)
        true(life)
        setattr(life, name, kept)

    true = Lifecycle.reset_failed
    patch.setattr(Lifecycle, "reset_failed", reset_failed)


def reset_failed_keeps_the_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RateLimit, "reset", lambda _: None)


def reset_failed_keeps_n_restarts(patch: pytest.MonkeyPatch) -> None:
    _reset_failed_keeps(patch, "n_restarts")


def reset_failed_keeps_the_result(patch: pytest.MonkeyPatch) -> None:
    _reset_failed_keeps(patch, "result")


def a_refused_start_clears_n_restarts(patch: pytest.MonkeyPatch) -> None:
    def start(life: Lifecycle, *, by_hand: bool = False) -> None:
        life.n_restarts = 0 if by_hand else life.n_restarts
        true(life, by_hand=by_hand)

    true = Lifecycle._start
    patch.setattr(Lifecycle, "_start", start)


def a_stop_does_not_prevent(patch: pytest.MonkeyPatch) -> None:
    def verdict(life: Lifecycle) -> Any:
        life.stop_requested = False
        return true(life)

    true = Lifecycle._verdict
    patch.setattr(Lifecycle, "_verdict", verdict)


def a_stop_leaves_the_restart(patch: pytest.MonkeyPatch) -> None:
    true = Lifecycle.stop
    patch.setattr(Lifecycle, "stop", lambda life: None if life.state is State.AUTO_RESTART else true(life))


def a_stop_leaves_the_start_that_waits_for_another(patch: pytest.MonkeyPatch) -> None:
    def stop(life: Lifecycle) -> None:
        again = life.start_again
        true(life)
        life.start_again = again

    true = Lifecycle.stop
    patch.setattr(Lifecycle, "stop", stop)


def a_start_does_not_wait_for_the_stop(patch: pytest.MonkeyPatch) -> None:
    true = Lifecycle.start
    patch.setattr(Lifecycle, "start", lambda life: None if life.state is State.STOPPING else true(life))


def a_stop_in_vain_is_no_timeout(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "stop_timed_out", property(lambda _: False, lambda *_: None))


def delays_do_not_grow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agent, "restart_delay", lambda restart, _: restart.delay_sec)


def a_restart_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    def due(life: Lifecycle) -> None:
        life.n_restarts -= 1
        true(life)

    true = Lifecycle._restart_due
    patch.setattr(Lifecycle, "_restart_due", due)


WRONGS = (
    never_clean,
    without_sigpipe,
    codes_of_signals_are_clean,
    success_is_not_listed,
    nothing_is_prevented,
    forced_before_prevented,
    what_cannot_be_set_up_is_no_failure,
    what_cannot_be_set_up_is_judged_by_the_last_exit,
    abort_on_any_failure,
    abnormal_on_any_failure,
    one_more_start,
    one_start_less,
    window_slides,
    window_never_ends,
    starts_by_hand_do_not_count,
    starts_by_hand_clear_nothing,
    reset_failed_keeps_the_limit,
    reset_failed_keeps_n_restarts,
    reset_failed_keeps_the_result,
    a_refused_start_clears_n_restarts,
    a_stop_does_not_prevent,
    a_stop_leaves_the_restart,
    a_stop_leaves_the_start_that_waits_for_another,
    a_start_does_not_wait_for_the_stop,
    a_stop_in_vain_is_no_timeout,
    a_restart_is_not_counted,
)
# What only a systemd that knows steps can tell.
WRONG_STEPS = (delays_do_not_grow,)
