"""All agents together: start, adopt, reload, stop, leave, and one line that tells how they are."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from forge_supervisor import events, harness
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Agent, HarnessSettings, Library, Problem
from forge_supervisor.config_files import key_path
from forge_supervisor.declared import Declared
from forge_supervisor.handshake import LaunchError
from forge_supervisor.keeper import Keeper
from forge_supervisor.memory import AT_REST, State
from forge_supervisor.plan import Plan, plan
from forge_supervisor.realms import Realms
from forge_supervisor.runner import SessionRunner
from forge_supervisor.saved import Saved, SavedActivity, boot_id
from forge_supervisor.session import Session
from forge_supervisor.status import summed_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from forge_supervisor.activity import Doing
    from forge_supervisor.config import Config
    from forge_supervisor.handshake import Handshake
    from forge_supervisor.realm import Realm
    from forge_supervisor.saved import Store
    from forge_supervisor.units import Placement

log = structlog.get_logger()

PATIENCE = 5.0
"""Seconds that a reload waits for what it has begun: agents may take as long as they like to stop."""


class Supervisor:
    def __init__(
        self,
        config: Config,
        *,
        placement: Placement,
        handshake: Handshake,
        store: Store,
        emit: Callable[[events.Event], None],
        conceal: Callable[[str, Mapping[str, str], str | None], None],
        changed: Callable[[str], None],
    ) -> None:
        """`changed` is told the name of each agent of which something is not as it was."""
        self._config = config
        self._placement = placement
        self._handshake = handshake
        self._store = store
        self._keeper = Keeper(store, self._state_of, emit)
        self._boot = boot_id()
        self._emit = emit
        self._conceal = conceal
        self._on_change = changed
        self._realms = Realms(placement, emit, socket_name=lambda: self.socket_name, known=self._known)
        self._lives: dict[str, Lifecycle] = {}
        self._runners: dict[str, SessionRunner] = {}
        self._declared: dict[str, Declared] = {}
        """What each agent's next session is made of."""
        self._fingerprints: dict[str, dict[str, str]] = {}
        """Of what each agent's present session is made."""
        self._kept: set[str] = set()
        self._leaving: set[str] = set()
        self._stopped: set[str] = set()
        """Agents that had been stopped when the last reload came."""
        self.settled: Callable[[Agent], Awaitable[None]] = _at_once
        """Returns when nothing more is to be asked of the realm of an agent that has ended."""
        self.activity_of: Callable[[str], SavedActivity | None] = lambda _: None
        """What another supervisor has to know of what an agent is doing."""
        self.troubles: Callable[[], Mapping[str, Doing]] = dict
        """Why agents that run do not work."""
        self.ending = False
        """Whether it stops or leaves all agents: whatever is begun now would be nobody's."""
        self._change = asyncio.Event()
        self._finding: asyncio.Future[Any] | None = None
        self._seeing: dict[str, asyncio.Task[None]] = {}
        """Changes of agents that are under way."""

    @property
    def agents(self) -> Mapping[str, Agent]:
        """All that are declared, and those that are no more and have not ended yet."""
        going = {name: life.agent for name, life in self._lives.items() if name not in self._config.agents}
        return {**self._config.agents, **going}

    @property
    def lives(self) -> Mapping[str, Lifecycle]:
        """Those of all agents that are to be started, or have been."""
        return self._lives

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

    @property
    def socket_name(self) -> str:
        return self._config.socket_name

    def plan_of(self, config: Config) -> Plan:
        """Tell what a reload would do."""
        return plan(Declared.of_all(config), self._fingerprints)

    async def start(self, saved: Mapping[str, Saved]) -> None:
        """Adopt what an earlier supervisor has left, make the configuration true, and start every enabled agent.

        Returns when each was started or has failed to.
        """
        unfinished = self._store.stopping
        for name, left in saved.items():
            if left.socket_name != self._config.socket_name:
                self._config = self._keep_socket_name(self._config, left.socket_name)
            self._adopt(name, left)
        # So that what is stopped has its session closed, even if none of that user's agents is ever started again.
        users = {life.agent.run_as for life in self._lives.values()}
        self._finding = asyncio.gather(*map(self._realms.find_server, users))
        if unfinished:
            # None of them was stopped for its own sake, so all are to be started again.
            await asyncio.gather(*map(self._remove, list(self._lives)))
            self._store.stopped()
        await self._make_true()
        await self._finding
        # Each once: of agents that crash at once, one or the other is always starting again.
        waiting = list(self._lives.values())

        def all_have_been_seen() -> bool:
            waiting[:] = [life for life in waiting if life.state is State.STARTING]
            return not waiting

        await self.until(all_have_been_seen)
        self._emit(events.SupervisorReady(running=self._count(State.RUNNING), failed=self._count(State.FAILED)))

    async def reload(self, config: Config) -> None:
        """Make `config` true: new agents start, removed ones stop, changed ones restart, the others are left alone.

        One that runs, and as it is declared now could not be started, runs on as it was until it can.
        """
        if self.ending:
            return
        if config.socket_name != self._config.socket_name:
            config = self._keep_socket_name(config, self._config.socket_name)
        self._config = config
        await self._make_true()
        self._emit(events.SupervisorReloaded(agents=len(config.agents)))

    async def _make_true(self) -> None:
        """Make the configuration true, for each agent by itself: neither a slow user nor a slow stop holds up others.

        Returns when all is done, or has been begun PATIENCE seconds ago.
        """
        declared = Declared.of_all(self._config)
        self._kept &= declared.keys()
        self._stopped = {name for name, life in self._lives.items() if life.stays_down}
        for name in dict.fromkeys((*declared, *self._lives)):
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
            known = {name: self._fingerprints[name]} if name in self._fingerprints else {}
            await self._carry_out(plan(wanted, known), declared)
        except Exception:
            log.exception("supervisor_fault", agent=name, run_as="")

    async def _carry_out(self, todo: Plan, declared: dict[str, Declared]) -> None:
        for name in todo.removed:
            await self._remove(name)
        for name in todo.new:
            await self._start_new(declared[name], declared)
        for name, keys in todo.adjusted.items():
            self._adjust(declared[name], keys)
        for name in todo.unchanged:
            # An earlier change that has not begun to hold is taken back.
            if self._declared[name] != declared[name]:
                self._adjust(declared[name], set())
        for name, keys in todo.changed.items():
            await self._replace(declared[name], keys, declared)
        for name in todo.unchanged | todo.adjusted.keys():
            self._kept.discard(name)

    async def _start_new(self, declared: Declared, all_: dict[str, Declared]) -> None:
        leaving = [task for name, task in self._seeing.items() if name not in all_]
        # Of two agents with one bot neither works.
        if declared.granted.bot is not None and leaving:
            await asyncio.wait(leaving)
        self._add(declared).start()

    async def _replace(self, declared: Declared, keys: set[str], all_: dict[str, Declared]) -> None:
        """Give an agent a session of what is declared now, unless it runs and could not be started like that."""
        agent = declared.agent
        better_kept = await self._is_better_kept(declared, all_)
        if self._is_outdated(agent.name):
            return
        if better_kept:
            self._kept.add(agent.name)
            return
        self._kept.discard(agent.name)
        if self._lives[agent.name].stays_down and agent.name not in self._stopped:
            # Whoever has stopped it since has had the last word.
            await self._remove(agent.name)
            self._add(declared)
            self._keeper.save(agent.name)
        elif "run_as" in keys:
            # Another user's agent of that name is another agent: its session, too, belongs to that user.
            await self._remove(agent.name)
            if not self._is_outdated(agent.name):
                self._add(declared).start()
        else:
            self._declared[agent.name] = declared
            self._lives[agent.name].replace(agent, self._stop_exit_status(agent))

    def _is_outdated(self, name: str) -> bool:
        """Whether a later reload waits for the present task to be done with that agent: it knows better."""
        return self._seeing.get(name) is not asyncio.current_task()

    async def _let_be(self) -> None:
        """Begin nothing more of what a reload has brought."""
        for task in self._seeing.values():
            task.cancel()
        await asyncio.gather(*self._seeing.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Stop every agent, then what they lived in."""
        self.ending = True
        self._placement.stopping()
        await self._let_be()
        with contextlib.suppress(OSError):
            self._store.begin_to_stop()
        for life in self._lives.values():
            life.stop()
        await self.until(lambda: all(life.state in AT_REST for life in self._lives.values()))
        await asyncio.gather(*(self.settled(life.agent) for life in self._lives.values()))
        await asyncio.gather(*(self._realms.close_session(life.agent) for life in self._lives.values()))
        await self._realms.close_all()
        for name in self._lives:
            self._keeper.forget(name)
        self._store.stopped()

    async def leave(self) -> None:
        """Let go of every agent as it is; what another supervisor has to know has been saved all along."""
        self.ending = True
        await self._let_be()
        self._keeper.save_again()
        for life in self._lives.values():
            life.freeze()
        await asyncio.gather(*(runner.leave() for runner in self._runners.values()))
        await self._realms.leave()

    def hurry(self) -> None:
        """Kill what is still stopping."""
        for life in self._lives.values():
            life.kill()

    def status(self) -> str:
        """Sum up in one line: ``3 running, 1 failed: scout (exit code 1)``."""
        return summed_up(self._lives.values(), self._kept, self.troubles())

    async def _is_better_kept(self, declared: Declared, all_: dict[str, Declared]) -> bool:
        name = declared.agent.name
        life = self._lives[name]
        if not _runs(life):
            return False
        problem = await self._why_not(declared)
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
        bot = self._declared[name].granted.bot
        others = (other.granted.bot for other_name, other in declared.items() if other_name != name)
        return bot is not None and any(other and other.token_file == bot.token_file for other in others)

    async def _why_not(self, declared: Declared) -> Problem | None:
        try:
            await self._session_of(declared, "").examine()
        except LaunchError as error:
            return error.problem
        except Exception as error:
            log.exception("supervisor_fault", agent=declared.agent.name, run_as=declared.agent.run_as)
            return Problem("", f"fault in the supervisor: {error!r}")
        return None

    def _add(self, declared: Declared, left: Saved | None = None) -> Lifecycle:
        agent = declared.agent
        self._declare(declared)
        runner = SessionRunner(self._make_session, None if left is None else left.session)
        life = Lifecycle(
            agent,
            runner,
            clock=asyncio.get_running_loop(),
            emit=self._emit,
            stop_exit_status=self._stop_exit_status(agent),
        )
        life.changed = partial(self._changed, agent.name)
        life.beginning = partial(self._begins, agent.name)
        self._lives[agent.name] = life
        self._runners[agent.name] = runner
        return life

    def _declare(self, declared: Declared) -> None:
        self._declared[declared.agent.name] = declared
        self._fingerprints[declared.agent.name] = declared.fingerprint()

    def _adjust(self, declared: Declared, keys: set[str]) -> None:
        """Have an agent take what it takes while it runs."""
        name = declared.agent.name
        old = self._fingerprints[name].get("resources", "")
        self._declare(declared)
        self._lives[name].reconfigure(declared.agent)
        if "resources" in keys and not self._runners[name].limit(declared.agent.resources):
            # Still to be done, by the next reload or the next supervisor.
            self._fingerprints[name]["resources"] = f"not {old}"
        self._keeper.save(name)

    @staticmethod
    def _stop_exit_status(agent: Agent) -> frozenset[int]:
        return harness.stop_exit_status(agent.harness)

    def _adopt(self, name: str, left: Saved) -> None:
        """Go on with an agent as it was left, be it still declared or not: what then becomes of it is decided later."""
        agent = self._config.agents.get(name)
        stays = agent is not None and agent.enabled and agent.run_as == left.run_as
        if agent is None or not stays:
            declared = Declared(_stand_in(name, left), HarnessSettings(), Library())
        else:
            declared = Declared.of(agent, self._config)
        life = self._add(declared, left)
        self._fingerprints[name] = left.declared
        # As what it was it is not to be started again, but for what it is declared as now.
        life.resume(left.life if stays else replace(left.life, start_again=False))
        if agent is None or not agent.enabled or (not stays and life.state is not State.RUNNING):
            life.stop()

    def _state_of(self, name: str) -> Saved | None:
        """Tell what another supervisor has to know of an agent."""
        life = self._lives.get(name)
        if life is None:
            return None
        return Saved(
            boot=self._boot,
            socket_name=self._config.socket_name,
            run_as=life.agent.run_as,
            declared=self._fingerprints[name],
            stop_timeout_sec=life.agent.stop_timeout_sec,
            life=life.memory(),
            session=self._runners[name].saved,
            activity=self.activity_of(name),
        )

    def _keep_socket_name(self, config: Config, name: str) -> Config:
        """Agents cannot move to another tmux server while they run, and one cannot attach to half of them."""
        text = f'stays "{name}" until the supervisor, and with it every agent, is stopped and started'
        self._emit(events.ConfigWarning(file="", key="socket_name", problem=text))
        return replace(config, socket_name=name)

    async def _remove(self, name: str) -> None:
        self._leaving.add(name)
        try:
            await self._end(name)
        finally:
            self._leaving.discard(name)

    async def _end(self, name: str) -> None:
        life = self._lives[name]
        # Should it be declared again before it has stopped, and be it by the next supervisor, that is a change.
        self._fingerprints[name] = {}
        life.stop()
        self._keeper.save(name)
        await self.until(lambda: life.state in AT_REST)
        if self._finding is not None:
            await asyncio.shield(self._finding)
        await self.settled(life.agent)
        await self._realms.close_session(life.agent)
        for kept in (self._lives, self._runners, self._declared, self._fingerprints):
            kept.pop(name)
        self._keeper.forget(name)
        users = {other.agent.run_as for other in self._lives.values()} | {
            agent.run_as for agent in self._config.agents.values() if agent.enabled
        }
        if life.agent.run_as in self._realms.users - users:
            await self._realms.close(life.agent.run_as)

    def _make_session(self, agent: Agent, invocation: str, fresh: bool) -> Session:  # noqa: FBT001 - a Callable's
        return self._session_of(self._declared[agent.name], invocation, fresh=fresh)

    def _session_of(self, declared: Declared, invocation: str, *, fresh: bool = False) -> Session:
        return Session(
            declared,
            invocation,
            realm=self.realm_of(declared.agent.run_as),
            handshake=self._handshake,
            emit=self._emit,
            conceal=self._conceal,
            noted=partial(self._keeper.save, declared.agent.name),
            fresh=fresh,
        )

    def resumes(self, name: str) -> bool:
        """Whether the agent's session goes on with an earlier one."""
        return name in self._runners and self._runners[name].resumes

    def secrets_of(self, name: str) -> Collection[str]:
        """Name the secret variables of an agent's environment."""
        return self._declared[name].secrets().keys()

    def note(self, name: str) -> None:
        """Take note that an agent is doing something else: have it written down, and told."""
        self._keeper.save(name)
        self._on_change(name)

    def realm_of(self, user: str) -> Realm:
        return self._realms.of(user)

    def _known(self, user: str) -> dict[str, int | None]:
        """Name the agents of a user, each with the pid of its session, if it has one."""
        known = {}
        for name, life in self._lives.items():
            if life.agent.run_as == user:
                saved = self._runners[name].saved
                known[name] = None if saved is None else saved.pid
        return known

    def _count(self, state: State) -> int:
        return sum(life.state is state for life in self._lives.values())

    def _begins(self, name: str) -> None:
        # Not before: as long as the old session runs, what that was made of is what there is.
        self._fingerprints[name] = self._declared[name].fingerprint()

    def _changed(self, name: str) -> None:
        self._keeper.save(name)
        self._change.set()
        self._on_change(name)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; it is looked at after each change of an agent."""
        while not condition():
            self._change.clear()
            await self._change.wait()


async def _at_once(_agent: Agent) -> None: ...


def _runs(life: Lifecycle) -> bool:
    return life.state in {State.STARTING, State.RUNNING}


def _stand_in(name: str, left: Saved) -> Agent:
    """Make an agent of one that is declared no more, as far as it takes to stop it."""
    keys = {"name": name, "run_as": left.run_as, "harness": "command", "command": ["-"], "restart": {"policy": "no"}}
    return Agent.model_validate({**keys, "stop_timeout_sec": left.stop_timeout_sec})
