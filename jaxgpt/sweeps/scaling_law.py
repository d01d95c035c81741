"""How the loss falls with parameters and with tokens: a law fitted to the finished runs of a sweep.

    loss(N, D) = E + A / N^alpha + B / D^beta

N: parameters in matrix products, D: training tokens, E: the loss that no size removes. Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models", section 3.3: Huber's loss of the logarithms, from many starts.

Runs of one size and length that differ in their learning rates count once, with the best rate. If the best rate is the
lowest or the highest that was tried, a better one may be beyond it, and nothing is fitted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import config
from jaxgpt.common.files import read_json
from jaxgpt.config import UserError, first_line
from jaxgpt.runs.load import load
from jaxgpt.sweeps.members import Sweep
from jaxgpt.training import costs

HUBER = 1e-3  # residuals of the logarithm above this count linearly, as in the paper
LEAST_POINTS = 6  # five numbers are fitted
STARTS = list(
    itertools.product((0.1, 0.5, 1.0), (0.2, 0.5), (0.2, 0.5))
)  # share of E in the lowest loss, alpha, beta
RATE = ("optim.learning_rate", "optim.muon_learning_rate")
SEEDS = ("train.seed", "data.seed")


@dataclass(frozen=True)
class Point:
    """A size and a length of training, with the loss that was reached."""

    parameters: float
    tokens: float
    loss: float  # nats per token


@dataclass(frozen=True)
class Law:
    """The numbers of the law."""

    irreducible: float  # E
    size_factor: float  # A
    data_factor: float  # B
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The predicted loss, nats per token."""
        return (
            self.irreducible
            + self.size_factor / parameters**self.alpha
            + self.data_factor / tokens**self.beta
        )

    def best_split(self, flops: float) -> tuple[float, float]:
        """N and D with the lowest predicted loss among those with 6 N D operations."""
        a, b = self.alpha, self.beta
        ratio = (a * self.size_factor / (b * self.data_factor)) ** (1 / (a + b))
        parameters = ratio * (flops / 6) ** (b / (a + b))
        return parameters, flops / 6 / parameters


@dataclass(frozen=True)
class Fit:
    """A law, and other laws that fit almost as well: those of resampled points."""

    law: Law
    resampled: tuple[Law, ...]
    spread: float  # standard deviation of the residuals of the logarithm

    def interval(self, of: Any) -> tuple[float, float]:
        """The 95 % interval of a number that follows from a law."""
        found = [of(law) for law in self.resampled]
        return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))

    def prediction(self, parameters: float, tokens: float, seed: int = 0) -> tuple[float, float, float]:
        """The loss of a new run and its 95 % prediction interval: the law's, and a run's own deviation."""
        noise = np.random.default_rng(seed).normal(0.0, self.spread, (len(self.resampled), 16))
        found = np.array([law.loss(parameters, tokens) for law in self.resampled])[:, None] * np.exp(noise)
        low, high = np.quantile(found, (0.025, 0.975))
        return self.law.loss(parameters, tokens), float(low), float(high)


def fit_law(points: Sequence[Point], near: Law | None = None) -> Law:
    """The law that fits best; the search starts from `near`, or from many laws.

    Raises UserError for fewer than 6 points, or where sizes or lengths are all equal.
    """
    if len(points) < LEAST_POINTS:
        raise UserError(
            f"{len(points)} sizes and lengths: a law of five numbers needs {LEAST_POINTS} or more"
        )
    for name in ("parameters", "tokens"):
        if len({getattr(point, name) for point in points}) < 3:
            raise UserError(f"the runs have fewer than 3 different numbers of {name}: vary them in the sweep")
    from scipy.optimize import least_squares

    size, data, loss = (
        np.array([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss")
    )
    log_size, log_data, log_loss = np.log(size), np.log(data), np.log(loss)

    def logarithms(x: np.ndarray) -> np.ndarray:
        """log of the three parts: [3, points], from (log E, log A, log B, alpha, beta)."""
        e, a, b, alpha, beta = x
        return np.stack([np.full_like(log_size, e), a - alpha * log_size, b - beta * log_data])

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(logarithms(x)) - log_loss

    def shares_of(x: np.ndarray) -> np.ndarray:
        parts = logarithms(x)
        return np.exp(parts - np.logaddexp.reduce(parts))

    def jacobian(x: np.ndarray) -> np.ndarray:
        shares = shares_of(x)
        return np.stack([*shares, -shares[1] * log_size, -shares[2] * log_data], axis=1)

    rest = math.log(max(loss.max() - loss.min(), 1e-3 * loss.min()))
    starts = [
        [
            math.log(share * loss.min()),
            rest + alpha * log_size.min(),
            rest + beta * log_data.min(),
            alpha,
            beta,
        ]
        for share, alpha, beta in STARTS
    ]
    if near is not None:
        factors = (near.irreducible, near.size_factor, near.data_factor)
        starts = [[*map(math.log, factors), near.alpha, near.beta]]
    lowest, highest = [-20, -50, -50, 1e-3, 1e-3], [math.log(loss.min()), 50, 50, 3, 3]
    fits = [
        least_squares(
            residuals,
            np.clip(start, lowest, highest),
            jacobian,
            (lowest, highest),
            loss="huber",
            f_scale=HUBER,
            x_scale="jac",
            ftol=1e-10,
            max_nfev=500,
        )
        for start in starts
    ]
    found = min(fits, key=lambda found: found.cost).x

    def slope(x: np.ndarray) -> np.ndarray:
        return jacobian(x).T @ np.clip(residuals(x) / HUBER, -1, 1)

    def curvature(x: np.ndarray) -> np.ndarray:
        rests, first = residuals(x) / HUBER, jacobian(x)
        of_parts = np.zeros((3, 5, len(points)))  # the derivatives of the three logarithms
        of_parts[range(3), range(3)] = 1
        of_parts[1, 3], of_parts[2, 4] = -log_size, -log_data
        outer = np.einsum("ni,nj->ijn", first, first)
        bend = np.einsum("pn,pin,pjn->ijn", shares_of(x), of_parts, of_parts) - outer
        return (outer * (np.abs(rests) <= 1) / HUBER + bend * np.clip(rests, -1, 1)).sum(axis=2)

    e, a, b, alpha, beta = newton(found, slope, curvature, np.array(lowest), np.array(highest)).tolist()
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def newton(
    x: np.ndarray,
    slope: Callable[[np.ndarray], np.ndarray],
    curvature: Callable[[np.ndarray], np.ndarray],
    lowest: np.ndarray,
    highest: np.ndarray,
) -> np.ndarray:
    """A minimum to the last digits, from a point close to it, so that the result is the same on every machine.

    What is at a bound stays there. A step that does not bring the slope closer to 0 is not taken.
    """
    near = 1e-6 * (highest - lowest)
    x = np.where(x - lowest < near, lowest, np.where(highest - x < near, highest, x))
    free = (x > lowest) & (x < highest)
    for _ in range(20 if free.any() else 0):
        before = slope(x)[free]
        step = np.zeros_like(x)
        step[free] = np.linalg.lstsq(curvature(x)[np.ix_(free, free)], -before, rcond=1e-14)[0]
        after = np.clip(x + step, lowest, highest)
        if np.abs(slope(after)[free]).max() >= np.abs(before).max():
            break
        x = after
    return x


def fit(points: Sequence[Point], draws: int = 200, seed: int = 0) -> Fit:
    """The law, with `draws` laws of points drawn with replacement (a bootstrap)."""
    law = fit_law(points)
    rests = np.log([p.loss for p in points]) - np.log([law.loss(p.parameters, p.tokens) for p in points])
    rng = np.random.default_rng(seed)
    resampled: list[Law] = []
    while len(resampled) < draws:
        drawn = [points[i] for i in rng.integers(len(points), size=len(points))]
        if min(len({getattr(p, name) for p in drawn}) for name in ("parameters", "tokens")) >= 3:
            resampled.append(fit_law(drawn, law))
    free = max(1, len(points) - 5)
    return Fit(law, tuple(resampled), float(np.sqrt(np.square(rests).sum() / free)))


# --- the points of a sweep ------------------------------------------------------------------------------


def open_sweep(folder: Path) -> Sweep:
    """The sweep of a folder. Raises UserError where there is none."""
    path = folder / "sweep.json"
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of a sweep: it has no sweep.json")
    try:
        stored = read_json(path)
        return Sweep(config.from_json(stored["base"]), stored["members"], folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({first_line(error)}): give another --sweep") from None


def points_of(sweep: Sweep) -> list[Point]:
    """A point for each size and length of the finished members: the mean over seeds at the best learning rate.

    Raises UserError where a best rate is at the edge of those that were tried, and where members differ in more than
    their size, length, rate and seed.
    """
    by_size: dict[tuple[int, int], dict[tuple, list[float]]] = {}
    sized = {"model.num_layers", "model.d_model", "model.num_heads", "model.d_ff", "model.head_dim", "model.num_kv_heads",
             "train.num_steps", "data.batch_size", "optim.warmup_steps", *RATE, *SEEDS}  # fmt: skip
    if others := [name for name in sweep.fields if name not in sized]:
        raise UserError(
            f"the members differ in {', '.join(others)} too: a law needs runs that differ in size, length, learning rate and seed"
        )
    for member, row in zip(sweep.members, sweep.rows(), strict=True):
        if not row.done or row.valid_loss is None or not math.isfinite(row.valid_loss):
            continue
        cfg = load(member.workdir).config
        size = costs.matmul_params(cfg.model)
        tokens = cfg.train.num_steps * cfg.data.batch_size * cfg.model.context_length
        rates = tuple(config.value_of(cfg, name) for name in RATE if name in sweep.fields)
        by_size.setdefault((size, tokens), {}).setdefault(rates, []).append(row.valid_loss)
    return [
        Point(*key, best_rate(found, f"{key[0]:,} parameters and {key[1]:,} tokens"))
        for key, found in by_size.items()
    ]


def best_rate(by_rates: dict[tuple, list[float]], what: str) -> float:
    """The lowest mean loss over the learning rates. Raises UserError where it is at the edge of the rates."""
    means = {rates: statistics.fmean(losses) for rates, losses in by_rates.items()}
    best = min(means, key=means.__getitem__)
    for place, rate in enumerate(best):
        tried = sorted({rates[place] for rates in means})
        if len(tried) > 1 and rate in (tried[0], tried[-1]):
            side = "lowest" if rate == tried[0] else "highest"
            raise UserError(
                f"at {what} the best {RATE[place]} is {rate:g}, the {side} of {', '.join(f'{x:g}' for x in tried)}: add rates "
                f"{'below' if side == 'lowest' else 'above'} it, so that the best one is inside"
            )
    return means[best]


def as_json(found: Fit, points: Iterable[Point], predicted: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Everything that was found, as JSON."""
    law = dataclasses.asdict(found.law)
    return {
        "law": {
            name: [value, *found.interval(lambda law, name=name: getattr(law, name))]
            for name, value in law.items()
        },
        "spread": found.spread,
        "points": [dataclasses.asdict(point) for point in points],
        "predicted": [
            {"parameters": n, "tokens": d, "loss": list(found.prediction(n, d))} for n, d in predicted
        ],
    }
