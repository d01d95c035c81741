"""Token shards: files of ids that other tools wrote, mapped into memory as they are.

| file | content |
| --- | --- |
| `.bin` of llm.c and modded-nanogpt | 256 int32 (20240520, version 1, number of ids), then uint16; Llama 3: 20240801, 7, uint32 |
| `.bin` of nanoGPT | uint16 without a header |
| `.npy` | a NumPy array of one dimension, of unsigned or signed integers |

Several files are one sequence, in the order of their names. Numbers are little-endian.
"""

from __future__ import annotations

import bisect
import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common import causes
from jaxgpt.common.files import expand
from jaxgpt.config import UserError

SUFFIXES = (".bin", ".npy")
HEADER_INTS = 256
# Of llm.c: the first two numbers of a header, and the type of the ids.
HEADERS: dict[np.dtype[Any], tuple[int, int]] = {
    np.dtype("<u2"): (20240520, 1),
    np.dtype("<u4"): (20240801, 7),
}
SAMPLE = 1 << 16  # bytes
SAMPLES = 64  # of each file, for its fingerprint


class Shards:
    """Ids that are stored in several arrays, as one sequence: len, slices, and arrays of positions."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self._end_list = self._ends.tolist()  # bisect is faster on numbers of Python
        self.dtype = np.result_type(*parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            return self._range(*key.indices(len(self)))
        at = np.asarray(key)
        at = np.where(at < 0, at + len(self), at)
        if at.size and (at.min() < 0 or at.max() >= len(self)):
            raise IndexError(f"positions {at.min()} to {at.max()} of {len(self)} ids")
        which = np.searchsorted(self._ends, at, side="right")
        found = np.empty(at.shape, self.dtype)
        for i in np.unique(which):
            own = which == i
            found[own] = self.parts[i][at[own] - (self._ends[i] - len(self.parts[i]))]
        return found

    def _range(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self[np.arange(start, stop, step)]
        if stop <= start:
            return np.zeros(0, self.dtype)
        i = bisect.bisect_right(self._end_list, start)
        if stop <= self._end_list[i]:  # within one part, as almost all windows are
            first = self._end_list[i - 1] if i else 0
            return self.parts[i][start - first : stop - first].astype(self.dtype, copy=False)
        return np.concatenate(self.part(start, stop).parts).astype(self.dtype, copy=False)

    def part(self, start: int, stop: int) -> Shards:
        """The ids [start, stop), without a copy."""
        starts = (self._ends - [len(part) for part in self.parts]).tolist()
        parts = [p[max(start - f, 0) : max(stop - f, 0)] for p, f in zip(self.parts, starts, strict=True)]
        return Shards([part for part in parts if len(part)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._range(0, len(self), 1), dtype)


Plain = np.ndarray | Shards


class Marked:
    """Ids of which some are no targets: indexing gives t where a token counts and ~t = -1 - t where not.

    ids: [N]. counts: [N] uint8, 1 where a token is to be predicted.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, ids: Plain, counts: Plain) -> None:
        self.ids, self.counts = ids, counts

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Any) -> np.ndarray:
        ids = np.asarray(self.ids[key]).astype(np.int32)
        return np.where(np.asarray(self.counts[key]) != 0, ids, ~ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Ids = Plain | Marked


def windows(ids: Ids, starts_B: np.ndarray, length: int) -> np.ndarray:
    """The windows that begin at these positions: [B, length] int32."""
    if isinstance(ids, np.ndarray):
        return ids[starts_B[:, None] + np.arange(length)].astype(np.int32)
    # Of several files, where slices cost a sixth of an array of positions.
    found = np.empty((len(starts_B), length), np.int32)
    for row, start in zip(found, starts_B.tolist(), strict=True):
        row[:] = ids[start : start + length]
    return found


def unmarked(ids: np.ndarray) -> np.ndarray:
    """The ids that `Marked` gives, without the marks."""
    return np.where(ids < 0, ~ids, ids) if ids.dtype.kind == "i" else ids


def mapped_files(ids: Ids) -> list[tuple[str, int]]:
    """The files that ids are mapped from, each with the bytes that it needs to have."""
    if isinstance(ids, Marked):
        return mapped_files(ids.ids) + mapped_files(ids.counts)
    found = {}
    for array in ids.parts if isinstance(ids, Shards) else [ids]:
        whole: Any = array
        while whole is not None and not isinstance(whole, np.memmap):
            whole = whole.base if isinstance(whole, np.ndarray) else None
        if whole is not None and whole.filename is not None:
            found[str(whole.filename)] = whole.offset + whole.nbytes
    return list(found.items())


def check_not_cut(files: Iterable[tuple[str, int]]) -> None:
    """Raise UserError where a file became shorter since it was mapped: reading what is gone would end the process (SIGBUS).

    Called before each batch, 2 microseconds a file. A file that is cut within a batch still ends the process.
    """
    for file, size in files:
        try:
            found = os.stat(file).st_size
        except OSError as error:  # a deleted file stays mapped
            if isinstance(error, FileNotFoundError):
                continue
            raise UserError(f"{file} can't be read any more: {causes.describe(error)}") from error
        if found < size:
            raise UserError(
                f"{file} was cut from {size:,} to {found:,} bytes while its ids were in use: write it again, and resume"
            )


def part(ids: Any, start: int, stop: int) -> Any:
    """The ids [start, stop), without a copy."""
    if isinstance(ids, Marked):
        return Marked(part(ids.ids, start, stop), part(ids.counts, start, stop))
    return ids.part(start, stop) if isinstance(ids, Shards) else ids[start:stop]


def joined(several: Iterable[Plain]) -> Shards:
    """Ids one after another, without a copy."""
    parts = [part for ids in several for part in (ids.parts if isinstance(ids, Shards) else [ids])]
    return Shards([part for part in parts if len(part)])


@dataclass(frozen=True)
class Found:
    """The shards that a path names, by split. `valid` is empty where no name says that it is for validation."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...]


def find(path: str, given: str = "data.path") -> Found | None:
    """The token shards that a path names: a file, a folder or a pattern (`fineweb_*.bin`); None where it has none.

    In a folder, other files next to shards are not opened. A name that has `val` in it is for validation where another
    name has `train`.
    """
    place = expand(path)
    if place.is_dir():
        files = [file for file in place.iterdir() if not file.name.startswith(".")]
    elif place.exists():
        files = [place]
    else:
        files = [Path(name) for name in glob.glob(str(place))]
    files = sorted((f for f in files if f.suffix in SUFFIXES and f.is_file()), key=lambda f: f.name)
    if not files:
        return None
    if kinds := {f.suffix for f in files} - {files[0].suffix}:
        raise UserError(
            f"{given}={path!r} has {files[0].suffix} and {kinds.pop()} files: give a pattern for one of them"
        )
    valid = tuple(f for f in files if "val" in f.name)
    if len(valid) == len(files) or not any("train" in f.name for f in files):
        valid = ()
    return Found(tuple(f for f in files if f not in valid), valid)


def open_ids(files: Sequence[Path]) -> Plain:
    """The ids of several shards, mapped and not copied. Raises UserError for a file that is not one."""
    parts = [_open(file) for file in files]
    return parts[0] if len(parts) == 1 else Shards(parts)


def _open(file: Path) -> np.ndarray:
    try:
        ids = _open_npy(file) if file.suffix == ".npy" else _open_bin(file)
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({error.strerror or error}): give a file that can be read"
        ) from error
    if not len(ids):
        raise UserError(f"{file} has no ids: leave it out")
    return ids


def _open_npy(file: Path) -> np.ndarray:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{file} is not a NumPy array of ids ({error}): write one with numpy.save") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        shape = f"{ids.ndim} dimensions of {ids.dtype}"
        raise UserError(f"{file} has {shape}: give one dimension of integers")
    return np.asarray(ids)


def _open_bin(file: Path) -> np.ndarray:
    size = file.stat().st_size
    header = np.fromfile(file, "<i4", HEADER_INTS)
    for dtype, (magic, version) in HEADERS.items():
        if len(header) and header[0] == magic:
            start, num_ids = 4 * HEADER_INTS, int(header[2]) if len(header) == HEADER_INTS else -1
            if header[1] != version:
                raise UserError(
                    f"{file} is version {header[1]} of its format: only version {version} is known"
                )
            if num_ids < 0 or size != start + num_ids * dtype.itemsize:
                raise UserError(
                    f"{file} has {size:,} bytes, but its header says {num_ids:,} ids of {dtype.itemsize} bytes after "
                    f"{start:,}: it is not complete, get it again"
                )
            return _mapped(file, dtype, start)
    if size % 2:
        raise UserError(
            f"{file} has {size:,} bytes, which is no whole number of uint16 ids: it is not a token shard"
        )
    return _mapped(file, np.dtype("<u2"), 0)


def _mapped(file: Path, dtype: np.dtype, start: int) -> np.ndarray:
    if file.stat().st_size <= start:  # an empty map is an error
        return np.zeros(0, dtype)
    # A plain view of the map: indexing the np.memmap subclass costs several microseconds more.
    return np.asarray(np.memmap(file, dtype, mode="r", offset=start))


def fingerprint(files: Sequence[Path]) -> str:
    """A hash of the files' sizes and of samples of their content: the files may be too large to be read at every start."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for start in np.unique(np.linspace(0, max(0, size - SAMPLE), SAMPLES).astype(int)).tolist():
                stream.seek(start)
                found.update(stream.read(SAMPLE))
    return found.hexdigest()


def largest(ids: Ids, block: int = 1 << 24) -> int:
    """The largest id. Reads everything, about a second for each gigabyte or two."""
    return max(int(np.max(ids[start : start + block])) for start in range(0, len(ids), block))


def smallest(ids: Ids, block: int = 1 << 24) -> int:
    """The smallest id: below 0 is possible in a .npy file of signed numbers only."""
    if ids.dtype.kind == "u":
        return 0
    return min(int(np.min(ids[start : start + block])) for start in range(0, len(ids), block))


def write(path: Path, ids: Iterable[np.ndarray], vocab_size: int) -> int:
    """Write a shard in llm.c's format, with 16 or 32 bits an id. Returns the number of ids."""
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    num_ids = 0
    with open(path, "xb") as file:
        file.write(bytes(4 * HEADER_INTS))
        for part in ids:
            file.write(np.ascontiguousarray(part, dtype).data)
            num_ids += len(part)
        header = np.zeros(HEADER_INTS, "<i4")
        header[:3] = *HEADERS[dtype], num_ids
        file.seek(0)
        file.write(header.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return num_ids
