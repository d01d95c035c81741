"""Word lists for tests of an embedding table: related words, groups and analogies."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from jaxgpt.vectors import word_tests

Find = Callable[[str], int | None]
Count = Callable[[int], int | None]
ENOUGH = 20  # minimum occurrences in the training text: a rare token's row is hardly trained

# Pairs of a family differ in the same respect. The words are common in Shakespeare and the King James Bible.
FAMILIES = {
    "gender": "king queen, father mother, brother sister, son daughter, man woman, husband wife, he she, lord lady,"
    " prince princess",
    "number": "day days, hand hands, eye eyes, word words, thing things, year years, son sons, friend friends",
    "past": "is was, are were, do did, have had, say said, come came, see saw, know knew, give gave, make made",
}


@dataclass(frozen=True)
class Test:
    """Related pairs of rows, tested against re-paired rows; or a group of rows, tested against `others`."""

    name: str
    what: str
    rows: list
    others: list[int] | None


def _pairs(text: str) -> list[tuple[str, ...]]:
    return [tuple(pair.split()) for pair in text.split(",")]


def _trained(count: Count, i: int) -> bool:
    return count(i) is None or count(i) >= ENOUGH


def _known(find: Find, count: Count, pairs: list) -> list[list[int]]:
    rows, _ = word_tests.rows_of(find, pairs)
    return [row for row in rows.tolist() if all(_trained(count, i) for i in row)]


def _one(find: Find, count: Count, words: str) -> list[int]:
    """The rows of single-character tokens."""
    rows = [find(word) for word in words]
    return [i for i in dict.fromkeys(rows) if i is not None and _trained(count, i)]


def letter_pairs(find: Find, count: Count) -> list[list[int]]:
    """Pairs of each letter in upper and lower case."""
    return _known(find, count, [(c.upper(), c) for c in string.ascii_lowercase])


def tests(find: Find, count: Count) -> list[Test]:
    """The tests with enough tokens in the vocabulary: at least 5 pairs or 3 members."""
    found = []
    words = _known(find, count, word_tests.RELATED_PAIRS)
    if len(words) >= 5:
        what = "related words (king, queen), against the same words paired at random"
        found.append(Test("related words", what, words, None))
        return found
    letters = letter_pairs(find, count)
    if len(letters) >= 5:
        what = "a letter in upper and lower case, against two different letters"
        found.append(Test("the same letter", what, letters, None))
    groups = [
        ("vowels", "aeiou", "bcdfghjklmnpqrstvwxyz", "two vowels, against a vowel and a consonant"),
        ("upper case", string.ascii_uppercase, string.ascii_lowercase, "two upper-case letters, against an upper-case and a lower-case letter"),
        ("marks", ".,;:!?'-", string.ascii_lowercase, "two punctuation marks, against a mark and a lower-case letter"),
        ("digits", string.digits, string.ascii_lowercase, "two digits, against a digit and a lower-case letter"),
    ]  # fmt: skip
    for name, members, others, what in groups:
        rows, rest = _one(find, count, members), _one(find, count, others)
        rest = [i for i in rest if i not in rows]
        if min(len(rows), len(rest)) >= 3:
            found.append(Test(name, what, rows, rest))
    return found


def families(find: Find, count: Count) -> dict[str, list[tuple[int, ...]]]:
    """Analogy families with at least 3 pairs; upper and lower case letters if the vocabulary has no such words."""
    found = {name: _known(find, count, _pairs(text)) for name, text in FAMILIES.items()}
    if not any(len(rows) >= 3 for rows in found.values()):
        found = {"case": letter_pairs(find, count)}
    return {name: [tuple(row) for row in rows] for name, rows in found.items() if len(rows) >= 3}
