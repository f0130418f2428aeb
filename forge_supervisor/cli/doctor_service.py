"""What the doctor looks at of the supervisor: its units, whether it answers, and who may use it."""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING

from forge_supervisor import version
from forge_supervisor.cli import client
from forge_supervisor.cli.doctor_scene import (
    SUPERVISOR_UNIT,
    TIMEOUT,
    Finding,
    of_sentence,
    ok,
    problem,
    skipped_without_systemd,
    warning,
)
from forge_supervisor.control.rights import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from forge_supervisor.cli.doctor_scene import Scene

AGENTS_UNIT = "forge-agents.service"
_CHECK = f"unit {SUPERVISOR_UNIT}"
_AGENTS_CHECK = f"unit {AGENTS_UNIT}"

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "ExecMainStatus",
)
_EX_CONFIG = "78"


def unit(scene: Scene) -> Iterator[Finding]:
    if not scene.has_systemd():
        yield from skipped_without_systemd(_CHECK)
        return
    shown = scene.show(SUPERVISOR_UNIT, *_PROPERTIES)
    if (unusable := _unusable(scene, _CHECK, SUPERVISOR_UNIT, shown)) is not None:
        yield unusable
        return
    is_enabled = shown["UnitFileState"] not in {"disabled", "indirect"}
    stale = shown["NeedDaemonReload"] == "yes"
    if not is_enabled:
        yield warning(_CHECK, "it is not started at boot", scene.systemctl("enable forge-supervisor"))
    if stale:
        commands = f"{scene.systemctl('daemon-reload')} && {scene.systemctl('restart forge-supervisor')}"
        yield warning(_CHECK, "its file has changed since systemd has read it", commands)
    not_running = _not_running(scene, shown, is_enabled=is_enabled)
    if not_running is not None:
        yield not_running
    elif is_enabled and not stale:
        yield ok(_CHECK, f"it is {shown['UnitFileState']} and {shown['ActiveState']}")


def agents_unit(scene: Scene) -> Iterator[Finding]:
    if not scene.has_systemd():
        return
    shown = scene.show(AGENTS_UNIT, *_PROPERTIES)
    if (unusable := _unusable(scene, _AGENTS_CHECK, AGENTS_UNIT, shown)) is not None:
        yield unusable
    elif shown["NeedDaemonReload"] == "yes":
        fix = scene.systemctl("daemon-reload")
        yield warning(_AGENTS_CHECK, "its file has changed since systemd has read it", fix)
    elif shown["ActiveState"] == "active":
        yield ok(_AGENTS_CHECK, "it is active")
    elif scene.show(SUPERVISOR_UNIT, "ActiveState")["ActiveState"] == "active":
        text = "it is not active, so a stop does not end the agents of a supervisor that is down"
        yield warning(_AGENTS_CHECK, text, scene.systemctl(f"start {AGENTS_UNIT}"))
    else:
        yield ok(_AGENTS_CHECK, "it is installed, and starts with the supervisor")


def _unusable(scene: Scene, check: str, name: str, shown: Mapping[str, str]) -> Finding | None:
    match shown["LoadState"]:
        case "loaded":
            return None
        case "not-found":
            return problem(check, "it is not installed", "sudo ./dev install, in a checkout of forge-supervisor")
        case "masked":
            return problem(check, "it is masked, so that nothing can start it", scene.systemctl(f"unmask {name}"))
        case other:
            path = shown["FragmentPath"] or name
            return problem(check, f"systemd cannot load it: {other}", f"systemd-analyze verify {path}")


def _not_running(scene: Scene, shown: Mapping[str, str], *, is_enabled: bool) -> Finding | None:
    state, sub_state = shown["ActiveState"], shown["SubState"]
    if sub_state == "auto-restart":
        return problem(_CHECK, "it ends again and again", "journalctl -u forge-supervisor -n 50")
    if state in {"active", "activating", "reloading"}:
        return None
    start = scene.systemctl("start forge-supervisor" if is_enabled else "enable --now forge-supervisor")
    if state == "failed" and shown["ExecMainStatus"] == _EX_CONFIG:
        return problem(_CHECK, "it has failed, as the configuration has errors", f"forge-supervisor --check; {start}")
    if state == "failed":
        return problem(_CHECK, "it has failed", f"journalctl -u forge-supervisor -n 50; {start}")
    return problem(_CHECK, f"it is {state}, so nothing looks after agents", start)


def supervisor(scene: Scene) -> Iterator[Finding]:
    start = scene.systemctl("start forge-supervisor") if scene.has_systemd() else "forge-supervisor"
    restart = scene.systemctl("restart forge-supervisor")
    try:
        told = client.call("Ping", patience=TIMEOUT)
    except client.NotThereError as error:
        text = str(error).removesuffix("; systemctl status forge-supervisor tells why")
        yield problem("supervisor", text, start if text != str(error) else restart)
        return
    except client.CallError as error:
        yield of_sentence("supervisor", "problem", str(error), restart)
        return
    if told["version"] != version():
        text = f"version {told['version']} runs, and {version()} is installed"
        yield problem("supervisor", text, f"{restart} (agents run on)")
        return
    yield ok("supervisor", f"version {told['version']} answers, pid {told['pid']}")


def operators(scene: Scene) -> Iterator[Finding]:
    """Tell who may use forgectl, beside root."""
    if not scene.system:
        return
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        # Nothing is wrong with that.
        text = f'only root may do everything (groupadd --system {GROUP} makes the group "{GROUP}", which may too)'
        yield ok("forgectl", text)
        return
    members = sorted({*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == group.gr_gid)})
    yield ok("forgectl", f'root and the group "{GROUP}" may do everything; its members: {", ".join(members) or "none"}')
