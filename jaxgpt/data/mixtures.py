"""The order in which a mixture is read: which source each row of a batch is of, and which window of it.

Rows are numbered over the run: row r of step s is row s * batch_size + r. Both answers are pure functions of (seed, row), so
a run has no data state, whatever the mixture.

Blocks of 1,000 rows. The weights at the middle of a block lay the sources next to each other on [0, 1000]; bounds between
them are rounded down after adding u, a number below 1 that all bounds of the block share (systematic sampling: Madow and
Madow 1944). So a source has the floor or the ceiling of 1,000 times its share in every block. From block to block u goes up
and down in steps of 1/64: over 128 blocks each bound is right on average, and two neighbours differ in as few bounds as
possible. Within a block, row p has the value (633 p + key) mod 1000, and is of the source within whose bounds the value is.
The order of values is the same in all blocks and spreads every source evenly. With constant weights, any 1,000 rows in
sequence, wherever they start, have a source to within 1 row (1 + 1/64 where it is between two others) of its share.

Row number n of a source, counted over the run, reads the window that sample n of a run on this source alone would: all
windows once in each of its epochs (`batches.epoch_order`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxgpt.config import Config, sources
from jaxgpt.config.sources import Schedule, weight_at
from jaxgpt.data.batches import epoch_order, key_of

BLOCK = 1_000
STRIDE = 633  # of those without a common divisor with BLOCK, one that spreads every part of [0, 1000] best
PERIOD = 128  # blocks after which u repeats


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a mixture of K sources.

    sizes: the number of windows of each source. Arrays of all sources are [K].
    """

    schedules: tuple[Schedule, ...]
    sizes: tuple[int, ...]
    seed: int
    batch_size: int

    def windows_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The source of these rows of the run, the window of that source, and a key of its epoch: [B] int64, [B] and [B] uint64."""
        sources, numbers = self.sources_of(rows)
        windows, keys = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint64)
        for i, size in enumerate(self.sizes):
            own = sources == i
            if own.any():
                windows[own], keys[own] = epoch_order(size, numbers[own], key_of(self.seed, i))
        return sources, windows, keys

    def sources_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and how many rows of this source are before it: [B] and [B] int64."""
        blocks, places = np.divmod(np.asarray(rows, np.int64), BLOCK)
        sources, numbers = np.empty_like(blocks), np.empty_like(blocks)
        for block in np.unique(blocks).tolist():
            own = blocks == block
            source_P, rank_P = self._block(block)
            sources[own] = source_P[places[own]]
            numbers[own] = self._before(block)[sources[own]] + rank_P[places[own]]
        return sources, numbers

    def rows_before(self, step: int) -> np.ndarray:
        """The rows of each source in the steps before a step: [K]."""
        block, place = divmod(step * self.batch_size, BLOCK)
        source_P, _ = self._block(block)
        return self._before(block) + np.bincount(source_P[:place], minlength=len(self.sizes))

    def epochs(self, step: int) -> list[float]:
        """How often each source was read in the steps before a step."""
        return [rows / size for rows, size in zip(self.rows_before(step).tolist(), self.sizes, strict=True)]

    def shares(self, step: int) -> list[float]:
        """The share of each source at a step."""
        weights = [weight_at(schedule, step) for schedule in self.schedules]
        return [weight / sum(weights) for weight in weights]

    # --- blocks -----------------------------------------------------------------------------------------

    def _bounds(self, blocks: np.ndarray) -> np.ndarray:
        """The bounds of the sources: [N] -> [N, K + 1] from 0 to BLOCK."""
        steps = (BLOCK * blocks + BLOCK // 2) // self.batch_size
        sums = np.cumsum([_weights(schedule, steps) for schedule in self.schedules], axis=0)
        at = blocks % PERIOD
        u = (np.minimum(at, PERIOD - 1 - at) + 0.5) / (PERIOD // 2)
        bounds = np.zeros((len(blocks), len(self.schedules) + 1), np.int64)
        bounds[:, 1:] = np.minimum(np.floor(sums / sums[-1] * BLOCK + u), BLOCK).T
        bounds[:, -1] = BLOCK
        return bounds

    @functools.lru_cache(maxsize=8)  # noqa: B019 - an order lives as long as its run
    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row of a block, and how many rows of it are before in the block: [BLOCK] each."""
        (bounds,) = self._bounds(np.array([block]))
        values = (STRIDE * np.arange(BLOCK) + key_of(self.seed, len(self.sizes))) % BLOCK
        source = np.searchsorted(bounds[1:], values, side="right")
        rank = np.empty(BLOCK, np.int64)
        order = np.argsort(source, kind="stable")
        rank[order] = np.arange(BLOCK) - bounds[source[order]]
        return source, rank

    @functools.cached_property
    def _constant_from(self) -> int:
        """The block from which on the weights are constant, a multiple of PERIOD."""
        if all(len(schedule) == 1 for schedule in self.schedules):
            return 0
        last = max(schedule[-1][0] for schedule in self.schedules) * self.batch_size
        return -(-(last // BLOCK + 1) // PERIOD) * PERIOD

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The rows of each source before each block, up to the first PERIOD with constant weights: [blocks, K]."""
        counts = np.diff(self._bounds(np.arange(self._constant_from + PERIOD)), axis=1)
        return np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])

    def _before(self, block: int) -> np.ndarray:
        """The rows of each source before a block: [K]."""
        first = self._constant_from
        if block <= first:
            return self._table[block]
        periods, rest = divmod(block - first, PERIOD)
        return self._table[first + rest] + periods * (self._table[first + PERIOD] - self._table[first])


def order_of(cfg: Config, sizes: Sequence[int]) -> Order:
    """The order of a config's mixture, of sources with `sizes` windows."""
    schedules = tuple(source.schedule for source in sources.mixture(cfg.data.mixture))
    return Order(schedules, tuple(sizes), cfg.order_seed, cfg.data.batch_size)


def _weights(schedule: Schedule, steps: np.ndarray) -> np.ndarray:
    """`sources.weight_at` for an array of steps."""
    points, weights = np.array([step for step, _ in schedule]), np.array([weight for _, weight in schedule])
    if len(points) == 1:
        return np.full(len(steps), weights[0])
    left = np.clip(np.searchsorted(points, steps, side="right") - 1, 0, len(points) - 2)
    part = np.clip((steps - points[left]) / (points[left + 1] - points[left]), 0, 1)
    return weights[left] + (weights[left + 1] - weights[left]) * part
