"""Puts on disk what a launch plan asks for. Runs in the worker, as the agent's user, and blocks.

An agent of the same user may change any path under our hands. Our own
directories are therefore opened one below the other without following symbolic
links, and everything in them is reached through those descriptors.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from forge_supervisor import json_seed
from forge_supervisor.folder import Folder, explained
from forge_supervisor.folder import WorkspaceError as WorkspaceError  # noqa: PLC0414 - what build raises

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import File, LaunchPlan, Paths

_OURS = 3
"""How many of a path's last parts are directories of ours: forge/agents/<name> and forge/launch/<name>."""


def build(plan: LaunchPlan, paths: Paths) -> list[str]:
    """Make the agent's directories, write its files, sow its seeds; return warnings, each a sentence.

    May wait some seconds for another program's lock. Raises WorkspaceError.
    """
    with explained(paths.home):
        if not paths.home.is_dir():
            raise WorkspaceError(f"the home directory {paths.home} is missing (make it, owned by the agent's user)")
    warnings = []
    with ExitStack() as stack:
        folders = {path: _open(path, stack) for path in (paths.state, paths.launch)}
        for file in plan.files:
            warnings += _write(file, folders)
    for seed in plan.seeds:
        warnings += json_seed.sow(seed)
    return warnings


def _open(path: Path, stack: ExitStack) -> Folder:
    # What is above 'forge' is the user's: people link ~/.local/state to another disk.
    folder = stack.enter_context(Folder.anywhere(path.parents[_OURS - 1]))
    for name in path.parts[-_OURS:]:
        folder = stack.enter_context(folder.private(name))
    return folder


def _write(file: File, folders: dict[Path, Folder]) -> list[str]:
    folder = folders.get(file.path.parent)
    if folder is None:
        raise WorkspaceError(f"{file.path} is in none of the agent's directories (the harness must not ask for it)")
    name, content = file.path.name, file.text.encode()
    with explained(file.path):
        if folder.holds(name, content):
            return []
        saved = folder.set_aside(name)
        folder.replace(name, content)
    return [f"{file.path} was a directory, which is now {saved}"] if saved else []
