"""Pieces of text: their positions, places where no token is cut, and the characters that UTF-8 cannot write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from jaxgpt.config import UserError

PIECE_LENGTH = 1 << 20  # the most characters of a piece
# Of a text: some of it, not empty, or None at the end of a document.
Piece = str | None

# Where text can be cut: before a space or newline that follows something other than white space. No token of a word
# or bpe tokenizer crosses such a place, and none depends on the text after it.
CUT = r"\S(?=[ \n])"


class Segment(str):
    """A part of a conversation that is encoded by itself, so that no token is half a prompt and half an answer.

    counts: whether it is to be predicted. mark: a mark of the template, which is the special token of this name where the
    tokenizer has one. special: the text of every special token in it is that token.
    """

    counts: bool
    mark: bool
    special: bool

    def __new__(cls, text: str, counts: bool = True, mark: bool = False, special: bool = False) -> Self:
        self = super().__new__(cls, text)
        self.counts, self.mark, self.special = counts, mark, special
        return self


def with_positions(pieces: Iterable[Piece]) -> Iterator[tuple[str, int]]:
    """Each piece with its position in the text."""
    position = 0
    for piece in pieces:
        if piece is not None:
            yield piece, position
            position += len(piece)


def joined(pieces: Iterable[Piece]) -> Iterator[tuple[str, int]]:
    """The same text in one piece, for tokens that may cross any place."""
    if text := "".join(piece for piece in pieces if piece is not None):
        yield text, 0


def between_tokens(pieces: Iterable[Piece], before: str = " \n") -> Iterator[tuple[str, int]]:
    """The same text in pieces that no token crosses, each with its position in the text.

    It is cut at the end of each document. before: the characters before which text may be cut otherwise, where they
    follow something other than white space.
    """
    last_cut = re.compile(rf".*\S(?=[{before}])", re.DOTALL)

    def regrouped() -> Iterator[str]:
        held: list[str] = []
        for piece in pieces:
            if not piece:
                if piece is None and held:
                    yield "".join(held)
                    held = []
                continue
            last = held[-1][-1] if held else ""  # a cut may be between two pieces
            if cut := last_cut.match(last + piece):
                at = cut.end() - len(last)
                yield "".join([*held, piece[:at]])
                held, piece = [], piece[at:]
            held.append(piece)
        if held:
            yield "".join(held)

    return with_positions(regrouped())


def checked(pieces: Iterable[Piece]) -> Iterator[str]:
    """The pieces of `between_tokens`. Raises UserError where one has a lone surrogate."""
    for text, position in between_tokens(pieces):
        check_text(text, position)
        yield text


def code_points(text: str, position: int = 0) -> np.ndarray:
    """The code points of a text: [N] uint32. Raises UserError for a lone surrogate."""
    return np.frombuffer(_encoded(text, position, "utf-32-le"), np.uint32)


def check_text(text: str, position: int = 0, where: str = "") -> None:
    """Raises UserError for a lone surrogate; `position` is where the text starts in a longer one, or in `where`."""
    _encoded(text, position, "utf-8", where)


def _encoded(text: str, position: int, encoding: str, where: str = "") -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}{': ' * bool(where)}U+{ord(text[error.start]):04X} at position {position + error.start} is a lone surrogate "
            "(half of a character), which UTF-8 cannot encode: remove it"
        ) from error
