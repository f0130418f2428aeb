"""What has to be known of an agent's life: its state, and all that the next supervisor needs to go on with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from forge_supervisor.policy import Exit, Result

if TYPE_CHECKING:
    from forge_supervisor.config_restart import ResumePolicy


class State(StrEnum):
    INACTIVE = "inactive"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    """Being brought down: by request, or its main process has died and its leftovers are being cleared."""
    AUTO_RESTART = "auto-restart"
    FAILED = "failed"


AT_REST = frozenset({State.INACTIVE, State.FAILED})


@dataclass
class Memory:
    """What has to be known of a life to go on with it. Times are seconds on its clock."""

    state: State = State.INACTIVE
    since: float = 0.0
    """When it came into this state."""
    result: Result = Result.SUCCESS
    exit: Exit | None = None
    """How the last session ended; None before that, and where it could not be started."""
    start_limit_hit: bool = False
    daily_limit_hit: bool = False
    n_restarts: int = 0
    """Automatic restarts since the last start by hand, counted when they come due."""
    pid: int | None = None
    invocation: str = ""
    started_at: float = 0.0
    died_at: float = 0.0
    due: float | None = None
    """When the restart comes that is waited for, or the SIGKILL."""
    window: tuple[float | None, int] = (None, 0)
    """Of the start limit: when it was opened, and the starts in it."""
    daily_window: tuple[float | None, int] = (None, 0)
    """The same of the daily limit."""
    launching: bool = False
    alive: bool = False
    stop_requested: bool = False
    stop_timed_out: bool = False
    start_again: bool = False
    fresh: bool = False
    """Whether the next session begins anew, whatever the agent's resume.policy says."""
    ended_cleanly: bool = True
    """Whether the last session did. Of what is not known (after a boot) it is not said that it failed."""


def begins_anew(policy: ResumePolicy, memory: Memory) -> bool:
    """Tell whether the next session is to have no memory of earlier ones."""
    return memory.fresh or policy == "never" or (policy == "after-failure" and memory.ended_cleanly)
