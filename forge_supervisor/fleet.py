"""The agents that there are: what each is made of, the life and the sessions of it, and where those live."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from forge_supervisor import harness
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Agent, Problem
from forge_supervisor.handshake import LaunchError
from forge_supervisor.keeper import Keeper
from forge_supervisor.memory import AT_REST
from forge_supervisor.realms import Realms
from forge_supervisor.runner import SessionRunner
from forge_supervisor.saved import Saved, SavedActivity, boot_id
from forge_supervisor.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from forge_supervisor import events
    from forge_supervisor.declared import Declared
    from forge_supervisor.handshake import Handshake
    from forge_supervisor.realm import Realm
    from forge_supervisor.saved import Store
    from forge_supervisor.units import Placement

log = structlog.get_logger()


class Fleet:
    """`changed` is told the name of each agent of which something is not as it was."""

    def __init__(
        self,
        socket_name: str,
        *,
        placement: Placement,
        handshake: Handshake,
        store: Store,
        emit: Callable[[events.Event], None],
        conceal: Callable[[str, Mapping[str, str], str | None], None],
        changed: Callable[[str], None],
    ) -> None:
        self.socket_name = socket_name
        """Of the tmux servers of all of them."""
        self._handshake = handshake
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
        self._replacing: set[str] = set()
        """Those whose present session is to be the last of what it was made of."""
        self._change = asyncio.Event()
        self._finding: asyncio.Future[Any] | None = None
        self.settled: Callable[[Agent], Awaitable[None]] = _at_once
        """Returns when nothing more is to be asked of the realm of an agent that has ended."""
        self.activity_of: Callable[[str], SavedActivity | None] = lambda _: None
        """What another supervisor has to know of what an agent is doing."""

    @property
    def lives(self) -> Mapping[str, Lifecycle]:
        """Those of all agents that are to be started, or have been."""
        return self._lives

    @property
    def declared(self) -> Mapping[str, Declared]:
        """What the next session of each is made of."""
        return self._declared

    @property
    def fingerprints(self) -> Mapping[str, Mapping[str, str]]:
        """Of what the present session of each is made."""
        return self._fingerprints

    @property
    def users(self) -> set[str]:
        """Name the Linux users of all of them."""
        return {life.agent.run_as for life in self._lives.values()}

    def add(self, declared: Declared, left: Saved | None = None) -> Lifecycle:
        """Make an agent that has not been started, or that is to go on as an earlier supervisor has left it."""
        agent = declared.agent
        self._declare(declared)
        runner = SessionRunner(self._make_session, None if left is None else left.session)
        life = Lifecycle(
            agent,
            runner,
            clock=asyncio.get_running_loop(),
            emit=self._emit,
            stop_exit_status=harness.stop_exit_status(agent.harness),
        )
        life.changed = partial(self._changed, agent.name)
        life.beginning = partial(self._begins, agent.name)
        self._lives[agent.name] = life
        self._runners[agent.name] = runner
        return life

    def adopt(self, declared: Declared, left: Saved, *, goes_on: bool) -> Lifecycle:
        """Add an agent as it was left. Unless it goes on, it is not to be started again as what it was."""
        life = self.add(declared, left)
        self._fingerprints[declared.agent.name] = left.declared
        life.resume(left.life if goes_on else replace(left.life, start_again=False))
        return life

    def adjust(self, declared: Declared, keys: set[str]) -> None:
        """Have an agent take what it takes while it runs."""
        name = declared.agent.name
        old = self._fingerprints[name].get("resources", "")
        self._declare(declared)
        self._lives[name].reconfigure(declared.agent)
        if "resources" in keys and not self._runners[name].limit(declared.agent.resources):
            # Still to be done, by the next reload or the next supervisor.
            self._fingerprints[name]["resources"] = f"not {old}"
        self._keeper.save(name)

    def replace(self, declared: Declared) -> None:
        """Give an agent a session of what is declared now."""
        agent = declared.agent
        self._declared[agent.name] = declared
        self._replacing.add(agent.name)
        self._lives[agent.name].replace(agent, harness.stop_exit_status(agent.harness))

    async def remove(self, name: str) -> None:
        """Stop an agent and forget it; what its user has is left, for others of that user."""
        life = self._lives[name]
        self._replacing.discard(name)
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

    async def close_realm(self, user: str) -> None:
        """End what a user has, if there is anything; none of its agents is left."""
        if user in self._realms.users:
            await self._realms.close(user)

    def find_servers(self) -> asyncio.Future[Any]:
        """Begin to look for the tmux servers of those that are adopted.

        So that what is stopped has its session closed, even if none of that user's agents is ever started again.
        """
        self._finding = asyncio.gather(*map(self._realms.find_server, self.users))
        return self._finding

    async def stop(self) -> None:
        """Stop all agents, then what they lived in."""
        for life in self._lives.values():
            life.stop()
        await self.until(lambda: all(life.state in AT_REST for life in self._lives.values()))
        await asyncio.gather(*(self.settled(life.agent) for life in self._lives.values()))
        await asyncio.gather(*(self._realms.close_session(life.agent) for life in self._lives.values()))
        await self._realms.close_all()
        for name in self._lives:
            self._keeper.forget(name)

    async def leave(self) -> None:
        """Let go of all agents as they are; what another supervisor has to know has been saved all along."""
        self._keeper.save_again()
        for life in self._lives.values():
            life.freeze()
        await asyncio.gather(*(runner.leave() for runner in self._runners.values()))
        await self._realms.leave()

    async def why_not(self, declared: Declared) -> Problem | None:
        """Tell why an agent could not be started now as that."""
        try:
            await self._session_of(declared, "").examine()
        except LaunchError as error:
            return error.problem
        except Exception as error:
            log.exception("supervisor_fault", agent=declared.agent.name, run_as=declared.agent.run_as)
            return Problem("", f"fault in the supervisor: {error!r}")
        return None

    def resumes(self, name: str) -> bool:
        """Whether the agent's session goes on with an earlier one."""
        return name in self._runners and self._runners[name].resumes

    def secrets_of(self, name: str) -> Collection[str]:
        """Name the secret variables of an agent's environment."""
        return self._declared[name].secrets().keys()

    def save(self, name: str) -> None:
        """Write down what another supervisor has to know of an agent."""
        self._keeper.save(name)

    def note(self, name: str) -> None:
        """Take note that an agent is doing something else: have it written down, and told."""
        self._keeper.save(name)
        self._on_change(name)

    def realm_of(self, user: str) -> Realm:
        return self._realms.of(user)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; it is looked at after each change of an agent."""
        while not condition():
            self._change.clear()
            await self._change.wait()

    def _declare(self, declared: Declared) -> None:
        self._declared[declared.agent.name] = declared
        self._fingerprints[declared.agent.name] = declared.fingerprint()

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

    def _state_of(self, name: str) -> Saved | None:
        """Tell what another supervisor has to know of an agent."""
        life = self._lives.get(name)
        if life is None:
            return None
        return Saved(
            boot=self._boot,
            socket_name=self.socket_name,
            run_as=life.agent.run_as,
            declared=self._fingerprints[name],
            stop_timeout_sec=life.agent.stop_timeout_sec,
            life=life.memory(),
            session=self._runners[name].saved,
            activity=self.activity_of(name),
        )

    def _known(self, user: str) -> dict[str, int | None]:
        """Name the agents of a user, each with the pid of its session, if it has one."""
        known = {}
        for name, life in self._lives.items():
            if life.agent.run_as == user:
                saved = self._runners[name].saved
                known[name] = None if saved is None else saved.pid
        return known

    def _begins(self, name: str) -> None:
        # Not before: as long as the old session runs, what that was made of is what there is.
        self._replacing.discard(name)
        self._fingerprints[name] = self._declared[name].fingerprint()

    def _changed(self, name: str) -> None:
        if name in self._replacing and self._lives[name].state in AT_REST:
            # Stopped for good meanwhile: the change has been made, and is no reason to start it later.
            self._begins(name)
        self._keeper.save(name)
        self._change.set()
        self._on_change(name)


async def _at_once(_agent: Agent) -> None: ...
