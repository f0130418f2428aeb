"""Knows what every session is doing, and tells when one is stuck and when it goes on again. Restarts nobody.

A session is observed by its user's worker (files) and reports by its hooks (mailbox.py). It listens to a feed for
sessions that begin and end, and tells each change of an activity to whoever listens to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, harness, journal, shown
from forge_supervisor.activity import Activity, Doing, Tracker
from forge_supervisor.handshake import LaunchError
from forge_supervisor.mailbox import Mailbox
from forge_supervisor.observation import Observation, account_of
from forge_supervisor.saved import SavedActivity
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import Capture, Observe

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.activity import Reported
    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.fleet import Fleet
    from forge_supervisor.mailbox import Letter
    from forge_supervisor.worker.messages import Observed

log = structlog.get_logger()

LIMIT_GRACE = 60.0
"""Seconds after the end of a limit in which its program may go on by itself before the agent is taken for recovered."""
LOOKED_AGAIN = 300.0
"""Seconds after which it is looked whether a limit is over: clocks are set, and machines sleep."""
FIRST_LOOK = 60.0
"""Seconds that a worker has for its first answer, for which it need not wait for anything."""
ENDS_WITHIN = 10.0
"""Seconds for which a session may seem not to be there before it ends."""
_QUIET = 0.05
"""Seconds between two looks at one session."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_MOST_COMPLAINTS = 20


class Observer:
    def __init__(self, fleet: Fleet, emit: Callable[[events.Event], None]) -> None:
        self._fleet = fleet
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
        return self._left.get(agent) if observation is None else observation.saved

    def heard(self, name: str | None, event: events.Event | None) -> None:
        """Take note of sessions that begin and end."""
        life = None if name is None else self._fleet.lives.get(name)
        if life is None or self._closed:
            return
        match event:
            case events.AgentStarted():
                self._begin(life, self._known_of_new(life))
            case events.AgentAdopted():
                known = self._left.pop(life.agent.name, SavedActivity(is_ready=True))
                # As it is declared now it is another program's, and about to end.
                if known.account in {None, account_of(life.agent)}:
                    self._begin(life, known, adopted=True)
            case events.AgentExited():
                self._leave(life.agent.name)

    def _known_of_new(self, life: Lifecycle) -> SavedActivity:
        last = self._left.pop(life.agent.name, SavedActivity())
        if last.account != account_of(life.agent):
            last = SavedActivity()
        # A limit is the account's; what else was wrong, or has no end that is known, a new session may have put right.
        failed = last.failed if last.failed is not None and (last.failed.until or 0) > time.time() else None
        resumed = self._fleet.resumes(life.agent.name)
        return SavedActivity(failed=failed, told=last.told, told_at=last.told_at, resumed=resumed)

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
            Tracker(known.failed, known.login, known.has_answered),
            since=asyncio.get_running_loop().time(),
            is_ready=known.is_ready,
            resumed=known.resumed,
            goes_on=not (adopted or known.resumed),
            has_reported=known.has_reported,
            told=known.told,
            told_at=known.told_at,
        )
        if not adopted:
            observation.activity = Activity(Doing.STARTING)
        observation.task = asyncio.create_task(self._follow(observation, life.pid))

    def _wait_for_prompt(self, observation: Observation) -> None:
        if observation.doing is not Doing.STARTING:
            if observation.overdue is not None:
                observation.overdue.cancel()
                observation.overdue = None
        elif observation.overdue is None:
            life, loop = observation.life, asyncio.get_running_loop()
            # One that has been at its prompt, and seems to be no more, is about to end.
            left = life.started_at + life.agent.ready_timeout_sec - loop.time()
            left = ENDS_WITHIN if observation.is_ready else left
            if left != float("inf"):
                observation.overdue = loop.call_later(max(0.0, left), self._is_overdue, observation)

    def _leave(self, name: str) -> None:
        """End it, and keep what is known of it: for the agent's next session, or the next supervisor."""
        if (known := self.saved(name)) is not None:
            self._left[name] = known
        self._end(name)

    def _end(self, name: str) -> None:
        observation = self._observed.pop(name, None)
        if observation is not None:
            observation.end()
            self._tell_change()

    async def _follow(self, observation: Observation, pid: int) -> None:
        known: Observed | None = None
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            try:
                known = await self._look_at(observation, pid, known)
                failures = 0
                # Its user may change the files as often as it likes.
                await asyncio.sleep(_QUIET)
                continue
            except WorkerLostError as error:
                if loop.time() - asked_at > _LONGEST_PAUSE:
                    failures = 0
                # Mostly there is another one at once.
                self._is_unseen(observation, str(error) if failures else "")
            except (WorkerError, LaunchError, OSError, harness.BrokenHarnessError) as error:
                self._complain(observation, error)
                self._is_unseen(observation, str(error))
            except Exception as error:
                log.exception("supervisor_fault", agent=observation.agent.name, run_as=observation.agent.run_as)
                self._is_unseen(observation, f"fault in the supervisor: {error!r}")
            known = None
            await asyncio.sleep(min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE))
            failures = min(failures + 1, 10)

    async def _look_at(self, observation: Observation, pid: int, known: Observed | None) -> Observed:
        """Return when there is something else to see than what is known."""
        realm = self._fleet.realm_of(observation.agent.run_as)
        self._mailbox.open(realm.user.uid)
        secrets = self._fleet.secrets_of(observation.agent.name)
        request = Observe.of(observation.agent, secrets, pid, known)
        try:
            async with asyncio.timeout(FIRST_LOOK if known is None else None):
                seen = await realm.ask(request)
        except TimeoutError:
            raise WorkerError(f"nobody has looked at its files within {FIRST_LOOK:g} s") from None
        was_current, observation.is_current, observation.problem = observation.is_current, True, ""
        observation.tracker.saw(shown.of_seen(observation.agent, seen.seen()), time.time())
        self._update(observation)
        if not was_current:
            self._tell_change()
        return seen

    def _is_unseen(self, observation: Observation, problem: str) -> None:
        observation.is_current, observation.problem = False, problem
        if problem:
            observation.tracker.is_unseen()
            self._update(observation)
        self._tell_change()

    def _read(self, letter: Letter) -> None:
        uid, invocation, told = letter
        for observation in self._observed.values():
            if observation.invocation == invocation:
                break
        else:
            return
        try:
            # A user speaks for its own agents alone.
            if self._fleet.realm_of(observation.agent.run_as).user.uid == uid:
                self._take(observation, observation.program.reported(told))
        except harness.BrokenHarnessError as error:
            self._complain(observation, error)
        except Exception:
            log.exception("supervisor_fault", agent=observation.agent.name, run_as=observation.agent.run_as)

    def _take(self, observation: Observation, reported: Reported) -> None:
        observation.tracker.heard(shown.of_reported(observation.agent, reported), time.time())
        ends = reported.turn in {"ended", "failed"}
        observation.turns_ended += ends
        observation.goes_on = reported.turn == "ended" or (observation.goes_on and not ends)
        observation.has_reported = True
        if reported.turn == "began":
            for waiting in observation.words:
                if not waiting.done():
                    waiting.set_result(reported.words)
        self._update(observation)
        if ends:
            self._tell_change()
            self.turn_ended(observation.life)

    def _update(self, observation: Observation) -> None:
        if self._observed.get(observation.agent.name) is not observation:
            return
        if observation.tracker.has_prompt and not observation.is_ready:
            observation.is_ready = True
            self._tell_ready(observation)
        self._wait_for_prompt(observation)
        self._tell_trouble(observation)
        self._plan_to_look_again(observation)
        before, observation.activity = observation.activity, observation.now_doing
        if (before and before.doing) != (observation.activity and observation.activity.doing):
            observation.since = asyncio.get_running_loop().time()
        was_doing, observation.was_doing = observation.was_doing, observation.doing
        if was_doing is Doing.WORKING and observation.doing is Doing.IDLE:
            self.became_idle(observation.life)
        goes_on = observation.resumed and observation.doing is Doing.IDLE and observation.tracker.trouble is None
        # Before it is told to go on: rather never than twice.
        observation.resumed = observation.resumed and not goes_on
        if before != observation.activity or goes_on:
            self._fleet.note(observation.agent.name)
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
        life = observation.life
        took = asyncio.get_running_loop().time() - life.started_at
        self.emit(events.AgentReady(agent=life.agent.name, run_as=life.agent.run_as, ready_sec=round(took, 3)))

    def _tell_trouble(self, observation: Observation) -> None:
        now = asyncio.get_running_loop().time()
        if not observation.has_news or not observation.telling.allow(now):
            return
        trouble, told, agent = observation.tracker.trouble, observation.told, observation.agent
        observation.told = trouble
        if trouble is not None:
            observation.told_at, observation.goes_on = now, False
            self.emit(
                events.AgentBlocked(
                    agent=agent.name,
                    run_as=agent.run_as,
                    activity=trouble.doing,
                    problem=trouble.detail,
                    fix=trouble.fix,
                )
            )
        elif told is not None:
            since = round(now - observation.told_at, 3)
            self.emit(
                events.AgentRecovered(agent=agent.name, run_as=agent.run_as, activity=told.doing, blocked_sec=since)
            )
            # At its first prompt it has nothing to go on with, unless it has been resumed.
            if told.doing is not Doing.BLOCKED and not observation.goes_on:
                observation.resumed = True

    def _plan_to_look_again(self, observation: Observation) -> None:
        """Have a limit be over when it is: its program need not do anything then by which that would show."""
        if observation.look_again is not None:
            observation.look_again.cancel()
            observation.look_again = None
        trouble = observation.tracker.trouble
        delays = [observation.telling.interval] if observation.has_news else []
        if trouble is not None and trouble.until is not None:
            delays.append(min(max(0.0, trouble.until + LIMIT_GRACE - time.time()), LOOKED_AGAIN))
        if delays:
            loop = asyncio.get_running_loop()
            observation.look_again = loop.call_later(min(delays), self._look_again, observation)

    def _look_again(self, observation: Observation) -> None:
        observation.tracker.time_passes(time.time() - LIMIT_GRACE)
        self._update(observation)

    def _is_overdue(self, observation: Observation) -> None:
        if observation.doing is not Doing.STARTING:
            return
        if observation.is_ready:
            error = WorkerError("its files say nothing of its session any more")
            self._complain(observation, error)
            self._is_unseen(observation, str(error))
        elif observation.task is not None:
            # It shares the fate of the observation: whatever ends that ends this.
            task = asyncio.ensure_future(self._look_at_screen(observation))
            observation.task.add_done_callback(lambda _: task.cancel())

    async def _look_at_screen(self, observation: Observation) -> None:
        try:
            screen = await self._screen(observation)
            observation.tracker.is_overdue(shown.summed_up(screen) or "it is not at its prompt, and shows nothing")
            self._update(observation)
        except Exception:
            log.exception("supervisor_fault", agent=observation.agent.name, run_as=observation.agent.run_as)

    async def _screen(self, observation: Observation) -> list[str]:
        agent = observation.agent
        with contextlib.suppress(WorkerError, LaunchError):
            realm = self._fleet.realm_of(agent.run_as)
            if realm.server_pid is not None:
                captured = await realm.ask(Capture(agent=agent.name, server=realm.server_pid))
                return journal.shown(agent.run_as, "\n".join(captured.screen)).split("\n")
        return []

    def _complain(self, observation: Observation, error: Exception) -> None:
        """Tell once why it is not known what it is doing."""
        said = observation.complaints
        # A user's hooks may report as often as they like.
        if str(error) not in said and len(said) < _MOST_COMPLAINTS:
            said.add(str(error))
            self._warn(observation, f"what it is doing cannot be told for now: {error}")

    def _warn(self, observation: Observation, problem: str) -> None:
        agent = observation.agent
        self.emit(events.AgentWarning(agent=agent.name, run_as=agent.run_as, key="", problem=problem))
