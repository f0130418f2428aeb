"""All agents together: start, reload, stop, and one line that tells how they are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from forge_supervisor import events, harness
from forge_supervisor.agent import AT_REST, Lifecycle, State
from forge_supervisor.config import Problem
from forge_supervisor.config_files import key_path
from forge_supervisor.declared import Declared
from forge_supervisor.handshake import LaunchError
from forge_supervisor.policy import Result
from forge_supervisor.realm import Realm
from forge_supervisor.session import Session, SessionRunner
from forge_supervisor.worker.client import WorkerError
from forge_supervisor.worker.messages import Close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from forge_supervisor.config import Agent, Config
    from forge_supervisor.handshake import Handshake
    from forge_supervisor.units import Placement

log = structlog.get_logger()

_MOST_NAMED = 10
"""In the status: systemd ignores a notification of more than 4096 bytes."""
# A change of these is taken by a running agent; any other is for its next session, and so brings that about.
_TAKEN_WHILE_RUNNING = {"restart", "stop_timeout_sec", "enabled"}


class Supervisor:
    def __init__(
        self,
        config: Config,
        *,
        placement: Placement,
        handshake: Handshake,
        emit: Callable[[events.Event], None],
        conceal: Callable[[str, Mapping[str, str], str | None], None],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._placement = placement
        self._handshake = handshake
        self._emit = emit
        self._conceal = conceal
        self._on_change = changed
        self._realms: dict[str, Realm] = {}
        self._lives: dict[str, Lifecycle] = {}
        self._declared: dict[str, Declared] = {}
        """What each agent's next session is made of."""
        self._kept: list[str] = []
        """Agents that are not as they are declared now."""
        self._change = asyncio.Event()

    async def start(self) -> None:
        """Start every enabled agent, and return when each was started or has failed to."""
        for agent in self._config.agents.values():
            if agent.enabled:
                self._add(agent).start()
        # Each once: of agents that crash at once, one or the other is always starting again.
        waiting = list(self._lives.values())

        def all_have_been_seen() -> bool:
            waiting[:] = [life for life in waiting if life.state is State.STARTING]
            return not waiting

        await self._until(all_have_been_seen)
        self._emit(events.SupervisorReady(running=self._count(State.RUNNING), failed=self._count(State.FAILED)))

    async def reload(self, config: Config) -> None:
        """Make `config` true: new agents start, removed ones stop, changed ones restart, the others are left alone.

        One that runs, and as it is declared now could not be started, runs on as it was until it can.
        """
        if config.socket_name != self._config.socket_name:
            config = self._keep_socket_name(config)
        self._config = config
        wanted = {name: agent for name, agent in config.agents.items() if agent.enabled}
        declared = {name: Declared.of(agent, config) for name, agent in wanted.items()}
        changed = {
            name
            for name, life in self._lives.items()
            if name in declared and _needs_new_session(self._declared[name], declared[name])
        }
        kept = await self._better_kept({name: declared[name] for name in changed}, declared)
        self._kept = sorted(kept)
        # Another user's agent of that name is another agent: its session, too, belongs to that user.
        await self._remove(
            name
            for name, life in self._lives.items()
            if name not in wanted or (wanted[name].run_as != life.declared.run_as and name not in kept)
        )
        for name, agent in wanted.items():
            life = self._lives.get(name)
            if life is None:
                self._add(agent).start()
            elif name not in changed:
                life.reconfigure(agent)
            elif name not in kept:
                self._declared[name] = declared[name]
                life.replace(agent, harness.load(agent.harness).stop_exit_status)
        await self._close_realms(self._realms.keys() - {life.declared.run_as for life in self._lives.values()})
        self._emit(events.SupervisorReloaded(agents=len(config.agents)))

    async def stop(self) -> None:
        """Stop every agent, then what they lived in."""
        self._placement.stopping()
        for life in self._lives.values():
            life.stop()
        await self._until(lambda: all(life.state in AT_REST for life in self._lives.values()))
        await asyncio.gather(*(self._close_session(life.agent) for life in self._lives.values()))
        await self._close_realms(self._realms.keys())

    def hurry(self) -> None:
        """Kill what is still stopping."""
        for life in self._lives.values():
            life.kill()

    def status(self) -> str:
        """Sum up in one line: ``3 running, 1 failed: scout (exit code 1)``."""
        parts = []
        for state in (State.RUNNING, State.STARTING, State.STOPPING, State.AUTO_RESTART, State.INACTIVE, State.FAILED):
            lives = [life for life in self._lives.values() if life.state is state]
            if not lives:
                continue
            part = f"{len(lives)} {state}"
            if state in {State.FAILED, State.AUTO_RESTART}:
                part += f": {_whys(lives)}"
            parts.append(part)
        status = ", ".join(parts) or "no agents"
        kept = ", ".join(self._kept[:_MOST_NAMED])
        return f"{status}; as before the reload: {kept}" if kept else status

    async def _better_kept(self, changed: dict[str, Declared], all_: dict[str, Declared]) -> set[str]:
        """Find those of the changed agents that run and could not be started again."""
        examined = [name for name in changed if self._lives[name].state not in AT_REST]
        problems = await asyncio.gather(*(self._why_not(changed[name]) for name in examined))
        kept = set()
        for name, problem in zip(examined, problems, strict=True):
            # It may have ended meanwhile, or have come back.
            running = self._lives[name].state in {State.STARTING, State.RUNNING}
            if problem is None or not running or self._bot_is_anothers(name, all_):
                continue
            kept.add(name)
            text = f"runs on as it was, for as it is declared now it could not be started: {problem.text}"
            self._emit(
                events.AgentWarning(
                    agent=name,
                    run_as=self._lives[name].agent.run_as,
                    key=key_path(name, problem.key),
                    problem=text,
                )
            )
        return kept

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

    def _add(self, agent: Agent) -> Lifecycle:
        self._declared[agent.name] = Declared.of(agent, self._config)
        life = Lifecycle(
            agent,
            SessionRunner(self._make_session),
            clock=asyncio.get_running_loop(),
            emit=self._emit,
            stop_exit_status=harness.load(agent.harness).stop_exit_status,
        )
        life.changed = self._changed
        self._lives[agent.name] = life
        return life

    def _keep_socket_name(self, config: Config) -> Config:
        """Agents cannot move to another tmux server while they run, and one cannot attach to half of them."""
        text = f'stays "{self._config.socket_name}" until the supervisor is restarted'
        self._emit(events.ConfigWarning(file="", key="socket_name", problem=text))
        return replace(config, socket_name=self._config.socket_name)

    async def _close_realms(self, users: Iterable[str]) -> None:
        await asyncio.gather(*(self._realms.pop(user).close() for user in list(users)))

    async def _remove(self, names: Iterable[str]) -> None:
        removed = [self._lives[name] for name in names]
        for life in removed:
            life.stop()
        await self._until(lambda: all(life.state in AT_REST for life in removed))
        await asyncio.gather(*(self._close_session(life.agent) for life in removed))
        for life in removed:
            del self._lives[life.agent.name]
            del self._declared[life.agent.name]

    async def _close_session(self, agent: Agent) -> None:
        realm = self._realms.get(agent.run_as)
        if realm is None or realm.server_pid is None:
            return
        try:
            await realm.ask(Close(agent=agent.name, server=realm.server_pid))
        except (WorkerError, LaunchError) as error:
            self._emit(
                events.AgentWarning(
                    agent=agent.name, run_as=agent.run_as, key="", problem=f"its session stays behind: {error}"
                )
            )

    def _make_session(self, agent: Agent, invocation: str) -> Session:
        return self._session_of(self._declared[agent.name], invocation)

    def _session_of(self, declared: Declared, invocation: str) -> Session:
        return Session(
            declared,
            invocation,
            realm=self._realm_of(declared.agent.run_as),
            handshake=self._handshake,
            emit=self._emit,
            conceal=self._conceal,
        )

    def _realm_of(self, user: str) -> Realm:
        if user not in self._realms:
            self._realms[user] = Realm(user, self._placement, self._config.socket_name, self._emit)
        return self._realms[user]

    def _count(self, state: State) -> int:
        return sum(life.state is state for life in self._lives.values())

    def _changed(self) -> None:
        self._change.set()
        self._on_change()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._change.clear()
            await self._change.wait()


def _needs_new_session(old: Declared, new: Declared) -> bool:
    kept = [declared.agent.model_dump(exclude=_TAKEN_WHILE_RUNNING) for declared in (old, new)]
    return kept[0] != kept[1] or (old.settings, old.granted) != (new.settings, new.granted)


def _whys(lives: list[Lifecycle]) -> str:
    whys = ", ".join(f"{life.agent.name} ({_why(life)})" for life in lives[:_MOST_NAMED])
    return whys + (f" and {len(lives) - _MOST_NAMED} more" if len(lives) > _MOST_NAMED else "")


def _why(life: Lifecycle) -> str:
    if life.result is Result.SUCCESS and life.start_limit_hit:
        return "start limit hit"
    if life.result in {Result.EXIT_CODE, Result.SIGNAL} and life.exit is not None:
        return str(life.exit)
    return str(life.result)
