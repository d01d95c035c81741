"""Byte pair training for text with long pieces, such as a line of a megabyte without blanks.

The package tokenizers trains in a time that grows with the square of a piece's length. Here it is n log n (linked lists of
tokens, a heap of pairs), in Python. Vocabulary and merges are the same, in the same order.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

Pair = tuple[int, int]

# Measured on one core: the package takes about 1.6e-10 s x length^2 of a piece, this module 4e-6 s a character.
_SQUARES_PER_CHARACTER = 25_000
_SQUARES_AT_LEAST = 6_000_000_000  # one second of the package


def is_faster(squares: int, characters: int) -> bool:
    """Whether `train` here is faster; squares: the sum of length^2 of the different pieces."""
    return squares > _SQUARES_AT_LEAST + _SQUARES_PER_CHARACTER * characters


def train(
    counts: Mapping[str, int],
    alphabet: Iterable[str],
    vocab_size: int,
    tell: Callable[[int], None] = lambda tokens: None,
) -> tuple[list[str], list[str]]:
    """vocab and merges of pieces with their counts, as the package learns them: the most frequent pair first, and of
    equally frequent ones that of the lowest ids. `tell` is called with the number of tokens so far.
    """
    vocab = sorted(alphabet)
    id_of = {token: i for i, token in enumerate(vocab)}
    # One linked list of tokens for each piece, all in the same arrays; -1: no neighbour, or merged into the one before.
    ids: list[int] = []
    after: list[int] = []
    before: list[int] = []
    weights: list[int] = []
    for piece, count in counts.items():
        start, stop = len(ids), len(ids) + len(piece)
        ids += map(id_of.__getitem__, piece)
        before += [-1, *range(start, stop - 1)]
        after += [*range(start + 1, stop), -1]
        weights += [count] * len(piece)
    frequency: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, list[int]] = defaultdict(list)  # where a pair may start
    for at, following in enumerate(after):
        if following >= 0:
            pair = (ids[at], ids[following])
            frequency[pair] += weights[at]
            places[pair].append(at)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)
    merges: list[str] = []
    while heap and len(vocab) < vocab_size:
        count, pair = heapq.heappop(heap)
        if -count != frequency[pair]:  # it has changed since it was put there
            if frequency[pair] > 0:
                heapq.heappush(heap, (-frequency[pair], pair))
            continue
        left, right = pair
        token = vocab[left] + vocab[right]
        if token not in id_of:  # else another pair makes the same token
            id_of[token] = len(vocab)
            vocab.append(token)
        new = id_of[token]
        merges.append(f"{vocab[left]} {vocab[right]}")
        grown: set[Pair] = set()
        for at in sorted(places.pop(pair, ())):
            following = after[at]
            if ids[at] != left or following < 0 or ids[following] != right:
                continue
            previous, rest, weight = before[at], after[following], weights[at]
            if previous >= 0:
                frequency[ids[previous], left] -= weight
                made = (ids[previous], new)
                frequency[made] += weight
                places[made].append(previous)
                grown.add(made)
            if rest >= 0:
                frequency[right, ids[rest]] -= weight
                made = (new, ids[rest])
                frequency[made] += weight
                places[made].append(at)
                grown.add(made)
                before[rest] = at
            ids[at], ids[following], after[at] = new, -1, rest
        for made in grown:
            if frequency[made] > 0:
                heapq.heappush(heap, (-frequency[made], made))
        tell(len(vocab))
    return vocab, merges
