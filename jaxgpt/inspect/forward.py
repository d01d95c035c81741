"""The parts of a report from one forward pass over the probe: tokens, next token, attention tables, ledger, lens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np

from jaxgpt.data.baselines import Bigram
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture
from jaxgpt.inspect.plain import Names, plain

TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 21))
NEXT = 20  # most probable next tokens
LENS = 5
ENTRIES = 25_000  # maximum of ledger entries times tokens
SCORE_UNIT = 1e-4
AHEAD_UNIT = 1e-2  # coarser for masked scores, which are only displayed
WEIGHT_UNIT = 1 / 4095  # weights are stored as numbers of 12 bits
_SIXTY_FOUR = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)


def tokens(seen: Capture, bigram: Bigram | None) -> dict[str, Any]:
    """Loss, probability and rank of every token except the first, and the entropy of every prediction."""
    loss, targets = analysis.losses(seen), seen.tokens_T[1:]
    logits_TV = seen.logits_TV[:-1].astype(np.float64)
    true_T = logits_TV[np.arange(len(targets)), targets]
    figures: dict[str, Any] = {
        "nats": plain(loss.nats),
        "bits": plain(loss.bits),
        "probability": plain(loss.probabilities),
        "rank": (1 + (logits_TV > true_T[:, None]).sum(axis=-1)).tolist(),
        "entropy": plain(analysis.entropies(seen)),
        "bigram_nats": None,
        "difference": None,
        "mean": {"nats": loss.nats.mean(), "bits": loss.bits.mean(), "bigram_nats": None},
    }
    if bigram is not None:
        guess = bigram.nats(seen.tokens_T)
        figures |= {"bigram_nats": plain(guess), "difference": plain(loss.nats - guess)}
        figures["mean"]["bigram_nats"] = guess.mean()
    return figures | {"mean": plain(figures["mean"])}


def next_tokens(seen: Capture, names: Names, temperature: float | None = None) -> dict[str, Any]:
    """The most probable next tokens at every position, with logits and log-sum-exps per temperature.

    p(token) at temperature s is exp(logit / s - logsumexp[s]), exactly: the sum is over the complete vocabulary.
    `temperature` is one more, above 0.
    """
    temperatures = sorted({*TEMPERATURES, temperature} if temperature else TEMPERATURES)
    logits_TV = seen.logits_TV
    ids_Tk = analysis.most_probable(logits_TV, NEXT)
    targets = seen.tokens_T[1:]
    with futures.ThreadPoolExecutor() as pool:  # NumPy works without Python's lock
        sums = list(pool.map(functools.partial(analysis.log_sum_exp, logits_TV), temperatures))
    return {
        "ids": names.ids(ids_Tk),
        "logits": plain(np.take_along_axis(logits_TV, ids_Tk, axis=-1), 6),
        "temperatures": temperatures,
        "logsumexp": plain(np.stack(sums, axis=-1), 7),
        "true_logit": plain(logits_TV[np.arange(len(targets)), targets], 6),
    }


def triangles(values_HTS: np.ndarray, unit: float) -> list[list[int]]:
    """The lower triangle of each head's table, row by row, as integer multiples of `unit`."""
    t, s = np.tril_indices(values_HTS.shape[-1])
    return np.rint(values_HTS[:, t, s] / unit).astype(int).tolist()


def packed_triangles(weights_HTS: np.ndarray) -> list[str]:
    """The lower triangle of each head's weights, row by row: two characters of base64 for each multiple of `WEIGHT_UNIT`."""
    t, s = np.tril_indices(weights_HTS.shape[-1])
    numbers_HN = np.rint(weights_HTS[:, t, s] / WEIGHT_UNIT).astype(int)
    characters_HN2 = _SIXTY_FOUR[np.stack([numbers_HN >> 6, numbers_HN & 63], axis=-1)]
    return [row.tobytes().decode() for row in characters_HN2]


def ahead(scores_HTS: np.ndarray) -> list[list[int]]:
    """The masked scores above the diagonal, row by row, as integer multiples of `AHEAD_UNIT`."""
    t, s = np.triu_indices(scores_HTS.shape[-1], 1)
    return np.rint(scores_HTS[:, t, s] / AHEAD_UNIT).astype(int).tolist()


def ledger(seen: Capture, cut: list[str]) -> dict[str, Any]:
    """The vectors added to the residual stream, and their contributions to the true token's logit.

    If there are more than `ENTRIES` numbers, the heads of a layer are summed, and `cut` says so.
    """
    blocks = sum(len(layer.head_changes_HTD) + 1 + int(layer.attention_bias_D.any()) for layer in seen.layers)
    entries = 1 + int(seen.position_vectors_TD.any()) + blocks
    each_head = entries * len(seen.tokens_T) <= ENTRIES
    book = analysis.ledger(seen, each_head)
    if not each_head:
        cut.append("The ledger sums the heads of each layer, because the model has many heads.")
    given = analysis.contributions(seen, book, np.append(seen.tokens_T[1:], seen.tokens_T[-1]))
    return {
        "entries": book.names,
        "norms": plain(np.sqrt(np.einsum("NTD,NTD->NT", book.values_NTD, book.values_NTD)), 4),
        "contribution_entries": given.names,
        "contributions": plain(given.values_NT[:, :-1]),
        "logit": plain(given.logits_T[:-1], 6),
        "stream_norm": plain(np.linalg.norm(seen.end, axis=-1)),
        "error": plain({"stream": book.error, "logit": given.error}, 2),
    }


def lens(seen: Capture, names: Names, positions: Sequence[int] | None = None) -> dict[str, Any]:
    """The logit lens: the predictions after each block, of all positions or of these; null at the others."""
    found = analysis.logit_lens(seen, LENS, positions)
    T = len(seen.tokens_T)

    def placed(rows: list[list], length: int) -> list[list]:
        at = {int(t): i for i, t in enumerate(found.positions_T)}
        return [[row[at[t]] if t in at else None for t in range(length)] for row in rows]

    return {
        "rows": found.names,
        "ids": placed(names.ids(found.top_ids_RTk), T),
        "p": placed(plain(found.top_probs_RTk, 4), T),
        "true_p": placed(plain(found.true_probs_RT, 4), T - 1),
    }
