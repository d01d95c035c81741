"""Files of word vectors: GloVe's text, word2vec's text and binary form, NumPy arrays; plain or .gz.

    GloVe     king 0.5 -0.1 ...          a word and D numbers per line, separated by single spaces
    word2vec  400000 300                 a header line: words and numbers per word; then as GloVe,
                                         or in binary form: the word, a space, D float32 (little-endian)

Every problem of a file is one UserError with the file and the line. A header is compared with the size of the file
before anything is allocated, and what a .gz may unpack to is limited. A text without a header that was cut in the
middle of its last number can't be distinguished from a complete one.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxgpt.config import UserError, first_line

_CHUNK = 1 << 22  # bytes per read
_MAX_LINE = 1 << 20  # bytes: a word and about 100,000 numbers
_MAX_WORD = 1 << 12  # bytes of a word in a binary file
# The most that a .gz may unpack to, as a multiple of its size: numbers as text shrink to a third, hardly ever to a
# tenth. _FREE bytes are always allowed.
_MAX_EXPANSION = 30
_FREE = 1 << 24
_NUMBERS = re.compile(rb"[-+0-9.eEnaifNAIF \t\r]*")
_LF = b"\n"
_GET_AGAIN = "get the complete file again"


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """The words and the table [N, D] float32 of a text or binary file; the content decides which. Raises UserError."""
    try:
        with path.open("rb") as file:
            stream = _Stream(path, file)
            head = stream.read(_CHUNK)
            if not head:
                raise UserError(f"{path} is empty: give a file of word vectors")
            if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
                raise UserError(
                    f"{path} is a zip or pickle file: unpack it, and give the vectors as text or .npy"
                )
            header = _header(head)
            if header is None:
                return _read_text(path, stream, head, None)
            size_ND, start = header
            binary = _is_binary(head[start:])
            row_bytes = (4 if binary else 2) * size_ND[1] + 1
            if min(size_ND) < 1 or size_ND[0] * row_bytes > stream.limit:
                raise UserError(
                    f"{path} declares {size_ND[0]:,} words x {size_ND[1]:,} numbers, which its "
                    f"{stream.size:,} bytes can't hold: it is cut short or its header is wrong; {_GET_AGAIN}"
                )
            reader = _read_binary if binary else _read_text
            return reader(path, stream, head[start:], size_ND)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a complete .gz file ({error}): {_GET_AGAIN}") from None
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
            f"{path} is not a complete .npy file of numbers ({first_line(error)}): {_GET_AGAIN}"
        ) from None
    if table.dtype.kind != "f":
        raise UserError(f"{path} has the type {table.dtype.name}: save it as a float array")
    if table.ndim != 2 or not table.size:
        raise UserError(f"{path} has the shape {list(table.shape)}: give a table of words and numbers [N, D]")
    if table.offset + table.nbytes != (size := path.stat().st_size):
        raise UserError(
            f"{path} has {size:,} bytes, {table.offset + table.nbytes:,} are declared: {_GET_AGAIN}"
        )
    return checked(path, table, "row")


def checked(path: Path, table_ND: np.ndarray, unit: str) -> np.ndarray:
    """The table as contiguous float32. Raises UserError where a number is not finite."""
    with np.errstate(over="ignore"):
        table_ND = np.array(table_ND, np.float32, order="C")
    for start in range(0, len(table_ND), 65_536):  # in parts, because the mask of all would be large
        finite = np.isfinite(table_ND[start : start + 65_536]).all(axis=1)
        if not finite.all():
            raise _not_finite(path, unit, start + int(np.argmin(finite)) + 1)
    return table_ND


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
    match = re.match(rb"([0-9]{1,18}) ([0-9]{1,18})[ \r]*\n", head)
    return match and ((int(match[1]), int(match[2])), match.end())


def _is_binary(content: bytes) -> bool:
    """Whether the first word is followed by anything but numbers as text."""
    line = content[:_MAX_LINE].lstrip(b"\n").split(b"\n", 1)[0]
    return not _NUMBERS.fullmatch(line.rstrip(b" ").partition(b" ")[2])


# --- text -----------------------------------------------------------------------------------------------


def _read_text(
    path: Path, stream: _Stream, content: bytes, size_ND: tuple[int, int] | None
) -> tuple[list[str], np.ndarray]:
    D = size_ND[1] if size_ND else _width(content)
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
        cut = rest.rfind(b"\n") + 1
        if cut:
            lines = rest[:cut].replace(b"\r", b"").replace(b" \n", b"\n").split(b"\n")[:-1]
            new_words, table = _parse(path, lines, D, first_line + len(words))
            words += new_words
            tables.append(table)
        if not more:
            break
        rest = rest[cut:] + more
    if size_ND and len(words) != size_ND[0]:
        raise UserError(
            f"{path} has {len(words):,} words, but its header declares {size_ND[0]:,}: {_GET_AGAIN}"
        )
    check_words(path, words)
    return words, np.concatenate(tables)


def _width(content: bytes) -> int:
    """D: the count of numbers at the end of the first line, whose word may contain spaces."""
    fields = content.split(b"\n", 1)[0].rstrip(b" \r").split(b" ")
    count = 0
    while count < len(fields) - 1 and _is_number(fields[-1 - count]):
        count += 1
    return max(count, 1)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(path: Path, lines: list[bytes], D: int, first_line: int) -> tuple[list[str], np.ndarray]:
    """The words and the table [len(lines), D] of lines."""
    parts = [line.partition(b" ") for line in lines]
    words = [word for word, _, _ in parts]
    rests = [rest for _, _, rest in parts]
    counts = [rest.count(b" ") + 1 for rest in rests]
    if counts.count(D) != len(lines):
        for i in [i for i, count in enumerate(counts) if count != D]:
            fields = lines[i].rsplit(b" ", D)  # words of the large GloVe files may contain spaces: ". . ."
            inner = fields[0].rpartition(b" ")[2]
            if counts[i] < D or _is_number(inner):
                numbers = counts[i] if rests[i] else 0
                raise UserError(
                    f"{path}: line {first_line + i:,} has {numbers:,} numbers, not {D:,}: "
                    f"the file is cut short or not a file of word vectors; {_GET_AGAIN}"
                )
            words[i], rests[i] = fields[0], b" ".join(fields[1:])
    numbers = _numbers(b" ".join(rests))
    if numbers is None or len(numbers) != D * len(lines):
        for i, rest in enumerate(rests):
            row = _numbers(rest)
            if row is None or len(row) != D:
                wrong = next((f for f in rest.split(b" ") if not _is_number(f)), rest)[:40]
                raise UserError(
                    f"{path}: line {first_line + i:,} has {wrong.decode('utf-8', 'backslashreplace')!r} in place of "
                    "a number: give vectors as text, a word and its numbers per line"
                )
    table = numbers.reshape(-1, D)
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        raise _not_finite(path, "line", first_line + int(np.argmin(finite)))
    return _decoded(path, words, "line", first_line), table


def _numbers(text: bytes) -> np.ndarray | None:
    """[N] float32; None for anything but numbers separated by single spaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's warning where it stops before the end
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return np.fromstring(text, np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _decoded(path: Path, words: list[bytes], unit: str, first: int) -> list[str]:
    try:
        texts = b"\n".join(words).decode().split("\n") if words else []
    except UnicodeDecodeError:
        for i, word in enumerate(words):
            try:
                word.decode()
            except UnicodeDecodeError:
                raise UserError(
                    f"{path}: the word of {unit} {first + i:,} ({word[:40]!r}) is not UTF-8: convert the file "
                    "to UTF-8 (with `iconv -t UTF-8`)"
                ) from None
        raise
    if "" in texts:
        raise UserError(
            f"{path}: {unit} {first + texts.index(''):,} has no word before its numbers: {_GET_AGAIN}"
        )
    return texts


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
                raise UserError(f"{path} ends in word {row + 1:,} of {N:,}: {_GET_AGAIN}")
            content, at = content[at:] + more, 0
        word = content[at:space].lstrip(b"\n")
        if b"\n" in word:
            raise UserError(
                f"{path}: word {row + 1:,} of {N:,} contains a line end: its header is wrong; {_GET_AGAIN}"
            )
        words.append(word)
        table[row] = np.frombuffer(content, "<f4", D, space + 1)
        at = space + 1 + 4 * D
    if content[at:].strip(b"\n") or stream.read(1):
        raise UserError(
            f"{path} is longer than the {N:,} words x {D:,} numbers that it declares: {_GET_AGAIN}"
        )
    texts = _decoded(path, words, "word", 1)
    check_words(path, texts)
    return texts, checked(path, table, "word")
