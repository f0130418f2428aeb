"""Makes the pictures of the documentation: ``PYTHONPATH=.:tests python tests/pictures.py``.

The agents are made up, and so is the time: a picture differs only if what it shows does.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from pathlib import Path

from agents_lab import NOW, agent
from rich.console import Console
from rich.text import Text
from watch_lab import FakeSupervisor, event

from forge_supervisor.cli import status
from forge_supervisor.cli.watch import Watch
from forge_supervisor.cli.watch_parts import AgentTable

DOCS = Path(__file__).parent.parent / "docs"
SIZE = (104, 34)

SCREEN = """\
● Bash(git log --oneline origin/main -5)
  ⎿  9f31c2a Retry uploads on 503
     1b07d44 Move the parser into its own crate
     … +3 lines

● The nightly build broke with 1b07d44: the new crate is missing from the
  workspace members, so `cargo test` no longer finds its fixtures.

● Update(Cargo.toml)
  ⎿  Added 1 line
       5   members = [
       6 +   "crates/parser",
       7     "crates/server",

● Bash(cargo test --workspace)
  ⎿  Running…

✻ Testing… (48s · ↓ 2.1k tokens · esc to interrupt)

╭──────────────────────────────────────────────────────────────────────────────╮
│ >                                                                            │
╰──────────────────────────────────────────────────────────────────────────────╯
  ⏵⏵ bypass permissions on (shift+tab to cycle)"""


def _ago(seconds: float) -> int:
    return round((NOW - seconds) * 1_000_000)


def _agents() -> list[dict[str, object]]:
    down = {"pid": None, "memory": None}
    return [
        agent("coordinator", since_usec=_ago(187_420), memory=502_600_000, pid=2214),
        agent("scout", since_usec=_ago(5_110), memory=741_900_000, pid=90417, n_restarts=1),
        agent("reviewer", run_as="review", since_usec=_ago(912), memory=388_100_000, pid=93001),
        agent(
            "nightly",
            state="auto-restart",
            since_usec=_ago(3),
            n_restarts=2,
            result="exit-code",
            exit_code=1,
            restart_usec=_ago(-27),
            **down,
        ),
        agent(
            "importer",
            run_as="etl",
            state="failed",
            since_usec=_ago(1_260),
            n_restarts=3,
            result="oom-kill",
            signal=9,
            start_limit_hit=True,
            **down,
        ),
        agent("librarian", state="inactive", since_usec=None, enabled=False, **down),
    ]


def _events() -> list[dict[str, object]]:
    told = [
        ("agent_started", "reviewer started as review (pid 93001)", 912),
        ("agent_exited", "nightly exited with code 1 after 41.3 s; restarting in 30 s", 3),
        ("agent_restarting", "nightly will be restarted in 30 s", 3),
    ]
    return [event(name, message) | {"time_usec": _ago(seconds)} for name, message, seconds in told]


def watch_picture() -> str:
    """Draw what `forgectl watch` shows, as SVG."""
    return asyncio.run(_draw())


async def _draw() -> str:
    supervisor = FakeSupervisor(*_agents())
    supervisor.screens["scout"] = SCREEN.splitlines()
    app = Watch(supervisor, now=lambda: NOW)
    async with app.run_test(size=SIZE) as pilot:
        async with asyncio.timeout(30):
            while app.query_one(AgentTable).row_count < len(supervisor.agents) or not supervisor.monitors:
                await pilot.pause(0.01)
            for happened in _events():
                supervisor.tell(happened)
            await pilot.press(*["down"] * (len(supervisor.agents) - 1))
            while ("Capture", "scout") not in supervisor.calls:
                await pilot.pause(0.01)
        await pilot.pause(0.5)
        picture = app.export_screenshot(title="forgectl watch")
        app.exit()
    supervisor.hang_up()
    return picture


def status_picture() -> str:
    """Draw what `forgectl status` prints of all, and of one, as SVG."""
    console = Console(record=True, width=SIZE[0], file=io.StringIO(), force_terminal=True)
    agents = _agents()
    shown = [
        "$ forgectl status",
        *status.table(agents, now=NOW, coloured=True),
        "",
        status.summary(agents),
        "",
        "$ forgectl status nightly",
        *status.detail(agents[3], ["error: linker `cc` not found", "exit 1"], now=NOW, coloured=True),
    ]
    console.print(Text.from_ansi("\n".join(shown)))
    return console.export_svg(title="forgectl status", unique_id="status")


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    for name, picture in (("watch", watch_picture()), ("status", status_picture())):
        # Whoever looks at the documentation has a font, and need not tell anybody else that they look at it.
        (DOCS / f"{name}.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
