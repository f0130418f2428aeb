"""What the installed claude itself says of an agent's model and rules: it knows more names than we do.

It is asked one thing in an empty home with no login and no network to go to, and what it says before it finds that out
is what it would say, or open a dialog over, when the agent starts.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor.config import Problem
from forge_supervisor.harness import run_bare
from forge_supervisor.harness.claude_code.settings import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forge_supervisor.harness import LaunchPlan, Subject

TIMEOUT = 20.0
"""Seconds; it takes about one."""
_SKIPPED = re.compile(r"\(permissions\.(allow|deny)\): (Invalid permission rule .*)")
_MORE = re.compile(r"and (\d+) more\b")
_UNKNOWN_MODEL = re.compile(r"^\[claude-code:unrecognized_model\]", re.MULTILINE)


def consult(subject: Subject, plan: LaunchPlan) -> Iterator[Problem]:
    """Find rules that claude refuses, and a model that it does not know. Silent if it cannot be asked."""
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            said = _ask(subject, plan, Path(home))
    except (OSError, subprocess.SubprocessError):
        return
    for kind, why in _SKIPPED.findall(said):
        key = "permissions.deny" if kind == "deny" else _key_of(subject, why)
        yield Problem(key, f"claude would stop at a dialog: {why}")
    if more := _MORE.search(said):
        yield Problem("permissions", f"claude would stop at a dialog over {more[1]} more rules")
    if _UNKNOWN_MODEL.search(said):
        text = f'this claude does not know "{subject.agent.model}", and would start by guessing'
        yield Problem("model", text, fatal=False)


def _key_of(subject: Subject, why: str) -> str:
    of_permissions = any(f'"{rule}"' in why for rule in subject.agent.permissions.allow)
    return "permissions.allow" if of_permissions else "allowed_tools"


def _ask(subject: Subject, plan: LaunchPlan, home: Path) -> str:
    agent = subject.agent
    settings = home / "settings.json"
    allow = [*agent.allowed_tools, *agent.permissions.allow]
    settings.write_text(json.dumps({"permissions": {"allow": allow, "deny": list(agent.permissions.deny)}}))
    empty = home / "empty"
    empty.mkdir()
    model = ["--model", agent.model] if agent.model is not None else []
    options = ["-p", "--bare", "--setting-sources", "project", "--settings", str(settings), *model]
    env = {
        **QUIET,
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home),
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    return run_bare([plan.argv[0], *options, "--", "x"], env, cwd=empty, timeout=TIMEOUT).stderr
