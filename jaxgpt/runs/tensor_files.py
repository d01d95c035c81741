"""Named arrays in safetensors files, read without trust and written as a whole.

A file is the length of its header (8 bytes, little-endian), the header (JSON: each tensor's dtype, shape and
place) and the tensors' bytes; nothing in it is ever run. All that a header says is checked against the file
before a byte of a tensor is read, and memory is taken for one tensor at a time.

    files = open_tensors(Path("gpt2"))
    files.names(), files.shape("wte.weight"), files.read("wte.weight")
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common.files import replaced_atomically
from jaxgpt.config import UserError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_SIZE = 16 << 20  # bytes of a header or an index: GPT-2 xl's takes 0.1 MB
MAX_DIMENSIONS = 8

# Bytes an element; only the floating ones can be read.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}  # as NumPy names them; it has no BF16

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CONVERT = (
    "it is pickled, and reading a pickle can run any code in it; where you trust it, convert it with "
    "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
)

# What other files that get this name begin with.
FOREIGN = {
    b"PK\x03\x04": f"a zip, as torch.save writes it: {CONVERT}",
    b"\x80\x02": f"a pickle: {CONVERT}",
    b"\x80\x03": f"a pickle: {CONVERT}",
    b"\x80\x04": f"a pickle: {CONVERT}",
    b"\x80\x05": f"a pickle: {CONVERT}",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself: fetch it with `git lfs pull`",
    b"\x93NUMPY": "a NumPy array: give a safetensors file",
    b"\x89HDF": "an HDF5 file: give a safetensors file",
    b"<": "a web page: download the file itself",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is. `start`: bytes from the beginning of the file."""

    file: Path
    dtype: str  # the format's own name, such as F32
    shape: tuple[int, ...]
    start: int


class TensorFiles:
    """The tensors of one file, or of the several that an index names; what is read is read anew each time."""

    def __init__(self, source: Path, entries: dict[str, Entry]):
        self.source = source  # what was asked for, for messages
        self._entries = entries
        self.files = sorted({entry.file for entry in entries.values()})

    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """A tensor's dtype by the format's name: F32, F16, BF16, F64, I64, ..."""
        return self._entry(name).dtype

    def read(self, name: str) -> np.ndarray:
        """A floating tensor as an array of its own, float32: F16 and BF16 exactly, F64 rounded.

        Raises UserError for whole numbers, for what is not finite, and for a name that is not there.
        """
        entry = self._entry(name)
        if entry.dtype not in FLOATS:
            raise UserError(
                f"{entry.file}: {name} holds {entry.dtype}, where floating-point numbers belong "
                f"({', '.join(sorted(FLOATS))}): give weights, not whole numbers or quantized ones"
            )
        count = math.prod(entry.shape)
        if not count:
            raise UserError(f"{entry.file}: {name} is empty, {list(entry.shape)}: give a whole model")
        stored = np.memmap(entry.file, FLOATS[entry.dtype], "r", entry.start, (count,))
        if entry.dtype == "BF16":  # the upper half of a float32
            array = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # an F64 that becomes infinite is told of below
                array = stored.astype(np.float32)
        if not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise UserError(
                f"{entry.file}: {wrong:,} of the {count:,} numbers of {name} are NaN or infinite: "
                "give the weights of a run that did not diverge"
            )
        return np.asarray(array).reshape(entry.shape)

    def check_names(self, expected: Iterable[str], ignored: Callable[[str], bool] = lambda _: False) -> None:
        """Raises UserError that tells what is missing and what is there besides, but for what is `ignored`."""
        expected, found = set(expected), {name for name in self._entries if not ignored(name)}
        problems = [
            f"{what} {len(names)} tensor{'s' if len(names) > 1 else ''} ({_some(sorted(names))})"
            for what, names in (("lacks", expected - found), ("has besides", found - expected))
            if names
        ]
        if problems:
            raise UserError(f"{self.source} {' and '.join(problems)}: give a whole model of the right kind")

    def sha256(self) -> dict[str, str]:
        """The SHA-256 of every file, in hexadecimal, by its name."""
        digests = {}
        for path in self.files:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
            raise UserError(
                f"{self.source} has no tensor {name}"
                + (f": the nearest is {near[0]}" if near else f": it has {_some(self.names())}")
            )
        return self._entries[name]


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a .safetensors file, or of a folder with model.safetensors or its index of shards.

    Only headers are read. Raises UserError, one line, for whatever is not whole and well-formed.
    """
    if path.is_dir():
        if (path / FILE).is_file():
            return TensorFiles(path, _read_header(path / FILE))
        if (path / INDEX).is_file():
            return TensorFiles(path, _read_shards(path))
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UserError(f"{path} has no {FILE}; its {pickles[0]} is not read: {CONVERT}")
        raise UserError(f"{path} has neither {FILE} nor {INDEX}: give a folder with a model's weights")
    if path.suffix in PICKLES:
        raise UserError(f"{path} is not read: {CONVERT}")
    if not path.is_file():
        raise UserError(f"no file {path}: give a .safetensors file, or a folder with {FILE}")
    return TensorFiles(path, _read_header(path))


def _read_shards(folder: Path) -> dict[str, Entry]:
    """The tensors of all the shards that the folder's index names."""
    index = folder / INDEX
    if index.stat().st_size > MAX_JSON_SIZE:
        raise UserError(f"{index} is larger than {MAX_JSON_SIZE >> 20} MiB: it is no index of shards")
    places = _parse(index, index.read_bytes()).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f'{index} has no "weight_map" of tensor names to files: give a whole index')
    entries: dict[str, Entry] = {}
    for shard in sorted(set(places.values())):
        # A name alone: a path could lead out of the folder.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise UserError(
                f"{index} names the shard {shard!r}: a .safetensors file's name in this folder belongs there"
            )
        if not (folder / shard).is_file():
            raise UserError(f"{index} names the shard {shard}, which is not there: download the rest")
        for name, entry in _read_header(folder / shard).items():
            if places.get(name) != shard:
                raise UserError(
                    f"{folder / shard} holds {name}, which {INDEX} places in {places.get(name)}: the two do not belong together"
                )
            entries[name] = entry
    if missing := places.keys() - entries.keys():
        raise UserError(
            f"{folder} lacks {len(missing)} of the tensors of its {INDEX} ({_some(sorted(missing))}): download the rest"
        )
    return entries


def _read_header(path: Path) -> dict[str, Entry]:
    """Every tensor's entry, checked: dtypes and shapes that fit their bytes, which fill the file without a gap."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(32)
        length = int.from_bytes(begin[:8], "little")
        if begin[8:9] != b"{":
            kinds = [kind for magic, kind in FOREIGN.items() if begin.startswith(magic)]
            what = f"it is {kinds[0]}" if kinds else f"it has no header ({size:,} bytes): download it again"
            raise UserError(f"{path} is no safetensors file; {what}")
        if length > MAX_JSON_SIZE:
            raise UserError(
                f"{path} says that its header has {length:,} bytes, more than {MAX_JSON_SIZE >> 20} MiB: it is no model's"
            )
        if 8 + length > size:
            raise UserError(
                f"{path} is cut off: {length:,} bytes of header are announced, the file has {size:,}; download it again"
            )
        file.seek(8)
        header = _parse(path, file.read(length))
    header.pop("__metadata__", None)
    spans, entries, begins = [], {}, 8 + length
    for name, fields in header.items():
        dtype, shape, (start, stop) = _check_entry(path, name, fields)
        if stop - start != math.prod(shape) * ITEM_SIZES[dtype]:
            raise UserError(
                f"{path}: {name} is {dtype} {list(shape)}, which does not fill its {stop - start:,} bytes: the header is damaged"
            )
        spans.append((start, stop, name))
        entries[name] = Entry(path, dtype, shape, begins + start)
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise UserError(
                f"{path}: {name} begins at byte {start:,} of the data, where {end:,} is next: the header is damaged"
            )
        end = stop
    if begins + end > size:
        raise UserError(
            f"{path} is cut off: its header announces {begins + end:,} bytes, the file has {size:,}; download it again"
        )
    if begins + end < size:
        raise UserError(
            f"{path} has {size - begins - end:,} bytes that its header does not tell of: it is damaged, download it again"
        )
    if not entries:
        raise UserError(f"{path} holds no tensors: give a file with a model's weights")
    return entries


def _check_entry(path: Path, name: str, fields: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """dtype, shape and offsets of a header's entry, as types that can be counted with."""

    def counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)

    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{path}: the header's {name} has not dtype, shape and data_offsets: it is damaged")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise UserError(f"{path}: {name} is of dtype {dtype!r}: known are {', '.join(ITEM_SIZES)}")
    if not counts(shape) or len(shape) > MAX_DIMENSIONS or not counts(offsets) or len(offsets) != 2:
        raise UserError(f"{path}: the header's {name} has no shape and place that can be: it is damaged")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """A JSON object without a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        values = json.loads(content.decode(), object_pairs_hook=unique)
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its JSON can't be read ({error}); download it again") from None
    return values


def _some(names: list[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, whole or not at all; dtypes stay, `metadata` is text by name."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replaced_atomically(path) as temporary:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # as the user's umask has it; the package leaves a file for its owner alone
        save_file(arrays, os.fspath(temporary), metadata)
        temporary.chmod(mode)
