"""Make a directory in /tmp that is one user's alone, though anybody may have made one of that name before.

As root: ``python -I -m forge_supervisor.private_directory PATH UID GID``. Nothing is opened or followed; whatever
is there and is not that user's own directory gets another name.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from pathlib import Path


def make(path: Path, uid: int, gid: int) -> None:
    """Raises OSError."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == uid:
            return
        path.rename(f"{path}.not-of-{uid}.{secrets.token_hex(8)}")
        path.mkdir(0o700)
    # /tmp is sticky: what root has made there nobody else can have replaced.
    os.chown(path, uid, gid, follow_symlinks=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
