"""How the hooks of a program tell the supervisor what they are told."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge_supervisor.harness import Subject


def report_command(subject: Subject) -> str:
    """Make the shell command that passes on the JSON which it reads, prints nothing, and never fails."""
    # Of a hook that fails programs tell in the conversation.
    return f"{shlex.join(subject.report)} >/dev/null 2>&1 || :"
