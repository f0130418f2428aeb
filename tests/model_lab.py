"""A supervisor in a played world, of which it is told everything that it can be told; and whoever follows it."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from loop_lab import Clock
from model_daemon import Daemon, Variant, declared, fingerprint
from model_ledger import Ledger
from model_seams import Disk, FakePidfd, FakePlacement, FakeWorker
from model_world import STAND_IN, USERS, Killed, World

from forge_supervisor import agent as agent_module
from forge_supervisor import events, fleet, realm, runner, session, supervisor, units
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Config
from forge_supervisor.declared import Declared
from forge_supervisor.handshake import SCRIPT
from forge_supervisor.memory import AT_REST, State
from forge_supervisor.plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from model_world import Process

LINES = 60
"""Of what has happened last, in what is said of a fault."""
QUIET = frozenset({State.RUNNING, State.INACTIVE, State.FAILED})


class Lab:
    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(self.clock)
        self.variants: dict[str, Variant] = {}
        self.ledger = Ledger(self.world, declared("any", Variant()).restart)
        self.disk = Disk(self.ledger)
        self.daemon: Daemon | None = None
        self.transitions: Counter[tuple[State, State]] = Counter()
        self._numbers = itertools.count(1)
        self._invocations = itertools.count(1)
        self.world.opening, self.world.ending = self.ledger.opened, self._ends
        self.world.welcome = lambda process: self.daemon is not None and self.daemon.handshake.welcome(process)
        self._patch = pytest.MonkeyPatch()
        self._put_in_place()

    def _put_in_place(self) -> None:
        patch = self._patch.setattr
        for module in (session, realm):
            patch(module, "Pidfd", lambda *args, **keys: FakePidfd(self.present.hand, *args, **keys))
        patch(realm, "Worker", SimpleNamespace(start=self._start_worker))
        patch(realm, "shutil", SimpleNamespace(which=lambda *_, **__: "/usr/bin/tmux"))
        patch(units, "lookup", lambda name, _known=None: USERS[name])
        patch(session, "_command_line", self._command_line)
        patch(fleet, "boot_id", lambda: "this")
        patch(Declared, "fingerprint", fingerprint)
        patch(agent_module, "uuid", SimpleNamespace(uuid4=self._invocation))
        for module in (fleet, runner, supervisor, realm):
            patch(module, "log", SimpleNamespace(exception=self._complain, warning=self._complain))
        enter, reset = Lifecycle._enter, Lifecycle.reset_failed

        def entering(life: Lifecycle, state: State) -> None:
            self.transitions[life.state, state] += 1
            self.world.say(f"{life.agent.name}: {life.state} -> {state}")
            enter(life, state)

        def resetting(life: Lifecycle) -> None:
            self.ledger.forgot(life.agent.name)
            reset(life)

        patch(Lifecycle, "_enter", entering)
        patch(Lifecycle, "reset_failed", resetting)

    @property
    def present(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    async def _start_worker(self, placement: FakePlacement, user: units.User, _env: object) -> FakeWorker:
        worker = FakeWorker(placement.hand, user)
        self.present.workers.append(worker)
        return worker

    def _ends(self, process: Process) -> None:
        config = self.present.supervisor.config
        if not self.present.finishing and process.agent in Declared.of_all(config):
            self.ledger.ends(process)

    def _invocation(self) -> SimpleNamespace:
        return SimpleNamespace(hex=f"{next(self._invocations):032x}")

    def _command_line(self, pid: int) -> list[bytes]:
        process = self.world.processes[pid]
        if process.exit is not None:
            return []
        return [SCRIPT.encode()] if process.what == "launcher" else [b"agent"]

    def _complain(self, name: str, **keys: object) -> None:
        if self.daemon is not None and not self.daemon.hand.dead:
            self.world.fault(f"{name}: {keys}")

    def told(self, event: events.Event) -> None:
        self.world.say(f"told: {event.sentence()}")
        life = self.present.supervisor.lives.get(getattr(event, "agent", ""))
        self.ledger.told(event, None if life is None else life.agent)

    # What is done to it.

    def config(self) -> Config:
        return Config(agents={name: declared(name, variant) for name, variant in self.variants.items()})

    def boot(self, lifeline: int | None = None) -> None:
        assert self.daemon is None
        number = next(self._numbers)
        self.ledger.follows(number)
        self.world.say(f"--- supervisor {number}: {self.variants}")
        config = self.config()
        left = self.disk.load()
        wanted = Declared.of_all(config)
        todo = plan(wanted, {name: saved.declared for name, saved in left.items()})
        for name in wanted if self.disk.stopping else todo.new | todo.changed.keys():
            self.ledger.declared_anew(name, wanted[name].fingerprint())
        for name in () if self.disk.stopping else todo.unchanged | todo.adjusted.keys():
            self.ledger.declared_as_it_is(name)
        self.ledger.undeclared = left.keys() - wanted.keys()
        for name in self.ledger.undeclared:
            self.ledger.not_heard(name)
        self.daemon = Daemon(self, number, config)
        self.daemon.hand.lifeline = lifeline
        # No sooner can anybody ask for anything.
        self.run(rounds=3)

    def reloading(self, daemon: Daemon, config: Config) -> None:
        self.ledger.undeclared = frozenset()
        wanted = Declared.of_all(config)
        todo = daemon.supervisor.plan_of(config)
        for name in todo.new | todo.changed.keys():
            self.ledger.declared_anew(name, wanted[name].fingerprint())
        for name in todo.unchanged | todo.adjusted.keys():
            self.ledger.declared_as_it_is(name)
        for name in todo.removed:
            # It has yet to come to that; see _note_removals.
            self.ledger.not_heard(name)

    def reload(self) -> None:
        if not self.present.finishing:
            self.present.begin(self.present.reload(self.config()))

    def finish(self, *, leave: bool) -> None:
        """Have it end, and leave the agents or stop them."""
        if self.present.finishing:
            self.present.loop.call_soon(self.present.supervisor.hurry)
            return
        if not (leave or self.present.knows_all):
            return
        self.world.say(f"asked to {'leave' if leave else 'stop'} all")
        if not leave:
            for name in self.present.supervisor.lives:
                self.ledger.not_heard(name)
        self.present.finish(leave=leave)

    def change_the_world(self, what: str, which: Any, how: Any) -> None:
        match what:
            case "slow":
                self.world.lags[which] = how
            case "trouble":
                self.world.troubles[which] = how
            case "temper":
                self.world.temper, self.world.mute = which, how

    def lose_workers(self) -> None:
        """What they were asked to collect need not be known any more."""
        for worker in self.daemon.workers if self.daemon is not None else ():
            worker.lose()

    def run(self, seconds: float = 0.0, *, rounds: int | None = None) -> bool:
        """Let time pass; tells whether nothing is left to be done at this moment."""
        if self.daemon is None:
            self.clock.advance(seconds)
            return True
        try:
            idle = self.daemon.loop.run(seconds, rounds=rounds)
        except Killed:
            self._bury()
            return True
        if self.daemon.has_ended:
            self.end("has ended")
        return idle

    def _note_removals(self, daemon: Daemon, *, idle: bool) -> None:
        over = daemon.supervisor
        for name in over.lives.keys() - Declared.of_all(over.config).keys():
            if name in over.leaving or (idle and name not in over._seeing):
                self.ledger.asked_to_stop(name)

    def end(self, how: str = "is killed while it waits") -> None:
        self.world.faults += self.present.faults()
        self.present.hand.die(how)
        self._bury()

    def _bury(self) -> None:
        self.present.unwind()
        self.daemon = None

    def ask(self, name: str, verb: str) -> None:
        """Have the operator ask for it, as control does."""
        daemon = self.present
        daemon.loop.call_soon(self._ask, name, verb)
        self.run(rounds=1)
        if self.daemon is not daemon:
            self.ledger.not_heard(name)

    def _ask(self, name: str, verb: str) -> None:
        over = self.present.supervisor
        life = over.lives.get(name)
        if life is None or over.ending or name in over.leaving:
            return
        if life.agent.command == STAND_IN and verb in {"start", "restart"}:
            # Of which nothing is known but how to stop it.
            return
        self.world.say(f"asked: {verb} {name}, which is {life.state}")
        if verb == "restart" or (verb == "start" and life.state not in {State.STARTING, State.RUNNING}):
            self.ledger.asked_to_start(name)
        if verb == "stop" and life.state in AT_REST and self.ledger.accounts[name].changed:
            # It may have been before a change that comes to it now.
            self.ledger.not_heard(name)
        elif verb == "stop":
            self.ledger.asked_to_stop(name)
        action: Callable[[], None] = getattr(life, verb)
        action()

    def harnesses(self, name: str) -> list[Process]:
        return [process for process in self.world.alive(name) if process.what == "harness"]

    def close(self) -> None:
        if self.daemon is not None:
            self.end("is no more")
        self._patch.undo()

    # What has to be true.

    def check(self, *, idle: bool) -> None:
        """Raise AssertionError unless all is well; `idle`: nothing is left to be done at this moment."""
        if self.daemon is not None:
            self._note_removals(self.daemon, idle=idle)
            self.world.faults += self.daemon.faults()
            if idle:
                self.world.faults += self._untrue(self.daemon)
        if self.world.faults:
            recently = "\n  ".join(self.world.log[-LINES:])
            raise AssertionError(f"{self.world.faults[0]}\n  {recently}")

    def _untrue(self, daemon: Daemon) -> Iterable[str]:
        for name, life in daemon.supervisor.lives.items():
            alive = self.world.alive(name)
            if life.state is State.RUNNING and [process.pid for process in alive] != [life.pid]:
                yield f"{name} is said to run as {life.pid}, and {[*map(str, alive)]} live"
            if life.state in AT_REST | {State.AUTO_RESTART} and alive:
                yield f"{name} is {life.state}, and {alive[0]} lives"
            if life.state is State.STOPPING and life.alive:
                if life.stop_timed_out:
                    yield f"{name} was to be killed, and {alive[0]} lives"
                elif life._timer is None and life.agent.stop_timeout_sec < float("inf"):
                    yield f"{name} is stopping, for as long as {alive[0]} likes"

    def calm(self) -> None:
        """Have nothing more go wrong, and all come to an end that has one."""
        world = self.world
        world.lags.clear()
        world.troubles.clear()
        world.mute, world.temper, world.ending = False, "dies", lambda _: None
        for _ in range(60):
            if self.daemon is None:
                self.boot()
            self.present.hand.lifeline = None
            for process in world.sessions:
                process.temper = "dies"
                life = self.present.supervisor.lives.get(process.agent)
                if process.exit is None and (life is None or life.state is State.STOPPING):
                    world.signal(process, 9)
            self.run(3)
            if self.daemon is not None and not self.daemon.finishing and self._is_calm():
                return
        world.fault(f"it does not come to rest: {self.daemon and self.daemon.supervisor.status()}")

    def _is_calm(self) -> bool:
        over = self.present.supervisor
        return self.present.is_idle and all(life.state in QUIET for life in over.lives.values())

    def account(self) -> None:
        """Raise AssertionError unless, at rest, everything is as it was asked for, and everything was told."""
        over, world = self.present.supervisor, self.world
        for process in self.ledger.unreported():
            world.fault(f"nobody was told that {process} has ended")
        wanted = {name for name, variant in self.variants.items() if variant.enabled}
        if set(over.lives) != wanted or set(self.disk.files) != wanted:
            world.fault(f"{wanted} are declared; there are {set(over.lives)}, and files of {set(self.disk.files)}")
        for name, life in over.lives.items():
            account = self.ledger.accounts[name]
            if account.must and name not in over.kept:
                world.fault(f"{name} was to be started, as {account.must}, and is {life.state}")
            is_to_be = Declared.of(over.config.agents[name], over.config).fingerprint()
            if life.state is State.RUNNING and over.fleet.fingerprints[name] != is_to_be and name not in over.kept:
                world.fault(f"{name} runs, and not as it is declared")
            if over.fleet.declared[name].fingerprint() != is_to_be and name not in over.kept:
                world.fault(f"{name} is to be started otherwise than it is declared")
            if account.stopped and account.sure and life.state is State.RUNNING:
                world.fault(f"{name} was stopped, and runs")
        for process in world.sessions:
            life_ = over.lives.get(process.agent)
            if process.exit is None and (life_ is None or life_.pid != process.pid):
                world.fault(f"{process} lives, and nobody knows of it")
        self.check(idle=True)
