"""Write files atomically, and read files that anybody may have written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxgpt.common import door
from jaxgpt.config import UserError

LARGEST_JSON = 64 << 20  # bytes: some 30 times what GPT-2's tokenizer takes


def expand(path: str | Path) -> Path:
    """A path that a user gave, with ~ and ~NAME for a home folder. Raises UserError where there is no such folder."""
    text = str(path)
    if "\0" in text:
        raise UserError(f"the path {text!r} has a NUL character: no file has such a name")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: the home folder of {text.split('/')[0]} is not known: give the path without ~, or set HOME"
        ) from None


def cache_dir() -> Path:
    """The folder for files that can be computed again: $JAXGPT_CACHE, else jaxgpt in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("JAXGPT_CACHE"):
        return expand(folder)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxgpt"


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Add the path to an OSError without one, as `write` and `fsync` raise it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end. A reader sees the old file or the new one."""
    # Processes of two containers may have one id, and a killed one leaves its file. 255 bytes are a name's limit.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with errors_name(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file. A reader sees the old content or the new one, also when this process is killed."""
    with replaced_atomically(path) as temporary, temporary.open("xb") as file:  # never through a link
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `path` at the end: complete or not at all.

    Raises OSError if `path` is not absent or empty.
    """
    path = Path(os.path.abspath(path))  # `.` has no name and can't be replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex}")  # processes of two containers may have one id
    temporary.mkdir()
    try:
        yield temporary
        try:
            if path.is_dir() and path.samefile("."):  # the shell would stay in the one that is removed
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EXDEV) or not path.is_dir():
                raise
            # The current folder or a mount point is not replaced: its content is moved in.
            if os.listdir(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path)) from None
            for entry in temporary.iterdir():
                entry.rename(path / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock(file: IO) -> None:
    """Lock an open file for this process until it is closed. Raises BlockingIOError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_json(path: Path, most: int | None = None) -> Any:
    """The value in a JSON file. Raises OSError; ValueError for other content or more than `most` bytes (LARGEST_JSON)."""
    most = LARGEST_JSON if most is None else most
    with door.open_regular(path, follow=True) as file:
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # `read` allocates all of it
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
