"""Special tokens that are written in a text, for data.special_tokens_in_text=true; without it they are text as any other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data.text_pieces import Piece
from jaxgpt.data.tokenizer import END_OF_TEXT, Tokenizer


@functools.lru_cache(4)  # one of a published tokenizer takes up to a second
def reader(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that encodes the text of special tokens as these. It has the same ids otherwise, and is not saved.

    Raises UserError for a tokenizer without special tokens.
    """
    check(tokenizer)
    if tokenizer.kind == "huggingface":  # imported where it is used
        from jaxgpt.data.huggingface import HuggingFaceTokenizer

        assert isinstance(tokenizer, HuggingFaceTokenizer)
        return tokenizer.with_special_tokens()
    assert tokenizer.eos_id is not None
    return _Reader(tokenizer, tokenizer.eos_id)


def check(tokenizer: Tokenizer) -> None:
    """Raises UserError for a tokenizer without special tokens."""
    if not tokenizer.special_ids.size:
        raise UserError(
            f"data.special_tokens_in_text=true: this {tokenizer.kind} tokenizer has no special tokens: leave it out, or "
            "choose another tokenizer"
        )


class _Reader(Tokenizer):
    """A tokenizer with one special token, its end of text."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.kind, self.vocab_size, self.eos_id = tokenizer.kind, tokenizer.vocab_size, eos_id  # type: ignore[misc]
        self._own, self._end = tokenizer, np.array([eos_id], np.int32)
        self._token_bytes = tokenizer._token_bytes

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        found: list[np.ndarray] = []
        for part in text.split(END_OF_TEXT):
            found += [self._own.encode(part, position), self._end]
            position += len(part) + len(END_OF_TEXT)
        return np.concatenate(found[:-1])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts = [text.split(END_OF_TEXT) for text in texts]
        encoded = iter(self._own.encode_batch([part for several in parts for part in several]))
        return [
            np.concatenate([ids for _ in several for ids in (next(encoded), self._end)][:-1])
            for several in parts
        ]

    def to_json(self) -> dict[str, Any]:
        return self._own.to_json()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Tokenizer:
        from jaxgpt.data import tokenizers

        return reader(tokenizers.from_json(fields))


def left_out(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same text without the text of the end of text, each of which ends a document: what a tokenizer is trained on."""
    held = ""  # the end of a piece, which may be the start of a token
    for piece in pieces:
        if piece is None:
            if held:
                yield held
            held = ""
            yield None
            continue
        *parts, last = (held + piece).split(END_OF_TEXT)
        for part in parts:
            if part:
                yield part
            yield None
        at = max(len(last) - len(END_OF_TEXT) + 1, 0)
        if at:
            yield last[:at]
        held = last[at:]
    if held:
        yield held
