"""Runs the commands of [[on_event]] when something happens to an agent, and lets none of them harm anybody."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, journal, units
from forge_supervisor.realm import SYSTEM_PATH, login_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from forge_supervisor.config_hooks import HookEvent, OnEvent

log = structlog.get_logger()

MOST_AT_ONCE = 4
MOST_WAITING = 100
"""Beyond it the oldest are dropped: what has happened last matters most."""
CLOSE_PATIENCE = 2.0
"""Seconds for what there still is to do when the supervisor ends."""


@dataclass(frozen=True, slots=True)
class _Call:
    hook: OnEvent
    word: HookEvent
    agent: str
    run_as: str
    told: bytes


class Hooks:
    """Listens to a feed with `heard`. `declared` tells the hooks that there are now."""

    def __init__(
        self,
        placement: units.Placement,
        declared: Callable[[], Sequence[OnEvent]],
        emit: Callable[[events.Event], None],
    ) -> None:
        self._placement = placement
        self._declared = declared
        self._emit = emit
        self._down: set[str] = set()
        """Agents of which it was told, or would have been, that they have failed, and not yet that they run again."""
        self._waiting: deque[_Call] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._dropping = False

    def begin(self, failed: Collection[str]) -> None:
        """Take it as told that these agents have failed: an earlier supervisor has."""
        self._down.update(failed)

    def heard(self, _agent: str | None, event: events.Event | None) -> None:
        """Have the hooks run that wait for this event."""
        try:
            if isinstance(event, events.AgentEvent) and (word := self._word_of(event)) is not None:
                self._call(word, event)
        except Exception:
            log.exception("supervisor_fault")

    async def close(self) -> None:
        """Wait a little for all to end. With systemd those that run come to their end by themselves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_PATIENCE):
                while self._running:
                    await asyncio.wait(self._running)
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _word_of(self, event: events.AgentEvent) -> HookEvent | None:
        """Tell what an event is called in [[on_event]]."""
        match event:
            case events.AgentFailed():
                self._down.add(event.agent)
                return "start-limit" if event.start_limit_hit or event.daily_limit_hit else "failed"
            case events.AgentBlocked() | events.BudgetExceeded():
                return "blocked"
            case events.AgentRecovered():
                return "recovered"
            case events.AgentStarted() if event.agent in self._down:
                self._down.discard(event.agent)
                return "recovered"
        return None

    def _call(self, word: HookEvent, event: events.AgentEvent) -> None:
        told = _as_json(word, event)
        for hook in self._declared():
            if word in hook.events:
                self._enqueue(_Call(hook, word, event.agent, event.run_as, told))
        self._run_more()

    def _enqueue(self, call: _Call) -> None:
        self._waiting.append(call)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            if not self._dropping:
                self._dropping = True
                self._emit(events.HooksDropped(most=MOST_WAITING))

    def _run_more(self) -> None:
        while self._waiting and len(self._running) < MOST_AT_ONCE:
            task = asyncio.create_task(self._run(self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._has_run)
        # Once for each time that it gets too much.
        self._dropping = self._dropping and bool(self._waiting)

    def _has_run(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._run_more()

    async def _run(self, call: _Call) -> None:
        try:
            await self._complete(call)
        except (LookupError, OSError, units.PlacementError) as error:
            self._emit(
                events.HookFailed(
                    agent=call.agent,
                    run_as=call.run_as,
                    hook=call.hook.command[0],
                    hook_user=call.hook.user,
                    hook_event=call.word,
                    problem=str(error),
                )
            )
        except Exception:
            log.exception("supervisor_fault", agent=call.agent, run_as=call.run_as)

    async def _complete(self, call: _Call) -> None:
        user = units.lookup(call.hook.user)
        with _to_read(call.told) as stdin:
            await self._placement.complete(
                f"hook-{next(self._numbers)}",
                user,
                call.hook.command,
                env={**login_environment(user), "PATH": SYSTEM_PATH},
                stdin=stdin,
                within=call.hook.timeout_sec,
            )


def _as_json(word: HookEvent, event: events.AgentEvent) -> bytes:
    told = journal.told(event)
    return json.dumps(
        {
            "event": word,
            "agent": event.agent,
            "run_as": event.run_as,
            "time_usec": time.time_ns() // 1000,
            "message": told["message"],
            "fields": {name: value for name, value in told.items() if name != "message"},
            "host": socket.gethostname(),
        }
    ).encode()


@contextlib.contextmanager
def _to_read(text: bytes) -> Iterator[int]:
    """Give a descriptor that reads as `text`, however long; nobody waits for who does not read it."""
    descriptor = os.memfd_create("hook", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
