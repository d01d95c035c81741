"""Search spaces: grids, zips, products and random draws."""

import random

import pytest

from jaxgpt.sweeps import search_space


def test_grids_zips_and_products():
    assert list(search_space.grid({"a": [1, 2], "b": "xy"})) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert list(search_space.zipped({"a": [1, 2], "b": [3, 4]})) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError):
        list(search_space.zipped({"a": [1, 2], "b": [3]}))
    both = search_space.product(search_space.grid({"a": [1]}), search_space.grid({"b": [2, 3]}))
    assert list(both) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


def test_draws_are_the_same_for_a_seed_and_within_their_bounds():
    random.seed(0)
    shared = random.getstate()
    space = {
        "rate": search_space.log_uniform(1e-4, 1e-1),
        "dropout": search_space.uniform(0.0, 0.5),
        "width": search_space.choice(64, 128),
    }
    found = list(search_space.draws(200, space, seed=3))
    assert (
        found == list(search_space.draws(200, space, seed=3)) != list(search_space.draws(200, space, seed=4))
    )
    assert all(
        1e-4 <= d["rate"] <= 1e-1 and 0 <= d["dropout"] <= 0.5 and d["width"] in (64, 128) for d in found
    )
    below = sum(d["rate"] < 10**-2.5 for d in found)  # half of the powers of ten
    assert 70 < below < 130
    assert random.getstate() == shared  # draws of their own: nothing else's change
