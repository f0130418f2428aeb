"""What ought to be, by what the operator asked for and what the world did: it is told of both, and finds the faults."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forge_supervisor import events
from forge_supervisor.policy import CLEAN_SIGNALS, DAY, Exit

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from model_world import Process, World

    from forge_supervisor.config import Agent
    from forge_supervisor.config_restart import Restart
    from forge_supervisor.saved import Saved

LOST = Exit(lost=True)
CHANGED = "it was declared like that"


@dataclass
class Window:
    """Starts counted as FACTS has it: a window is opened by its first start, and stays until one after its end."""

    begin: float | None = None
    count: int = 0

    def at(self, now: float, interval: float) -> int:
        return 0 if self.begin is None or now - self.begin > interval else self.count

    def start(self, now: float, interval: float) -> int:
        if not self.at(now, interval):
            self.begin, self.count = now, 0
        self.count += 1
        return self.count


@dataclass
class Report:
    """An exit that was told, by which supervisor, and whether that has come to write it down."""

    by: int
    exit: Exit
    written: bool = False


@dataclass
class Account:
    """Of one agent. A call in the middle of which the supervisor was killed may have been heard, or not."""

    may: bool = False
    """Whether there is a reason for another session."""
    must: str = ""
    """Why there has to be one, or a refusal."""
    stopped: bool = False
    sure: bool = True
    """Whether `stopped` is more than a guess."""
    unwritten: tuple[bool, str] | None = None
    """What these two are if what was told last has never happened, as whoever follows will have it."""
    changed: bool = False
    """Whether one of what is declared now is to follow, whatever else begins before."""
    may_end: bool = False
    """Whether there is a reason to end the session that there is."""
    begun: str = ""
    """The invocation that was last written down."""
    wanted: dict[str, str] = field(default_factory=dict)
    n_restarts: int = 0
    by_hand: bool = False
    """Whether a session is to follow that was started by hand."""
    window: Window = field(default_factory=Window)
    daily: Window = field(default_factory=Window)
    counted: bool = True
    """Whether these three are more than a guess."""
    zeroing: bool = False
    """Whether they are being set to zero, which may yet be forgotten."""

    def let(self, *, may: bool, must: str = "", stopped: bool, sure: bool = True) -> None:
        self.may, self.must, self.stopped, self.sure = may, must, stopped, sure
        self.changed &= not stopped
        self.may_end = True


class Ledger:
    def __init__(self, world: World, restart: Restart) -> None:
        """`restart` has the limits, which are the same for all."""
        self.world = world
        self.accounts: defaultdict[str, Account] = defaultdict(Account)
        self.reports: defaultdict[str, list[Report]] = defaultdict(list)
        """By invocation."""
        self.supervisor = 0
        """The number of the one that lives."""
        self.all_stop = False
        self.undeclared: AbstractSet[str] = frozenset()
        """Agents of which this supervisor has known from its beginning that they are declared no more."""
        self._restart = restart

    def follows(self, supervisor: int) -> None:
        """Have another supervisor follow."""
        self.supervisor, self.all_stop = supervisor, False
        for account in self.accounts.values():
            if account.unwritten is not None:
                account.may, account.must = account.unwritten
            account.unwritten = None
            account.counted &= not account.zeroing
            account.zeroing = False

    # What the operator asks for.

    def asked_to_start(self, name: str) -> None:
        self.accounts[name].let(may=True, must="that was asked for", stopped=False)
        self.accounts[name].by_hand = True

    def asked_to_stop(self, name: str) -> None:
        self.accounts[name].let(may=False, stopped=True)

    def not_heard(self, name: str) -> None:
        """Take note that the supervisor was killed before it could answer."""
        account = self.accounts[name]
        account.let(may=True, stopped=account.stopped, sure=False)
        account.counted, account.unwritten = False, None

    def declared_anew(self, name: str, fingerprint: dict[str, str]) -> None:
        self.asked_to_start(name)
        self.accounts[name].wanted = fingerprint
        self.accounts[name].changed, self.accounts[name].must = True, CHANGED

    def declared_as_it_is(self, name: str) -> None:
        account = self.accounts[name]
        account.changed = False
        if account.must == CHANGED:
            account.must = ""

    # What a supervisor does.

    def forgot(self, name: str) -> None:
        """Take note that what was counted of an agent is set to zero."""
        account = self.accounts[name]
        account.n_restarts, account.window, account.daily = 0, Window(), Window()
        account.counted = account.zeroing = True

    def removed(self, name: str) -> None:
        self.forgot(name)
        self.accounts[name].zeroing = False

    def wrote(self, name: str, saved: Saved) -> None:
        account, life = self.accounts[name], saved.life
        account.unwritten, account.zeroing = None, False
        for report in self.reports[life.invocation]:
            report.written |= report.by == self.supervisor
        if not life.launching or life.invocation == account.begun:
            return
        self.world.say(f"{name} is to begin {life.invocation[-4:]}")
        if self.all_stop:
            self.world.fault(f"{name} is started while all are being stopped")
        if name in self.undeclared:
            self.world.fault(f"{name} is declared no more, and is started")
        elif account.stopped and account.sure:
            self.world.fault(f"{name} was stopped, and is started")
        elif not account.may:
            self.world.fault(f"{name} is started, for which there is no reason")
        usual = {account.n_restarts + 1} | ({0} if account.by_hand or account.changed else set())
        account.changed &= account.wanted != saved.declared
        account.begun = life.invocation
        account.may, account.must = account.changed, CHANGED if account.changed else ""
        account.may_end = account.changed
        if account.counted and life.n_restarts not in usual:
            self.world.fault(f"{name} has had {account.n_restarts} restarts, and with the next one {life.n_restarts}")
        account.by_hand &= life.n_restarts != 0
        account.n_restarts = life.n_restarts
        self._count(name, life.since)

    def _count(self, name: str, now: float) -> None:
        account, restart = self.accounts[name], self._restart
        lately = account.window.start(now, restart.limit_interval_sec)
        today = account.daily.start(now, DAY)
        if account.counted and (lately > restart.limit_burst or today > restart.limit_daily):
            self.world.fault(f"{name} is started too often: {lately} times in its window, {today} in its day")

    def opened(self, process: Process) -> None:
        if process.invocation != self.accounts[process.agent].begun:
            self.world.fault(f"{process} begins before that was written down")
        if process.agent in self.undeclared:
            self.world.fault(f"{process} begins, and {process.agent} is declared no more")

    def ends(self, process: Process) -> None:
        """Take note that a supervisor is about to end it."""
        lives = process.what == "harness" and process.exit is None and not process.gone
        if lives and not self.accounts[process.agent].may_end:
            self.world.fault(f"{process} is ended, for which there is no reason")

    def told(self, event: events.Event, agent: Agent | None) -> None:
        match event:
            case events.AgentStarted():
                self._told_of_start(event)
            case events.AgentAdopted():
                if self.world.processes[event.pid].exit is not None:
                    self.world.fault(f"{event.agent} is said to run on, and has ended")
            case events.AgentExited():
                self._told_of_exit(event)
                exit_ = Exit(event.exit_code, event.signal, lost=event.exit_code is None and event.signal is None)
                timeout = event.result == "timeout"
                self._goes_on(event.agent, agent, fails=timeout or not _is_clean(exit_))
            case events.AgentStartFailed():
                self._goes_on(event.agent, agent, fails=True)
            case events.AgentFailed() if event.start_limit_hit or event.daily_limit_hit:
                self._refused(event)

    def _told_of_start(self, event: events.AgentStarted) -> None:
        process = self.world.processes[event.pid]
        if (process.agent, process.invocation) != (event.agent, event.invocation):
            self.world.fault(f"{event.agent} is said to run as {process}, which is another session's")

    def _refused(self, event: events.AgentFailed) -> None:
        account, restart, now = self.accounts[event.agent], self._restart, self.world.clock.now
        lately, today = account.window.at(now, restart.limit_interval_sec), account.daily.at(now, DAY)
        full = today >= restart.limit_daily if event.daily_limit_hit else lately >= restart.limit_burst
        if account.counted and not full:
            self.world.fault(f"{event.agent} is not started, for no more than {lately} starts, {today} in a day")
        account.unwritten = account.unwritten or (account.may, account.must)
        account.may, account.must = False, ""

    def _told_of_exit(self, event: events.AgentExited) -> None:
        process = self.world.processes[event.pid]
        told = Exit(event.exit_code, event.signal, lost=event.exit_code is None and event.signal is None)
        if process.exit is None:
            self.world.fault(f"{process} is said to have ended, and lives")
        elif told != process.exit and not (told.lost and process.excused):
            self.world.fault(f"{process} ended otherwise than it is told: {process.exit}, not {told}")
        reports = self.reports[event.invocation]
        if any(report.by == self.supervisor or report.written for report in reports):
            self.world.fault(f"the end of {process} is told a second time")
        if any(told not in {report.exit, LOST} and report.exit != LOST for report in reports):
            self.world.fault(f"the end of {process} is told in two ways")
        reports.append(Report(self.supervisor, told))

    def _goes_on(self, name: str, agent: Agent | None, *, fails: bool) -> None:
        account = self.accounts[name]
        if agent is None or (account.stopped and account.sure):
            return
        account.unwritten = account.unwritten or (account.may, account.must)
        if _restarts(agent.restart, fails=fails):
            account.may, account.must = True, account.must or ("it ended like that" if account.sure else "")

    # In the end.

    def unreported(self) -> list[Process]:
        """Sessions that have ended, which nobody has been told."""
        return [
            process
            for process in self.world.sessions
            if process.exit is not None and not self.reports[process.invocation]
        ]


def _is_clean(exit_: Exit) -> bool:
    return exit_.code == 0 or exit_.signal in CLEAN_SIGNALS


def _restarts(restart: Restart, *, fails: bool) -> bool:
    return restart.policy == "always" or (restart.policy == "on-failure" and fails)
