"""Baselines that a model must beat: uniform, unigram and bigram predictions, fitted on the training ids.

All losses are means of -log p(next id) in nats, as the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxgpt.data.shards import Ids, unmarked

MOST_IDS = 20_000_000  # for fitting, and for measuring


def uniform_loss(vocab_size: int) -> float:
    """log V: the loss of equally likely tokens, and about that of an untrained model."""
    return float(np.log(vocab_size))


def unigram_probs(train_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The frequency of each token, with one added to every count so that none is impossible: [V]."""
    counts = np.bincount(train_ids, minlength=vocab_size)
    return (counts + 1) / (len(train_ids) + vocab_size)


def unigram_loss(train_ids: np.ndarray, valid_ids: np.ndarray, vocab_size: int) -> float:
    """The mean loss of predicting token frequencies, over every id but the first."""
    ids = valid_ids[1:]
    return float(-np.log(unigram_probs(train_ids, vocab_size)[ids[ids >= 0]]).mean())


@dataclass(frozen=True)
class Bigram:
    """Probabilities of the next token given the previous one. Pairs are counted sparsely, for any vocabulary size.

    p(b | a) = (count(ab) + t(a) p(b)) / (count(a) + t(a)), where t(a) is the number of different tokens that follow a
    (Witten and Bell 1991). It needs no tuning.
    """

    unigram_V: np.ndarray
    pairs: np.ndarray  # codes a * V + b of the pairs that occur, sorted
    counts: np.ndarray  # of each pair
    starts_V: np.ndarray  # how many tokens follow each token
    followers_V: np.ndarray  # how many different tokens follow it

    def nats(self, ids_N: np.ndarray) -> np.ndarray:
        """-log p of every id but the first: [N - 1]."""
        V = len(self.unigram_V)
        wanted = _pair_codes(ids_N, V)
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == wanted, self.counts[place], 0)
        before, after = wanted // V, wanted % V
        # A token that nothing follows falls back on the unigram: (0 + 1 p(b)) / (0 + 1).
        weight = np.maximum(self.followers_V[before], 1)
        return -np.log((count + weight * self.unigram_V[after]) / (self.starts_V[before] + weight))


def _pair_codes(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    ids = ids.astype(np.int64)
    return ids[:-1] * vocab_size + ids[1:]


def fit_bigram(train_ids: np.ndarray, vocab_size: int) -> Bigram:
    """The bigram baseline of 2 or more training ids. Raises ValueError for fewer."""
    if len(train_ids) < 2:
        raise ValueError(f"{len(train_ids)} ids: a pair needs 2")
    pairs, counts = np.unique(_pair_codes(train_ids, vocab_size), return_counts=True)
    return Bigram(
        unigram_V=unigram_probs(train_ids, vocab_size),
        pairs=pairs,
        counts=counts,
        starts_V=np.bincount(train_ids[:-1], minlength=vocab_size),
        followers_V=np.bincount(pairs // vocab_size, minlength=vocab_size),
    )


def bigram_loss(train_ids: np.ndarray, valid_ids: np.ndarray, vocab_size: int) -> float:
    """The mean loss of the training ids' `Bigram`, over every id but the first."""
    if len(train_ids) < 2 or len(valid_ids) < 2:
        raise ValueError(f"{len(train_ids)} and {len(valid_ids)} ids: a pair needs 2 of each")
    nats = fit_bigram(train_ids, vocab_size).nats(unmarked(valid_ids))
    return float(nats[valid_ids[1:] >= 0].mean())


def losses(train_ids: Ids, valid_ids: Ids, vocab_size: int, eval_tokens: int | None) -> dict[str, float]:
    """All three losses on the validation tokens that evaluation uses: `eval_tokens`, or all for None or 0.

    Of marked validation ids (see `shards.Marked`) those that count.
    """
    train_ids = np.asarray(train_ids[:MOST_IDS])
    valid_ids = np.asarray(valid_ids[: min((eval_tokens or len(valid_ids)) + 1, MOST_IDS)])
    return {
        "uniform": uniform_loss(vocab_size),
        "unigram": unigram_loss(train_ids, valid_ids, vocab_size),
        "bigram": bigram_loss(train_ids, valid_ids, vocab_size),
    }
