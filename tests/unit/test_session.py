"""One session with real processes and the real launch; only the user's realm (worker, tmux server) is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pwd
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor import events, session, units
from forge_supervisor.agent import Lifecycle
from forge_supervisor.config import Agent, HarnessSettings, Library
from forge_supervisor.config_resources import Resources
from forge_supervisor.declared import Declared
from forge_supervisor.handshake import SCRIPT, Handshake, LaunchError
from forge_supervisor.launch import GAVE_UP
from forge_supervisor.memory import State
from forge_supervisor.pidfd import Pidfd, birth
from forge_supervisor.policy import Exit, Result
from forge_supervisor.runner import SessionRunner
from forge_supervisor.saved import SavedSession
from forge_supervisor.session import Session
from forge_supervisor.units import Cleared
from forge_supervisor.worker.client import WorkerError, WorkerLostError
from forge_supervisor.worker.messages import Collect, Collected, Finding, Open, Opened, Prepare, Prepared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path


AGENT = Agent.model_validate({"name": "scout", "run_as": "team", "harness": "command", "command": ("x",)})
GONE: dict[str, Any] = {"screen": [], "terminated": 0, "killed": 0, "left": 0}


def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env={}, stderr=subprocess.DEVNULL)


class FakeRealm:
    """Runs the pane's first process as a child, and its server is another one."""

    def __init__(self, *argv: str) -> None:
        self.user = units.lookup(pwd.getpwuid(os.getuid()).pw_name)
        self.placement: units.Placement = units.DirectPlacement()
        self.tmux = subprocess.Popen(["/bin/sleep", "infinity"])
        self.argv = argv
        self.cwd = "/"
        self.env: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.shim: Callable[[Sequence[str]], Sequence[str]] = lambda argv: argv
        self.pane: subprocess.Popen[bytes] | None = None
        self.trouble: list[Exception] = []
        """Raised, one a request, by the next requests to collect."""
        self.collected = 0
        self.asked: list[Any] = []
        self.prepares: list[Prepare] = []
        self.screen = ["last words"]

    async def server(self) -> Pidfd:
        return Pidfd(self.tmux.pid, os.getuid())

    async def ask(self, request: Any) -> Any:
        self.asked.append(request)
        match request:
            case Prepare():
                self.prepares.append(request)
                return Prepared(argv=list(self.argv), cwd=self.cwd, env=self.env, findings=self.findings)
            case Open():
                self.pane = start(self.shim(request.argv))
                return Opened(pane="%0", pid=self.pane.pid, notes=["a note"])
            case Collect():
                self.collected += 1
                if self.trouble:
                    raise self.trouble.pop(0)
                assert self.pane is not None
                ended = await asyncio.to_thread(self.pane.wait)
                code, number = (None, -ended) if ended < 0 else (ended, None)
                return Collected(code=code, signal=number, **{**GONE, "screen": self.screen})
        raise AssertionError(request)

    def end(self) -> None:
        for process in (self.tmux, self.pane):
            if process is not None:
                process.kill()
                process.wait()


class Stage:
    def __init__(self, realm: FakeRealm, handshake: Handshake) -> None:
        self.realm = realm
        self.events: list[events.Event] = []
        self.concealed: list[tuple[Any, ...]] = []
        self._handshake = handshake

    def session(self, agent: Agent = AGENT, invocation: str = "c0ffee", *, fresh: bool = False) -> Session:
        realm: Any = self.realm
        return Session(
            Declared(agent, HarnessSettings(), Library()),
            invocation,
            realm=realm,
            handshake=self._handshake,
            emit=self.events.append,
            conceal=lambda *told: self.concealed.append(told),
            fresh=fresh,
        )

    @property
    def warnings(self) -> list[str]:
        return [event.sentence() for event in self.events if isinstance(event, events.AgentWarning)]


@contextlib.asynccontextmanager
async def stage(directory: Path, *argv: str) -> AsyncIterator[Stage]:
    handshake = Handshake(directory)
    realm = FakeRealm(*argv)
    try:
        yield Stage(realm, handshake)
    finally:
        realm.end()
        handshake.close()
        await asyncio.sleep(0.01)  # transports that were closed are gone a turn of the loop later


async def whole(run: Session) -> tuple[Exit, list[str], bool]:
    await run.launch()
    await asyncio.wait_for(run.death(), 20)
    try:
        return await run.collect()
    finally:
        run.close()


@pytest.mark.parametrize("code", [0, 1, 143, 255])
def test_a_session_from_launch_to_exit(tmp_path: Path, code: int) -> None:
    async def scenario() -> tuple[tuple[Exit, list[str], bool], list[str]]:
        async with stage(tmp_path, "/bin/sh", "-c", f"exit {code}") as s:
            return await whole(s.session()), s.warnings

    (exit_, screen, _), warnings = asyncio.run(scenario())
    assert (exit_, screen) == (Exit(code=code), ["last words"])
    assert warnings == ["scout: a note"]


def test_one_that_follows_another_on_the_same_tmux_server_is_opened_in_its_pane(tmp_path: Path) -> None:
    async def scenario() -> list[str | None]:
        async with stage(tmp_path, "/bin/true") as s:
            first = s.session()
            await whole(first)
            # What came to nothing has had no pane.
            for server_dies in (False, True):
                failed, second = s.session(), s.session()
                failed.follow(first)
                failed.close()
                second.follow(failed)
                if server_dies:
                    s.realm.tmux.kill()
                    s.realm.tmux.wait()
                    s.realm.tmux = start(["/bin/sleep", "infinity"])
                await whole(second)
            return [request.pane for request in s.realm.asked if isinstance(request, Open)]

    assert asyncio.run(scenario()) == [None, "%0", None]


def test_a_failed_preparation_leaves_the_pane_of_the_session_before_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, list[str]]:
        async with stage(tmp_path, "/bin/true") as s:
            first, second = s.session(), s.session()
            await whole(first)
            s.realm.findings = [Finding(key="cwd", text="is gone", fatal=True)]
            second.follow(first)
            with pytest.raises(LaunchError) as failure:
                await second.launch()
            return str(failure.value), [request.kind for request in s.realm.asked]

    said, asked = asyncio.run(scenario())
    assert (said, asked.count("open")) == ("is gone", 1)


def test_an_examination_starts_nothing_and_tells_what_would_be_in_the_way(tmp_path: Path) -> None:
    async def scenario() -> tuple[list[str], str, list[str]]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.findings = [Finding(key="model", text="is odd", fatal=False)]
            await s.session().examine()
            assert s.realm.pane is None
            s.realm.findings.append(Finding(key="cwd", text="is gone", fatal=True))
            with pytest.raises(LaunchError) as caught:
                await s.session().examine()
            return s.warnings, str(caught.value), [owner for owner, *_ in s.concealed]

    warnings, problem, owners = asyncio.run(scenario())
    assert (warnings, problem) == ([], "is gone")
    assert set(owners) == {"scout (examined)"}, "the secrets of the session that runs are masked all the same"


def test_terminate_and_kill_reach_the_harness_itself(tmp_path: Path) -> None:
    async def scenario() -> list[Exit]:
        exits = []
        for number in ("terminate", "kill"):
            async with stage(tmp_path, "/bin/sleep", "infinity") as s:
                run = s.session()
                await run.launch()
                getattr(run, number)()
                await asyncio.wait_for(run.death(), 20)
                exits.append((await run.collect())[0])
                run.close()
        return exits

    assert asyncio.run(scenario()) == [Exit(signal=signal.SIGTERM), Exit(signal=signal.SIGKILL)]


def test_a_fatal_finding_is_a_failed_launch_and_others_are_warnings(tmp_path: Path) -> None:
    async def scenario() -> tuple[LaunchError, Stage]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.findings = [
                Finding(key="harnesses.command.version", text="is 2, and 1 was meant", fatal=False),
                Finding(key="model", text="is no model", fatal=True),
            ]
            with pytest.raises(LaunchError) as failure:
                await s.session().launch()
            assert s.realm.pane is None
            return failure.value, s

    error, s = asyncio.run(scenario())
    assert (error.problem.key, error.problem.text) == ("model", "is no model")
    assert s.warnings == ["scout: harnesses.command.version: is 2, and 1 was meant"]


def test_a_first_process_that_dies_early_is_a_failed_launch_with_its_last_words(tmp_path: Path) -> None:
    async def scenario() -> LaunchError:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.shim = lambda _argv: ["/bin/sh", "-c", "exit 126"]
            s.realm.screen = ["python3: Permission denied"]
            with pytest.raises(LaunchError) as failure:
                await asyncio.wait_for(s.session().launch(), 10)
            return failure.value

    said = asyncio.run(scenario()).problem.text
    assert "ended before it was told what to run (exit code 126): python3: Permission denied" in said


def test_a_first_process_that_never_asks_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_supervisor.handshake.LAUNCH_TIMEOUT", 0.1)

    async def scenario() -> int | None:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.shim = lambda _argv: ["/bin/sleep", "infinity"]
            with pytest.raises(LaunchError, match="did not get to run"):
                await s.session().launch()
            assert s.realm.pane is not None
            return await asyncio.to_thread(s.realm.pane.wait, 10)

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_a_pane_process_that_is_not_the_users_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.user = dataclasses.replace(s.realm.user, uid=os.getuid() + 1)
            with pytest.raises(LaunchError, match="cannot be watched: process .* belongs to uid"):
                await s.session().launch()

    asyncio.run(scenario())


def test_an_exit_status_survives_the_loss_of_the_worker(tmp_path: Path) -> None:
    async def scenario() -> Exit:
        async with stage(tmp_path, "/bin/sh", "-c", "exit 9") as s:
            s.realm.trouble = [WorkerLostError("it ended")]
            return (await whole(s.session()))[0]

    assert asyncio.run(scenario()) == Exit(code=9)


@pytest.mark.parametrize("trouble", [[WorkerError("tmux: no")], [WorkerLostError("it ended")] * 2])
def test_what_cannot_be_asked_is_lost_and_never_success(tmp_path: Path, trouble: list[Exception]) -> None:
    async def scenario() -> tuple[Exit, list[str]]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.trouble = trouble
            return (await whole(s.session()))[0], s.warnings

    exit_, warnings = asyncio.run(scenario())
    assert exit_ == Exit(lost=True)
    assert "its exit status cannot be known" in warnings[-1]


@pytest.mark.parametrize("while_", [Prepare, Open])
def test_who_is_launched_while_another_tmux_server_takes_the_place_of_one_that_was_lost_is_not_ended_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_: type
) -> None:
    """It would count as a clean end, and the agent stay down. What is opened while that happens is begun anew."""

    async def scene() -> None:
        async with stage(tmp_path, "/bin/sleep", "0.2") as on:
            ask, realm = on.realm.ask, on.realm

            async def losing(request: Any) -> Any:
                if isinstance(request, while_):
                    realm.tmux.kill()
                    realm.tmux.wait()
                    realm.tmux = subprocess.Popen(["/bin/sleep", "infinity"])  # noqa: ASYNC220 - it is not waited for
                return await ask(request)

            monkeypatch.setattr(realm, "ask", losing)
            if while_ is Open:
                with pytest.raises(LaunchError, match="the tmux server ended"):
                    await on.session().launch()
            else:
                assert (await whole(on.session()))[0] == Exit(code=0)

    asyncio.run(scene())


@pytest.mark.parametrize("ignored", ["", "TERM HUP"])
def test_who_outlives_the_tmux_server_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str) -> None:
    monkeypatch.setattr(session, "HANGUP_GRACE", 0.2)

    async def scenario() -> Exit:
        script = f"trap '' {ignored}; " if ignored else ""
        loop = f"{script}echo up >{tmp_path}/up; while :; do sleep 0.1; done"
        async with stage(tmp_path, "/bin/sh", "-c", loop) as s:
            run = s.session()
            await run.launch()
            while not (tmp_path / "up").exists():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
            s.realm.tmux.kill()
            s.realm.tmux.wait()
            await asyncio.wait_for(run.death(), 20)
            exit_, *_ = await run.collect()
            run.close()
            return exit_

    assert asyncio.run(scenario()) == Exit(signal=signal.SIGKILL if ignored else signal.SIGTERM)


def test_a_process_that_not_even_sigkill_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "KILL_GRACE", 0.1)
    monkeypatch.setattr(Pidfd, "signal", lambda _self, _number: None)  # as one in uninterruptible sleep takes it

    async def scenario() -> None:
        async with stage(tmp_path, "/bin/sleep", "infinity") as s:
            run = s.session()
            await run.launch()
            run.kill()
            await asyncio.wait_for(run.death(), 10)
            run.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fresh", [True, False])
def test_the_worker_is_told_whether_it_begins_anew(tmp_path: Path, *, fresh: bool) -> None:
    async def scenario() -> list[Prepare]:
        async with stage(tmp_path, "/bin/true") as s:
            await whole(s.session(fresh=fresh))
            return s.realm.prepares

    assert [request.fresh for request in asyncio.run(scenario())] == [fresh]


def test_a_fault_of_ours_leaves_no_agent_in_starting(tmp_path: Path) -> None:
    async def scenario() -> Lifecycle:
        async with stage(tmp_path, "/bin/true") as s:

            async def broken() -> Pidfd:
                raise ZeroDivisionError("ours")

            s.realm.server = broken  # type: ignore[method-assign]
            once = AGENT.model_copy(update={"restart": AGENT.restart.model_copy(update={"policy": "no"})})
            settled = asyncio.Event()
            runner = SessionRunner(lambda agent, invocation, _: s.session(agent, invocation))
            life = Lifecycle(once, runner, clock=asyncio.get_running_loop(), emit=s.events.append)
            life.changed = lambda: settled.set() if life.state is State.FAILED else None
            life.start()
            await asyncio.wait_for(settled.wait(), 10)
            return life

    assert asyncio.run(scenario()).result is Result.RESOURCES


def test_the_harness_does_not_start_where_its_plan_says_it_cannot(tmp_path: Path) -> None:
    async def scenario() -> LaunchError:
        async with stage(tmp_path, "/no/such/program") as s:
            with pytest.raises(LaunchError) as failure:
                await s.session().launch()
            return failure.value

    assert asyncio.run(scenario()).problem.text == "cannot run /no/such/program: No such file or directory"




def saved_of(stage_: Stage, pid: int, born: int | None = None) -> SavedSession:
    server = stage_.realm.tmux.pid
    return SavedSession(
        uid=os.getuid(),
        pid=pid,
        born=birth(pid) if born is None else born,
        pane="%0",
        server=server,
        server_born=birth(server),
    )


def test_another_supervisor_watches_what_this_one_has_launched(tmp_path: Path) -> None:
    async def scenario() -> tuple[Exit, int]:
        async with stage(tmp_path, "/bin/sleep", "infinity") as s:
            first = s.session()
            pid = await first.launch()
            second = s.session()
            assert first.saved is not None
            assert second.adopt(first.saved)
            assert not await second.interrupted()
            second.terminate()
            await asyncio.wait_for(second.death(), 20)
            exit_, *_ = await second.collect()
            first.close()
            second.close()
            return exit_, pid

    exit_, pid = asyncio.run(scenario())
    assert (exit_, pid > 1) == (Exit(signal=signal.SIGTERM), True)


def test_a_process_that_has_got_the_pid_of_an_agent_is_not_the_agent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.pane = start(["/bin/sleep", "infinity"])
            later = s.session()
            assert not later.adopt(saved_of(s, s.realm.pane.pid, born=birth(s.realm.pane.pid) - 1))
            await asyncio.wait_for(later.death(), 5)
            later.terminate()
            later.kill()
            await asyncio.sleep(0.05)
            assert s.realm.pane.poll() is None
            later.close()

    asyncio.run(scenario())


def shim(directory: Path) -> list[str]:
    return [sys.executable, "-I", "-S", SCRIPT, str(directory / "nobody.sock"), "id"]


def test_a_launch_whose_supervisor_has_died_comes_to_nothing(tmp_path: Path) -> None:
    async def scenario() -> bool:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.pane = start(shim(tmp_path))
            later = s.session()
            later.adopt(saved_of(s, s.realm.pane.pid))
            interrupted = await asyncio.wait_for(later.interrupted(), 10)
            assert s.realm.pane.returncode == GAVE_UP
            later.close()
            return interrupted

    assert asyncio.run(scenario())


def test_a_launch_that_hangs_without_its_supervisor_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LAUNCH_GRACE", 0.2)

    async def scenario() -> tuple[bool, int | None]:
        async with stage(tmp_path, "/bin/true") as s:
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.bind(str(tmp_path / "nobody.sock"))
                deaf.listen()
                s.realm.pane = start(shim(tmp_path))
                later = s.session()
                later.adopt(saved_of(s, s.realm.pane.pid))
                interrupted = await asyncio.wait_for(later.interrupted(), 10)
                later.close()
            return interrupted, s.realm.pane.returncode

    assert asyncio.run(scenario()) == (True, -signal.SIGKILL)


def test_a_harness_that_ran_and_ended_while_nobody_watched_is_told_with_its_exit(tmp_path: Path) -> None:
    async def scenario() -> tuple[bool, Exit]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.pane = start(["/bin/sh", "-c", "exit 3"])
            left = saved_of(s, s.realm.pane.pid)
            s.realm.pane.wait()
            later = s.session()
            assert not later.adopt(left)
            interrupted = await later.interrupted()
            exit_, *_ = await later.collect()
            assert s.realm.collected == 1, "asked once, as the next one would be told the same of a pane in use again"
            later.close()
            return interrupted, exit_

    assert asyncio.run(scenario()) == (False, Exit(code=3))


def test_a_session_without_a_user_is_lost_and_no_fault(tmp_path: Path) -> None:
    async def scenario() -> tuple[Exit, list[str]]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.trouble = [LaunchError("run_as", "no such user")]
            exit_, *_ = await whole(s.session())
            return exit_, s.warnings

    exit_, warnings = asyncio.run(scenario())
    assert exit_ == Exit(lost=True)
    assert warnings[-1] == "scout: its exit status cannot be known: no such user"


class FakeScope:
    def __init__(self, cleared: Cleared, *, over: bool = False) -> None:
        self.cleared = cleared
        self.over = over
        self.limited: list[Resources] = []

    def limit(self, resources: Resources) -> None:
        self.limited.append(resources)

    def is_over(self) -> bool:
        return self.over

    async def end(self, _grace: float) -> Cleared:
        return self.cleared


class Scopes(units.DirectPlacement):
    """Gives `scope`, or none."""

    holds = True

    def __init__(self, scope: FakeScope | None) -> None:
        super().__init__()
        self.made = scope

    async def enclose(self, agent: str, process: Pidfd, resources: Resources) -> units.Scope:
        if self.made is None:
            raise units.PlacementError("forge-agent-scout.scope cannot be made: no")
        return self.made


class SlowScopes(Scopes):
    def __init__(self, scope: FakeScope) -> None:
        super().__init__(scope)
        self.asked, self.done = asyncio.Event(), asyncio.Event()

    async def enclose(self, agent: str, process: Pidfd, resources: Resources) -> units.Scope:
        self.asked.set()
        await self.done.wait()
        return await super().enclose(agent, process, resources)


def test_limits_that_are_given_while_the_scope_is_made_hold(tmp_path: Path) -> None:
    async def scenario() -> tuple[list[bool], list[Resources]]:
        async with stage(tmp_path, "/bin/true") as s:
            scope = FakeScope(Cleared())
            s.realm.placement = scopes = SlowScopes(scope)
            session = s.session()
            ending = asyncio.create_task(whole(session))
            has_them = [session.limit(Resources(tasks_max=5))]
            await scopes.asked.wait()
            has_them += [session.limit(Resources(tasks_max=5)), session.limit(Resources(tasks_max=7))]
            scopes.done.set()
            await ending
            session.close()
            return [*has_them, session.limit(Resources(tasks_max=9))], scope.limited

    # Whether systemd takes those that came while it was asked is not known when they come.
    assert asyncio.run(scenario()) == ([True, True, False, True], [Resources(tasks_max=7)])


def test_what_only_the_scope_has_found_is_told(tmp_path: Path) -> None:
    async def scenario() -> tuple[bool, list[events.Event]]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.placement = Scopes(FakeScope(Cleared(2, 1, oom_killed=True)))
            _, _, oom_killed = await whole(s.session())
            return oom_killed, s.events

    oom_killed, told = asyncio.run(scenario())
    assert oom_killed
    cleared = [event for event in told if isinstance(event, events.LeftoversCleared)]
    assert [(event.terminated, event.killed) for event in cleared] == [(2, 1)]


def test_a_scope_that_is_over_is_not_ended(tmp_path: Path) -> None:
    async def scenario() -> list[events.Event]:
        async with stage(tmp_path, "/bin/true") as s:
            s.realm.placement = Scopes(FakeScope(Cleared(2, 1), over=True))
            await whole(s.session())
            return s.events

    assert not [event for event in asyncio.run(scenario()) if isinstance(event, events.LeftoversCleared)]


def test_an_agent_without_its_scope_does_not_get_to_run(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, int]:
        async with stage(tmp_path, "/usr/bin/touch", str(tmp_path / "ran")) as s:
            s.realm.placement = Scopes(None)
            with pytest.raises(LaunchError) as failure:
                await s.session().launch()
            assert s.realm.pane is not None
            return str(failure.value), await asyncio.to_thread(s.realm.pane.wait, 10)

    said, code = asyncio.run(scenario())
    assert said == "forge-agent-scout.scope cannot be made: no"
    assert code in {GAVE_UP, -signal.SIGKILL}
    assert not (tmp_path / "ran").exists()
