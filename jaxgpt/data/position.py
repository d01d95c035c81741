"""How far the files of a text are read, for the time left."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path


class Position:
    """A place in a list of files. The reader sets it, another thread asks for `part`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._index = 0
        self._tell: Callable[[], float] = float

    def enter(self, index: int) -> None:
        """The file of this index is read next."""
        self._index, self._tell = index, float

    def within(self, tell: Callable[[], float]) -> None:
        """`tell()` gives the bytes of the current file that are read."""
        self._tell = tell

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(file.stat().st_size for file in self._files)]

    def part(self) -> float:
        """The part of the files' bytes that is read, from 0 to 1."""
        with contextlib.suppress(OSError):  # a file was deleted
            try:
                read = self._starts[self._index] + self._tell()
            except ValueError:  # it is closed
                read = self._starts[self._index + 1]
            return read / max(self._starts[-1], 1)
        return 0.0
