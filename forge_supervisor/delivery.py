"""Brings a message to an agent: types it when the agent can take it, and tells whether it has."""

from __future__ import annotations

import asyncio
import contextlib
import unicodedata
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, harness
from forge_supervisor.activity import Doing
from forge_supervisor.handshake import LaunchError
from forge_supervisor.memory import State
from forge_supervisor.typeable import typeable
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import Send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.fleet import Fleet
    from forge_supervisor.observation import Observation
    from forge_supervisor.observer import Observer

log = structlog.get_logger()

CONFIRMED_WITHIN = 10.0
"""Seconds from Enter to the hook that tells that a turn has begun."""
SHOWN_WITHIN = 1.0
"""Seconds from that hook until the session's files show it as well."""
_NOT_TAKEN = f"it was typed, but has not been taken as a message within {CONFIRMED_WITHIN:g} s (forgectl screen)"
_COMPARED = 200
"""Letters and digits of a message by which it is known again: fewer than `report.shortened` leaves of any."""


class UndeliveredError(Exception):
    """The text is a sentence."""


class NotRunningError(Exception):
    pass


class Delivery:
    def __init__(self, fleet: Fleet, observer: Observer) -> None:
        self._fleet = fleet
        self._observer = observer
        self._typing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """A worker has not many threads, and two messages at once would mix."""
        self._prompts: dict[str, asyncio.Task[None]] = {}
        """Those that wait to be typed, by invocation: one is enough, however often it recovers meanwhile."""
        self._submitting: set[asyncio.Task[None]] = set()

    async def deliver(self, life: Lifecycle, text: str, *, invocation: str | None = None) -> None:
        """Type a text and Enter, once the agent is idle, and return when it has taken that as a message.

        Of an agent that does not tell what it is doing: at once, and return when it has read it. `invocation`: to that
        session or none. Raises NotRunningError and UndeliveredError.
        """
        # JSON can hold half a character, and nothing else can.
        text = text.encode(errors="ignore").decode()
        observation = self._observer.of(life.agent.name)
        if observation is not None and (why := _unsendable(observation, text)) is not None:
            raise UndeliveredError(f"nothing was typed: {why}")
        typing = self._typing[life.agent.name]
        await typing.acquire()
        try:
            await self._until_idle(life, invocation)
        except BaseException:
            typing.release()
            raise
        # What is being typed cannot be called back, and until it has been taken nobody else's turn has come.
        submitting = asyncio.create_task(self._submit(life, text))
        self._submitting.add(submitting)
        submitting.add_done_callback(self._submitting.discard)
        submitting.add_done_callback(lambda _: typing.release())
        await asyncio.shield(submitting)

    async def _submit(self, life: Lifecycle, text: str) -> None:
        observation = self._observer.of(life.agent.name)
        if observation is None:
            await self._type(life, text)
            return
        turns_ended = observation.turns_ended
        async with _beginning(observation) as began:
            await self._type(life, text, observation.program.clearing_key)
            # Hooks may be forbidden, or be those of an earlier version of ours: then its files alone can confirm it.
            if is_told := observation.has_reported:
                await _confirm(began, text)
        try:
            async with asyncio.timeout(SHOWN_WITHIN if is_told else CONFIRMED_WITHIN):
                while observation.is_idle and observation.turns_ended == turns_ended:
                    await self._observer.change()
        except TimeoutError:
            if not is_told:
                raise UndeliveredError(_NOT_TAKEN) from None

    def go_on(self, observation: Observation) -> None:
        """Tell an agent that goes on with an earlier session what it is to be told then, if anything."""
        invocation, prompt = observation.invocation, observation.agent.resume.prompt
        if prompt is not None and invocation not in self._prompts:
            task = self._prompts[invocation] = asyncio.create_task(self._tell(observation, prompt))
            task.add_done_callback(lambda _: self._prompts.pop(invocation))

    async def close(self) -> None:
        tasks = [*self._prompts.values(), *self._submitting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, observation: Observation, prompt: str) -> None:
        agent = observation.agent
        try:
            await self.deliver(observation.life, prompt, invocation=observation.invocation)
        except NotRunningError:
            pass
        except UndeliveredError as error:
            key = f"agents.{agent.name}.resume.prompt"
            self._observer.emit(
                events.AgentWarning(agent=agent.name, run_as=agent.run_as, key=key, problem=str(error))
            )
        except Exception:
            log.exception("supervisor_fault", agent=agent.name, run_as=agent.run_as)

    async def _until_idle(self, life: Lifecycle, invocation: str | None) -> None:
        while True:
            if life.state is not State.RUNNING or life.pid is None or invocation not in {None, life.invocation}:
                raise NotRunningError
            observation = self._observer.of(life.agent.name)
            if observation is None and harness.that_tells_activity(life.agent.harness) is not None:
                # Its session is about to end, or we are.
                raise NotRunningError
            if observation is None or observation.is_idle:
                return
            if observation.problem:
                text = f"nothing was typed: what it is doing cannot be told for now ({observation.problem})"
                raise UndeliveredError(text)
            activity = observation.activity
            if activity is not None and activity.doing in {Doing.WAITING, Doing.BLOCKED}:
                why = f"{activity.doing} ({activity.detail})" if activity.detail else str(activity.doing)
                raise UndeliveredError(f"nothing was typed: it is {why}, and would take a message for an answer")
            await self._observer.change()

    async def _type(self, life: Lifecycle, text: str, clearing_key: str = "") -> None:
        realm = self._fleet.realm_of(life.agent.run_as)
        if realm.server_pid is None or life.state is not State.RUNNING or life.pid is None:
            raise NotRunningError
        name = life.agent.name
        request = Send(agent=name, server=realm.server_pid, pid=life.pid, text=text, clearing_key=clearing_key)
        try:
            await realm.ask(request)
        except (WorkerError, LaunchError) as error:
            raise UndeliveredError(str(error)) from error


def _unsendable(observation: Observation, text: str) -> str | None:
    try:
        why = observation.program.unsendable(text)
    except harness.BrokenHarnessError as error:
        return str(error)
    return None if why is None else f"it {why}"


@contextlib.asynccontextmanager
async def _beginning(observation: Observation) -> AsyncIterator[asyncio.Future[str]]:
    began: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    observation.words.add(began)
    try:
        yield began
    finally:
        observation.words.discard(began)
        began.cancel()


async def _confirm(began: asyncio.Future[str], text: str) -> None:
    try:
        async with asyncio.timeout(CONFIRMED_WITHIN):
            words = await asyncio.shield(began)
    except TimeoutError:
        raise UndeliveredError(_NOT_TAKEN) from None
    except asyncio.CancelledError:
        if began.cancelled():
            text = "it was typed, and whether it was taken is not known: its session has ended, or the supervisor has"
            raise UndeliveredError(text) from None
        raise
    if _told_apart(words) != _told_apart(text):
        raise UndeliveredError("it was typed, but has been taken with other words (somebody types there)")


def _told_apart(text: str) -> str:
    """Take what is left of a message whatever way it goes: programs trim it, and tell it in another form."""
    letters = filter(str.isalnum, unicodedata.normalize("NFC", typeable(text)))
    return "".join(islice(letters, _COMPARED))
