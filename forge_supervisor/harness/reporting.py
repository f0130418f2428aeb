"""What programs are configured with: JSON, and in it hooks that tell the supervisor what they are told."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forge_supervisor.harness import Subject


def report_command(subject: Subject) -> str:
    """Make the shell command that passes on the JSON which it reads, prints nothing, and never fails."""
    # Of a hook that fails programs tell in the conversation.
    return f"{shlex.join(subject.report)} >/dev/null 2>&1 || :"


def as_json(settings: dict[str, Any]) -> str:
    """Write the text of a file that people may read, too."""
    return json.dumps(settings, indent=2) + "\n"
