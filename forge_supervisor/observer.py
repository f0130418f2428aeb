"""Knows what every session is doing, and tells when one is stuck and when it goes on again. Restarts nobody.

A session is observed by its user's worker (files) and reports by its hooks (mailbox.py). It listens to a feed for
sessions that begin and end, and tells each change of an activity to whoever listens to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, harness, journal
from forge_supervisor.activity import Activity, Doing, Gauges, Reported, Tracker
from forge_supervisor.handshake import LaunchError
from forge_supervisor.mailbox import Mailbox
from forge_supervisor.saved import SavedActivity
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import Capture, Observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.harness.activity import TellsActivity
    from forge_supervisor.mailbox import Letter
    from forge_supervisor.supervisor import Supervisor
    from forge_supervisor.worker.messages import Observed

log = structlog.get_logger()

LIMIT_GRACE = 60.0
"""Seconds after the end of a limit in which its program may go on by itself before the agent is taken for recovered."""
_QUIET = 0.05
"""Seconds between two looks at one session."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_SHOWN = 300


@dataclass(eq=False, slots=True)
class Observation:
    """One session. `since` is on the clock of its life."""

    life: Lifecycle
    invocation: str
    program: TellsActivity
    tracker: Tracker
    since: float
    is_ready: bool = False
    resumed: bool = False
    """It goes on with an earlier session, and nobody has told it to go on yet."""
    was_doing: Doing | None = None
    activity: Activity | None = None
    told: Activity | None = None
    """The trouble that was told of last, until it is over."""
    told_at: float = 0.0
    task: asyncio.Task[None] | None = None
    overdue: asyncio.TimerHandle | None = None
    recovery: asyncio.TimerHandle | None = None
    words: set[asyncio.Future[str]] = field(default_factory=set)
    """Of those who wait for a turn to begin."""

    @property
    def agent(self) -> Agent:
        return self.life.agent

    @property
    def doing(self) -> Doing | None:
        """What it would be doing if nothing were wrong."""
        return None if self.tracker.seen is None else self.tracker.seen.doing

    @property
    def gauges(self) -> Gauges:
        return self.tracker.gauges


class Observer:
    def __init__(self, supervisor: Supervisor, emit: Callable[[events.Event], None]) -> None:
        self._supervisor = supervisor
        self.emit = emit
        self._observed: dict[str, Observation] = {}
        self._mailbox = Mailbox(self._read)
        self._left: dict[str, SavedActivity] = {}
        """Of sessions that an earlier supervisor has seen, and of those that have ended."""
        self._change = asyncio.Event()
        self._closed = False
        self.turn_ended: Callable[[Lifecycle], None] = lambda _: None
        """Called when an agent's turn has come to its end, well or not."""
        self.became_idle: Callable[[Lifecycle], None] = lambda _: None
        """Called when an agent that worked has nothing more to do."""
        self.goes_on: Callable[[Observation], None] = lambda _: None
        """Called when a session that was resumed is at its prompt, and when one has recovered."""

    def begin(self, left: dict[str, SavedActivity]) -> None:
        """Know of sessions what an earlier supervisor has known of them."""
        self._left = left

    def of(self, agent: str) -> Observation | None:
        return self._observed.get(agent)

    def is_working(self, agent: str) -> bool:
        """Whether it works; also where that cannot be told."""
        observation = self._observed.get(agent)
        return observation is None or observation.doing not in {Doing.IDLE, Doing.WAITING}

    def troubles(self) -> dict[str, Doing]:
        """Tell of agents why they do not work, as far as that has been told."""
        left = {name: known.told for name, known in self._left.items()}
        told = left | {name: observation.told for name, observation in self._observed.items()}
        return {name: trouble.doing for name, trouble in told.items() if trouble is not None}

    def saved(self, agent: str) -> SavedActivity | None:
        """Tell what another supervisor has to know of the agent's session."""
        observation = self._observed.get(agent)
        if observation is None:
            return self._left.get(agent)
        return SavedActivity(
            failed=observation.tracker.failed,
            told=observation.told,
            told_at=observation.told_at,
            is_ready=observation.is_ready,
            resumed=observation.resumed,
        )

    def heard(self, name: str | None, event: events.Event | None) -> None:
        """Take note of sessions that begin and end."""
        life = None if name is None else self._supervisor.lives.get(name)
        if life is None or self._closed:
            return
        match event:
            case events.AgentStarted():
                last = self._left.pop(life.agent.name, SavedActivity())
                resumed = self._supervisor.resumes(life.agent.name)
                # A limit is the account's; what else was wrong a new session may have put right.
                failed = last.failed if last.failed is not None and last.failed.doing is Doing.LIMITED else None
                self._begin(life, SavedActivity(failed=failed, told=last.told, told_at=last.told_at, resumed=resumed))
            case events.AgentAdopted():
                self._begin(life, self._left.pop(life.agent.name, SavedActivity(is_ready=True)), adopted=True)
            case events.AgentExited():
                self._leave(life.agent.name)

    async def change(self) -> None:
        """Return when any activity is not as it was."""
        await self._change.wait()

    async def close(self) -> None:
        tasks = [observation.task for observation in self._observed.values() if observation.task is not None]
        self._closed = True
        for name in [*self._observed]:
            self._leave(name)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._mailbox.close()

    def _begin(self, life: Lifecycle, known: SavedActivity, *, adopted: bool = False) -> None:
        name = life.agent.name
        self._end(name)
        program = harness.that_tells_activity(life.agent.harness)
        if program is None or life.pid is None:
            return
        observation = self._observed[name] = Observation(
            life,
            life.invocation,
            program,
            Tracker(known.failed),
            since=asyncio.get_running_loop().time(),
            is_ready=known.is_ready,
            resumed=known.resumed,
            told=known.told,
            told_at=known.told_at,
        )
        if not adopted:
            observation.activity = Activity(Doing.STARTING)
        observation.task = asyncio.create_task(self._follow(observation, life.pid))

    def _wait_for_prompt(self, observation: Observation) -> None:
        # One that has been at its prompt, and seems to be no more, is about to end.
        if observation.doing is not Doing.STARTING or observation.is_ready or observation.overdue is not None:
            return
        life, loop = observation.life, asyncio.get_running_loop()
        left = life.started_at + life.agent.ready_timeout_sec - loop.time()
        if left != float("inf"):
            observation.overdue = loop.call_later(max(0.0, left), self._is_overdue, observation)

    def _leave(self, name: str) -> None:
        """End it, and keep what is known of it: for the agent's next session, or the next supervisor."""
        if (known := self.saved(name)) is not None:
            self._left[name] = known
        self._end(name)

    def _end(self, name: str) -> None:
        observation = self._observed.pop(name, None)
        if observation is None:
            return
        for timer in (observation.overdue, observation.recovery):
            if timer is not None:
                timer.cancel()
        for waiting in observation.words:
            waiting.cancel()
        if observation.task is not None:
            observation.task.cancel()
        self._tell_change()

    async def _follow(self, observation: Observation, pid: int) -> None:
        known: Observed | None = None
        pause = _FIRST_PAUSE
        said = ""
        while True:
            try:
                realm = self._supervisor.realm_of(observation.agent.run_as)
                self._mailbox.open(realm.user.uid)
                secrets = self._supervisor.secrets_of(observation.agent.name)
                known = await realm.ask(Observe.of(observation.agent, secrets, pid, known))
                pause = _FIRST_PAUSE
                observation.tracker.saw(known.seen())
                self._update(observation)
                # Its user may change the files as often as it likes.
                await asyncio.sleep(_QUIET)
                continue
            except WorkerLostError:
                pass
            except (WorkerError, LaunchError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self._warn(observation, f"what it is doing cannot be told for now: {said}")
            except Exception:
                log.exception("supervisor_fault", agent=observation.agent.name, run_as=observation.agent.run_as)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read(self, letter: Letter) -> None:
        uid, invocation, told = letter
        for observation in self._observed.values():
            if observation.invocation == invocation:
                break
        else:
            return
        try:
            # A user speaks for its own agents alone.
            if self._supervisor.realm_of(observation.agent.run_as).user.uid == uid:
                self._take(observation, observation.program.reported(told))
        except Exception:
            log.exception("supervisor_fault", agent=observation.agent.name, run_as=observation.agent.run_as)

    def _take(self, observation: Observation, reported: Reported) -> None:
        observation.tracker.heard(reported)
        if reported.turn == "began":
            for waiting in observation.words:
                if not waiting.done():
                    waiting.set_result(reported.words)
        self._update(observation)
        if reported.turn in {"ended", "failed"}:
            self.turn_ended(observation.life)

    def _update(self, observation: Observation) -> None:
        if self._observed.get(observation.agent.name) is not observation:
            return
        if observation.tracker.has_prompt and not observation.is_ready:
            observation.is_ready = True
            self._tell_ready(observation)
        self._wait_for_prompt(observation)
        self._tell_trouble(observation)
        before, observation.activity = observation.activity, observation.tracker.activity
        if (before and before.doing) != (observation.activity and observation.activity.doing):
            observation.since = asyncio.get_running_loop().time()
        was_doing, observation.was_doing = observation.was_doing, observation.doing
        if was_doing is Doing.WORKING and observation.doing is Doing.IDLE:
            self.became_idle(observation.life)
        goes_on = observation.resumed and observation.doing is Doing.IDLE and observation.tracker.trouble is None
        # Before it is told to go on: rather never than twice.
        observation.resumed = observation.resumed and not goes_on
        if before != observation.activity or goes_on:
            self._supervisor.note(observation.agent.name)
        # What is wrong hides what it does from people, not from who waits to type.
        if before != observation.activity or goes_on or was_doing != observation.doing:
            self._tell_change()
        if goes_on:
            self.goes_on(observation)

    def _tell_change(self) -> None:
        # Who waits looks again.
        self._change.set()
        self._change = asyncio.Event()

    def _tell_ready(self, observation: Observation) -> None:
        if observation.overdue is not None:
            observation.overdue.cancel()
        life = observation.life
        took = asyncio.get_running_loop().time() - life.started_at
        self.emit(events.AgentReady(agent=life.agent.name, run_as=life.agent.run_as, ready_sec=round(took, 3)))

    def _tell_trouble(self, observation: Observation) -> None:
        trouble, told, agent = observation.tracker.trouble, observation.told, observation.agent
        self._wait_for_the_end(observation, trouble)
        if (trouble and trouble.doing) == (told and told.doing):
            return
        now = asyncio.get_running_loop().time()
        if trouble is not None:
            observation.told, observation.told_at = trouble, now
            self.emit(
                events.AgentBlocked(
                    agent=agent.name,
                    run_as=agent.run_as,
                    activity=trouble.doing,
                    problem=trouble.detail,
                    fix=trouble.fix,
                )
            )
        elif told is not None and observation.tracker.has_prompt:
            observation.told = None
            since = round(now - observation.told_at, 3)
            self.emit(
                events.AgentRecovered(agent=agent.name, run_as=agent.run_as, activity=told.doing, blocked_sec=since)
            )
            # At its first prompt it has nothing to go on with, unless it has been resumed.
            if told.doing is not Doing.BLOCKED:
                observation.resumed = True

    def _wait_for_the_end(self, observation: Observation, trouble: Activity | None) -> None:
        """Have a limit be over when it is: its program need not do anything then by which that would show."""
        if observation.recovery is not None:
            observation.recovery.cancel()
            observation.recovery = None
        if trouble is not None and trouble.until is not None:
            left = max(0.0, trouble.until - time.time()) + LIMIT_GRACE
            loop = asyncio.get_running_loop()
            observation.recovery = loop.call_later(left, self._limit_is_over, observation)

    def _limit_is_over(self, observation: Observation) -> None:
        observation.tracker.limit_is_over()
        self._update(observation)

    def _is_overdue(self, observation: Observation) -> None:
        if not observation.tracker.has_prompt and observation.task is not None:
            # It shares the fate of the observation: whatever ends that ends this.
            task = asyncio.ensure_future(self._look_at_screen(observation))
            observation.task.add_done_callback(lambda _: task.cancel())

    async def _look_at_screen(self, observation: Observation) -> None:
        shown = await self._screen(observation)
        observation.tracker.is_overdue(_summed_up(shown) or "it is not at its prompt, and shows nothing")
        self._update(observation)

    async def _screen(self, observation: Observation) -> list[str]:
        agent = observation.agent
        realm = self._supervisor.realm_of(agent.run_as)
        with contextlib.suppress(WorkerError, LaunchError):
            if realm.server_pid is not None:
                captured = await realm.ask(Capture(agent=agent.name, server=realm.server_pid))
                return journal.shown(agent.run_as, "\n".join(captured.screen)).split("\n")
        return []

    def _warn(self, observation: Observation, problem: str) -> None:
        agent = observation.agent
        self.emit(events.AgentWarning(agent=agent.name, run_as=agent.run_as, key="", problem=problem))


def _summed_up(lines: Iterable[str]) -> str:
    """Put the words of a screen into one line; what is drawn around them says nothing."""
    words = (" ".join(filter(_says_something, line.split())) for line in lines)
    return " · ".join(filter(None, words))[:_SHOWN]


def _says_something(word: str) -> bool:
    return any(char.isalnum() for char in word)
