"""All that people and their programs have of a supervisor that runs: the interface, the metrics, the hooks."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from functools import partial
from typing import TYPE_CHECKING

from forge_supervisor.control.desk import Office
from forge_supervisor.control.rights import GROUP, Rights, rights_of
from forge_supervisor.control.server import Server
from forge_supervisor.control.usage import summed_up
from forge_supervisor.counts import Counts
from forge_supervisor.delivery import Delivery
from forge_supervisor.hooks import Hooks
from forge_supervisor.memory import State
from forge_supervisor.metrics_server import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from pathlib import Path

    from forge_supervisor.control.peer import Peer
    from forge_supervisor.feed import Feed
    from forge_supervisor.observer import Observer
    from forge_supervisor.saved import Saved
    from forge_supervisor.spend.collector import Collector
    from forge_supervisor.supervisor import Supervisor
    from forge_supervisor.units import Placement


class Doors:
    """`reload` is as that of an `Office`."""

    def __init__(
        self,
        runtime: Path,
        supervisor: Supervisor,
        placement: Placement,
        feed: Feed,
        reload: Callable[[bool], Awaitable[list[str]]],
        collector: Collector,
        observer: Observer,
    ) -> None:
        self._supervisor = supervisor
        self._feed = feed
        self._collector = collector
        self._observer = observer
        self._delivery = Delivery(supervisor.fleet, observer)
        observer.goes_on = self._delivery.go_on
        self._office = Office(
            supervisor,
            placement,
            feed,
            self._rights,
            observer,
            self._delivery,
            reload,
            usage=partial(summed_up, collector),
        )
        self._counts = Counts()
        self._hooks = Hooks(placement, lambda: supervisor.config.hooks, feed.emit)
        self._control = Server(runtime, self._office)
        self._metrics = MetricsServer(runtime, self._scraped)
        self._open = contextlib.AsyncExitStack()

    async def open(self) -> None:
        """Let callers come, who are not answered yet. Raises OSError."""
        self._open.push_async_callback(self._hooks.close)
        self._control.start()
        self._open.push_async_callback(self._control.close)
        await self._metrics.start()
        self._open.push_async_callback(self._metrics.close)
        self._open.push_async_callback(self._delivery.close)
        for listener in (self._counts.heard, self._hooks.heard, self._collector.heard, self._observer.heard):
            self._open.enter_context(self._feed.listening(listener))

    def serve(self, saved: Mapping[str, Saved]) -> None:
        """Answer them. `saved` is what an earlier supervisor has left: before nothing true could be told of that."""
        self._observer.begin({name: left.activity for name, left in saved.items() if left.activity is not None})
        self._hooks.begin({name for name, left in saved.items() if left.life.state is State.FAILED})
        self._control.serve()

    async def close(self) -> None:
        await self._open.aclose()

    def _rights(self, peer: Peer) -> Rights:
        agents = {name: agent.run_as for name, agent in self._supervisor.agents.items()}
        return rights_of(
            peer,
            _user_of(peer.uid, set(agents.values())),
            self._supervisor.config.control,
            own_uid=os.geteuid(),
            group=_gid_of(GROUP),
            agents=agents,
        )

    def _scraped(self) -> tuple[str, bytes]:
        """Give what is scraped, and its content type."""
        from forge_supervisor import metrics  # noqa: PLC0415 - it takes memory, so not before somebody asks for it

        agents = [self._office.describe(name) for name in self._supervisor.agents]
        return metrics.CONTENT_TYPE, metrics.exposed(agents, self._counts, self._collector.total)


def _user_of(uid: int, users: Collection[str]) -> str | None:
    """Name that user of agents, if it is one; of several names that share a uid always the same."""
    for name in sorted(users):
        with contextlib.suppress(KeyError):
            if pwd.getpwnam(name).pw_uid == uid:
                return name
    return None


def _gid_of(group: str) -> int | None:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(group).gr_gid
    return None
