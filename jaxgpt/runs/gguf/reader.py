"""Read GGUF files (llama.cpp's format): the metadata, and tensors as float32.

Anybody may have made a file: every count, size and offset is checked against its length before it is used. The package
gguf knows the sizes of the quantized types and dequantizes them. Memory is used for one tensor at a time.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxgpt.common import door
from jaxgpt.config import UserError, first_line
from jaxgpt.runs.tensor_files import finite, foreign

MAGIC = b"GGUF"
_TEXT, _LIST = 8, 9
# By the number of a type in the metadata.
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
_BOOL = 7
_MOST_AXES = 4
_LONGEST_NAME = 1 << 16  # bytes; the format's limit for a key
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def need_package() -> None:
    """Raise UserError if the package gguf is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError('GGUF files need the package gguf: pip install "jaxgpt[gguf]"')


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file. Its shape has the axis that varies fastest last, as NumPy's."""

    shape: tuple[int, ...]
    kind: str  # F32, Q4_K, ...
    offset: int  # bytes from the start of the file
    size: int  # bytes


class GGUFFile:
    """The metadata and the table of tensors of a GGUF file. Raises UserError where the file is not one."""

    def __init__(self, path: Path) -> None:
        need_package()
        self.path = path
        try:
            # Not a pipe or a device, which may never end.
            with door.open_regular(path, follow=True) as file:
                header = _Header(path, file)
                self.metadata = header.metadata()
                self.tensors = header.tensors(self.metadata)
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"no file {path}: give a .gguf file") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a regular file"
            raise UserError(f"cannot read {path} ({reason}): give a .gguf file") from None

    def has(self, key: str) -> bool:
        """Whether the metadata has a key."""
        return key in self.metadata

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the metadata. Raises UserError if it is missing and has no default, or is of another type."""
        if key not in self.metadata:
            if default is None:
                raise UserError(f"{self.path} lacks {key}: give a complete GGUF file of a language model")
            return default
        value = self.metadata[key]
        if type(value) is not kind:
            shown = f"{len(value)} values" if isinstance(value, list | np.ndarray) else repr(value)[:60]
            names = {
                str: "text",
                int: "a whole number",
                bool: "true or false",
                list: "a list of texts",
                np.ndarray: "a list of numbers",
            }
            raise UserError(f"{self.path}: {key} is {shown}, not {names[kind]}: give another file")
        return value

    def raw(self, name: str) -> bytes:
        """The bytes of a tensor as they are stored."""
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            content = file.read(tensor.size)
        if len(content) != tensor.size:
            raise UserError(f"{self.path} became shorter while it was read: give a file that does not change")
        return content

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32. Raises UserError for NaN and infinity."""
        from gguf import GGMLQuantizationType, quants

        tensor, content = self.tensors[name], self.raw(name)
        with np.errstate(all="ignore"):  # what becomes infinite is reported
            if tensor.kind in _PLAIN:
                array = np.frombuffer(content, _PLAIN[tensor.kind]).astype(np.float32)
            else:
                kind = GGMLQuantizationType[tensor.kind]
                rows = np.frombuffer(content, np.uint8).reshape(math.prod(tensor.shape[:-1]), -1)
                array = quants.dequantize(rows, kind).astype(np.float32, copy=False)
        return finite(array.reshape(tensor.shape), self.path, name)


class _Header:
    """What stands in front of the tensors. Every read checks that the file has so many bytes."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        file.seek(0)
        start = file.read(32)
        if start[:4] != MAGIC:
            known = foreign(start) or "" if start else "an empty file"
            raise UserError(
                f"{path} is not a GGUF file{f' but {known}' if known else ''}: give a file that starts with GGUF"
            )
        file.seek(4)
        version = self._number("<u4")
        if version & 0xFFFF == 0:
            raise UserError(
                f"{path} is a big-endian GGUF file: only little-endian ones are read; convert it with gguf-convert-endian"
            )
        if version not in (2, 3):
            raise UserError(
                f"{path} has GGUF version {version}: only 2 and 3 are read; convert it with a newer tool"
            )
        self._num_tensors, self._num_keys = self._number("<u8"), self._number("<u8")

    def metadata(self) -> dict[str, Any]:
        """All keys with their values: int, float, bool, str, list of str, or an array of numbers."""
        found: dict[str, Any] = {}
        for i in range(self._num_keys):
            key = self._text(f"key {i + 1} of {self._num_keys:,}", _LONGEST_NAME)
            if key in found:
                raise self._damaged(f"it has {key!r} twice")
            found[key] = self._value(key, self._number("<u4"))
        return found

    def _value(self, key: str, kind: int) -> Any:
        if kind == _TEXT:
            return self._text(key)
        if kind == _LIST:
            return self._list(key, self._number("<u4"), self._number("<u8"))
        if kind not in _NUMBERS:
            raise self._damaged(f"{key} has the type {kind}, which is not known")
        number = self._number(_NUMBERS[kind])
        return bool(number) if kind == _BOOL else number

    def _list(self, key: str, kind: int, count: int) -> Any:
        if kind == _TEXT:
            self._check(8 * count, f"the {count:,} texts of {key}")
            return [self._text(key) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self._damaged(f"{key} is a list of the type {kind}, which is not known")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._bytes(count * dtype.itemsize, f"the {count:,} numbers of {key}"), dtype)

    def tensors(self, metadata: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors by name. They do not overlap, and all are inside the file."""
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment={str(alignment)[:40]} is not a power of two")
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for i in range(self._num_tensors):
            name = self._text(f"tensor {i + 1} of {self._num_tensors:,}", _LONGEST_NAME)
            if name in found:
                raise self._damaged(f"it has the tensor {name!r} twice")
            axes = self._number("<u4")
            if not 1 <= axes <= _MOST_AXES:
                raise self._damaged(f"{name} has {axes:,} axes, not 1 to {_MOST_AXES}")
            shape = tuple(self._number("<u8") for _ in range(axes))[::-1]
            found[name] = shape, self._number("<u4"), self._number("<u8")
        start = -(-self._file.tell() // alignment) * alignment
        tensors = {name: self._tensor(name, start, alignment, *row) for name, row in found.items()}
        if not tensors:
            raise UserError(f"{self._path} has no tensors: give a file with the weights of a model")
        end, before = 0, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise self._damaged(f"{name} overlaps {before}")
            end, before = tensor.offset + tensor.size, name
        return tensors

    def _tensor(
        self, name: str, start: int, alignment: int, shape: tuple[int, ...], kind: int, offset: int
    ) -> Tensor:
        title, block, size = self._kind(name, kind)
        count = math.prod(shape)
        if not count:
            raise self._damaged(f"{name} is empty, {list(shape)}")
        if shape[-1] % block:
            raise self._damaged(
                f"{name} has rows of {shape[-1]:,} numbers, and {title} has blocks of {block}"
            )
        if offset % alignment:
            raise self._damaged(f"{name} starts at {offset:,}, which is not a multiple of {alignment}")
        num_bytes = count // block * size
        if start + offset + num_bytes > self._size:
            raise self._damaged(f"{name}, {list(shape)} as {title}, ends after the file")
        return Tensor(shape, title, start + offset, num_bytes)

    def _kind(self, name: str, kind: int) -> tuple[str, int, int]:
        """The name of a type, the numbers of one block and its bytes. Raises UserError if it can't be read."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        try:
            found = GGMLQuantizationType(kind)
            block, size = GGML_QUANT_SIZES[found]
            if found.name not in _PLAIN:
                quants.dequantize(np.zeros((1, size), np.uint8), found)
        except (ValueError, KeyError):
            raise self._damaged(f"{name} has the type {kind}, which the package gguf does not know") from None
        except Exception as error:  # NotImplementedError, and whatever a type without a decoder raises
            title = GGMLQuantizationType(kind).name
            raise UserError(
                f"{self._path}: {name} has the type {title}, which the package gguf can't dequantize "
                f"({first_line(error)[:80]}): give a file of another type, such as Q8_0 or F16"
            ) from None
        return found.name, block, size

    # --- single values ----------------------------------------------------------------------------------

    def _number(self, dtype: str) -> Any:
        """An int or a float. float32 is read as the shortest decimal that rounds to it: 1e-05, not 9.999999747e-06."""
        number = np.frombuffer(self._bytes(np.dtype(dtype).itemsize, "a number"), dtype)[0]
        return float(str(number)) if dtype == "<f4" else number.item()

    def _text(self, what: str, longest: int = 1 << 62) -> str:
        (length,) = struct.unpack("<Q", self._bytes(8, what))
        if length > longest:
            raise self._damaged(f"{what} has {length:,} bytes")
        try:
            return self._bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not UTF-8") from None

    def _bytes(self, count: int, what: str) -> bytes:
        self._check(count, what)
        return self._file.read(count)

    def _check(self, count: int, what: str) -> None:
        if count > self._size - self._file.tell():
            raise self._damaged(f"{what} ends after the file")

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self._path} is damaged or cut off ({what}; {self._size:,} bytes): download it again"
        )
