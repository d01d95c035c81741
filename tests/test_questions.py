"""What the questions of the field are measured with, on data whose answer is known."""

import math

import numpy as np
import pytest

from experiments import distribution, induction, pseudowords, real_model, scaling_law, seed_lottery
from experiments.claim import HOLDS, UNTOLD
from jaxgpt.sweeps.scaling_law import Law


def test_the_partial_correlation_takes_the_frequency_out_and_keeps_the_rest():
    rng = np.random.default_rng(0)
    frequency, shared = rng.normal(size=(2, 4_000))
    only_frequency = [frequency + 0.5 * rng.normal(size=4_000) for _ in range(2)]
    both = [frequency + shared + 0.5 * rng.normal(size=4_000) for _ in range(2)]
    without = frequency[:, None]
    assert np.corrcoef(*only_frequency)[0, 1] > 0.7
    assert abs(distribution.partial_spearman(*only_frequency, without)) < 0.05
    assert distribution.partial_spearman(*both, without) > 0.7


def test_words_with_the_same_neighbours_have_similar_contexts():
    """Words 0 and 1 stand among 4 and 5, words 2 and 3 among 6 and 7."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(800):
        word = int(rng.integers(4))
        around = rng.integers(2, size=4) + (4 if word < 2 else 6)
        pieces += [around[0], around[1], word, around[2], around[3]]
    vectors = distribution.context_vectors(np.array(pieces), np.arange(4), 8, dimensions=3)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.8 > 0.3 > max(cosines[0, 2], cosines[1, 3])


def test_the_halfway_step_is_where_the_change_was_planted():
    steps = list(range(0, 1_001, 25))
    for planted in (100, 400, 900):
        fall = [3.0 if step < planted else 1.0 for step in steps]
        found = induction.halfway(steps, fall)
        assert planted - 25 <= found <= planted
    assert math.isnan(induction.halfway(steps, [1.0] * len(steps)))


def test_a_probe_reads_what_is_there_and_guesses_where_nothing_is():
    rng = np.random.default_rng(0)
    second = rng.random(600) < 0.3
    x = rng.normal(size=(600, 20))
    assert abs(pseudowords.accuracy(x, second, 0) - 0.5) < 0.12
    x[:, 3] += 4 * second
    assert pseudowords.accuracy(x, second, 0) > 0.9
    assert pseudowords.accuracy(np.ones((600, 20)), second, 0) == 0.5
    sense = np.repeat([0, 1, 2], 8)
    same = np.ones((1, 24, 5))
    apart = rng.normal(size=(1, 24, 5)) + 6 * np.eye(5)[sense]
    np.testing.assert_allclose(real_model.right_senses(same, sense), 1 / 3)
    assert real_model.right_senses(apart, sense).mean() > 0.95


def test_the_spread_of_planted_seeds_is_found():
    rng = np.random.default_rng(0)
    rows, columns = 0.05 * rng.normal(size=(30, 1)), 0.01 * rng.normal(size=(1, 30))
    square = 2 + rows + columns + 0.001 * rng.normal(size=(30, 30))
    initial, order = seed_lottery.components(square)
    assert math.sqrt(initial / order) == pytest.approx(rows.std() / columns.std(), rel=0.05)
    found = seed_lottery.jackknife(lambda kept: float(np.mean(np.arange(10.0)[kept])), 10)
    assert found.value == pytest.approx(4.5) and found.low < 4.5 < found.high
    # Of 400 comparisons with the difference that is said to be detectable, about 80 % find it.
    size = seed_lottery.detectable(1.0, 10)
    a = rng.normal(size=(400, 10)) + size
    b = rng.normal(size=(400, 10))
    difference = a - b
    t = difference.mean(axis=1) / difference.std(axis=1, ddof=1) * math.sqrt(10)
    assert 0.7 < (np.abs(t) > 2.262).mean() < 0.92


def test_a_planted_law_predicts_the_largest_model_and_another_one_does_not():
    law = Law(1.2, 8.0, 60.0, 0.4, 0.4)
    rng = np.random.default_rng(0)
    cells = [
        {"width": w, "steps": s, "parameters": 30 * w * w, "tokens": 512 * s,
         "losses": (law.loss(30 * w * w, 512 * s) + 0.002 * rng.normal(size=4)).tolist()}
        for w in (8, 16, 32, 48, 64)
        for s in (60, 120, 240, 480, 960)
    ]  # fmt: skip
    chosen = {"60": {"edge": False, "losses": {"1": [1.0]}, "rates": {"optim.learning_rate": 0.01}}}
    result = scaling_law.conclude({"cells": cells, "chosen": chosen})
    assert result.parts[0].verdict == HOLDS
    cells[-1]["losses"] = [loss + 0.2 for loss in cells[-1]["losses"]]
    assert scaling_law.conclude({"cells": cells, "chosen": chosen}).kind not in (HOLDS, UNTOLD)
