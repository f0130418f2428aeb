"""Makes the configuration true of all agents: start, reload, stop, leave; and one line that tells how they are."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events
from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.config_files import key_path
from forge_supervisor.declared import Declared
from forge_supervisor.memory import State
from forge_supervisor.plan import Plan, plan
from forge_supervisor.status import summed_up

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from forge_supervisor.activity import Doing
    from forge_supervisor.agent import Lifecycle
    from forge_supervisor.config import Config
    from forge_supervisor.fleet import Fleet
    from forge_supervisor.saved import Saved, Store
    from forge_supervisor.units import Placement

log = structlog.get_logger()

PATIENCE = 5.0
"""Seconds that a reload waits for what it has begun: agents may take as long as they like to stop."""


class Supervisor:
    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        *,
        placement: Placement,
        store: Store,
        emit: Callable[[events.Event], None],
    ) -> None:
        self.fleet = fleet
        self._config = config
        self._placement = placement
        self._store = store
        self._emit = emit
        self._kept: set[str] = set()
        self._leaving: set[str] = set()
        self._stopped: set[str] = set()
        """Agents that had been stopped when the last reload came."""
        self.troubles: Callable[[], Mapping[str, Doing]] = dict
        """Why agents that run do not work."""
        self.ending = False
        """Whether it stops or leaves all agents: whatever is begun now would be nobody's."""
        self._seeing: dict[str, asyncio.Task[None]] = {}
        """Changes of agents that are under way."""

    @property
    def agents(self) -> Mapping[str, Agent]:
        """All that are declared, and those that are no more and have not ended yet."""
        going = {name: life.agent for name, life in self.lives.items() if name not in self._config.agents}
        return {**self._config.agents, **going}

    @property
    def lives(self) -> Mapping[str, Lifecycle]:
        """Those of all agents that are to be started, or have been."""
        return self.fleet.lives

    @property
    def kept(self) -> Collection[str]:
        """Agents that are not as they are declared now."""
        return self._kept

    @property
    def leaving(self) -> Collection[str]:
        """Agents that are being stopped to be removed, be it that another of that name is to follow."""
        return self._leaving

    @property
    def config(self) -> Config:
        """What was declared last."""
        return self._config

    def plan_of(self, config: Config) -> Plan:
        """Tell what a reload would do."""
        return plan(Declared.of_all(config), self.fleet.fingerprints)

    async def start(self, saved: Mapping[str, Saved]) -> None:
        """Adopt what an earlier supervisor has left, make the configuration true, and start every enabled agent.

        Returns when each was started or has failed to.
        """
        unfinished = self._store.stopping
        for name, left in saved.items():
            if left.socket_name != self.fleet.socket_name:
                self.fleet.socket_name = left.socket_name
                self._config = self._keep_socket_name(self._config)
            self._adopt(name, left)
        finding = self.fleet.find_servers()
        if unfinished:
            # None of them was stopped for its own sake, so all are to be started again.
            await asyncio.gather(*map(self._remove, list(self.lives)))
            self._store.stopped()
        await self._make_true()
        await finding
        # Each once: of agents that crash at once, one or the other is always starting again.
        waiting = list(self.lives.values())

        def all_have_been_seen() -> bool:
            waiting[:] = [life for life in waiting if life.state is State.STARTING]
            return not waiting

        await self.fleet.until(all_have_been_seen)
        self._emit(events.SupervisorReady(running=self._count(State.RUNNING), failed=self._count(State.FAILED)))

    async def reload(self, config: Config) -> None:
        """Make `config` true: new agents start, removed ones stop, changed ones restart, the others are left alone.

        One that runs, and as it is declared now could not be started, runs on as it was until it can.
        """
        if self.ending:
            return
        if config.socket_name != self.fleet.socket_name:
            config = self._keep_socket_name(config)
        self._config = config
        await self._make_true()
        self._emit(events.SupervisorReloaded(agents=len(config.agents)))

    async def stop(self) -> None:
        """Stop every agent, then what they lived in."""
        self.ending = True
        self._placement.stopping()
        await self._let_be()
        with contextlib.suppress(OSError):
            self._store.begin_to_stop()
        await self.fleet.stop()
        self._store.stopped()

    async def leave(self) -> None:
        """Let go of every agent as it is."""
        self.ending = True
        await self._let_be()
        await self.fleet.leave()

    def hurry(self) -> None:
        """Kill what is still stopping."""
        for life in self.lives.values():
            life.kill()

    def status(self) -> str:
        """Sum up in one line: ``3 running, 1 failed: scout (exit code 1)``."""
        return summed_up(self.lives.values(), self._kept, self.troubles())

    def _count(self, state: State) -> int:
        return sum(life.state is state for life in self.lives.values())

    def _adopt(self, name: str, left: Saved) -> None:
        """Go on with an agent as it was left, be it still declared or not: what then becomes of it is decided later."""
        agent = self._config.agents.get(name)
        stays = agent is not None and agent.enabled and agent.run_as == left.run_as
        if agent is None or not stays:
            declared = Declared(_stand_in(name, left), HarnessSettings(), Library())
        else:
            declared = Declared.of(agent, self._config)
        # As what it was it is not to be started again, but for what it is declared as now.
        life = self.fleet.adopt(declared, left, goes_on=stays)
        if agent is None or not agent.enabled or (not stays and life.state is not State.RUNNING):
            life.stop()

    def _keep_socket_name(self, config: Config) -> Config:
        """Agents cannot move to another tmux server while they run, and one cannot attach to half of them."""
        name = self.fleet.socket_name
        text = f'stays "{name}" until the supervisor, and with it every agent, is stopped and started'
        self._emit(events.ConfigWarning(file="", key="socket_name", problem=text))
        return replace(config, socket_name=name)

    async def _make_true(self) -> None:
        """Make the configuration true, for each agent by itself: neither a slow user nor a slow stop holds up others.

        Returns when all is done, or has been begun PATIENCE seconds ago.
        """
        declared = Declared.of_all(self._config)
        self._kept &= declared.keys()
        self._stopped = {name for name, life in self.lives.items() if life.stays_down}
        for name in dict.fromkeys((*declared, *self.lives)):
            earlier = self._seeing.get(name)
            self._seeing[name] = asyncio.create_task(self._see_to(name, declared, earlier))
        if self._seeing:
            await asyncio.wait(self._seeing.values(), timeout=PATIENCE)
        self._seeing = {name: task for name, task in self._seeing.items() if not task.done()}

    async def _see_to(self, name: str, declared: dict[str, Declared], earlier: asyncio.Task[None] | None) -> None:
        """Have one agent be what is declared of it, once an earlier change has come to its end."""
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            if self._is_outdated(name):
                return
            wanted = {name: declared[name]} if name in declared else {}
            known = {name: self.fleet.fingerprints[name]} if name in self.fleet.fingerprints else {}
            await self._carry_out(plan(wanted, known), declared)
        except Exception:
            log.exception("supervisor_fault", agent=name, run_as="")

    async def _carry_out(self, todo: Plan, declared: dict[str, Declared]) -> None:
        for name in todo.removed:
            await self._remove(name)
        for name in todo.new:
            await self._start_new(declared[name], declared)
        for name, keys in todo.adjusted.items():
            self.fleet.adjust(declared[name], keys)
        for name in todo.unchanged:
            # An earlier change that has not begun to hold is taken back.
            if self.fleet.declared[name] != declared[name]:
                self.fleet.adjust(declared[name], set())
        for name, keys in todo.changed.items():
            await self._replace(declared[name], keys, declared)
        for name in todo.unchanged | todo.adjusted.keys():
            self._kept.discard(name)

    async def _start_new(self, declared: Declared, all_: dict[str, Declared]) -> None:
        leaving = [task for name, task in self._seeing.items() if name not in all_]
        # Of two agents with one bot neither works.
        if declared.granted.bot is not None and leaving:
            await asyncio.wait(leaving)
        self.fleet.add(declared).start()

    async def _replace(self, declared: Declared, keys: set[str], all_: dict[str, Declared]) -> None:
        """Give an agent a session of what is declared now, unless it runs and could not be started like that."""
        name = declared.agent.name
        better_kept = await self._is_better_kept(declared, all_)
        if self._is_outdated(name):
            return
        if better_kept:
            self._kept.add(name)
            return
        self._kept.discard(name)
        if self.lives[name].stays_down and name not in self._stopped:
            # Whoever has stopped it since has had the last word.
            await self._remove(name)
            self.fleet.add(declared)
            self.fleet.save(name)
        elif "run_as" in keys:
            # Another user's agent of that name is another agent: its session, too, belongs to that user.
            await self._remove(name)
            if not self._is_outdated(name):
                self.fleet.add(declared).start()
        else:
            self.fleet.replace(declared)

    async def _remove(self, name: str) -> None:
        self._leaving.add(name)
        user = self.lives[name].agent.run_as
        try:
            await self.fleet.remove(name)
            declared = {agent.run_as for agent in self._config.agents.values() if agent.enabled}
            if user not in declared | self.fleet.users:
                await self.fleet.close_realm(user)
        finally:
            self._leaving.discard(name)

    async def _is_better_kept(self, declared: Declared, all_: dict[str, Declared]) -> bool:
        name = declared.agent.name
        life = self.lives[name]
        if not _runs(life):
            return False
        problem = await self.fleet.why_not(declared)
        # It may have ended meanwhile, or have come back.
        if problem is None or not _runs(life) or self._bot_is_anothers(name, all_):
            return False
        text = f"runs on as it was, for as it is declared now it could not be started: {problem.text}"
        self._emit(
            events.AgentWarning(
                agent=name,
                run_as=life.agent.run_as,
                key=key_path(name, problem.key),
                problem=text,
            )
        )
        return True

    def _bot_is_anothers(self, name: str, declared: dict[str, Declared]) -> bool:
        """Whether the bot that an agent has still belongs to another one now."""
        bot = self.fleet.declared[name].granted.bot
        others = (other.granted.bot for other_name, other in declared.items() if other_name != name)
        return bot is not None and any(other and other.token_file == bot.token_file for other in others)

    def _is_outdated(self, name: str) -> bool:
        """Whether a later reload waits for the present task to be done with that agent: it knows better."""
        return self._seeing.get(name) is not asyncio.current_task()

    async def _let_be(self) -> None:
        """Begin nothing more of what a reload has brought."""
        for task in self._seeing.values():
            task.cancel()
        await asyncio.gather(*self._seeing.values(), return_exceptions=True)


def _runs(life: Lifecycle) -> bool:
    return life.state in {State.STARTING, State.RUNNING}


def _stand_in(name: str, left: Saved) -> Agent:
    """Make an agent of one that is declared no more, as far as it takes to stop it."""
    keys = {"name": name, "run_as": left.run_as, "harness": "command", "command": ["-"], "restart": {"policy": "no"}}
    return Agent.model_validate({**keys, "stop_timeout_sec": left.stop_timeout_sec})
