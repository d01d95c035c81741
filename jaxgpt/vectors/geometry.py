"""Geometry of a table of vectors: principal axes, drift of its rows, lookup against one-hot products."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.vectors.nearest import nearest, unit


def principal_axes(rows_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean [D], the first `count` principal axes [count, D], and each axis's share of the variance [count].

    By the eigenvectors of the covariance [D, D] in float64, so N may be large (Pearson 1901); of fewer rows than D, by those
    of their products [N, N]. The sign of an axis is chosen such that its number of largest magnitude is positive.
    """
    mean_D = rows_ND.mean(axis=0, dtype=np.float64)
    N, D = rows_ND.shape
    if count < N < D:
        centred_ND = rows_ND - mean_D
        values, directions = np.linalg.eigh(centred_ND @ centred_ND.T)
        values = np.maximum(values[::-1], 0.0)
        if values[count - 1] > 1e-9 * values[0]:  # else the rows do not tell these axes
            axes = (directions[:, ::-1].T[:count] @ centred_ND) / np.sqrt(values[:count, None])
            return mean_D, _signed(axes), values[:count] / max(values.sum(), 1e-300)
    covariance_DD = np.zeros((D, D))
    for start in range(0, len(rows_ND), 65_536):  # in parts: a centred copy of all rows would be large
        part = rows_ND[start : start + 65_536] - mean_D
        covariance_DD += part.T @ part
    values, directions = np.linalg.eigh(covariance_DD)
    values, axes = np.maximum(values[::-1], 0.0), directions[:, ::-1].T[:count]
    return mean_D, _signed(axes), values[:count] / max(values.sum(), 1e-300)


def _signed(axes: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.where(largest < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Drift:
    """How far a table has moved at one step."""

    step: int
    cosine_N: np.ndarray  # of each row to itself at the start
    kept_start: float  # share of the k nearest neighbours that are also neighbours at the start
    kept_before: float  # ... at the previous saved step
    kept_end: float  # ... at the last step
    # Distance of each row from its start, over the length at the start; exactly 0 for a row that did not move.
    distance_N: np.ndarray


def drift(tables: Mapping[int, np.ndarray], k: int = 10, sample: int = 2000, seed: int = 0) -> list[Drift]:
    """The movement of rows and of their neighbourhoods over the steps of a run, relative to its first step.

    Neighbours are by cosine among all rows, for `sample` random rows (or all, where there are fewer). Tables are read
    one at a time.
    """
    steps = sorted(tables)
    start_ND = tables[steps[0]]
    rows = np.arange(len(start_ND))
    if len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    lengths_N = np.maximum(np.linalg.norm(start_ND.astype(np.float64), axis=1), 1e-300)
    near, cosines, distances = [], [], []
    for step in steps:
        table_ND = tables[step]
        near.append(nearest(table_ND, table_ND[rows], k, exclude_QE=rows[:, None])[0])
        cosines.append(
            np.einsum("ND,ND->N", unit(start_ND.astype(np.float64)), unit(table_ND.astype(np.float64)))
        )
        distances.append(np.linalg.norm(table_ND.astype(np.float64) - start_ND, axis=1) / lengths_N)
    return [
        Drift(
            step=step,
            cosine_N=cosines[i],
            kept_start=_overlap(near[i], near[0]),
            kept_before=_overlap(near[i], near[max(i - 1, 0)]),
            kept_end=_overlap(near[i], near[-1]),
            distance_N=distances[i],
        )
        for i, step in enumerate(steps)
    ]


def _overlap(one_Rk: np.ndarray, other_Rk: np.ndarray) -> float:
    """The mean share of a row's entries that are also in the other's row."""
    return float((one_Rk[:, :, None] == other_Rk[:, None, :]).any(axis=2).mean()) if one_Rk.size else math.nan


def compare_lookups(table_VD: np.ndarray, num_ids: int, repeats: int = 20) -> dict[str, Any]:
    """Lookup of random rows against the product of one-hot vectors with the table: numbers, times, bytes.

    `bytes` are read inputs and written output, by their shapes; `seconds` are the median of `repeats` calls of the
    compiled functions. Fewer ids are used where their one-hot vectors would need more than 256 MiB.
    """
    import jax
    import jax.numpy as jnp

    V, D = table_VD.shape
    count = max(1, min(num_ids, (1 << 28) // (4 * V)))
    ids_B = np.random.default_rng(0).integers(V, size=count).astype(np.int32)
    table = jnp.asarray(table_VD, jnp.float32)
    ids, one_hot_BV = jnp.asarray(ids_B), jax.nn.one_hot(ids_B, V, dtype=jnp.float32)
    lookup = jax.jit(lambda ids_B, table_VD: table_VD[ids_B])
    highest = jax.lax.Precision.HIGHEST  # else GPUs round the table to fewer bits
    product = jax.jit(lambda one_hot_BV, table_VD: jnp.matmul(one_hot_BV, table_VD, precision=highest))

    def timed(function, argument) -> tuple[np.ndarray, float]:
        result = np.asarray(function(argument, table))  # compiled here
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            function(argument, table).block_until_ready()
            seconds.append(time.perf_counter() - begin)
        return result, float(np.median(seconds))

    (rows, lookup_seconds), (products, product_seconds) = timed(lookup, ids), timed(product, one_hot_BV)
    out = 4 * count * D
    return {
        "ids": count,
        "rows": V,
        "width": D,
        "bit_equal": bool(np.array_equal(rows, products)),
        "max_difference": float(np.abs(rows - products).max()),
        "lookup": {"seconds": lookup_seconds, "bytes": 4 * count + 2 * out},
        "one_hot": {"seconds": product_seconds, "bytes": 4 * count * V + 4 * V * D + out},
    }
