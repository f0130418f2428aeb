"""What a supervisor leaves to the next one: a small file an agent below the runtime directory, which is gone at boot.

It is root's own (or the user's, in user mode), so unlike anything that tmux tells it can be believed. It is written
before what it tells of is done, whole or not at all, so that it is true whenever the supervisor dies.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forge_supervisor.activity import Activity  # noqa: TC001 - pydantic looks it up
from forge_supervisor.config_values import AGENT_NAME
from forge_supervisor.memory import Memory  # noqa: TC001 - pydantic looks it up
from forge_supervisor.pidfd import birth


class _Saved(BaseModel):
    # What a later version may have added is no reason to end an agent.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class SavedSession(_Saved):
    """Where a session is. A pid and the time of its birth (`pidfd.birth`) are one process, and no other."""

    uid: int
    pid: int
    born: int
    pane: str
    server: int
    server_born: int


class SavedActivity(_Saved):
    """What was known of a session that its harness's files do not tell: as `observation.Observation`."""

    account: tuple[str, str] | None = None
    """`observation.account_of` the agent; None: an earlier version did not write it down."""
    failed: Activity | None = None
    login: str | None = None
    has_answered: bool = False
    has_reported: bool = False
    told: Activity | None = None
    told_at: float = 0.0
    is_ready: bool = False
    resumed: bool = False


class Saved(_Saved):
    """All that is known of one agent."""

    boot: str
    """Which boot of the machine it is of, as all its times are."""
    socket_name: str
    run_as: str
    declared: dict[str, str]
    """Of what the session was made: `Declared.fingerprint`."""
    stop_timeout_sec: Annotated[float, Field(gt=0)]
    life: Memory
    session: SavedSession | None
    activity: SavedActivity | None = None


class Store:
    """The directory of these files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stopping = directory / "stopping"

    @property
    def stopping(self) -> bool:
        """Whether the last supervisor was to stop all agents, and has not come to the end of that."""
        return self._stopping.exists()

    def begin_to_stop(self) -> None:
        """Raises OSError."""
        self._make_directory()
        self._stopping.touch()

    def stopped(self) -> None:
        self._stopping.unlink(missing_ok=True)

    def _make_directory(self) -> None:
        # Others have their sockets beside it. Somebody may have removed it all.
        self._directory.parent.mkdir(mode=0o755, exist_ok=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)

    def load(self, *, any_boot: bool = False) -> tuple[dict[str, Saved], list[str]]:
        """Return what was saved since boot, by agent, and a sentence for each file that cannot be read.

        `any_boot`: as it stands there. In a container the service need not see the boot that a shell sees.
        """
        saved: dict[str, Saved] = {}
        problems = []
        boot = boot_id()
        for file in sorted(self._directory.glob("*.json")):
            if not re.fullmatch(AGENT_NAME, file.stem):
                problems.append(f"{file} is none of ours")
                continue
            try:
                found = Saved.model_validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                problems.append(f"{file} cannot be read ({_short(error)}): its agent is started anew")
                continue
            if any_boot or found.boot == boot:
                saved[file.stem] = found
        return saved, problems

    def write(self, agent: str, saved: Saved) -> None:
        """Raises OSError."""
        text = saved.model_dump_json()
        new = self._directory / f".{agent}.new"
        try:
            new.write_text(text, encoding="utf-8")
        except FileNotFoundError:
            self._make_directory()
            new.write_text(text, encoding="utf-8")
        new.replace(self._directory / f"{agent}.json")

    def remove(self, agent: str) -> None:
        (self._directory / f"{agent}.json").unlink(missing_ok=True)


def boot_id() -> str:
    """Name this boot: of the machine, random(4), and of the container, which knows no other processes either."""
    machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    try:
        first = birth(1)
    except OSError:  # hidden from ordinary users, proc(5)
        first = 0
    return f"{machine} {namespace} {first}"


def _short(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno or 0)
    return f"{error.error_count()} faults"
