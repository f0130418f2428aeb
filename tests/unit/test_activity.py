from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Seen, Tracker, Window

IDLE = Seen(Doing.IDLE, login="key")
LIMITED = Activity(Doing.LIMITED, "You've hit your limit", "wait")
LOGGED_OUT = Activity(Doing.LOGGED_OUT, "Please run /login", "log in")
ENDED = Reported("ended")
NOW = 500.0


def failed(trouble: Activity | None) -> Reported:
    return Reported("failed", trouble=trouble)


def tracker(*seen: Seen) -> Tracker:
    made = Tracker()
    for one in seen:
        made.saw(one)
    return made


def doing(tracker: Tracker) -> Doing | None:
    return None if tracker.activity is None else tracker.activity.doing


def test_nothing_is_known_before_anything_was_seen() -> None:
    assert tracker().activity is None


def test_what_is_seen_is_what_it_does() -> None:
    for one in (Doing.STARTING, Doing.WORKING, Doing.IDLE, Doing.WAITING):
        assert doing(tracker(replace(IDLE, doing=one))) is one


def test_what_it_waits_for_is_told() -> None:
    assert tracker(replace(IDLE, doing=Doing.WAITING, detail="input needed")).activity == Activity(
        Doing.WAITING, "input needed"
    )


def test_one_that_does_not_get_to_its_prompt_is_blocked_until_it_does() -> None:
    blocked = tracker(replace(IDLE, doing=Doing.STARTING))
    blocked.is_overdue("Accessing workspace")
    assert blocked.activity == blocked.trouble == Activity(Doing.BLOCKED, "Accessing workspace")
    blocked.saw(IDLE)
    assert doing(blocked) is Doing.IDLE
    assert not blocked.trouble
    blocked.is_overdue("too late")
    assert doing(blocked) is Doing.IDLE


def test_a_failure_that_files_tell_lasts_as_long_as_they_do() -> None:
    limited = tracker(IDLE, replace(IDLE, failed=LIMITED))
    assert limited.trouble == LIMITED
    limited.saw(replace(IDLE, login="another", failed=LOGGED_OUT))
    limited.saw(replace(IDLE, doing=Doing.WORKING, login="a third", failed=LOGGED_OUT))
    assert not limited.trouble, "it is no news"
    limited.saw(replace(IDLE, failed=LIMITED))
    assert limited.trouble == LIMITED
    limited.saw(IDLE)
    assert not limited.trouble


def test_a_failure_that_an_earlier_supervisor_knew_of_stays_where_files_tell_none() -> None:
    limited = Tracker(LIMITED)
    limited.saw(IDLE)
    assert limited.trouble == LIMITED


def test_gauges_that_files_tell_date_a_limit() -> None:
    gauges = Gauges(12.5, (Window("primary", 100.0, 1000.0),))
    limited = tracker(IDLE, replace(IDLE, failed=LIMITED, gauges=gauges))
    assert limited.gauges == gauges
    assert limited.trouble == replace(LIMITED, until=1000.0)


def test_one_that_has_to_log_in_before_it_gets_to_its_prompt() -> None:
    nobody = tracker(Seen(Doing.STARTING, login_fix="log in"))
    assert nobody.activity == Activity(Doing.LOGGED_OUT, "there is no login", "log in")
    nobody.saw(replace(IDLE, doing=Doing.STARTING))
    assert doing(nobody) is Doing.STARTING


def test_a_failure_lasts_until_a_turn_has_come_to_its_end() -> None:
    limited = tracker(IDLE)
    limited.heard(failed(LIMITED), NOW)
    for seen in (replace(IDLE, doing=Doing.WORKING), IDLE):
        limited.saw(seen)
        assert limited.activity == LIMITED
    limited.heard(ENDED, NOW)
    assert doing(limited) is Doing.IDLE


def test_a_question_is_told_though_something_is_wrong() -> None:
    limited = tracker(IDLE)
    limited.heard(failed(LIMITED), NOW)
    limited.saw(replace(IDLE, doing=Doing.WAITING))
    assert (doing(limited), limited.trouble) == (Doing.WAITING, LIMITED)


def test_a_failure_that_is_of_the_turn_alone_is_none() -> None:
    one = tracker(IDLE)
    one.heard(failed(None), NOW)
    assert doing(one) is Doing.IDLE


def test_another_login_ends_a_lost_one() -> None:
    out = tracker(IDLE)
    out.heard(failed(LOGGED_OUT), NOW)
    out.saw(IDLE)
    assert out.activity == LOGGED_OUT
    out.saw(replace(IDLE, login="another key"))
    assert doing(out) is Doing.IDLE


def test_another_login_ends_no_limit() -> None:
    limited = tracker(IDLE)
    limited.heard(failed(LIMITED), NOW)
    limited.saw(replace(IDLE, login="another key"))
    assert limited.activity == LIMITED


def test_without_any_login_it_is_logged_out_until_it_has_one() -> None:
    out = tracker(replace(IDLE, login="", login_fix="/login"))
    assert out.activity == Activity(Doing.LOGGED_OUT, "there is no login", "/login")
    out.saw(IDLE)
    assert doing(out) is Doing.IDLE


def test_one_that_had_an_answer_has_a_login_though_none_is_found() -> None:
    one = tracker(replace(IDLE, login=""))
    one.heard(ENDED, NOW)
    assert doing(one) is Doing.IDLE


def test_a_limit_is_over_when_its_last_window_is() -> None:
    windows = (Window("five_hour", 100, 1000.0), Window("seven_day", 100, 2000.0), Window("other", 50, 3000.0))
    for reports in ((failed(LIMITED), Reported(gauges=Gauges(5, windows))),):
        for order in (reports, reports[::-1]):
            limited = tracker(IDLE)
            for report in order:
                limited.heard(report, NOW)
            assert limited.activity == replace(LIMITED, until=2000.0)
            limited.time_passes(1999.0)
            assert doing(limited) is Doing.LIMITED
            limited.time_passes(2000.0)
            assert doing(limited) is Doing.IDLE


def test_a_window_that_has_ended_says_nothing_of_when_a_limit_does() -> None:
    limited = tracker(IDLE)
    limited.heard(Reported(gauges=Gauges(5, (Window("five_hour", 100, NOW),))), NOW - 1)
    limited.heard(failed(LIMITED), NOW)
    assert limited.activity == LIMITED


def test_a_login_that_came_while_nobody_could_look_ends_a_lost_one() -> None:
    out = tracker(IDLE)
    out.heard(failed(LOGGED_OUT), NOW)
    out.is_unseen()
    assert not out.has_prompt
    assert doing(out) is Doing.LOGGED_OUT
    out.saw(replace(IDLE, login="another key"))
    assert doing(out) is Doing.IDLE


def test_no_other_trouble_is_over_with_a_limit() -> None:
    out = tracker(IDLE)
    out.heard(failed(LOGGED_OUT), NOW)
    out.time_passes(2**40)
    assert out.activity == LOGGED_OUT


REPORTS = st.sampled_from([ENDED, failed(LIMITED), failed(LOGGED_OUT), failed(None), Reported("began"), Reported()])
SEEN_DOING = st.sampled_from([Doing.STARTING, Doing.WORKING, Doing.IDLE, Doing.WAITING])
SEEN = st.builds(Seen, SEEN_DOING, login=st.just("key"))


@given(st.lists(st.one_of(REPORTS, SEEN)))
def test_after_a_turn_that_ended_well_nothing_is_wrong(told: list[Reported | Seen]) -> None:
    one = tracker(IDLE)
    for word in told:
        if isinstance(word, Seen):
            one.saw(word)
        else:
            one.heard(word, NOW)
    one.heard(ENDED, NOW)
    assert one.trouble is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1.7e308, -1.0])
def test_numbers_that_nobody_can_count_with_are_none(number: float) -> None:
    """Trap: users and programs say them, and one agent's would be in the way of the list of all."""
    gauges = Gauges(number, (Window("week", number, number),))
    limited = replace(LIMITED, until=number)
    seeing, hearing = tracker(replace(IDLE, failed=limited, gauges=gauges)), tracker(IDLE)
    hearing.heard(Reported("failed", trouble=limited, gauges=gauges), NOW)
    for made in (seeing, hearing):
        assert made.gauges == Gauges(None, (Window("week", 0.0, None),))
        assert made.activity == replace(LIMITED, until=None)
