"""What a `Lifecycle` needs of the world. The real ones are an asyncio event loop and `runner.SessionRunner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Agent


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """An asyncio event loop is one."""

    def time(self) -> float:
        """Tell the seconds since some fixed moment; never steps back."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer: ...


class Runner(Protocol):
    """Runs one agent's sessions, one at a time, and tells its `Lifecycle` what becomes of them."""

    def launch(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        """Begin a start, which ends, in bounded time, in exactly one of `launched` and `launch_failed`.

        After `launched` follow exactly one `died` and then exactly one `exited`.
        """
        ...

    def resume(self, agent: Agent, invocation: str, life: Lifecycle) -> None:
        """Go on with the session of an earlier supervisor as if it had been launched here.

        The same follows as after `launch`; of one that had been `launched` before, and lives, `found` is told.
        """
        ...

    def terminate(self) -> None:
        """Send SIGTERM to the main process, if it lives."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to the main process, if it lives; `exited` then follows in bounded time."""
        ...
