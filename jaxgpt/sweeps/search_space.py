"""Generators of a sweep's overrides, dictionaries such as `{"optim.learning_rate": 3e-4, "train.seed": 1}`.

def sweep():
    yield from grid({"optim.learning_rate": [1e-3, 3e-3], "train.seed": range(3)})
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Overrides = dict[str, Any]


def grid(values: Mapping[str, Iterable[Any]]) -> Iterator[Overrides]:
    """Every combination of the values. The last field changes fastest."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def zipped(values: Mapping[str, Iterable[Any]]) -> Iterator[Overrides]:
    """The first value of every field, then the second of every field, ... Raises ValueError for unequal lengths."""
    for together in zip(*values.values(), strict=True):
        yield dict(zip(values, together, strict=True))


def draws(count: int, distributions: Mapping[str, Callable[[random.Random], Any]], seed: int = 0):
    """`count` random draws of all fields. A distribution is `uniform`, `log_uniform`, `choice` or a function of a random.Random."""
    rng = random.Random(seed)
    for _ in range(count):
        yield {name: draw(rng) for name, draw in distributions.items()}


def uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """A number between low and high."""
    return lambda rng: rng.uniform(low, high)


def log_uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """A number between low and high whose logarithm is uniform: for rates and decays."""
    return lambda rng: math.exp(rng.uniform(math.log(low), math.log(high)))


def choice(*options: Any) -> Callable[[random.Random], Any]:
    """One of the options."""
    return lambda rng: rng.choice(options)


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every combination of the sweeps' members, such as draws x seeds."""
    for together in itertools.product(*(list(sweep) for sweep in sweeps)):
        yield {name: value for overrides in together for name, value in overrides.items()}
