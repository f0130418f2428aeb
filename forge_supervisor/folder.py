"""A directory that is held open, so that nobody can put another one under our hands, and safe ways to write in it."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

# By error number: what the operator can do about it.
_WAYS_OUT = {
    errno.EACCES: "give this user access to it",
    errno.EPERM: "give this user access to it",
    errno.EROFS: "it must lie on a writable filesystem",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or raise the user's quota",
    errno.ELOOP: "remove the symbolic link",
    errno.EISDIR: "move it away",
    errno.EINVAL: "move it away",
    errno.EFBIG: "make it smaller or move it away",
    errno.ENXIO: "move it away",
    errno.ENOTDIR: "move away the file that is in a directory's place",
}
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


MOST_BYTES = 64 * 1024 * 1024
"""A ~/.claude.json of years has a tenth of it."""


class WorkspaceError(Exception):
    """An agent's files cannot be put in place; str() is a sentence that names the path and the way out."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a WorkspaceError that names the path (what was given, if the error knows no better)."""
    try:
        yield
    except OSError as error:
        known = isinstance(error.filename, str) and error.filename.startswith("/")
        way_out = _WAYS_OUT.get(error.errno or 0)
        text = f"{error.filename if known else path}: {error.strerror}"
        raise WorkspaceError(f"{text} ({way_out})" if way_out else text) from error


class Folder:
    """Everything in it is reached by its descriptor; `path` is for messages."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @classmethod
    def anywhere(cls, path: Path) -> Folder:
        """Open a directory wherever its path leads; what of it is missing is made."""
        with explained(path):
            # 0700 as the XDG Base Directory specification says.
            for missing in reversed([part for part in (path, *path.parents) if not part.exists()]):
                with suppress(FileExistsError):
                    missing.mkdir(mode=0o700)
            return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)

    def private(self, name: str) -> Folder:
        """Open or make a directory in here that is ours alone: our user's, 0700, and no symbolic link."""
        path = self.path / name
        with explained(path):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._fd)
            try:
                folder = Folder(os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=self._fd), path)
            except NotADirectoryError:
                raise WorkspaceError(self._why_no_directory(name)) from None
            try:
                folder._close_to_others()
            except BaseException:
                os.close(folder._fd)
                raise
            return folder

    def _why_no_directory(self, name: str) -> str:
        if stat.S_ISLNK(self._status(name).st_mode):
            target = os.readlink(name, dir_fd=self._fd)
            return f"{self.path / name} is a symbolic link to {target} (remove it: the directory must be a real one)"
        return f"{self.path / name} is no directory (move it away)"

    def _close_to_others(self) -> None:
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid():
            raise WorkspaceError(f"{self.path} belongs to uid {status.st_uid} (move it away, or chown it to this user)")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(self._fd, 0o700)

    def read(self, name: str) -> tuple[bytes, os.stat_result] | None:
        """Read a regular file; None if there is none. A link, a directory and a huge file raise OSError."""
        try:
            # Not blocking: a FIFO of that name must not hang us.
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "is no regular file")
            with os.fdopen(fd, "rb", closefd=False) as file:
                content = file.read(MOST_BYTES + 1) if status.st_size <= MOST_BYTES else b""
            if max(status.st_size, len(content)) > MOST_BYTES:
                raise OSError(errno.EFBIG, f"is larger than {MOST_BYTES} bytes")
            return content, status
        finally:
            os.close(fd)

    def holds(self, name: str, content: bytes) -> bool:
        """Whether there is a file of just this content that only we may read."""
        with suppress(OSError):
            found = self.read(name)
            return found is not None and found[0] == content and stat.S_IMODE(found[1].st_mode) == 0o600
        return False

    def replace(self, name: str, content: bytes, *, like: os.stat_result | None = None) -> None:
        """Put a file in place in one step. Mode and owner are those of `like`, else 0600 and ours."""
        with self._temporary(content, like) as temporary:
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def create(self, name: str, content: bytes) -> bool:
        """Put a file in place in one step, 0600, unless something of that name is there: then return False."""
        with self._temporary(content, None) as temporary:
            try:
                os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileExistsError:
                return False
        return True

    def save(self, name: str, content: bytes) -> Path:
        """Keep content that is about to be replaced; return where."""
        saved = next(saved for saved in _saved_names(name) if self.create(saved, content))
        return self.path / saved

    def set_aside(self, name: str, *, into: Folder | None = None) -> Path:
        """Give what is there another name, in here or in another folder of the same file system; return where it is."""
        into = into or self
        wanted = name if into is self else f"{self.path.name}-{name}"
        saved = next(saved for saved in _saved_names(wanted) if into.target(saved) is None)
        os.rename(name, saved, src_dir_fd=self._fd, dst_dir_fd=into._fd)  # noqa: SLF001 - one of our own kind
        return into.path / saved

    def names(self) -> list[str]:
        """List what is in here."""
        return sorted(os.listdir(self._fd))  # noqa: PTH208 - by its descriptor

    def is_directory(self, name: str) -> bool:
        """Whether there is a real directory of that name."""
        return self._exists(name) and stat.S_ISDIR(self._status(name).st_mode)

    def target(self, name: str) -> str | None:
        """Tell where a symbolic link leads; "" for anything else that is there, None if nothing is."""
        if not self._exists(name):
            return None
        return os.readlink(name, dir_fd=self._fd) if stat.S_ISLNK(self._status(name).st_mode) else ""

    def link(self, name: str, target: str, *, by: Folder) -> None:
        """Put a symbolic link in place in one step, by way of another folder; what is there must be no directory."""
        temporary = _temporary_name()
        os.symlink(target, temporary, dir_fd=by._fd)
        try:
            os.rename(temporary, name, src_dir_fd=by._fd, dst_dir_fd=self._fd)
        except BaseException:
            by.unlink(temporary)
            raise

    def unlink(self, name: str) -> None:
        """Remove what is no directory."""
        os.unlink(name, dir_fd=self._fd)

    @contextmanager
    def _temporary(self, content: bytes, like: os.stat_result | None) -> Iterator[str]:
        temporary = _temporary_name()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600, dir_fd=self._fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                if like is not None:
                    with suppress(PermissionError):  # giving a file away is root's
                        os.fchown(fd, like.st_uid, like.st_gid)
                    os.fchmod(fd, stat.S_IMODE(like.st_mode))
                file.flush()
                os.fsync(fd)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._fd)

    def _status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def _exists(self, name: str) -> bool:
        try:
            self._status(name)
        except FileNotFoundError:
            return False
        return True


def _temporary_name() -> str:
    # Not made of the name, which may be as long as one can be.
    return f".forge-tmp.{secrets.token_hex(8)}"


def _saved_names(name: str) -> Iterator[str]:
    return (f"{name}.forge-saved-{number}" for number in itertools.count(1))
