"""What is known of one session while it runs: the state that observer.py keeps, and others read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forge_supervisor.activity import Doing, Gauges
from forge_supervisor.policy import RateLimit
from forge_supervisor.saved import SavedActivity

if TYPE_CHECKING:
    import asyncio

    from forge_supervisor.activity import Activity, Tracker
    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent
    from forge_supervisor.harness.activity import TellsActivity

TOLD_AT_MOST = (300.0, 10)
"""Seconds, and how often in them it is told of one session that something is wrong, or is over: an agent's user can say
so as often as it likes, and each is an event, and may be a command that runs and a prompt that costs money."""


@dataclass(eq=False, slots=True)
class Observation:
    """`since` is on the clock of its life."""

    life: Lifecycle
    invocation: str
    program: TellsActivity
    tracker: Tracker
    since: float
    is_ready: bool = False
    resumed: bool = False
    """It goes on with an earlier session, and nobody has told it to go on yet."""
    is_current: bool = False
    """Whether what was seen of it last is so now."""
    problem: str = ""
    """Why it cannot be told what it is doing."""
    turns_ended: int = 0
    goes_on: bool = False
    """A turn has ended well since it was told that something is wrong; or there is nothing that it could go on with."""
    has_reported: bool = False
    """Whether its hooks have told anything; those of a session may be forbidden, or be another version's."""
    was_doing: Doing | None = None
    activity: Activity | None = None
    told: Activity | None = None
    """The trouble that was told of last, until it is over."""
    told_at: float = 0.0
    telling: RateLimit = field(default_factory=lambda: RateLimit(*TOLD_AT_MOST))
    task: asyncio.Task[None] | None = None
    overdue: asyncio.TimerHandle | None = None
    look_again: asyncio.TimerHandle | None = None
    """When there is more to tell than may be told now, or a limit may be over."""
    complaints: set[str] = field(default_factory=set)
    """What has been said of why it is not known what it is doing."""
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
    def now_doing(self) -> Activity | None:
        """What it is doing, as it is to be told: until it has been looked at, what was told last."""
        is_unseen = self.tracker.seen is None and not self.problem
        return self.tracker.activity or (self.activity if is_unseen else None)

    @property
    def is_idle(self) -> bool:
        """Whether it would take what is typed now for a message."""
        return self.is_current and self.doing is Doing.IDLE

    @property
    def has_news(self) -> bool:
        """Whether something else is wrong, or nothing any more, than has been told."""
        trouble = self.tracker.trouble
        if trouble is None:
            return self.told is not None and self.tracker.has_prompt
        return self.told is None or trouble.doing is not self.told.doing

    @property
    def gauges(self) -> Gauges:
        return self.tracker.gauges

    @property
    def saved(self) -> SavedActivity:
        """Tell what another supervisor has to know of it."""
        return SavedActivity(
            account=account_of(self.agent),
            failed=self.tracker.failed,
            login=self.tracker.login,
            has_answered=self.tracker.has_answered,
            has_reported=self.has_reported,
            told=self.told,
            told_at=self.told_at,
            is_ready=self.is_ready,
            resumed=self.resumed,
        )

    def end(self) -> None:
        """Wait for nothing more."""
        for timer in (self.overdue, self.look_again):
            if timer is not None:
                timer.cancel()
        for waiting in self.words:
            waiting.cancel()
        if self.task is not None:
            self.task.cancel()


def account_of(agent: Agent) -> tuple[str, str]:
    """Name whose limits and logins are an agent's."""
    return agent.run_as, agent.harness
