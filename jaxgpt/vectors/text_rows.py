"""Rows of word vectors as text: a word and D numbers, separated by single spaces.

A row is split from the right: its last D fields are the numbers, and the word may contain spaces (". . .", "new york").
D is that of the header; without one it is the width of most of the first rows. Fields of a word that look like numbers
("iphone 6") are accepted only as digits in front of numbers with decimal points: anything else may be a row with too
many numbers. Everything that is not such a row is a UserError with the line.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data import encodings

GET_AGAIN = "get the complete file again"
_FIRST_ROWS = 1000  # that decide the width
_NUMBER = re.compile(
    rb"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:nan|inf|infinity)", re.I
)
_DECIMAL_COMMA = re.compile(rb"[-+]?[0-9]+,[0-9]+(?:[eE][-+]?[0-9]+)?")
_SEPARATORS = {b"\t": "tabs", b",": "commas", b";": "semicolons"}
_OTHER_BLANKS = (b"\t", b"\v", b"\f", b"\r")  # NumPy would read them as separators


def is_number(text: bytes) -> bool:
    return _NUMBER.fullmatch(text) is not None


def ends_in_numbers(content: bytes) -> bool:
    """Whether most of the first lines end in a number after a separator, as only lines of text do."""
    first = content.lstrip(b"\n").split(b"\n", 10)
    lines = first[:-1] or first  # the last may be cut
    ends = [re.split(rb"[ \t,;]", line.rstrip(b" \t\r")) for line in lines]
    return 2 * sum(len(fields) > 1 and is_number(fields[-1]) for fields in ends) > len(ends)


def width(path: Path, content: bytes) -> int:
    """D of a text without a header: the count of numbers at the end of most of the first rows.

    Raises UserError for rows that do not end in numbers, and names the separator or the decimal comma.
    """
    lines = content.split(b"\n", _FIRST_ROWS)[:_FIRST_ROWS]
    if len(lines) > 1:
        lines.pop()  # empty or incomplete
    counts = Counter(_numbers_at_end(line) for line in lines if line.strip())
    if not counts:
        raise UserError(f"{path} has only blank lines: give a file of word vectors")
    # Of two that are as frequent the smaller: fewer rows have a word that ends in a number.
    most = max(counts, key=lambda count: (counts[count], -count))
    if most == 0:
        raise no_numbers(path, next(line for line in lines if line.strip()), 1)
    return most


def no_numbers(path: Path, line: bytes, number: int) -> UserError:
    """The error for a row of another form, with the form where it is known."""
    line = line.strip()
    fields = line.split(b" ")
    form = "has no numbers after its word"
    if len(fields) > 1 and _DECIMAL_COMMA.fullmatch(fields[-1]):
        form = "has numbers with a decimal comma: write them with a point"
    else:
        for mark, name in _SEPARATORS.items():
            parts = line.split(mark)
            if len(parts) > 1 and is_number(parts[-1].strip().split(b" ")[0]):
                form = f"has {name} between its numbers: put single spaces there"
    return UserError(f"{path}: line {number:,} {form}; vectors as text are a word and its numbers per line")


def _numbers_at_end(line: bytes) -> int:
    fields = line.rstrip(b" \r").split(b" ")
    count = 0
    while count < len(fields) - 1 and is_number(fields[-1 - count]):
        count += 1
    return count


def parse(path: Path, lines: list[bytes], D: int, first_line: int) -> tuple[list[str], np.ndarray]:
    """The words and the table [len(lines), D] of lines without their ends. Raises UserError."""
    parts = [line.partition(b" ") for line in lines]
    words = [word for word, _, _ in parts]
    rests = [rest for _, _, rest in parts]
    counts = [rest.count(b" ") + 1 for rest in rests]
    if counts.count(D) != len(lines) or b"" in words:
        for i in [i for i, count in enumerate(counts) if count != D or not words[i]]:
            words[i], rests[i] = _split(path, lines[i], D, first_line + i)
    for i, word in enumerate(words) if b"\t" in b" ".join(words) else ():
        if is_number(word.rpartition(b"\t")[2]):  # king<tab>0.5 0.1
            raise no_numbers(path, word, first_line + i)
    joined = b" ".join(rests)
    numbers = None if any(blank in joined for blank in _OTHER_BLANKS) else _numbers(joined)
    if numbers is None or len(numbers) != D * len(lines):
        for i, rest in enumerate(rests):
            if not all(map(is_number, fields := rest.split(b" "))):
                raise _not_a_number(path, lines[i], fields, first_line + i)
        numbers = np.array([float(field) for field in joined.split(b" ")], np.float32)
    return decoded(path, words, "line", first_line), numbers.reshape(-1, D)


def _split(path: Path, line: bytes, D: int, number: int) -> tuple[bytes, bytes]:
    """The word of a row and the text of its D numbers. Raises UserError where the row has another count."""
    line = line.rstrip(b" \r")
    fields = line.rsplit(b" ", D)
    word, numbers = fields[0], fields[1:]
    inner = [field for field in word.split(b" ")[1:] if is_number(field)]
    digits = all(field.isdigit() for field in inner) and not all(field.isdigit() for field in numbers)
    if len(numbers) < D or (inner and not digits) or not all(map(is_number, numbers)):
        found = line.rpartition(b" ")[2]
        if line and not is_number(found) and (b"," in line or b"\t" in line or b";" in line):
            raise no_numbers(path, line, number)
        if b"  " in line.strip() and line.split(b" ")[0]:
            raise _two_spaces(path, number)
        if len(line.split(b" ")) == D + 1:
            raise _not_a_number(path, line, numbers, number)
        given = max(_numbers_at_end(line), line.count(b" ") if not inner else 0)
        raise UserError(
            f"{path}: line {number:,} has {given:,} numbers, not {D:,}: "
            f"the file is cut short or not a file of word vectors; {GET_AGAIN}"
        )
    if word.endswith(b" ") and word.strip():
        raise _two_spaces(path, number)
    return word, b" ".join(numbers)


def _two_spaces(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}: line {number:,} has two spaces in a row: put single spaces between the word and its numbers "
        "(a number may be missing there)"
    )


def _not_a_number(path: Path, line: bytes, fields: Sequence[bytes], number: int) -> UserError:
    wrong = next((field for field in fields if not is_number(field)), b"")[:40]
    if not wrong:
        return _two_spaces(path, number)
    if b"," in wrong or b"\t" in wrong or b";" in wrong:
        return no_numbers(path, line, number)
    return UserError(
        f"{path}: line {number:,} has {wrong.decode('utf-8', 'backslashreplace')!r} in place of "
        "a number: give vectors as text, a word and its numbers per line"
    )


def _numbers(text: bytes) -> np.ndarray | None:
    """[N] float32; None for anything but numbers separated by white space."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's warning where it stops before the end
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return np.fromstring(text, np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def decoded(path: Path, words: list[bytes], unit: str, first: int) -> list[str]:
    """The words as text; `first` is the number of the first, in `unit`s. Raises UserError."""
    try:
        texts = b"\n".join(words).decode().split("\n") if words else []
    except UnicodeDecodeError:
        for i, word in enumerate(words):
            try:
                word.decode()
            except UnicodeDecodeError:
                advice = encodings.describe(path, b"", b"\n".join(words[max(0, i - 50) : i + 50]))
                raise UserError(
                    f"{path}: the word of {unit} {first + i:,} ({word[:40]!r}) is not UTF-8: {advice}"
                ) from None
        raise
    if "" in texts:
        raise UserError(
            f"{path}: {unit} {first + texts.index(''):,} has no word before its numbers: {GET_AGAIN}"
        )
    return texts
