"""The door to a run folder, which a stranger may have made: it has only files and folders.

A link may lead to any file of yours, and a pipe or device may never end. So every command that opens a run folder looks at
its entries first, and nothing in it is opened that is not a regular file. The folder itself may be a link: you named it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from jaxgpt.config import UserError

# The folders in a run or a sweep whose entries commands open.
_INNER = (
    "checkpoints",
    "snapshots",
    "samples",
    "embeddings",
    "damaged",
    "before",
    "profile",
    "tensorboard",
    "members",
    "outcomes",
)


def check(folder: Path) -> None:
    """Raise UserError for an entry of a run folder, or of the folders in it, that is neither a file nor a folder.

    A folder that does not exist is fine. What is inside one checkpoint is looked at when the checkpoint is read.
    """
    for place in (folder, *(folder / name for name in _INNER)):
        try:
            with os.scandir(place) as entries:
                found = [
                    e
                    for e in entries
                    if not (e.is_dir(follow_symlinks=False) or e.is_file(follow_symlinks=False))
                ]
        except (FileNotFoundError, NotADirectoryError):
            continue
        if found:
            what = "a link" if found[0].is_symlink() else "a pipe or a device"
            raise UserError(
                f"{found[0].path} is {what}: a run folder has only files and folders; remove it, or give another folder"
            )


def open_regular(path: Path, flags: int = os.O_RDONLY, follow: bool = False) -> IO[bytes]:
    """Open a regular file, without waiting for a pipe and, unless `follow`, without following a link.

    Raises OSError as `open` does, and ValueError for anything else.
    """
    more = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(
            path, flags | more | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), 0o666
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ValueError("it is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b")
