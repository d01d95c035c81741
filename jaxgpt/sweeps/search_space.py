"""What a sweep goes through: dictionaries of overrides, `{"optim.learning_rate": 3e-4, "train.seed": 1}`.

A sweep is a plain Python generator of such dictionaries; these make the usual ones.

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
    """Every combination; the last field changes fastest."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def zipped(values: Mapping[str, Iterable[Any]]) -> Iterator[Overrides]:
    """The first value of each field together, then the second of each. Raises ValueError where one has more than another."""
    for together in zip(*values.values(), strict=True):
        yield dict(zip(values, together, strict=True))


def draws(count: int, distributions: Mapping[str, Callable[[random.Random], Any]], seed: int = 0):
    """So many random draws of every field, from `uniform`, `log_uniform`, `choice` or any function of a random.Random."""
    rng = random.Random(seed)
    for _ in range(count):
        yield {name: draw(rng) for name, draw in distributions.items()}


def uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """Any number between."""
    return lambda rng: rng.uniform(low, high)


def log_uniform(low: float, high: float) -> Callable[[random.Random], float]:
    """Any number between, each power of ten as likely as another: for rates and decays."""
    return lambda rng: math.exp(rng.uniform(math.log(low), math.log(high)))


def choice(*options: Any) -> Callable[[random.Random], Any]:
    """One of these."""
    return lambda rng: rng.choice(options)


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every member of the first with every member of the others: of draws with seeds."""
    for together in itertools.product(*(list(sweep) for sweep in sweeps)):
        yield {name: value for overrides in together for name, value in overrides.items()}
