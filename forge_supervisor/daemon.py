"""The long-running process: signals, systemd's notifications, and the wiring of everything else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import sdnotify

from forge_supervisor import config, events, journal, units
from forge_supervisor.doors import Doors
from forge_supervisor.feed import Feed
from forge_supervisor.fleet import Fleet
from forge_supervisor.guards import Guards
from forge_supervisor.handshake import Handshake
from forge_supervisor.observer import Observer
from forge_supervisor.runtime import lasting_directory, runtime_directory, state_directory
from forge_supervisor.saved import Store
from forge_supervisor.spend import prices
from forge_supervisor.spend.collector import Collector
from forge_supervisor.spend.store import NAME
from forge_supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from forge_supervisor.config import Config
    from forge_supervisor.spend.prices import Prices

# Beyond all stop timeouts: a launch under way, SIGKILL, clearing leftovers, the tmux servers.
STOP_MARGIN_SEC = 150
ONE_DAY_SEC = 86_400


def refuse(error: config.ConfigError) -> None:
    """Log why no supervisor runs. Agents that an earlier one has left run on: the next one will adopt them."""
    for problem in error.problems:
        journal.log(events.ConfigError(file=problem.file, key=problem.key, problem=problem.text))
    saved, _ = Store(state_directory(runtime_directory())).load()
    if running := sorted(name for name, left in saved.items() if left.life.alive):
        journal.log(events.AgentsUnwatched(agents=", ".join(running)))


class Daemon:
    """One run of the supervisor, until it is told to stop."""

    def __init__(
        self, loaded: Config, load: Callable[[], Config], runtime: Path, own_prices: Path | None = None
    ) -> None:
        self._config = loaded
        self._load = load
        self._own_prices = own_prices
        self._runtime = runtime
        self._handshake = Handshake(runtime)
        self._store = Store(state_directory(runtime))
        self._notifier = sdnotify.SystemdNotifier()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._stop_reason = ""
        self._status = ""
        self._complaint = ""
        self._at_terminal = os.isatty(2)
        self._supervisor: Supervisor | None = None
        self._feed = Feed()
        self._collector: Collector
        self._reloading = asyncio.Lock()

    async def run(self) -> int:
        """Run until a signal ends it. Raises OSError or PlacementError if it cannot begin."""
        self._handle_signals()
        _warn_of(self._config)
        placement = units.detect(self._runtime)
        if not placement.holds:
            journal.log(events.WithoutSystemd())
        emit = self._feed.emit
        fleet = Fleet(
            self._config.socket_name,
            placement=placement,
            handshake=self._handshake,
            store=self._store,
            emit=emit,
            conceal=journal.conceal,
            changed=self._changed,
        )
        supervisor = Supervisor(self._config, fleet, placement=placement, store=self._store, emit=emit)
        self._supervisor = supervisor
        observer = Observer(fleet, emit)
        fleet.activity_of, supervisor.troubles = observer.saved, observer.troubles
        self._collector = collector = Collector(
            lasting_directory() / NAME,
            self._prices(),
            life_of=fleet.lives.get,
            realm_of=fleet.realm_of,
            emit=emit,
            is_working=observer.is_working,
        )
        fleet.settled = collector.settle
        observer.turn_ended = collector.turn_ended
        guards = Guards(collector, life_of=fleet.lives.get, memory_of=placement.memory_of, emit=emit)
        observer.became_idle, collector.counted = guards.is_idle, guards.counted
        reload = partial(self._reload_by_control, supervisor)
        doors = Doors(self._runtime, supervisor, placement, self._feed, reload, collector, observer)
        await doors.open()
        watchdog = asyncio.create_task(self._feed_watchdog())
        serving = asyncio.create_task(self._serve(supervisor, placement, doors))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        # Without systemd nobody starts another one.
        leave = placement.holds and units.asked_to_restart()
        self._notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={self._longest_stop() * 1_000_000}")
        journal.log(events.SupervisorStopping(reason=self._stop_reason or "a fault", leaves_agents=leave))
        serving.cancel()
        stopping.cancel()
        outcome = (await asyncio.gather(serving, return_exceptions=True))[0]
        await observer.close()
        await guards.close()
        if leave:
            # It has work under way in the realms; the next one reads on where this one ends.
            await collector.close()
        await (supervisor.leave() if leave else supervisor.stop())
        await doors.close()
        await collector.close()
        self._handshake.close()
        await placement.close(leave=leave)
        watchdog.cancel()
        journal.log(events.SupervisorStopped())
        if not isinstance(outcome, asyncio.CancelledError):
            assert outcome is not None, "it serves for ever"
            raise outcome
        return 0

    async def _serve(self, supervisor: Supervisor, placement: units.Placement, doors: Doors) -> None:
        saved, problems = self._store.load()
        for problem in problems:
            journal.log(events.StateProblem(problem=problem))
        # What no file tells of is watched by nobody, and would run beside what is started now.
        await placement.discard({left.run_as for left in saved.values()}, saved)
        doors.serve(saved)
        async with self._reloading:
            await supervisor.start(saved)
        # Those that are adopted as they were change nothing, and so tell nothing.
        self._tell_status()
        self._notify("READY=1")
        self._collector.begin([life.agent for life in supervisor.lives.values()])
        while True:
            await self._reload.wait()
            self._reload.clear()
            with contextlib.suppress(config.ConfigError):  # it has been told
                await self._do_reload(supervisor)

    async def _do_reload(self, supervisor: Supervisor) -> list[str]:
        """Tell what it has changed. Raises ConfigError, and has told it."""
        async with self._reloading:
            # sd_notify(3): the time tells systemd that READY=1 answers this reload and no earlier one.
            self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                loaded = self._load()
                self._complaint = ""
                _warn_of(loaded)
                lines = supervisor.plan_of(loaded).lines()
                await self._collector.replace_prices(self._prices())
                await supervisor.reload(loaded)
                self._config = loaded
            except config.ConfigError as error:
                self._feed.emit(events.SupervisorReloadFailed(problem=str(error)))
                first = error.problems[0]
                self._complaint = f"; not reloaded: {str(first)[:500]}"
                raise
            finally:
                self._tell_status()
                self._notify("READY=1")
            return lines

    async def _reload_by_control(self, supervisor: Supervisor, dry_run: bool) -> list[str]:  # noqa: FBT001
        """Tell what a reload changes, having done it unless it is a dry run. Raises ConfigError."""
        return supervisor.plan_of(self._load()).lines() if dry_run else await self._do_reload(supervisor)

    def _prices(self) -> Prices:
        try:
            return prices.load(self._own_prices, uid=os.geteuid())
        except config.ConfigError as error:
            for problem in error.problems:
                journal.log(events.ConfigWarning(file=problem.file, key=problem.key, problem=problem.text))
            return prices.load(None, uid=os.geteuid())

    def _changed(self, agent: str) -> None:
        self._tell_status()
        self._feed.changed(agent)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)

    def _asked_to_reload(self) -> None:
        # A terminal that is closed sends the same signal as systemctl reload does, and then is one no more.
        if self._at_terminal and not os.isatty(2):
            self._asked_to_stop(signal.SIGHUP)
        else:
            self._reload.set()

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set() and self._supervisor is not None:
            self._supervisor.hurry()
        self._stop_reason = number.name
        self._stop.set()

    def _tell_status(self) -> None:
        if self._supervisor is None:
            return
        status = self._supervisor.status() + self._complaint
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={status}")

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the loop still turns, twice in the time that it allows (sd_watchdog_enabled(3))."""
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
        while allowed:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(allowed / 2 / 1_000_000)

    def _notify(self, *lines: str) -> None:
        self._notifier.notify("\n".join(lines))

    def _longest_stop(self) -> int:
        timeouts = [agent.stop_timeout_sec for agent in self._config.agents.values()]
        return int(min(max(timeouts, default=0), ONE_DAY_SEC)) + STOP_MARGIN_SEC


def _warn_of(loaded: Config) -> None:
    for problem in loaded.warnings:
        journal.log(events.ConfigWarning(file=problem.file, key=problem.key, problem=problem.text))
