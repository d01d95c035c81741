"""The files of a folder of texts. What can't be read as a file is named, never left out in silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from jaxgpt.config import UserError

_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def text_files(path: Path, given: str) -> list[Path]:
    """The file, or all files of a folder that are not hidden, at any depth, in the order of their relative paths.

    Links are followed. Raises UserError for a broken link, a link to a folder around it, and for pipes, sockets and
    devices.
    """
    if os.path.lexists(path) and not path.exists():
        _check_readable(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"{given} does not exist: give a UTF-8 text file, or a folder of them")
    if not path.is_dir():
        raise UserError(
            f"{given} is neither a file nor a folder but {_special(path)}: give a UTF-8 text file, or a folder of them"
        )
    hidden: list[str] = []
    files = sorted(_walk(path, (), hidden), key=lambda f: f.relative_to(path).as_posix())
    if not files:
        only = f" (but {len(hidden)} hidden ones, such as {hidden[0]})" if hidden else ""
        raise UserError(f"{given} is a folder without files{only}: give one with UTF-8 text files")
    return files


def regular_files(paths: Iterable[str]) -> list[Path]:
    """Those of some paths that are files. Folders are left out; raises UserError for what `text_files` refuses."""
    return [path for path in map(Path, paths) if _check_readable(path) != "folder"]


def _walk(folder: Path, around: tuple[tuple[int, int], ...], hidden: list[str]) -> Iterator[Path]:
    try:
        found = folder.stat()
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise_unreadable(error)
    own = (found.st_dev, found.st_ino)
    if own in around:
        raise UserError(f"{folder} is a link to a folder that it is in: remove the link")
    for name in names:
        path = folder / name
        if name.startswith("."):
            hidden.append(name)
        elif _check_readable(path) == "folder":
            yield from _walk(path, (*around, own), hidden)
        else:
            yield path


def _check_readable(path: Path) -> str:
    """ "file" or "folder"; raises UserError for anything else."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            what = f"{path} is a link to {os.readlink(path)!r}, which can't be opened ({error.strerror})"
            raise UserError(f"{what}: restore its target, or remove the link") from error
        raise_unreadable(error)
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{path} is {_special(path)}, not a file: remove it, or give a pattern that leaves it out"
        )
    return "file"


def _special(path: Path) -> str:
    mode = path.stat().st_mode
    return next((what for is_such, what in _SPECIAL if is_such(mode)), "something else")


def raise_unreadable(error: OSError) -> NoReturn:
    """Raises UserError that names the file of an OSError."""
    raise UserError(
        f"cannot read {error.filename} ({error.strerror or error}): give a file that can be read"
    ) from error
