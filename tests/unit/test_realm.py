from __future__ import annotations

import asyncio
import os
import pwd
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from forge_supervisor import units
from forge_supervisor.handshake import LaunchError
from forge_supervisor.realm import Realm
from forge_supervisor.worker.client import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Mapping

ME = units.lookup(pwd.getpwuid(os.getuid()).pw_name)


class Placement(units.DirectPlacement):
    """Starts nothing, and notes as whom it was to."""

    def __init__(self) -> None:
        super().__init__()
        self.users: list[units.User] = []

    async def run(
        self, name: str, user: units.User, argv: object, *, env: Mapping[str, str], stdin: int | None = None
    ) -> units.Process:
        self.users.append(user)
        raise units.PlacementError("no")


class Accounts:
    """What passwd(5) and group(5) say of the user; groups only to whoever asks for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user: units.User = ME
        monkeypatch.setattr(units, "lookup", self._lookup)

    def _lookup(self, _name: str, known: units.User | None = None) -> units.User:
        return self.user if known is None or known.uid != self.user.uid else known


def test_what_is_started_has_the_groups_that_its_user_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts, placement = Accounts(monkeypatch), Placement()
    realm = Realm(ME.name, placement, "socket", lambda _event: None)
    changed = replace(ME, groups=(*ME.groups, 4_000_000))

    async def scenario() -> None:
        with pytest.raises(LaunchError, match="no$"):
            await realm.server()
        accounts.user = changed
        with pytest.raises(LaunchError, match="no$"):
            await realm.server()

    asyncio.run(scenario())
    assert placement.users == [ME, changed]


def test_who_has_become_another_gets_no_session_but_keeps_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts, placement = Accounts(monkeypatch), Placement()
    realm = Realm(ME.name, placement, "socket", lambda _event: None)

    async def scenario() -> None:
        with pytest.raises(LaunchError, match="no$"):
            await realm.server()
        accounts.user = replace(ME, uid=ME.uid + 1)
        with pytest.raises(LaunchError, match="had uid"):
            await realm.server()
        with pytest.raises(WorkerLostError, match="the worker of .* cannot be started: no$"):
            await realm._start_worker()

    asyncio.run(scenario())
    assert placement.users == [ME, ME]
