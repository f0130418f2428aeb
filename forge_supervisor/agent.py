"""One agent's life: a state machine with systemd's unit states and restart rules.

It is told what happened (`launched`, `launch_failed`, `died`, `exited`), asked
for what the operator wants (`start`, `stop`, `restart`, `reset_failed`), and
acts through a `Runner`. It does no I/O and reads time only from its `Clock`.

                 +---------------- start -----------------+
                 v                                        |
    inactive -> starting -> running -> stopping -> inactive | failed
                 ^  |                     |
                 |  +-- launch failed -+  |
                 |                     v  v
                 +--- timer ----- auto-restart -- a limit hit -> failed
"""

from __future__ import annotations

import uuid
from dataclasses import fields
from typing import TYPE_CHECKING

from forge_supervisor import events
from forge_supervisor.config_files import key_path
from forge_supervisor.memory import Memory, State, begins_anew
from forge_supervisor.policy import DAY, RateLimit, Result, restart_delay, result_of, should_restart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forge_supervisor.config import Agent, Problem
    from forge_supervisor.policy import Exit
    from forge_supervisor.seams import Clock, Runner, Timer


_TRANSITIONS: dict[State, frozenset[State]] = {
    State.INACTIVE: frozenset({State.STARTING, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.AUTO_RESTART, State.FAILED}),
    State.RUNNING: frozenset({State.STOPPING}),
    State.STOPPING: frozenset({State.INACTIVE, State.AUTO_RESTART, State.FAILED}),
    State.AUTO_RESTART: frozenset({State.STARTING, State.INACTIVE, State.FAILED}),
    State.FAILED: frozenset({State.STARTING, State.INACTIVE, State.FAILED}),
}


class Lifecycle(Memory):
    """One agent's life. What happens is told before it is remembered: rather twice, by two supervisors, than never."""

    def __init__(
        self,
        agent: Agent,
        runner: Runner,
        *,
        clock: Clock,
        emit: Callable[[events.Event], None],
        stop_exit_status: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.agent = agent
        self.stop_exit_status = stop_exit_status
        self.changed: Callable[[], None] = lambda: None
        """Called after every change of what `memory` tells, and before anything is done that follows from it."""
        self.beginning: Callable[[], None] = lambda: None
        """Called when a new session is about to be launched, before that is told as a change."""
        self.since = clock.time()
        self._runner = runner
        self._clock = clock
        self._emit = emit
        self._successor: tuple[Agent, frozenset[int]] | None = None
        self._limit = RateLimit(agent.restart.limit_interval_sec, agent.restart.limit_burst)
        self._daily = RateLimit(DAY, agent.restart.limit_daily)
        self._timer: Timer | None = None

    @property
    def declared(self) -> Agent:
        """The configuration of the next session; `agent` is that of the present or last one."""
        return self._successor[0] if self._successor is not None else self.agent

    @property
    def stays_down(self) -> bool:
        """Whether somebody has stopped it, and nobody has started it since."""
        return self.stop_requested and not self.start_again

    @property
    def begins_anew(self) -> bool:
        """Whether a session that is launched now is to have no memory of earlier ones."""
        return begins_anew(self.agent.resume.policy, self)

    def memory(self) -> Memory:
        """Tell what another supervisor has to know to `resume` this life."""
        remembered = {field.name: getattr(self, field.name) for field in fields(Memory)}
        return Memory(**{**remembered, "window": self._limit.window, "daily_window": self._daily.window})

    def resume(self, memory: Memory) -> None:
        """Go on with a life that an earlier supervisor has watched. Comes before all else."""
        for field in fields(Memory):
            setattr(self, field.name, getattr(memory, field.name))
        self._limit.window, self._daily.window = memory.window, memory.daily_window
        # Older supervisors did not write it down.
        self.since = memory.since or max(memory.started_at, memory.died_at) or self._clock.time()
        match self.state:
            case State.AUTO_RESTART:
                self._await(self._left(0.0), self._restart_due)
            case State.STARTING | State.RUNNING | State.STOPPING:
                self._runner.resume(self.agent, self.invocation, self)
            case State.INACTIVE | State.FAILED if self.start_again:
                self.start_again = False
                self.start()

    def freeze(self) -> None:
        """Do nothing more of one's own accord: another supervisor goes on with this life."""
        self.changed = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    # What the operator asks for.

    def start(self) -> None:
        """Start by hand. Ends in `failed` where a limit of starts has been hit."""
        match self.state:
            case State.STARTING | State.RUNNING:
                return
            case State.STOPPING:
                # As with systemctl: the start waits for the stop to end. A death that nobody asked for is
                # still to be judged by the restart policy, and an answer of 'no' is overruled.
                self.start_again = True
                self.changed()
            case _:
                self._cancel_timer()
                # Even if a limit refuses it.
                self.stop_requested = False
                self._start(by_hand=True)

    def stop(self) -> None:
        """Stop and keep stopped: no restart undoes it."""
        self.start_again = False
        match self.state:
            case State.INACTIVE | State.FAILED:
                # For whoever may be about to start it.
                self.stop_requested = True
                self.changed()
            case State.AUTO_RESTART:
                self.stop_requested = True
                self._cancel_timer()
                self._emit_stopped()
                self._enter(State.INACTIVE)
            case State.STARTING:
                # The launch takes a bounded time, and only its end tells whether there is something to stop.
                self.stop_requested = True
                self._enter(State.STOPPING)
            case State.RUNNING:
                self.stop_requested = True
                self._enter(State.STOPPING)
                self._terminate()
            case State.STOPPING:
                self.stop_requested = True
                self.changed()

    def restart(self, *, fresh: bool = False) -> None:
        """Stop, if there is something to stop, and start; `fresh`: without the memory of earlier sessions."""
        self.fresh = self.fresh or fresh
        self.stop()
        self.start()

    def reset_failed(self) -> None:
        self._limit.reset()
        self._daily.reset()
        self.n_restarts = 0
        self.start_limit_hit = self.daily_limit_hit = False
        self.result = Result.SUCCESS
        if self.state is State.FAILED:
            self._enter(State.INACTIVE)
        self.changed()

    def kill(self) -> None:
        """Wait no longer for a stop that is under way."""
        if self.state is State.STOPPING and self.alive:
            self._cancel_timer()
            self._stop_timeout()

    def reconfigure(self, agent: Agent) -> None:
        """Take a new configuration that needs no new session: its restart and stop rules hold from now on."""
        if self._successor is not None:
            self._successor = (agent, self.stop_exit_status)
        else:
            self._declare(agent, self.stop_exit_status)

    def replace(self, agent: Agent, stop_exit_status: frozenset[int]) -> None:
        """Run as another configuration from the next session on, which begins as soon as this one has been stopped.

        What the old one did does not count against the new one.
        """
        self._successor = (agent, stop_exit_status)
        self.reset_failed()
        self.restart()

    # What the runner tells.

    def launched(self, pid: int) -> None:
        assert self.launching, "launched without a launch"
        self.launching = False
        # Asked for while this one was being launched, it is meant for the one that is to follow.
        self.fresh = self.fresh and self.start_again
        self.alive = True
        self.pid = pid
        self.started_at = self._clock.time()
        self._emit(
            events.AgentStarted(
                agent=self.agent.name,
                run_as=self.agent.run_as,
                pid=pid,
                invocation=self.invocation,
                n_restarts=self.n_restarts,
            )
        )
        if self.state is State.STARTING:
            self._enter(State.RUNNING)
        else:
            self.changed()
        if self.stop_requested:
            self._terminate()

    def found(self) -> None:
        """Take note that the session of an earlier supervisor lives."""
        self._emit(
            events.AgentAdopted(
                agent=self.agent.name,
                run_as=self.agent.run_as,
                pid=self.pid or 0,
                invocation=self.invocation,
                uptime_sec=round(self._clock.time() - self.started_at, 3),
                n_restarts=self.n_restarts,
            )
        )
        if self.stop_timed_out:
            self._runner.kill()
        elif self.stop_requested:
            self._terminate()

    def launch_failed(self, problem: Problem) -> None:
        assert self.launching, "a failed launch without a launch"
        self.launching = False
        self.result, self.exit = Result.RESOURCES, None
        state, what_next = self._verdict()
        self._emit(
            events.AgentStartFailed(
                agent=self.agent.name,
                run_as=self.agent.run_as,
                key=key_path(self.agent.name, problem.key),
                problem=problem.text,
                n_restarts=self.n_restarts,
                next=what_next,
            )
        )
        self._settle(state)

    def died(self) -> None:
        """Take note that the main process is gone; how, and that nothing is left of it, `exited` will tell."""
        if self.alive:
            self.alive = False
            self.died_at = self._clock.time()
        self._cancel_timer()
        if self.state is State.RUNNING:
            self._enter(State.STOPPING)
        else:
            self.changed()

    def exited(
        self, exit_: Exit, screen: Sequence[str] = (), *, oom_killed: bool = False, unresumable: bool = False
    ) -> None:
        """Take note of how it ended; `unresumable`: because the earlier session could not be resumed."""
        assert self.state is State.STOPPING, f"an exit while {self.state}"
        self.exit = exit_
        self.result = self._result(exit_, oom_killed=oom_killed)
        self.ended_cleanly = self.result is Result.SUCCESS
        self.fresh = self.fresh or unresumable
        state, what_next = self._verdict()
        self._emit(
            events.AgentExited(
                agent=self.agent.name,
                run_as=self.agent.run_as,
                pid=self.pid or 0,
                invocation=self.invocation,
                exit_code=exit_.code,
                signal=exit_.signal,
                uptime_sec=round(self.died_at - self.started_at, 3),
                result=self.result,
                n_restarts=self.n_restarts,
                next=what_next,
                screen="\n".join(screen),
            )
        )
        if unresumable:
            self._emit_unresumable()
        self.pid = None
        self._settle(state)

    # How it goes on.

    def _result(self, exit_: Exit, *, oom_killed: bool) -> Result:
        also = self.stop_exit_status if self.stop_requested else frozenset()
        result = result_of(exit_, self.agent.restart, also=also)
        if self.stop_timed_out:
            return Result.TIMEOUT
        # What died of it need not have been the main process, whose end then is what systemd did to the rest.
        return Result.OOM_KILL if oom_killed else result

    def _verdict(self) -> tuple[State, str]:
        """Say which state follows the end of a session, and the same for people."""
        if self.stop_requested:
            ended = State.INACTIVE if self.result is Result.SUCCESS else State.FAILED
            return ended, "starting again as requested" if self.start_again else "stopped as requested"
        restart = self.agent.restart
        if should_restart(restart, self.result, self.exit, stop_requested=False):
            return State.AUTO_RESTART, f"restarting in {restart_delay(restart, self.n_restarts):g} s"
        ended = State.INACTIVE if self.result is Result.SUCCESS else State.FAILED
        return ended, f"not restarted (restart policy {restart.policy})"

    def _settle(self, state: State) -> None:
        if state is State.AUTO_RESTART and not self.start_again:
            delay = restart_delay(self.agent.restart, self.n_restarts)
            self._emit(
                events.AgentRestarting(
                    agent=self.agent.name, run_as=self.agent.run_as, delay_sec=delay, n_restarts=self.n_restarts
                )
            )
            self._await(delay, self._restart_due)
        elif state is State.INACTIVE:
            self._emit_stopped()
        elif state is State.FAILED:
            self._emit_failed()
        self._enter(state)
        if self.start_again:
            self.start_again = False
            self.start()

    def _restart_due(self) -> None:
        self._timer = self.due = None
        self.n_restarts += 1
        self._start()

    def _declare(self, agent: Agent, stop_exit_status: frozenset[int]) -> None:
        self.agent, self.stop_exit_status = agent, stop_exit_status
        self._limit.set(agent.restart.limit_interval_sec, agent.restart.limit_burst)
        self._daily.set(DAY, agent.restart.limit_daily)

    def _start(self, *, by_hand: bool = False) -> None:
        if self._successor is not None:
            self._declare(*self._successor)
            self._successor = None
        now = self._clock.time()
        self.start_limit_hit = not self._limit.allow(now)
        # A start that the one limit refuses is none for the other.
        self.daily_limit_hit = not self.start_limit_hit and not self._daily.allow(now)
        if self.start_limit_hit or self.daily_limit_hit:
            # systemd keeps the result of the last failure; the flags tell the rest.
            self._emit_failed()
            self._enter(State.FAILED)
            return
        if by_hand:
            # A start that is refused is none, and does not clear it (service_start() comes after service_can_start()).
            self.n_restarts = 0
        self.result = Result.SUCCESS
        self.start_again = self.stop_requested = self.stop_timed_out = False
        self.invocation = uuid.uuid4().hex
        self.launching = True
        self.beginning()
        self._enter(State.STARTING)
        self._runner.launch(self.agent, self.invocation, self)

    def _terminate(self) -> None:
        self._runner.terminate()
        patience = self._left(self.agent.stop_timeout_sec)
        if patience != float("inf"):
            self._await(patience, self._stop_timeout)
        self.changed()

    def _left(self, usual: float) -> float:
        """Tell how long to wait: what an earlier supervisor has left of it."""
        return usual if self.due is None else max(0.0, self.due - self._clock.time())

    def _await(self, delay: float, callback: Callable[[], None]) -> None:
        self._timer = self._clock.call_later(delay, callback)
        self.due = self._clock.time() + delay

    def _stop_timeout(self) -> None:
        self._timer = self.due = None
        self.stop_timed_out = True
        self.changed()
        self._runner.kill()

    def _emit_stopped(self) -> None:
        self._emit(
            events.AgentStopped(
                agent=self.agent.name, run_as=self.agent.run_as, result=self.result, n_restarts=self.n_restarts
            )
        )

    def _emit_unresumable(self) -> None:
        name = self.agent.name
        text = "its last session cannot be resumed, so the next start begins a new one"
        self._emit(
            events.AgentWarning(agent=name, run_as=self.agent.run_as, key=key_path(name, "resume"), problem=text)
        )

    def _emit_failed(self) -> None:
        restart = self.agent.restart
        self._emit(
            events.AgentFailed(
                agent=self.agent.name,
                run_as=self.agent.run_as,
                result=self.result,
                start_limit_hit=self.start_limit_hit,
                n_restarts=self.n_restarts,
                limit_burst=restart.limit_burst,
                limit_interval_sec=restart.limit_interval_sec,
                daily_limit_hit=self.daily_limit_hit,
                limit_daily=restart.limit_daily,
            )
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Without a timer too: an earlier supervisor may have had one.
        self._timer = self.due = None

    def _enter(self, state: State) -> None:
        assert state in _TRANSITIONS[self.state], f"{self.agent.name}: no way from {self.state} to {state}"
        self.state, self.since = state, self._clock.time()
        self.changed()
