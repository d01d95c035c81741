"""Files of word vectors: GloVe's text, word2vec's text and binary form, NumPy arrays; plain or .gz.

    GloVe     king 0.5 -0.1 ...          a word and D numbers per line, separated by single spaces (see text_rows)
    word2vec  400000 300                 a header line: words and numbers per word; then as GloVe,
                                         or in binary form: the word, a space, D float32 (little-endian)

Every problem of a file is one UserError with the file and the line. A header is compared with the size of the file
before anything is allocated, and what a .gz may unpack to is limited. A text without a header that was cut in the
middle of its last number can't be distinguished from a complete one.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxgpt.config import UserError, first_line
from jaxgpt.vectors import text_rows
from jaxgpt.vectors.text_rows import GET_AGAIN

_CHUNK = 1 << 22  # bytes per read
_MAX_LINE = 1 << 20  # bytes: a word and about 100,000 numbers
_MAX_WORD = 1 << 12  # bytes of a word in a binary file
# The most that a .gz may unpack to, as a multiple of its size: numbers as text shrink to a third, hardly ever to a
# tenth. _FREE bytes are always allowed.
_MAX_EXPANSION = 30
_FREE = 1 << 24
_LF = b"\n"
_BOM = b"\xef\xbb\xbf"
# Numbers of word vectors are about 1. Far from that, a row was read at the wrong place, or the file is something else.
LARGEST, SMALLEST = 1e10, 1e-10

_CONVERT = "save its vectors as text, .npy or .safetensors with the program that wrote it"
# The first bytes of files of other kinds, and what to do.
FOREIGN = {
    b"PK\x03\x04": f"a zip file (.npz, PyTorch or packed vectors): unpack it, or {_CONVERT}",
    **{
        b"\x80" + bytes([i]): f"a pickle (gensim, PyTorch), which could run code: {_CONVERT}"
        for i in range(2, 6)
    },
    b"\xba\x16\x4f\x2f": "fastText's .bin, a complete model: give its .vec file, which has the same vectors as text",
    b"\x93NUMPY": "a NumPy array: name it .npy and give its words as the vocabulary",
    b"PAR1": "a Parquet file: save its vectors as text or .npy",
    b"\x89HDF": "an HDF5 file: save its vectors as text or .npy",
    b"BZh": "packed with bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "packed with xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it with unzstd",
    b"\xff\xfe": "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"version https://git-lfs": "a git-lfs pointer: download the file itself with `git lfs pull`",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}


@dataclass(frozen=True)
class Content:
    """What a file holds: N words, the table [N, D] float32, and the form in which it was found."""

    words: list[str]
    table: np.ndarray
    form: str


def read(path: Path) -> Content:
    """The content of a text or binary file; the content decides which. Raises UserError."""
    try:
        with path.open("rb") as file:
            stream = _Stream(path, file)
            head = stream.read(_CHUNK)
            if not head:
                raise UserError(f"{path} is empty: give a file of word vectors")
            _refuse_other_kinds(path, head)
            head = head.removeprefix(_BOM)
            header = _header(head)
            if header is None:
                words, table = _read_text(path, stream, head, None)
                return Content(words, table, "text")
            size_ND, start = header
            binary = not text_rows.ends_in_numbers(head[start : start + _MAX_LINE])
            row_bytes = (4 if binary else 2) * size_ND[1] + 1
            if min(size_ND) < 1:
                raise UserError(
                    f"{path} declares {size_ND[0]:,} words x {size_ND[1]:,} numbers: it has no vectors; {GET_AGAIN}"
                )
            if size_ND[0] * row_bytes > stream.limit:
                raise UserError(
                    f"{path} declares {size_ND[0]:,} words x {size_ND[1]:,} numbers, which its "
                    f"{stream.size:,} bytes can't hold: it is cut short or its header is wrong; {GET_AGAIN}"
                )
            reader = _read_binary if binary else _read_text
            words, table = reader(path, stream, head[start:], size_ND)
            return Content(words, table, f"header, {'binary' if binary else 'text'}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a complete .gz file ({error}): {GET_AGAIN}") from None
    except OSError as error:
        raise UserError(
            f"can't read {path} ({error.strerror or error}): give a file of word vectors"
        ) from None


def read_npy(path: Path) -> np.ndarray:
    """The table [N, D] float32 of a .npy file of any float type. Never unpickles. Raises UserError."""
    try:
        # It refuses objects, and more numbers than the file has.
        table = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"can't read {path} ({error.strerror or error}): give a .npy file") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a complete .npy file of numbers ({first_line(error)}): {GET_AGAIN}"
        ) from None
    if table.dtype.kind != "f":
        raise UserError(f"{path} has the type {table.dtype.name}: save it as a float array")
    if table.ndim != 2 or not table.size:
        raise UserError(f"{path} has the shape {list(table.shape)}: give a table of words and numbers [N, D]")
    if table.offset + table.nbytes != (size := path.stat().st_size):
        raise UserError(
            f"{path} has {size:,} bytes, {table.offset + table.nbytes:,} are declared: {GET_AGAIN}"
        )
    return checked(path, table, "row")


def checked(path: Path, table_ND: np.ndarray, unit: str) -> np.ndarray:
    """The table as contiguous float32, checked."""
    with np.errstate(over="ignore"):
        table_ND = np.array(table_ND, np.float32, order="C")
    check_numbers(path, table_ND, unit)
    return table_ND


def check_numbers(path: Path, table_ND: np.ndarray, unit: str, first: int = 1) -> None:
    """Raises UserError where a number is not finite or beyond LARGEST; `first` is the number of the first row."""
    for start in range(0, len(table_ND), 65_536):  # in parts, because the mask of all would be large
        part = table_ND[start : start + 65_536]
        if part.max() <= LARGEST and part.min() >= -LARGEST:  # false for NaN
            continue
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            raise _not_finite(path, unit, first + start + int(np.argmin(finite)))
        row = int(np.argmax(np.abs(part).max(axis=1) > LARGEST))
        raise UserError(
            f"{path}: {unit} {first + start + row:,} has the number {np.abs(part[row]).max():.3g}, beyond {LARGEST:g}, unlike "
            "vectors: it is damaged, or a word before it has a space; scale the vectors down if they are right"
        )


def check_scale(path: str | Path, table_ND: np.ndarray) -> None:
    """Raises UserError where all numbers are below SMALLEST, but not zero."""
    largest = max(table_ND.max(), -table_ND.min())
    if 0 < largest < SMALLEST:
        raise UserError(
            f"{path}: no number is above {largest:.3g} in size, unlike vectors: it is damaged, or its numbers have "
            "another type; scale the vectors up if they are right"
        )


def check_words(path: Path, words: Sequence[str]) -> None:
    """Raises UserError for a repeated word: we cannot choose one of its rows."""
    if len(set(words)) == len(words):
        return
    first: dict[str, int] = {}
    for row, word in enumerate(words, start=1):
        if first.setdefault(word, row) != row:
            raise UserError(
                f"{path} has the word {word!r} twice, as word {first[word]:,} and as word {row:,}: remove one"
            )


class _Stream:
    """The bytes of a file, or of the content of a .gz; more than `limit` raise UserError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.size = path.stat().st_size
        self._path, self._total = path, 0
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self.limit = max(_FREE, self.size * _MAX_EXPANSION) if packed else self.size
        self._file = gzip.GzipFile(fileobj=file) if packed else file

    def read(self, count: int) -> bytes:
        content = self._file.read(count)
        self._total += len(content)
        if self._total > self.limit:
            raise UserError(
                f"{self._path} ({self.size:,} bytes) unpacks to more than {self.limit:,} bytes, unlike vectors: "
                "if you trust it, unpack it with gunzip and give the unpacked file"
            )
        return content


def _header(head: bytes) -> tuple[tuple[int, int], int] | None:
    """((words, numbers per word), end of the header) of a word2vec file; None for a file without a header."""
    match = re.match(rb"([0-9]{1,18})[ \t]+([0-9]{1,18})[ \t\r]*\n", head)
    return match and ((int(match[1]), int(match[2])), match.end())


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    """Raises UserError that names the kind of a file that is not word vectors."""
    kind = next((kind for magic, kind in FOREIGN.items() if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive: unpack it with `tar -x`"
    elif kind is None and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        kind = "a .safetensors file: give it that name"
    elif kind is None and b"\n" not in head and b"\r" in head:
        kind = r"text with the line ends of old Macs: convert it with `tr '\r' '\n'`"
    elif kind is None and re.match(rb"(?:[^\0]\0){4}|(?:\0[^\0]){4}", head):
        kind = "UTF-16 without a mark: convert it with `iconv -f UTF-16LE -t UTF-8` (or UTF-16BE)"
    if kind:
        raise UserError(f"{path} is {kind}")


# --- text -----------------------------------------------------------------------------------------------


def _read_text(
    path: Path, stream: _Stream, content: bytes, size_ND: tuple[int, int] | None
) -> tuple[list[str], np.ndarray]:
    D = size_ND[1] if size_ND else text_rows.width(path, content)
    words: list[str] = []
    tables: list[np.ndarray] = []
    first_line = 1 if size_ND is None else 2
    rest = content
    while True:
        more = stream.read(_CHUNK)
        if len(rest) - rest.rfind(b"\n") - 1 > _MAX_LINE:
            raise UserError(
                f"{path}: line {first_line + len(words) + rest.count(_LF):,} is longer than {_MAX_LINE:,} bytes: "
                "give vectors as text, a word and its numbers per line"
            )
        if not more and rest and not rest.endswith(b"\n"):
            rest += b"\n"
        # Blank lines at the end of the file are no rows: they stay in `rest` until a row follows.
        rows = rest[: rest.rfind(b"\n") + 1].rstrip(b" \r\n")
        cut = rest.index(b"\n", len(rows)) + 1 if rows else 0
        if cut:
            lines = rest[:cut].replace(b"\r\n", b"\n").replace(b" \n", b"\n").split(b"\n")[:-1]
            new_words, table = text_rows.parse(path, lines, D, first_line + len(words))
            words += new_words
            check_numbers(path, table, "line", first_line + len(words) - len(new_words))
            tables.append(table)
        if not more:
            break
        rest = rest[cut:] + more
    if size_ND and len(words) != size_ND[0]:
        raise UserError(
            f"{path} has {len(words):,} words, but its header declares {size_ND[0]:,}: {GET_AGAIN}"
        )
    check_words(path, words)
    return words, np.concatenate(tables)


def _not_finite(path: Path, unit: str, number: int) -> UserError:
    return UserError(
        f"{path}: {unit} {number:,} has a number that is not finite (nan, inf, or beyond float32): "
        "remove that row"
    )


# --- binary ---------------------------------------------------------------------------------------------


def _read_binary(
    path: Path, stream: _Stream, content: bytes, size_ND: tuple[int, int]
) -> tuple[list[str], np.ndarray]:
    N, D = size_ND
    table = np.empty((N, D), np.float32)
    words: list[bytes] = []
    at = 0
    for row in range(N):
        while (space := content.find(b" ", at, at + _MAX_WORD)) < 0 or len(content) < space + 1 + 4 * D:
            more = stream.read(_CHUNK)
            if not more or (space < 0 and len(content) - at >= _MAX_WORD):
                raise UserError(f"{path} ends in word {row + 1:,} of {N:,}: {GET_AGAIN}")
            content, at = content[at:] + more, 0
        word = content[at:space].lstrip(b"\n")
        if b"\n" in word:
            raise UserError(
                f"{path}: word {row + 1:,} of {N:,} contains a line end: its header is wrong, or the word "
                "before has a space, which this form can't hold; {GET_AGAIN}"
            )
        words.append(word)
        table[row] = np.frombuffer(content, "<f4", D, space + 1)
        at = space + 1 + 4 * D
    if content[at:].strip(b"\n") or stream.read(1):
        raise UserError(
            f"{path} is longer than the {N:,} words x {D:,} numbers that it declares: {GET_AGAIN}"
        )
    texts = text_rows.decoded(path, words, "word", 1)
    check_words(path, texts)
    return texts, checked(path, table, "word")
