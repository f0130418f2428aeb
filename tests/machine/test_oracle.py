"""Whether the restart rules are systemd's: both are asked, and the real one is right."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import oracle_lab
import oracle_scenario
import pytest
from oracle_exceptions import STEPS, TABLE
from oracle_scenario import FOREVER, Life, Operation, Rules, Scenario, Status
from oracle_systemd import Systemd
from oracle_wrongs import WRONG_STEPS, WRONGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from booted import Machine
    from oracle_lab import Verdict

# Sixty in a row that find all wrongs, with systemd 252 and with 257.
SEEDS = range(3980, 4040)
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


# The sixty are worth something only as long as they find what is wrong.


@pytest.mark.parametrize("wrong", [*WRONGS, *WRONG_STEPS], ids=lambda wrong: wrong.__name__)
def test_the_sixty_find_it(
    wrong: Callable[[pytest.MonkeyPatch], None],
    sixty: list[Verdict],
    systemd: Systemd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if wrong in WRONG_STEPS and systemd.version < STEPS:
        pytest.skip(f"systemd {systemd.version} knows no steps")
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
