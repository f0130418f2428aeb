"""What our rules make of a scenario, at once: one cell is a second on a clock that is set forward.

The state machine is the real one, and so are the configuration's checks. What it is told of the world (a session runs,
is gone, cannot be set up) is the scenario's.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clock_lab import FakeClock
from oracle_scenario import FOREVER

from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Agent, Problem
from forge_supervisor.memory import State
from forge_supervisor.policy import Exit

if TYPE_CHECKING:
    from oracle_scenario import Life, Operation, Scenario, Status

LOOK = 0.75
"""When within its cell a service is looked at: what the cell's beginning has brought is over, the next is to come."""


@dataclass(frozen=True)
class Start:
    """The service's program has begun to run."""

    at: int
    """In cells."""

    @property
    def moment(self) -> float:
        return self.at


@dataclass(frozen=True)
class Look:
    at: int
    """In cells; the look is near the end of this one."""
    state: str
    result: str
    n_restarts: int

    @property
    def moment(self) -> float:
        return self.at + LOOK


@dataclass(frozen=True)
class Context:
    """What else is known of our side at a look, for the exceptions to judge by."""

    start_limit_hit: bool
    dumped: bool
    """The life that ended last has left a core."""
    lost: bool
    kept: int
    """How many restarts systemd has not forgotten at a start by hand, where it forgets too few."""


@dataclass
class Ours:
    starts: list[Start]
    looks: list[tuple[Look, Context]]
    met: set[str]
    """The exceptions that are of what was done by hand."""
    partings: list[tuple[float, str]]
    """Moments, in cells, from which on the two may differ, and the exceptions that have it so."""


def run(scenario: Scenario) -> Ours:
    stage = _Stage(scenario)
    for at in range(scenario.until):
        for operation in scenario.operations:
            if operation.at == at:
                stage.operate(operation)
        stage.clock.advance(LOOK)
        if at in scenario.looks:
            stage.look(at)
        stage.clock.advance(1 - LOOK)
    return stage.ours


class _Stage:
    """One agent, its `Runner`, and the hand of the operator."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = FakeClock()
        self.begin = self.clock.now
        self.ours = Ours(starts=[], looks=[], met=set(), partings=[])
        self.life = Lifecycle(_agent(scenario), self, clock=self.clock, emit=lambda _: None)
        self.life.changed = self._note_refusal
        self.broken = False
        self.present: Life | None = None
        self.last: Life | None = None
        # See exceptions: what systemd keeps of n_restarts, what it will once it starts, and whether a restart that
        # was waited for has been cancelled.
        self.kept = 0
        self.keeps: int | None = None
        self.cancelled = False

    @property
    def moment(self) -> float:
        return self.clock.now - self.begin

    def part(self, exception: str) -> None:
        self.ours.partings.append((self.moment, exception))

    # The operator.

    def operate(self, operation: Operation) -> None:
        match operation.verb:
            case "start" | "restart":
                self._begin(operation.verb)
            case "stop":
                self.cancelled = self.cancelled or self.life.state is State.AUTO_RESTART
                self.keeps = None
                self.life.stop()
            case "reset-failed":
                self.kept = 0
                self.life.reset_failed()
            case "break" | "mend":
                self.broken = operation.verb == "break"

    def _begin(self, verb: str) -> None:
        state = self.life.state
        if verb == "start" and not self.ours.partings:
            if state is State.AUTO_RESTART:
                self.ours.met.add("start-while-waiting")
            elif state is State.STOPPING:
                self.ours.met.add("start-while-stopping")
        if state is State.AUTO_RESTART or self.cancelled:
            self.keeps = self.kept + self.life.n_restarts
        elif state is not State.RUNNING or verb == "restart":
            self.keeps = 0
        if verb == "start":
            self.life.start()
        else:
            self.life.restart()

    def _note_refusal(self) -> None:
        if self.life.state is State.FAILED and (self.life.start_limit_hit or self.life.daily_limit_hit):
            self.keeps, self.cancelled = None, False
            if self.life.daily_limit_hit:
                self.part("daily-limit")

    def look(self, at: int) -> None:
        context = Context(
            start_limit_hit=self.life.start_limit_hit,
            dumped=self.last is not None and self.last.dumps,
            lost=self.last is not None and self.last.lost,
            kept=self.kept,
        )
        look = Look(at, self.life.state, self.life.result, self.life.n_restarts)
        self.ours.looks.append((look, context))

    # The Runner.

    def launch(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        if self.keeps is not None:
            self.kept, self.keeps = self.keeps, None
        self.cancelled = False
        self.clock.call_later(0, self._launched)

    def _launched(self) -> None:
        if self.broken:
            self.last = None
            self.life.launch_failed(Problem("env", "is broken"))
            return
        self.present = present = self.scenario.life(len(self.ours.starts))
        self.ours.starts.append(Start(int(self.moment)))
        self.life.launched(4711)
        if present.lasts < FOREVER:
            number = len(self.ours.starts)
            self.clock.call_later(present.lasts, lambda: self._end(number, _exit(present)))

    def resume(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        raise NotImplementedError

    def terminate(self) -> None:
        present, number = self.present, len(self.ours.starts)
        if present is None:
            return
        if present.on_term == "dies":
            self.clock.call_later(0, lambda: self._end(number, Exit(signal=signal.SIGTERM)))
        elif present.on_term == "exits":
            self.clock.call_later(present.lingers, lambda: self._end(number, Exit(code=present.code)))

    def kill(self) -> None:
        number = len(self.ours.starts)
        self.clock.call_later(0, lambda: self._end(number, Exit(signal=signal.SIGKILL)))

    def _end(self, number: int, exit_: Exit) -> None:
        if self.present is None or number != len(self.ours.starts):
            return
        ended = self.present
        own = exit_ == _exit(ended)
        self.last = ended if own else None
        self.present = None
        self._part_over(ended, own=own)
        self.life.died()
        self.life.exited(exit_)

    def _part_over(self, ended: Life, *, own: bool) -> None:
        """Whether what we cannot know of this end decides how it goes on."""
        rules = self.scenario.rules
        if own and ended.dumps and ended.ends in rules.success:
            self.part("core-dump")
        if own and ended.lost:
            listed = ended.ends in (*rules.success, *rules.prevent, *rules.force)
            if listed or rules.policy == "on-abort":
                self.part("lost")


def _exit(life: Life) -> Exit:
    if life.lost:
        return Exit(lost=True)
    return Exit(signal=life.ends.number) if life.ends.signalled else Exit(code=life.ends.number)


def _agent(scenario: Scenario) -> Agent:
    rules = scenario.rules
    restart = {
        "policy": rules.policy,
        "delay_sec": rules.delay,
        "limit_burst": rules.burst,
        "limit_interval_sec": rules.interval,
        "limit_daily": rules.daily,
        "success_exit_status": _statuses(rules.success),
        "prevent_exit_status": _statuses(rules.prevent),
        "force_exit_status": _statuses(rules.force),
    }
    if rules.steps:
        restart |= {"steps": rules.steps, "max_delay_sec": rules.max_delay}
    told = {"name": "oracle", "run_as": "team", "role": "Be asked.", "restart": restart}
    return Agent.model_validate({**told, "stop_timeout_sec": rules.stop_timeout})


def _statuses(statuses: tuple[Status, ...]) -> list[int | str]:
    return [str(status) if status.signalled else status.number for status in statuses]
