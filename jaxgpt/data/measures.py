"""The hash and the lengths of a text, and where it is cut into a training and a validation split."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxgpt.common.files import cache_dir, write_atomically
from jaxgpt.common.progress import reported
from jaxgpt.config import UserError
from jaxgpt.data import corpora
from jaxgpt.data.text_pieces import Piece, Segment


class Meter:
    """Counts and hashes the text that passes through it."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.num_chars = 0
        self.num_bytes = 0
        self.num_documents = 0
        self.last_start = 0  # the characters before the last document
        self._ended_at = 0

    def through(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece is None:
                self.sha256.update(b"\xff")  # a byte that no text has
                self.num_documents += 1
                self.last_start, self._ended_at = self._ended_at, self.num_chars
            else:
                utf8 = piece.encode("utf-8")
                if isinstance(piece, Segment):  # where the parts of a conversation meet belongs to the text
                    self.sha256.update(b"\xfe" if piece.counts else b"\xfd")
                self.sha256.update(utf8)
                self.num_chars += len(piece)
                self.num_bytes += len(utf8)
            yield piece

    def state(self) -> str:
        """What has passed so far."""
        documents = f"{self.num_documents:,} documents, " if self.num_documents else ""
        return f"{documents}{self.num_bytes / 1e6:,.1f} MB"


def cut(pieces: Iterator[Piece], at: int, has_documents: bool) -> tuple[Iterator[Piece], Iterator[Piece]]:
    """The text up to a number of characters, and the rest, which is to be read after it.

    With documents the cut is after the first one that ends there or later.
    """
    rest: list[Piece] = []

    def first() -> Iterator[Piece]:
        position = 0
        for piece in pieces:
            if piece is None:
                yield None
                if position >= at:
                    return
                continue
            if has_documents or position + len(piece) < at:
                position += len(piece)
                yield piece
                continue
            yield piece[: at - position]
            if rest_of_piece := piece[at - position :]:
                rest.append(rest_of_piece)
            return

    def second() -> Iterator[Piece]:
        yield from rest
        yield from pieces

    return first(), second()


@dataclass(frozen=True)
class Measures:
    """The hash and the lengths of a text."""

    sha256: str
    num_chars: int
    num_bytes: int
    num_documents: int = 0
    last_start: int = 0  # characters before the last document


def measure(corpus: corpora.Corpus) -> Measures:
    """Measured by reading the text, or from a note in the cache where its files have not changed."""
    note = cache_dir() / "texts" / f"{corpus.state()}.json" if corpus.files else None
    if note is not None and note.is_file():
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Measures(**json.loads(note.read_bytes()))
    text = Meter()
    with reported(f"reading {corpus.name}", text.state, corpus.part_read):
        for _ in text.through(corpus.read()):
            pass
    measures = Measures(
        text.sha256.hexdigest(), text.num_chars, text.num_bytes, text.num_documents, text.last_start
    )
    if note is not None:
        with contextlib.suppress(OSError):  # `new_ids_folder` reports a cache that can't be written
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps(dataclasses.asdict(measures)).encode())
    return measures


def num_train_chars(
    text: Measures, valid_fraction: float, has_documents: bool, given: str = "data.path"
) -> int:
    """The characters of the training split; with documents it ends with the first document that ends there or later."""
    subject = "the text" if given == "data.path" else f"the text of {given}"
    num_train = int(text.num_chars * (1 - valid_fraction)) if 0 < valid_fraction < 1 else 0
    if has_documents and text.num_documents < 2:
        raise UserError(
            f"{subject} is a single document, which is not cut in two: set data.documents='whole', or give more documents"
        )
    if not 0 < num_train < text.num_chars:
        raise UserError(
            f"data.valid_fraction={valid_fraction} leaves the training or the validation split of {subject} with "
            f"{text.num_chars} characters empty: give a fraction between 0 and 1, or a longer text"
        )
    return min(num_train, text.last_start) if has_documents else num_train
