"""A law that made the losses is found again; best rates at an edge are refused."""

import math

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.sweeps import scaling_law
from jaxgpt.sweeps.scaling_law import Law, Point, best_rate, fit, fit_law
from tests.errors import one_line

TRUE = Law(irreducible=1.2, size_factor=60.0, data_factor=400.0, alpha=0.45, beta=0.4)
SIZES, TOKENS = (1e3, 4e3, 16e3, 64e3, 256e3, 1e6), (1e5, 4e5, 16e5, 64e5, 256e5, 1e8)


def made(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, TRUE.loss(n, d) * math.exp(rng.normal(0, noise)) if noise else TRUE.loss(n, d))
        for n in SIZES
        for d in TOKENS
    ]


def test_the_law_that_made_the_losses_is_found():
    found = fit_law(made())
    for name, value in vars(TRUE).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3), name


def test_the_best_split_has_the_lowest_loss_of_its_budget():
    flops = 6e12
    parameters, tokens = TRUE.best_split(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    for factor in (0.8, 1.25):
        assert TRUE.loss(parameters * factor, tokens / factor) > TRUE.loss(parameters, tokens)


def test_a_larger_run_is_within_its_prediction_interval():
    inside = 0
    for seed in range(5):
        found = fit(made(noise=0.01, seed=seed), draws=25)
        loss, low, high = found.prediction(4e6, 4e8)
        assert low < loss < high
        inside += low < TRUE.loss(4e6, 4e8) < high
        assert found.spread == pytest.approx(0.01, rel=0.5)
    assert inside >= 4


def test_too_few_points_and_rates_at_an_edge_are_one_line():
    for points, words in (
        (made()[:5], "5 sizes and lengths"),
        ([Point(1e3, d, 2.0) for d in TOKENS], "different numbers of parameters"),
    ):
        with pytest.raises(UserError, match=words) as error:
            fit_law(points)
        one_line(error)
    assert best_rate({(1e-3,): [3.0], (2e-3,): [2.0, 2.2], (4e-3,): [2.5]}, "") == pytest.approx(2.1)
    assert best_rate({(): [3.0, 4.0]}, "") == 3.5
    for losses, side in (([1.0, 2.0, 3.0], "lowest.*below"), ([3.0, 2.0, 1.0], "highest.*above")):
        by_rates = {(rate,): [loss] for rate, loss in zip((1e-3, 2e-3, 4e-3), losses, strict=True)}
        with pytest.raises(UserError, match=side) as error:
            best_rate(by_rates, "1,000 parameters and 9 tokens")
        one_line(error)


def test_a_folder_that_is_no_sweep_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no sweep\.json") as error:
        scaling_law.open_sweep(tmp_path)
    one_line(error)
    (tmp_path / "sweep.json").write_text('{"base": 3}')
    with pytest.raises(UserError, match="can't be read") as error:
        scaling_law.open_sweep(tmp_path)
    one_line(error)
