"""What a model must beat: guesses that need no network, fitted on the training ids.

All losses are means of -log p(next id) in nats over the ids evaluated, as the model's own are.
"""

from __future__ import annotations

import numpy as np

MOST_IDS = 20_000_000  # that they are fitted and measured on


def uniform_loss(vocab_size: int) -> float:
    """log V: every token equally likely, which is what an untrained model says."""
    return float(np.log(vocab_size))


def _unigram_probs(train_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each token's share of the text, one added to every count so that none is impossible: [V]."""
    counts = np.bincount(train_ids, minlength=vocab_size)
    return (counts + 1) / (len(train_ids) + vocab_size)


def unigram_loss(train_ids: np.ndarray, valid_ids: np.ndarray, vocab_size: int) -> float:
    """How often a token occurs is all that is known; every id but the first is predicted."""
    return float(-np.log(_unigram_probs(train_ids, vocab_size)[valid_ids[1:]]).mean())


def bigram_loss(train_ids: np.ndarray, valid_ids: np.ndarray, vocab_size: int) -> float:
    """Only the one token before is known.

    p(b | a) = (count(ab) + t(a) p(b)) / (count(a) + t(a)) with t(a) the number of different followers of a:
    Witten and Bell 1991, which needs no tuning. Pairs are counted sparsely, so any vocabulary will do.
    """
    if len(train_ids) < 2 or len(valid_ids) < 2:
        raise ValueError(f"{len(train_ids)} and {len(valid_ids)} ids: a pair needs 2 of each")
    unigram = _unigram_probs(train_ids, vocab_size)

    def pair_codes(ids: np.ndarray) -> np.ndarray:
        ids = ids.astype(np.int64)
        return ids[:-1] * vocab_size + ids[1:]

    pairs, counts = np.unique(pair_codes(train_ids), return_counts=True)
    starts = np.bincount(train_ids[:-1], minlength=vocab_size)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)
    wanted = pair_codes(valid_ids)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[place] == wanted, counts[place], 0)
    before, after = wanted // vocab_size, wanted % vocab_size
    # A token never seen before another: fall back on the unigram (0 + 1 p(b)) / (0 + 1).
    weight = np.maximum(followers[before], 1)
    probs = (count + weight * unigram[after]) / (starts[before] + weight)
    return float(-np.log(probs).mean())


def losses(
    train_ids: np.ndarray, valid_ids: np.ndarray, vocab_size: int, eval_tokens: int | None
) -> dict[str, float]:
    """All three, on the validation tokens that evaluation uses (config.Train's eval_tokens)."""
    train_ids = np.asarray(train_ids[:MOST_IDS])
    valid_ids = np.asarray(valid_ids[: min((eval_tokens or len(valid_ids)) + 1, MOST_IDS)])
    return {
        "uniform": uniform_loss(vocab_size),
        "unigram": unigram_loss(train_ids, valid_ids, vocab_size),
        "bigram": bigram_loss(train_ids, valid_ids, vocab_size),
    }
