"""Log-likelihoods of the ends of texts, many at once: what a benchmark asks of a model.

A text is scored in one pass: its tokens but the last are read, and its last tokens are predicted. Texts that read the same
tokens share a row. Rows are sorted by length and padded to a few lengths, so that few programs are compiled.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import UserError
from jaxgpt.model.gpt import GPT

MOST_LENGTHS = 4  # lengths to which the rows of one call are padded, and so programs
ROUNDING = 8  # lengths are multiples of it
TARGETS_ROUNDING = 64
BLOCK = 1 << 25  # logits that are held at once: 128 MiB


class Text(NamedTuple):
    """What the model reads, and which of its predictions are scored."""

    read: tuple[int, ...]  # 1 to context_length tokens
    predicted: tuple[int, ...]  # the tokens after each of the last ones of these: 1 to len(read)

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], context_length: int) -> Text:
        """A continuation after a context, which loses its first tokens where both are too long."""
        if not context or not continuation:
            raise UserError("a context and a continuation need at least one token each")
        if len(continuation) > context_length:
            raise UserError(
                f"a continuation has {len(continuation):,} tokens, context_length={context_length:,}: shorten it"
            )
        tokens = (*context, *continuation)[-(context_length + 1) :]
        return cls(tokens[:-1], tuple(continuation))


class Score(NamedTuple):
    """How a text is predicted."""

    log_likelihood: float  # nats, the sum over the predicted tokens
    greedy: bool  # whether each of them is the most probable one


@functools.partial(jax.jit, static_argnames="model")
def score_batch(
    model: GPT,
    params: dict,
    tokens_BT: jax.Array,
    row_N: jax.Array,
    position_N: jax.Array,
    target_N: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """log p of each target after the token at its row and position [N], and whether it is the most probable [N].

    Only these positions are multiplied with the table, in blocks: the logits [B, T, V] are never formed.
    """
    features: Any = model.apply({"params": params}, tokens_BT, method=GPT.features)
    x_ND = features[0][row_N, position_N]

    def one_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_MD, target_M = block
        logits_MV: Any = model.apply({"params": params}, x_MD, method=GPT.unembed)
        own_M = jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)[:, 0]
        return own_M - jax.nn.logsumexp(logits_MV, axis=-1), jnp.argmax(logits_MV, axis=-1) == target_M

    N = len(target_N)
    size = max(ROUNDING, BLOCK // model.cfg.table_rows)
    if size >= N:
        return one_block((x_ND, target_N))
    count = -(-N // size)
    x_ND, target_N = (jnp.pad(a, [(0, count * size - N)] + [(0, 0)] * (a.ndim - 1)) for a in (x_ND, target_N))
    found = jax.lax.map(one_block, (x_ND.reshape(count, size, -1), target_N.reshape(count, size)))
    return found[0].reshape(-1)[:N], found[1].reshape(-1)[:N]


def padded_lengths(lengths: Sequence[int], most: int = MOST_LENGTHS) -> list[int]:
    """For each batch, of the longest row's length here, the length to which it is padded: at most `most` different ones.

    Of all choices, the one with the fewest tokens in all.
    """
    counts = collections.Counter(lengths)
    sizes = sorted(counts)
    # best[k][i]: the fewest tokens of the batches of the first i sizes with k lengths, and where the last length begins.
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * len(sizes)]
    before = list(itertools.accumulate((counts[size] for size in sizes), initial=0))
    for _ in range(min(most, len(sizes))):
        last = best[-1]
        best.append([(0.0, 0)])
        for i in range(1, len(sizes) + 1):
            best[-1].append(min((last[j][0] + (before[i] - before[j]) * sizes[i - 1], j) for j in range(i)))
    chosen: dict[int, int] = {}
    k = min(range(1, len(best)), key=lambda k: best[k][-1][0], default=0)
    end = len(sizes)
    while end:
        start = best[k][end][1]
        chosen |= dict.fromkeys(sizes[start:end], sizes[end - 1])
        k, end = k - 1, start
    return [chosen[length] for length in lengths]


def score(
    model: GPT,
    params: dict,
    texts: Sequence[Text],
    batch_size: int,
    advance: Callable[[int], Any] = lambda number: None,
) -> list[Score]:
    """The scores of texts, in their order. `advance` gets the number of texts after each batch."""
    if not model.cfg.causal:
        raise UserError(
            "this model has no causal mask (model.causal=false): it sees each token that it predicts, so its likelihoods "
            "say nothing"
        )
    T = model.cfg.context_length
    of_row: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        of_row.setdefault(text.read, []).append(number)
    rows = sorted(of_row, key=lambda read: (-len(read), read))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    lengths = padded_lengths([min(T, _rounded(len(batch[0]), ROUNDING)) for batch in batches])
    targets = [sum(len(texts[i].predicted) for read in batch for i in of_row[read]) for batch in batches]
    room = {length: _rounded(max(n for n, own in zip(targets, lengths, strict=True) if own == length), TARGETS_ROUNDING)
            for length in set(lengths)}  # fmt: skip
    found: list[Score | None] = [None] * len(texts)
    waiting: tuple[list[int], tuple[jax.Array, jax.Array]] | None = None

    def read(numbers: list[int], scores: tuple[jax.Array, jax.Array]) -> None:
        log_p_N, greedy_N = (np.asarray(values) for values in scores)
        start = 0
        for number in numbers:
            end = start + len(texts[number].predicted)
            total = log_p_N[start:end].sum(dtype=np.float64)
            found[number] = Score(float(total), bool(greedy_N[start:end].all()))
            start = end
        advance(len(numbers))

    for batch, length in zip(batches, lengths, strict=True):
        numbers, arrays = _batch(batch, of_row, texts, (batch_size, length, room[length]))
        scores = score_batch(model, params, *arrays)
        if waiting is not None:  # the device computes a batch while the one before is read
            read(*waiting)
        waiting = (numbers, scores)
    if waiting is not None:
        read(*waiting)
    return [score for score in found if score is not None]


def _batch(
    rows: Sequence[tuple[int, ...]],
    of_row: dict[tuple[int, ...], list[int]],
    texts: Sequence[Text],
    shape: tuple[int, int, int],
) -> tuple[list[int], tuple[np.ndarray, ...]]:
    """The texts of a batch in the order of their targets, and the arguments of `score_batch`, padded to B, T, N."""
    B, T, N = shape
    tokens_BT = np.zeros((B, T), np.int32)
    row_N, position_N, target_N = (np.zeros(N, np.int32) for _ in range(3))
    numbers, start = [], 0
    for row, read in enumerate(rows):
        tokens_BT[row, : len(read)] = read
        for number in of_row[read]:
            predicted = texts[number].predicted
            end = start + len(predicted)
            row_N[start:end] = row
            position_N[start:end] = np.arange(len(read) - len(predicted), len(read))
            target_N[start:end] = predicted
            numbers.append(number)
            start = end
    return numbers, (tokens_BT, row_N, position_N, target_N)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def windows(ids: Sequence[int], prefix: int, context_length: int) -> list[Text]:
    """A text of any length in parts that predict every token once: the first after `prefix`, each other with as many tokens
    before it as fit.

    The last part reads a full window, and predicts only what is left.
    """
    found = []
    for start in range(0, len(ids), context_length):
        end = min(start + context_length, len(ids))
        before = (prefix, *ids)[max(0, end - context_length) : end]
        found.append(Text(tuple(before), tuple(ids[start:end])))
    return found
