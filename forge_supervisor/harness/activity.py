"""What a harness may tell of what its sessions are doing: by the files that its program keeps, and by its hooks.

Not all do: of the agents of one that has none of these methods it is only told that they run. `watched` and `observe`
run in the worker, as the agent's user; the others in the supervisor, and must be pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from forge_supervisor.activity import Reported, Seen
    from forge_supervisor.harness import Paths, Subject


@runtime_checkable
class TellsActivity(Protocol):
    clearing_key: str
    """What is typed, a line of a draft a time, to have nothing but the message in the prompt; may be empty."""

    def watched(self, subject: Subject, paths: Paths, pid: int) -> Sequence[Path]:
        """Name the files, there or not, by whose changes `observe` would tell something else."""
        ...

    def observe(self, subject: Subject, paths: Paths, pid: int) -> Seen | None:
        """Say what the session of process `pid` is doing; None if its files are being written just now."""
        ...

    def reported(self, told: Mapping[str, Any]) -> Reported:
        """Say what the JSON means that a hook has passed to the command `Subject.report`; it may hold anything."""
        ...

    def unsendable(self, text: str) -> str | None:
        """Say, in words that follow 'it', why a text would not be taken as a message."""
        ...


def reads_while_written(program: TellsActivity) -> bool:
    """Tell whether lines are added to what it watches, each of which says something before the file is closed.

    A harness says so by an attribute of that name, true. Without it there is none that does.
    """
    return getattr(program, "reads_while_written", False) is True
