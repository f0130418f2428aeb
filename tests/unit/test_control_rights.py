"""Who may do what: the whole table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor.config_control import Control
from forge_supervisor.control.peer import Peer
from forge_supervisor.control.rights import Rights, rights_of

OWN = 990
FORGE = 27
NAMES = {0: None, OWN: None, 1001: "team", 1002: "other", 1003: None}
"""Uids: root's, the supervisor's own, those of two users of agents, that of somebody else."""
AGENTS = {"ceo": "team", "scout": "team", "spy": "other"}
USERS = ("team", "other")
CONTROLS = [
    Control(users=users, agents=agents)
    for users in ((), ("team",), ("team", "other"))
    for agents in ((), ("ceo",), ("ceo", "spy"))
]


def rights(uid: int, gids: set[int], agent: str | None, control: Control, group: int | None = FORGE) -> Rights:
    return rights_of(Peer(uid, frozenset(gids), agent), NAMES[uid], control, own_uid=OWN, group=group, agents=AGENTS)


def what(uid: int, gids: set[int], agent: str | None, control: Control) -> tuple[set[str], set[str], bool]:
    """Whose agents it may look at, on whose it may act, and whether it may do everything."""
    given_ = rights(uid, gids, agent, control)
    sees = {user for user in USERS if given_.sees(user)}
    return sees, {user for user in USERS if given_.act_on(user)}, given_.everything


EVERYTHING = (set(USERS), set(USERS), True)
NOTHING: tuple[set[str], set[str], bool] = (set(), set(), False)


@pytest.mark.parametrize("control", CONTROLS)
def test_the_whole_table_of_who_comes_from_outside(control: Control) -> None:
    for uid, gids in itertools.product(NAMES, (set[int](), {5}, {5, FORGE})):
        got = what(uid, gids, None, control)
        name = NAMES[uid]
        if uid in {0, OWN} or FORGE in gids:
            assert got == EVERYTHING
        elif name is None:
            assert got == NOTHING
        else:
            assert got == ({name}, {name} if name in control.users else set(), False)


@pytest.mark.parametrize("control", CONTROLS)
def test_the_whole_table_of_who_comes_from_within(control: Control) -> None:
    for uid, gids, agent in itertools.product(NAMES, (set[int](), {FORGE}), ("", "ceo", "scout", "spy", "gone")):
        got = what(uid, gids, agent, control)
        name = NAMES[uid]
        if agent in control.agents and name == AGENTS[agent]:
            assert got == ({name}, {name}, False)
        else:
            assert got == NOTHING, (uid, gids, agent)


@pytest.mark.parametrize("control", CONTROLS)
def test_whoever_may_not_do_everything_is_told_why(control: Control) -> None:
    for uid, agent in itertools.product(NAMES, (None, "", "ceo", "scout", "spy", "gone")):
        given_ = rights(uid, set(), agent, control)
        assert given_.everything != bool(given_.refusal)


def test_a_refusal_says_what_would_grant_it() -> None:
    assert 'members of the group "forge"' in rights(1003, set(), None, Control()).refusal
    assert "control.users" in rights(1001, set(), None, Control()).refusal
    assert "control.agents" in rights(1001, set(), "ceo", Control()).refusal
    assert "agent ceo" in rights(1001, set(), "ceo", Control()).refusal
    assert "agents can start" in rights(1001, set(), "", Control(users=("team",))).refusal
    assert "operators" in rights(1001, set(), "ceo", Control(agents=("ceo",))).refusal


def test_without_the_group_nobody_is_in_it() -> None:
    assert not rights(1003, {FORGE}, None, Control(), group=None).everything


def test_who_became_another_user_within_an_agent_gets_nothing_of_that_users() -> None:
    # By sudo or su, say, of which its control group knows nothing.
    control = Control(users=("other",), agents=("ceo",))
    assert what(1002, set(), "ceo", control) == NOTHING
    assert what(0, {FORGE}, "ceo", control) == NOTHING


uids = st.sampled_from(sorted(NAMES))
groups = st.frozensets(st.sampled_from([1, 5, FORGE]))
within = st.one_of(st.just(""), st.sampled_from(sorted(AGENTS)), st.text(max_size=5))
controls = st.builds(
    Control,
    users=st.lists(st.sampled_from(USERS), unique=True).map(tuple),
    agents=st.lists(st.sampled_from(sorted(AGENTS)), unique=True).map(tuple),
)


@given(uids, groups, within, controls)
def test_from_within_nobody_ever_gets_everything(
    uid: int, gids: frozenset[int], agent: str, control: Control
) -> None:
    given_ = rights(uid, set(gids), agent, control)
    assert not given_.everything
    assert all(NAMES[uid] == user for user in USERS if given_.sees(user) or given_.act_on(user))


@given(uids, groups, st.one_of(st.none(), within), controls)
def test_nobody_without_all_rights_sees_or_acts_on_anothers_agents(
    uid: int, gids: frozenset[int], agent: str | None, control: Control
) -> None:
    given_ = rights(uid, set(gids), agent, control)
    if not given_.everything:
        assert not any(given_.sees(user) or given_.act_on(user) for user in USERS if user != NAMES[uid])


@given(uids, groups, st.one_of(st.none(), within), controls)
def test_nobody_acts_on_what_it_may_not_see(
    uid: int, gids: frozenset[int], agent: str | None, control: Control
) -> None:
    given_ = rights(uid, set(gids), agent, control)
    assert all(given_.sees(user) for user in USERS if given_.act_on(user))
