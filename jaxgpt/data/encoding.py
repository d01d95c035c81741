"""The ids of documents, in their order, from one or several processes."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, cast

import numpy as np

from jaxgpt.data import special_tokens, tokenizers
from jaxgpt.data.text_pieces import Piece, Segment
from jaxgpt.data.tokenizers import Tokenizer

GROUP = 1 << 20  # characters of documents that are encoded together
LONGEST = 1 << 24  # characters of a document that is encoded as one text


def separator_ids(tokenizer: Tokenizer, separator: str) -> np.ndarray:
    """The ids after each document, of data.separator: [N], empty where nothing stands there."""
    if separator == "none" or (separator == "auto" and tokenizer.eos_id is None):
        return np.zeros(0, np.int32)
    if separator == "auto":
        return np.array([tokenizer.eos_id], np.int32)
    return tokenizer.encode(separator)


def encode_documents(
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    separator: np.ndarray,
    num_workers: int = 0,
    special_tokens_in_text: bool = False,
) -> Iterator[np.ndarray]:
    """The ids of a stream of documents, each with the separator after it: arrays [N] int32 that are joined.

    num_workers: processes that encode; 0: this one. The ids are the same for any number.
    """
    groups = _groups(pieces)
    if num_workers == 0:
        encoder = special_tokens.reader(tokenizer) if special_tokens_in_text else tokenizer
        for group in groups:
            yield _encode(encoder, separator, group)
        return
    # Spawned: a fork of a process with JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    arguments = (tokenizer.to_json(), separator, special_tokens_in_text)
    with ProcessPoolExecutor(num_workers, context, _start_worker, arguments) as pool:
        waiting: collections.deque[Future] = collections.deque()
        try:
            for group in groups:
                waiting.append(pool.submit(_encode_in_worker, group))
                if len(waiting) > 2 * num_workers:  # the text is not read far ahead
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


Group = list[str | list[str]]  # documents; one that is long is a list of pieces


def _groups(pieces: Iterable[Piece]) -> Iterator[Group]:
    group: Group = []
    size = 0
    document: list[str] = []
    for piece in itertools.chain(pieces, [None]):
        if piece is not None:
            document.append(piece)
            continue
        length = sum(map(len, document))
        if length == 0:
            continue
        as_parts = length > LONGEST or isinstance(document[0], Segment)
        group.append(document if as_parts else "".join(document))
        size, document = size + length, []
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _encode(tokenizer: Tokenizer, separator: np.ndarray, group: Group) -> np.ndarray:
    short = iter(tokenizer.encode_batch([text for text in group if isinstance(text, str)]))
    start, found = tokenizer.start_ids, list[np.ndarray]()
    for text in group:
        if isinstance(text[0], Segment):
            found += encode_segments(tokenizer, cast(list[Segment], text), separator)
            continue
        found.append(start)
        found += [next(short)] if isinstance(text, str) else tokenizers.encode_pieces(tokenizer, text)
        found.append(separator)
    return np.concatenate(found)


def encode_segments(
    tokenizer: Tokenizer, parts: Sequence[Segment], separator: np.ndarray
) -> list[np.ndarray]:
    """The ids of the parts of a conversation, each encoded by itself, and of the separator: ~id where one does not count.

    The separator counts as the last part does: a model learns to end what it says. The token before a text never counts; a
    template that writes it itself gets no second one.
    """
    own = tokenizer.bos_id is not None and tokenizer.decode(tokenizer.start_ids)
    found = [] if own and parts[0].startswith(own) else [~tokenizer.start_ids]
    for part in parts:
        special = tokenizer.special_id(part) if part.mark else None
        encoder = (
            special_tokens.reader(tokenizer) if part.special and tokenizer.special_ids.size else tokenizer
        )
        ids = encoder.encode(str(part)) if special is None else np.array([special], np.int32)
        found.append(ids if part.counts else ~ids)
    return [*found, separator if parts[-1].counts else ~separator]


_worker: tuple[Tokenizer, np.ndarray]  # of a process that encodes


def _start_worker(fields: dict[str, Any], separator: np.ndarray, special_tokens_in_text: bool) -> None:
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process
    global _worker
    tokenizer = tokenizers.from_json(fields)
    _worker = special_tokens.reader(tokenizer) if special_tokens_in_text else tokenizer, separator


def _encode_in_worker(group: Group) -> np.ndarray:
    return _encode(*_worker, group)
