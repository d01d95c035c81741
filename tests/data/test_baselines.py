"""The baselines against counting by hand in plain Python."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from jaxgpt.data.baselines import bigram_loss, fit_bigram, uniform_loss, unigram_loss


def ids(text: str) -> np.ndarray:
    return np.array(["abcdrz".index(letter) for letter in text], np.uint16)


def counted_unigram(train: str, letter: str) -> float:
    """Its share of the text, one added to each of the six counts."""
    return (train.count(letter) + 1) / (len(train) + 6)


def counted_bigram(train: str, a: str, b: str) -> float:
    """Witten and Bell: as much weight on the unigram as `a` has different followers."""
    followers = Counter(after for before, after in itertools.pairwise(train) if before == a)
    if not followers:
        return counted_unigram(train, b)
    different, total = len(followers), sum(followers.values())
    return (followers[b] + different * counted_unigram(train, b)) / (total + different)


TEXTS = [
    ("abracadabra", "abracadabra"),
    ("abracadabra", "bad"),
    ("aaaaab", "bbaacc"),  # "c" is in no training text
    ("abcdrz", "zrdcbaza"),  # "z" ends the text: it has no follower
    ("ab", "ba"),
]


@pytest.mark.parametrize("vocab_size", [2, 65, 50_257])
def test_uniform_is_log_v(vocab_size):
    assert uniform_loss(vocab_size) == pytest.approx(math.log(vocab_size), rel=1e-12)


@pytest.mark.parametrize("train, valid", TEXTS)
def test_unigram_equals_counting(train, valid):
    expected = -sum(math.log(counted_unigram(train, b)) for b in valid[1:]) / (len(valid) - 1)
    assert unigram_loss(ids(train), ids(valid), 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("train, valid", TEXTS)
def test_bigram_equals_counting(train, valid):
    pairs = list(itertools.pairwise(valid))
    expected = -sum(math.log(counted_bigram(train, a, b)) for a, b in pairs) / len(pairs)
    assert bigram_loss(ids(train), ids(valid), 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("train", ["abracadabra", "aaaaab", "abcdrz", "ab"])
def test_bigram_probabilities_sum_to_1_after_every_token(train):
    for a in range(6):
        probs = [math.exp(-bigram_loss(ids(train), np.array([a, b]), 6)) for b in range(6)]
        assert sum(probs) == pytest.approx(1.0, rel=1e-12)
        assert min(probs) > 0


def test_after_a_token_never_followed_the_bigram_is_the_unigram():
    train = ids("abab")  # "c" never occurs
    for b in range(6):
        pair = np.array([2, b])
        assert bigram_loss(train, pair, 6) == pytest.approx(unigram_loss(train, pair, 6), rel=1e-12)


def test_large_ids_do_not_overflow():
    """Ids are kept in 16 bits; their pairs need 32."""
    train = np.array([50_000, 50_256, 50_000, 50_256, 7], np.uint16)
    loss = bigram_loss(train, train[:2], 50_257)
    unigram = 3 / (5 + 50_257)
    assert loss == pytest.approx(-math.log((2 + 1 * unigram) / (2 + 1)), rel=1e-12)


def test_more_context_predicts_better_where_there_is_order():
    train, valid = ids("abc" * 50), ids("abc" * 5)
    assert bigram_loss(train, valid, 6) < unigram_loss(train, valid, 6) < uniform_loss(6)


def test_the_bigram_by_token_has_the_mean_that_the_baseline_has():
    tokens = np.random.default_rng(0).integers(0, 5, 400)
    bigram = fit_bigram(tokens[:300], 5)
    assert bigram.nats(tokens[300:]).shape == (99,)
    np.testing.assert_allclose(bigram.nats(tokens[300:]).mean(), bigram_loss(tokens[:300], tokens[300:], 5))
