"""What every tokenizer is: a table of V byte strings, one for each id, and a way to cut text into them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data.text_pieces import Piece, between_tokens

END_OF_TEXT = "<|endoftext|>"  # GPT-2's name of the token after each document
MAX_IDS = 1 << 24  # of an ids tokenizer: about 60 times the largest vocabulary in use


class Tokenizer(abc.ABC):
    """V tokens with the ids 0 to V - 1. Text and ids that it does not know raise UserError.

    With `end_of_text`, a token after the others ends a document: `eos_id`. No text encodes to it.
    """

    kind: ClassVar[str]
    eos_id: int | None = None  # the id that ends a document, where there is one
    bos_id: int | None = None  # the id before each text, where a published model was trained so
    # Whether the lengths of the tokens of a text add up to its length, for every text.
    has_exact_lengths = True
    special_ids = np.zeros(0, np.int32)  # the ids of tokens that stand for no text: eos_id and others

    def __init__(self, token_bytes: Sequence[bytes], end_of_text: bool = False):
        self._token_bytes = [*token_bytes, END_OF_TEXT.encode()] if end_of_text else token_bytes
        self.vocab_size = len(self._token_bytes)  # V
        if end_of_text:
            self.eos_id = len(token_bytes)
            self.special_ids = np.array([self.eos_id], np.int32)

    @abc.abstractmethod
    def encode(self, text: str, position: int = 0) -> np.ndarray:
        """The ids of a text: [N] int32. `position` is where it starts in a longer text, for error messages."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of several texts, each as `encode` gives them."""
        return [self.encode(text) for text in texts]

    def with_start(self, ids: np.ndarray) -> np.ndarray:
        """These ids of a text after `bos_id`, where there is one: [N]."""
        return ids if self.bos_id is None else np.concatenate([self.start_ids, ids])

    def encode_prompt(self, text: str) -> np.ndarray:
        """The ids of a text as a model reads it: [N] int32."""
        return self.with_start(self.encode(text))

    @property
    def start_ids(self) -> np.ndarray:
        """What stands before each text: [0] or [1] int32."""
        return np.array([] if self.bos_id is None else [self.bos_id], np.int32)

    def special_id(self, name: str) -> int | None:
        """The id of a special token, which no text encodes to; None where there is none of this name."""
        if self.eos_id is not None and name == self.token(self.eos_id):
            return self.eos_id
        return None

    def cut(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, int]]:
        """The same text in pieces that may be encoded one by one, each with its position in the text."""
        return between_tokens(pieces)

    def _end_field(self) -> dict[str, bool]:
        """The field of `to_json` for an end of text; none without one, as earlier versions wrote it."""
        return {} if self.eos_id is None else {"end_of_text": True}

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The complete tokenizer, with its `kind`, as `from_json` reads it."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, fields: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `to_json` wrote. Raises UserError that names what is wrong."""

    def extended(self, read: Callable[[], Iterator[Piece]], vocab_size: int | None = None) -> Tokenizer:
        """This tokenizer with more tokens after its own: those of the text from `read()` that it does not know.

        `vocab_size` is the largest allowed size. Raises UserError for a kind that already knows every text.
        """
        raise UserError(f"a {self.kind} tokenizer can't get more tokens: leave data.add_tokens out")

    def _check_can_grow(self) -> None:
        """Raises UserError for a tokenizer with an end of text, whose id more tokens would move."""
        if self.eos_id is not None:
            raise UserError(
                "a tokenizer with an end of text can't get more tokens: leave data.add_tokens out"
            )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids [N]; bytes that are not UTF-8 (part of a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes of ids [N]; a character may be spread over several tokens."""
        ids = np.asarray(ids).reshape(-1)
        if not ids.size:
            return b""
        if ids.dtype.kind not in "iu":
            raise UserError(f"token ids have dtype {ids.dtype}: give integers")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(f"token id {wrong}: this tokenizer has 0 to {self.vocab_size - 1}")
        return b"".join(map(self._token_bytes.__getitem__, ids.tolist()))

    def token(self, i: int) -> str:
        """One token as text, for display; bytes that are not UTF-8 are shown as `\\xe2`."""
        return self.decode_bytes([i]).decode("utf-8", "backslashreplace")

    def token_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of bytes and of characters of each token: [V] and [V], int32.

        A character counts where its first byte is, so the sum over the tokens of a text is its length, with
        `has_exact_lengths`. Special tokens stand for no text: 0.
        """
        bytes_V = np.array([len(token) for token in self._token_bytes], np.int32)
        num_chars = [sum(byte & 0xC0 != 0x80 for byte in token) for token in self._token_bytes]
        chars_V = np.array(num_chars, np.int32)
        bytes_V[self.special_ids] = chars_V[self.special_ids] = 0
        return bytes_V, chars_V


def ends_text(fields: dict[str, Any]) -> bool:
    """Whether the fields are those of a tokenizer with an end of text."""
    return fields.get("end_of_text") is True


def check_fields(kind: str, fields: dict[str, Any], types: dict[str, Any]) -> None:
    """Raises UserError where the fields of `Tokenizer.to_json` are not these, each of its type."""
    if ends_text(fields):
        types = types | {"end_of_text": bool}
    if fields.keys() != {"kind", *types} or fields["kind"] != kind:
        raise UserError(
            f"a {kind} tokenizer has the fields kind, {', '.join(types)}; this one has {sorted(fields)}"
        )
    for name, of_type in types.items():
        if not isinstance(fields[name], of_type):
            raise UserError(f'"{name}" is not a {of_type.__name__} but a {type(fields[name]).__name__}')
