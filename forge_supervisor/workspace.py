"""Puts on disk what a launch plan asks for. Runs in the worker, as the agent's user, and blocks.

An agent of the same user may change any path under our hands. Our own
directories are therefore opened one below the other without following symbolic
links, and everything in them is reached through those descriptors.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from forge_supervisor import json_seed
from forge_supervisor.folder import Folder, explained
from forge_supervisor.folder import WorkspaceError as WorkspaceError  # noqa: PLC0414 - what build raises
from forge_supervisor.harness import File

if TYPE_CHECKING:
    from typing import Self

    from forge_supervisor.harness import LaunchPlan, Link, Paths

_LINKS = "links.json"
"""In the launch directory: the links that we have made, for a link that an agent has made looks the same."""


def build(plan: LaunchPlan, paths: Paths) -> list[str]:
    """Make the agent's directories, files and links, sow its seeds; return warnings, each a sentence.

    May wait some seconds for another program's lock. Raises WorkspaceError.
    """
    with explained(paths.home):
        if not paths.home.is_dir():
            raise WorkspaceError(f"the home directory {paths.home} is missing (make it, owned by the agent's user)")
    with _Workspace(paths) as workspace:
        for folder in (paths.state, paths.launch, *plan.folders):
            workspace.folder(folder)
        for file in plan.files:
            workspace.write(file)
        for folder in plan.closed:
            workspace.close(folder, {file.path.name for file in plan.files if file.path.parent == folder})
        workspace.link(plan.links)
        warnings = workspace.warnings
    for seed in plan.seeds:
        warnings += json_seed.sow(seed)
    return warnings


class _Workspace:
    """The agent's directories, each held open from when it is first needed."""

    def __init__(self, paths: Paths) -> None:
        self.warnings: list[str] = []
        self._paths = paths
        self._roots = (paths.state, paths.launch, paths.discord)
        self._folders: dict[Path, Folder] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def folder(self, path: Path) -> Folder:
        """Open a directory of the agent's; what of it is missing is made."""
        if path not in self._folders:
            self._folders[path] = self._stack.enter_context(self._open(path))
        return self._folders[path]

    def _open(self, path: Path) -> Folder:
        if path == self._paths.forge.parent:
            # What is above 'forge' is the user's: people link ~/.local/state to another disk.
            return Folder.anywhere(path)
        parent = self.folder(path.parent)
        inside = any(root in path.parents for root in self._roots)
        if inside and parent.target(path.name) is not None and not parent.is_directory(path.name):
            with explained(path):
                self.warnings.append(f"{path} was no directory, and is now {parent.set_aside(path.name)}")
        return parent.private(path.name)

    def write(self, file: File) -> None:
        folder = self._folder_of(file.path)
        name, content = file.path.name, file.text.encode()
        with explained(file.path):
            if folder.holds(name, content):
                return
            if folder.is_directory(name):
                self.warnings.append(f"{file.path} was a directory, which is now {folder.set_aside(name)}")
            folder.replace(name, content)

    def close(self, path: Path, wanted: set[str]) -> None:
        """Move aside what is not wanted in a directory."""
        folder, above = self.folder(path), self.folder(path.parent)
        with explained(path):
            for name in folder.names():
                if name not in wanted:
                    saved = folder.set_aside(name, into=above)
                    self.warnings.append(f"{path / name} is none of ours, and is now {saved}")

    def link(self, links: tuple[Link, ...]) -> None:
        """Make these links, and remove those that were made before and are no more wanted."""
        known = self._recorded()
        wanted = {str(link.path.relative_to(self._paths.state)): str(link.target) for link in links}
        if known == wanted == {}:
            return
        # Whatever happens in between, the next start knows of all that may be there.
        self._record({**known, **wanted})
        for name, target in known.items():
            if name not in wanted:
                with suppress(OSError, ValueError, WorkspaceError):
                    self._unlink(self._paths.state / name, target)
        for name, target in wanted.items():
            self._link(self._paths.state / name, target, known.get(name))
        self._record(wanted)

    def _link(self, path: Path, target: str, known: str | None) -> None:
        folder = self._folder_of(path)
        with explained(path):
            there = folder.target(path.name)
            if there == target:
                return
            # Nothing else must ever lie beside it: a skill by another name is a skill all the same.
            above = self.folder(path.parent.parent)
            if there is not None and there != known:
                saved = folder.set_aside(path.name, into=above)
                self.warnings.append(f"{path} was no link of ours, and is now {saved}")
            folder.link(path.name, target, by=above)

    def _unlink(self, path: Path, target: str) -> None:
        # The record may say anything: nothing is made, moved or complained of for its sake.
        parent = self._paths.state
        for name in path.parent.relative_to(parent).parts:
            if not self.folder(parent).is_directory(name):
                return
            parent /= name
        folder = self.folder(parent)
        if folder.target(path.name) == target:
            folder.unlink(path.name)

    def _folder_of(self, path: Path) -> Folder:
        if not any(root in path.parents for root in self._roots) or ".." in path.parts:
            raise WorkspaceError(f"{path} is in none of the agent's directories (the harness must not ask for it)")
        return self.folder(path.parent)

    def _record(self, links: dict[str, str]) -> None:
        self.write(File(self._paths.launch / _LINKS, json.dumps(links, indent=2) + "\n"))

    def _recorded(self) -> dict[str, str]:
        """Return, by its path in the state directory, each link's target; what is no such record is no link of ours."""
        with suppress(OSError, ValueError, RecursionError):
            found = self.folder(self._paths.launch).read(_LINKS)
            record = json.loads(found[0]) if found else {}
            if isinstance(record, dict):
                return {name: target for name, target in record.items() if isinstance(target, str) and _is_inside(name)}
        return {}


def _is_inside(name: str) -> bool:
    path = Path(name)
    return name.isprintable() and not path.is_absolute() and ".." not in path.parts and len(path.parts) > 1
