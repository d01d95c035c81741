"""Means, differences and ratios with Student's 95 % intervals, and the p-values of these intervals."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgpt.vectors.word_tests import Estimate


def student_t(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t with `df` degrees of freedom (an integer); Abramowitz and Stegun 1964, 26.7.3-4."""
    angle = math.atan(t / math.sqrt(df))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = df % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


@functools.cache
def t_quantile(df: int, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level: 12.706 for 1 degree of freedom, 2.776 for 4, 1.960 for many."""
    low, high = 0.0, 1.0
    while student_t(high, df) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t(middle, df) < level else (low, middle)
    return high


def numbers(values: Sequence[float | None]) -> list[float]:
    """JSON's None as nan."""
    return [math.nan if value is None else float(value) for value in values]


def mean(values: Sequence[float | None]) -> Estimate:
    """The mean of independent values with Student's 95 % interval; no interval (nan) for fewer than 2.

    A bootstrap over ten seeds would give too narrow an interval.
    """
    values = numbers(values)
    if not values or not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, math.nan, len(values))
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(middle, math.nan, math.nan, 1)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half, len(values))


def difference(of: Sequence[float | None], less: Sequence[float | None]) -> Estimate:
    """The mean of `of` - `less`, paired by seed or by repeat."""
    return mean([a - b for a, b in zip(numbers(of), numbers(less), strict=True)])


def ratio(of: Sequence[float], to: Sequence[float]) -> Estimate:
    """The geometric mean of `of` / `to`, paired; Student's interval of the logarithms."""
    found = mean([math.log(a / b) for a, b in zip(of, to, strict=True)])
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.count)


def within(found: Estimate, at: float, margin: float) -> Estimate:
    """Two margins minus the distance from `at`: above one margin exactly where the distance is below one.

    It turns "no difference" into an effect that the rule can call true.
    """
    apart = [abs(x - at) for x in (found.low, found.high)]
    nearest = 0.0 if found.low <= at <= found.high else min(apart)
    return Estimate(
        2 * margin - abs(found.value - at), 2 * margin - max(apart), 2 * margin - nearest, found.count
    )


def fastest(seconds: Sequence[float], among: int) -> list[float]:
    """The minimum of each `among` consecutive times: other processes can only make a step slower."""
    complete = len(seconds) // among * among
    return np.reshape(np.asarray(seconds, float)[:complete], (-1, among)).min(axis=1).tolist()


def p_value(found: Estimate, at: float, logarithms: bool = False) -> float:
    """The two-sided p of Student's test that the true value is `at`, from the interval alone; nan without an interval.

    logarithms: the interval is of a ratio. An interval of another kind (a bootstrap) is read as Student's.
    """
    value, low, high, at = (
        math.log(x) if logarithms and x > 0 else x for x in (found.value, found.low, found.high, at)
    )
    if found.count < 2 or not all(map(math.isfinite, (value, low, high))):
        return math.nan
    error = (high - low) / 2 / t_quantile(found.count - 1)
    if error == 0:
        return float(value == at)
    return max(0.0, 1 - student_t(abs(value - at) / error, found.count - 1))


def q_values(p: Sequence[float]) -> list[float]:
    """For each p, the lowest false-discovery rate at which it is a discovery (Benjamini and Hochberg 1995); nan stays nan."""
    known = sorted((x, i) for i, x in enumerate(p) if math.isfinite(x))
    found, lowest = [math.nan] * len(p), 1.0
    for rank in range(len(known), 0, -1):
        x, i = known[rank - 1]
        lowest = min(lowest, x * len(known) / rank)
        found[i] = lowest
    return found


def show(found: Estimate, unit: str = "") -> str:
    """`0.123 [0.100, 0.146] nats`, with the decimals that the interval's width justifies."""
    width = found.high - found.low
    size = width if math.isfinite(width) and width > 0 else abs(found.value) or 1.0
    places = min(6, max(0, 1 - math.floor(math.log10(size)))) if math.isfinite(size) else 3
    text = f"{found.value:.{places}f}"
    if math.isfinite(width):
        text += f" [{found.low:.{places}f}, {found.high:.{places}f}]"
    return f"{text} {unit}".rstrip()


def estimate(stored: dict[str, Any]) -> Estimate:
    """An Estimate that is stored as JSON."""
    return Estimate(*numbers([stored[key] for key in ("value", "low", "high")]), stored["count"])
