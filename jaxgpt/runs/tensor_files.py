"""Read and write named arrays in safetensors files.

The safetensors package reads the format and checks every header against its file: nothing in a file is executed.
This module adds shards, float32 output and one-line errors. Memory is used for one tensor at a time.

    files = open_tensors(Path("gpt2"))
    files.names(), files.shape("wte.weight"), files.read("wte.weight")
"""

from __future__ import annotations

import abc
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import ml_dtypes  # noqa: F401  (part of JAX; it makes bfloat16 a NumPy dtype)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgpt.common.files import read_json, replaced_atomically
from jaxgpt.config import UserError, first_line
from jaxgpt.config.errors import nearest

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_SIZE = 16 << 20  # bytes; the index of GPT-2 xl has 0.1 MB
FLOATS = ("BF16", "F16", "F32", "F64")

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CONVERT = (
    "it is pickled, and reading a pickle can run any code in it. If you trust it, convert it with transformers: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
)

# The first bytes of other files that may carry this name.
FOREIGN = {
    b"PK\x03\x04": f"a zip file, as torch.save writes it: {CONVERT}",
    b"\x80": f"a pickle: {CONVERT}",
    b"version https://git-lfs": "a git-lfs pointer: download the file itself with `git lfs pull`",
    b"<": "a web page: download the file itself",
}


class Tensors(abc.ABC):
    """Named arrays of a model on disk, in one file or in several. Each `read` reads the file again."""

    described_by: ClassVar[str]  # what states the sizes of the model, for messages

    def __init__(self, source: Path, files: Sequence[Path]):
        self.source = source  # the path that was asked for, for messages
        self.files = sorted(files)

    @abc.abstractmethod
    def names(self) -> list[str]:
        """The names of the tensors, sorted."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header. Raises UserError for an unknown name."""

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """A tensor as float32. Raises UserError for NaN or infinity, and for an unknown name."""

    def own_name(self, name: str) -> str:
        """What the file itself calls a tensor, for messages."""
        return name

    def check_names(self, expected: Iterable[str], ignored: Callable[[str], bool] = lambda _: False) -> None:
        """Raise UserError that lists missing and unexpected tensors, except those that are `ignored`."""
        expected, found = set(expected), {name for name in self.names() if not ignored(name)}
        problems = [
            f"{verb} {len(names)} {adjective}tensor{'s' if len(names) > 1 else ''} ({_some(sorted(map(self.own_name, names)))})"
            for verb, adjective, names in (
                ("lacks", "", expected - found),
                ("has", "unexpected ", found - expected),
            )
            if names
        ]
        if problems:
            raise UserError(
                f"{self.source} {' and '.join(problems)}: give a complete model of the right kind"
            )

    def sha256(self) -> dict[str, str]:
        """The SHA-256 of every file in hexadecimal, by file name."""
        digests = {}
        for path in self.files:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def unknown(self, name: str) -> UserError:
        """The error for a name that the files do not have."""
        near = nearest(name, self.names(), cutoff=0.5)
        return UserError(
            f"{self.source} has no tensor {name}"
            + (f": the nearest is {near}" if near else f": it has {_some(self.names())}")
        )


class TensorFiles(Tensors):
    """The tensors of one safetensors file or of several shards."""

    described_by = "config.json"

    def __init__(self, source: Path, tensors: dict[str, tuple[Path, safe_open]]):
        super().__init__(source, list({path for path, _ in tensors.values()}))
        self._tensors = tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._find(name)[1].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype of a tensor in the format's own notation: F32, F16, BF16, F64, I64, ..."""
        return self._find(name)[1].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        """A floating-point tensor as float32: F16 and BF16 exactly, F64 rounded.

        Raises UserError for integers, for an empty tensor, for NaN or infinity, and for an unknown name.
        """
        path, file = self._find(name)
        shape, dtype = self.shape(name), self.dtype(name)
        if dtype not in FLOATS:
            raise UserError(
                f"{path}: {name} has dtype {dtype}, floating-point numbers are needed ({', '.join(FLOATS)}): "
                "give weights that are not quantized"
            )
        if not math.prod(shape):
            raise UserError(f"{path}: {name} is empty, {list(shape)}: give a complete model")
        try:
            with np.errstate(over="ignore"):  # an F64 that becomes infinite is reported below
                array = file.get_tensor(name).astype(np.float32, copy=False)
        except (SafetensorError, ValueError) as error:  # more axes than NumPy has
            raise UserError(
                f"{path}: {name} can't be read ({first_line(error)}): give another file"
            ) from None
        return finite(array, path, name)

    def _find(self, name: str) -> tuple[Path, safe_open]:
        if name not in self._tensors:
            raise self.unknown(name)
        return self._tensors[name]


def finite(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    """The array of a file. Raises UserError if it has NaN or infinity."""
    if not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise UserError(
            f"{path}: {wrong:,} of the {array.size:,} numbers of {name} are NaN or infinite: "
            "give the weights of a run that did not diverge"
        )
    return array


def foreign(start: bytes) -> str:
    """What the first bytes of a file say that it is; "" where they say nothing."""
    return next((kind for magic, kind in FOREIGN.items() if start.startswith(magic)), "")


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a .safetensors file, or of a folder with model.safetensors or an index of shards.

    Only headers are read. Raises UserError for a file that is not complete and well-formed.
    """
    if path.is_dir():
        if (path / FILE).is_file():
            return TensorFiles(path, _open(path / FILE))
        if (path / INDEX).is_file():
            return TensorFiles(path, _open_shards(path))
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UserError(f"{path} has no {FILE}; its {pickles[0]} is not read: {CONVERT}")
        raise UserError(f"{path} has neither {FILE} nor {INDEX}: give a folder with the weights of a model")
    if path.suffix in PICKLES:
        raise UserError(f"{path} is not read: {CONVERT}")
    if not path.is_file():
        raise UserError(f"no file {path}: give a .safetensors file, or a folder with {FILE}")
    return TensorFiles(path, _open(path))


def _open(path: Path) -> dict[str, tuple[Path, safe_open]]:
    """Every tensor's file, by name. The package checks dtypes, shapes and offsets against the size of the file."""
    try:
        file = safe_open(path, framework="np")
    except SafetensorError as error:
        with path.open("rb") as content:
            start = content.read(32)
        if (kind := foreign(start)) and start[8:9] != b"{":
            raise UserError(f"{path} is not a safetensors file but {kind}") from None
        cause = first_line(error).removeprefix("Error while deserializing header: ")
        raise UserError(
            f"{path} is damaged or cut off ({cause[:200]}; {path.stat().st_size:,} bytes): download it again"
        ) from None
    names = file.keys()
    if not names:
        raise UserError(f"{path} has no tensors: give a file with the weights of a model")
    return dict.fromkeys(names, (path, file))


def _open_shards(folder: Path) -> dict[str, tuple[Path, safe_open]]:
    """The tensors of all shards in the folder's index."""
    index = folder / INDEX
    try:
        values = read_json(index, MAX_INDEX_SIZE)
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON ({first_line(error)}): download it again") from None
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f'{index} has no "weight_map" from tensor names to file names: download it again')
    tensors: dict[str, tuple[Path, safe_open]] = {}
    for shard in sorted(set(places.values())):
        # Only a plain file name: a path could lead out of the folder.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise UserError(
                f"{index} names the shard {shard!r}: only .safetensors files in its folder are read"
            )
        if not (folder / shard).is_file():
            raise UserError(f"{index} names the shard {shard}, which does not exist: download it")
        for name, place in _open(folder / shard).items():
            if places.get(name) != shard:
                raise UserError(
                    f"{folder / shard} contains {name}, but {INDEX} says {places.get(name)}: they do not belong together"
                )
            tensors[name] = place
    if missing := places.keys() - tensors.keys():
        raise UserError(
            f"{folder} lacks {len(missing)} of the tensors in its {INDEX} ({_some(sorted(missing))}): "
            "download the missing files"
        )
    return tensors


def _some(names: list[str]) -> str:
    """The first names of many. A name that is not printable is quoted: anybody may have written it."""
    shown = [name if name.isprintable() else repr(name) for name in names[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file atomically. Dtypes are kept; `metadata` maps names to text."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replaced_atomically(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask; the package makes files private
        save_file(arrays, os.fspath(temporary), metadata)
        temporary.chmod(mode)
