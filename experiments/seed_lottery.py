"""How much of a result is luck: initial values and the order of the data, against the learning rate.

python -m experiments.seed_lottery [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting
from experiments.intervals import t_quantile
from jaxgpt.vectors.word_tests import Estimate

NOTE = "Some seeds are better than others, and the best of many looks like progress (Picard 2021, for image classifiers)."
CLAIM = "The choice of the learning rate matters more than the seeds, and the seed of the initial values about as much as that of the data's order."
PREDICTION = "Losses spread at least twice as much over rates within a factor of 4 of the best as over seeds; neither kind of seed has twice the spread of the other."
REFUTED_BY = "A spread over seeds as large as over rates, or one kind of seed with more than twice the spread of the other."
DESIGN = (
    "Character models of Shakespeare: every seed of the initial values with every seed of the order of the data, at one rate; and "
    "the same model at five rates within a factor of 4 of that. Standard deviations of the final loss: over rates, for each seed; over seeds, "
    "at one rate. Components of the variance of the complete square: what the rows (initial values) and the columns "
    "(order) share, without what is left (two-way analysis of variance). Intervals are from leaving out one row and one column at a time (a jackknife)."
)
MARGINS = {"ratio": 1.0, "half": 0.05}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def components(square: np.ndarray) -> tuple[float, float]:
    """The mean squares of the rows and of the columns of [N, N] losses: variance of their means, times N."""
    size = len(square)
    return float(size * square.mean(axis=1).var(ddof=1)), float(size * square.mean(axis=0).var(ddof=1))


def jackknife(statistic: Callable[[list[int]], float], count: int) -> Estimate:
    """A statistic of items 0 to count - 1, with Student's interval of its pseudo-values (Tukey 1958)."""
    everything = list(range(count))
    full = statistic(everything)
    if count < 3:
        return Estimate(full, math.nan, math.nan, count)
    pseudo = [
        count * full - (count - 1) * statistic([i for i in everything if i != left]) for left in everything
    ]
    return claim.mean(pseudo)


def exponential(found: Estimate) -> Estimate:
    """The estimate of a ratio from that of its logarithm."""
    return Estimate(*(math.exp(x) for x in (found.value, found.low, found.high)), found.count)


def detectable(deviation: float, count: int) -> float:
    """The difference between two variants that `count` independent pairs of seeds find in 80 of 100 cases."""
    return (t_quantile(count - 1) + t_quantile(count - 1, 0.6)) * deviation * math.sqrt(2 / count)


def measure(setting: Setting) -> dict[str, Any]:
    """Losses [initial values, order] at one rate, and losses by rate and seed."""
    base = comparing.base(setting)
    count = setting.seeds
    variants = {f"order {i}": {"data.seed": i} for i in range(count)}
    rows = comparing.train(setting, "seed_lottery", base, variants)
    square = np.array([comparing.losses(found) for found in rows.values()]).T
    rate = base.optim.learning_rate
    rates = setting.pick(FACTORS[:2], FACTORS, FACTORS)
    by_rate = comparing.train(
        setting,
        "seed_lottery_rates",
        base,
        {f"{factor:g}": {"optim.learning_rate": factor * rate} for factor in rates},
    )
    return {
        "square": square.tolist(),
        "rates": {label: comparing.losses(found) for label, found in by_rate.items()},
        "rate": rate,
    }


def log_ratio_of_rates(rates: np.ndarray, seeds: Sequence[int]) -> float:
    """log of (standard deviation over rates, mean over seeds / standard deviation over seeds at the best rate): [R, N]."""
    chosen = rates[:, list(seeds)]
    best = chosen[chosen.mean(axis=1).argmin()]
    return math.log(chosen.std(axis=0, ddof=1).mean() / best.std(ddof=1))


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    square, rates = np.array(measurements["square"]), np.array(list(measurements["rates"].values()))
    count = len(square)
    over_rates = exponential(jackknife(lambda seeds: log_ratio_of_rates(rates, seeds), count))

    def kinds(kept: list[int]) -> float:
        initial, order = components(square[np.ix_(kept, kept)])
        return math.log(initial / order) / 2

    between = exponential(jackknife(kinds, count))
    flat = square.ravel()
    deviation = float(flat.std(ddof=1))
    smallest = {n: detectable(deviation, n) for n in (5, 10, 20)}
    halves = [
        Estimate(*(2 * x for x in dataclasses.astuple(found)[:3]), count)
        for found in (between, Estimate(1 / between.value, 1 / between.high, 1 / between.low, count))
    ]
    return Result(
        parts=(
            Effect(
                "spread over rates within a factor of 4 / spread over seeds", over_rates, "times", above=1.0,
                margin=MARGINS["ratio"],
            ),
            Effect(
                "spread over seeds of initial values / half of that over seeds of the order", halves[0], "times", above=1.0,
                margin=MARGINS["half"],
            ),
            Effect(
                "spread over seeds of the order / half of that over seeds of initial values", halves[1], "times", above=1.0,
                margin=MARGINS["half"],
            ),
        ),
        says=(
            f"Over {count} x {count} seeds the loss has a standard deviation of {deviation:.4f} nats a character, from {flat.min():.3f} to "
            f"{flat.max():.3f}. Over rates within a factor of 4 it spreads {claim.show(over_rates)} times as much as over seeds. Seeds of initial "
            f"values spread {claim.show(between)} times as much as seeds of the order. With independent seeds, 5, 10 and 20 models of each kind "
            f"find differences of {smallest[5]:.3f}, {smallest[10]:.3f} and {smallest[20]:.3f} nats in 80 of 100 cases."
        ),
        seeds=count,
        headline=(
            f"The loss of the best of {count * count} seeds is {flat.mean() - flat.min():.3f} nats below their mean; with five models of each "
            f"kind, a difference of {smallest[5]:.3f} nats is found in 80 of 100 cases."
        ),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The square of losses, and losses by rate."""
    square, by_rate = figure.subplots(1, 2)
    values = np.array(measurements["square"])
    image = square.imshow(values, cmap="viridis")
    square.grid(visible=False)
    square.set(
        xlabel="seed of the order", ylabel="seed of the initial values", title="loss, nats a character"
    )
    figure.colorbar(image, ax=square)
    for label, found in measurements["rates"].items():
        by_rate.plot(
            [float(label) * measurements["rate"]] * len(found), found, "o", color=claim.COLOURS[0], alpha=0.5
        )
    by_rate.set_xscale("log", base=2)
    by_rate.set(xlabel="learning rate", ylabel="validation loss, nats a character")


if __name__ == "__main__":
    claim.run()
