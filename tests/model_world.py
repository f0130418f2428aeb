"""What a supervisor supervises, played: processes, tmux servers and scopes, which outlive each supervisor.

Each act of a supervisor goes through `Hand.act`, before and after which that may be killed; from then on its hand moves
nothing.
"""

from __future__ import annotations

import itertools
import signal
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from forge_supervisor.launch import GAVE_UP
from forge_supervisor.policy import Exit
from forge_supervisor.units import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from loop_lab import Clock, ClockLoop

Result = TypeVar("Result")
Temper = Literal["dies", "exits", "ignores"]
"""What a program does on SIGTERM."""

USERS = {
    name: User(name, uid, uid, (uid,), f"/home/{name}", "/bin/sh") for name, uid in (("team", 1000), ("other", 1001))
}
STAND_IN = ("-",)
"""The command of one that is adopted, and declared no more, or as another user's."""


class Killed(SystemExit):
    """The supervisor is, in the middle of something; no loop goes on after that."""


@dataclass(eq=False)
class Process:
    pid: int
    uid: int
    what: Literal["tmux server", "launcher", "harness"]
    agent: str = ""
    invocation: str = ""
    ticket: str = ""
    has_plan: bool = False
    refused: bytes = b""
    temper: Temper = "dies"
    exit: Exit | None = None
    gone: bool = False
    """Whether nobody can know how it ended, or will end."""
    excused: bool = False
    """Whether the supervisor may tell that it is lost."""
    turns: list[Callable[[], None]] = field(default_factory=list)
    """Called once each when it dies, or becomes something else."""

    def __str__(self) -> str:
        return f"{self.what} {self.pid}" + (f" of {self.agent}" if self.agent else "")

    def turn(self) -> None:
        turns, self.turns = self.turns, []
        for told in turns:
            told()


class World:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.processes: dict[int, Process] = {}
        self.servers: dict[int, Process] = {}
        """tmux servers that live, by uid."""
        self.panes: dict[tuple[int, str], Process] = {}
        """By uid and agent, the last process of the agent's pane."""
        self.scopes: dict[str, Process] = {}
        self.lags: defaultdict[str, float] = defaultdict(float)
        """Seconds that each kind of thing takes."""
        self.troubles: dict[str, str] = {}
        """What keeps an agent from being started."""
        self.mute = False
        """Whether tmux servers do not learn how processes end."""
        self.temper: Temper = "dies"
        self.log: list[str] = []
        self.faults: list[str] = []
        self.welcome: Callable[[Process], bool] = lambda _: False
        self.opening: Callable[[Process], None] = lambda _: None
        self.ending: Callable[[Process], None] = lambda _: None
        """Called before a supervisor, or what acts for it, ends a process."""
        self._pids = itertools.count(100)

    def say(self, text: str) -> None:
        self.log.append(f"{self.clock.now:.2f} {text}")

    def fault(self, text: str) -> None:
        self.say(f"FAULT: {text}")
        self.faults.append(text)

    def alive(self, agent: str) -> list[Process]:
        """All that live for an agent."""
        return [process for process in self.processes.values() if process.agent == agent and process.exit is None]

    def spawn(self, process: Process) -> Process:
        self.processes[process.pid] = process
        self.say(f"{process} begins")
        return process

    def run_server(self, uid: int) -> Process:
        self.servers[uid] = self.spawn(Process(next(self._pids), uid, "tmux server"))
        return self.servers[uid]

    def die(self, process: Process, exit_: Exit) -> None:
        if process.exit is not None:
            return
        process.exit = exit_
        self.say(f"{process} ends: {exit_}")
        if process.what == "tmux server":
            del self.servers[process.uid]
            for key in [key for key in self.panes if key[0] == process.uid]:
                self.hang_up(key, excuse=True)
        elif self.mute or self.panes.get((process.uid, process.agent)) is not process:
            process.gone = process.excused = True
        process.turn()

    def end_server(self, server: Process) -> None:
        """As a supervisor does, if nothing is to live there any more."""
        for process in self.panes.values():
            if process.uid == server.uid and process.exit is None:
                self.fault(f"{server} is ended under {process}, which lives")
        self.die(server, Exit(code=0))

    def hang_up(self, key: tuple[int, str], *, excuse: bool) -> None:
        """Have a pane be gone, and with it the status of what ran there, which need not excuse the supervisor."""
        process = self.panes[key]
        if not excuse:
            self.ending(process)
        process.gone = True
        process.excused |= excuse
        if process.exit is None:
            self.signal(process, signal.SIGHUP)
        del self.panes[key]

    def signal(self, process: Process, number: int) -> None:
        self.say(f"signal {number} to {process}")
        if number == signal.SIGKILL or process.what != "harness" or process.temper == "dies":
            self.die(process, Exit(signal=int(number)))
        elif process.temper == "exits":
            self.die(process, Exit(code=143))

    def kill(self, process: Process) -> None:
        """As what ends leftovers does: SIGTERM, then SIGKILL."""
        self.ending(process)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.exit is None:
                self.signal(process, number)

    def open(self, uid: int, agent: str, ticket: str, invocation: str) -> Process:
        pane = self.panes.get((uid, agent))
        if pane is not None and pane.exit is None:
            self.kill(pane)
        process = Process(next(self._pids), uid, "launcher", agent, invocation, ticket, temper=self.temper)
        if others := self.alive(agent):
            self.fault(f"two sessions of {agent}: {process} begins while there is {others[0]}")
        self.spawn(process)
        self.panes[uid, agent] = process
        self.opening(process)
        if self.troubles.get(agent) == "early":
            self.clock.after(0.001, lambda: self.die(process, Exit(code=1)))
        self.clock.after(self.lags["connect"], lambda: self._connect(process))
        return process

    def _connect(self, process: Process) -> None:
        if process.exit is None and not self.welcome(process):
            self.give_up(process)

    def give_up(self, process: Process) -> None:
        """As the first process of a pane does that nobody gives a plan."""
        if not process.has_plan:
            self.die(process, Exit(code=GAVE_UP))

    def take_plan(self, process: Process) -> None:
        process.has_plan = True
        self.clock.after(self.lags["exec"], lambda: self._become(process))

    def _become(self, process: Process) -> None:
        if process.exit is not None:
            return
        if self.troubles.get(process.agent) == "exec":
            process.refused = b"exec 2"
            self.die(process, Exit(code=GAVE_UP))
            return
        process.what = "harness"
        self.say(f"{process} runs")
        process.turn()

    @property
    def sessions(self) -> list[Process]:
        return [process for process in self.processes.values() if process.what == "harness"]


class Hand:
    """One supervisor's: all that it does to the world. `lifeline` counts the acts that it has left, if they are."""

    def __init__(self, world: World, loop: ClockLoop) -> None:
        self.world = world
        self.loop = loop
        self.dead = False
        self.lifeline: int | None = None

    def act(self, name: str, what: Callable[[], Result]) -> Result:
        self._step(f"before {name}")
        result = what()
        self._step(f"after {name}")
        return result

    def _step(self, where: str) -> None:
        if self.lifeline is None or self.dead:
            return
        self.lifeline -= 1
        if self.lifeline <= 0:
            self.die(f"is killed {where}")
            raise Killed

    def die(self, where: str) -> None:
        self.dead = True
        self.world.say(f"--- the supervisor {where}")
        for process in [*self.world.processes.values()]:
            if process.what == "launcher" and not process.has_plan:
                self.world.clock.after(self.world.lags["linger"], partial(self.world.give_up, process))

    def soon(self, what: Callable[..., object], *args: Any) -> None:
        if not self.dead:
            self.loop.call_soon(what, *args)
