"""Token ids -> batches: `Batches` for training, `eval_batches` for evaluation.

A training batch is a pure function of (seed, step), so a run has no data state to save or restore. Everything here
is NumPy on the host: a batch is small compared to the work of a step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt.config import Config, UserError
from jaxgpt.data import shards
from jaxgpt.data.shards import Ids

if TYPE_CHECKING:
    from jaxgpt.data.mixtures import Order


def marked(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ids where those that do not count as targets, t, are ~t = -1 - t: one array says what is read and what is predicted.

    The step reads ~t as t and leaves it out of the loss (see DataConfig.marks_targets). What a window begins with is
    never a target.
    """
    ids = ids.astype(np.int32)
    return np.where(counts | (ids < 0), ids, ~ids)


def num_windows(num_ids: int, context_length: int) -> int:
    """W: the number of windows in an epoch. Ids beyond W windows leave room for the epoch's phase.

    Raises UserError where the ids are fewer than one window of context_length + 1.
    """
    if num_ids < context_length + 1:
        raise UserError(
            f"{num_ids} tokens are fewer than one window of context_length + 1 = {context_length + 1}: "
            f"give a longer text or lower model.context_length"
        )
    return max(1, (num_ids - context_length) // context_length)


def steps_per_epoch(num_ids: int, *, context_length: int, batch_size: int) -> float:
    """The steps in which every window is visited once; a fraction, because a batch may span two epochs."""
    return num_windows(num_ids, context_length) / batch_size


@dataclass(frozen=True, eq=False)
class Batches:
    """The training batches of a run. A batch is a pure function of (seed, step): see `window_starts` for the order.

    ids: [N] the training tokens. Those of a mixture are its sources' one after another, `lengths` ids each, which `order`
    reads. `rows` of a method selects rows of the global batch, for a process that feeds only those. Every method raises
    UserError where the ids are fewer than one window.
    """

    ids: Ids
    seed: int
    batch_size: int
    context_length: int
    order: Order | None = None
    lengths: tuple[int, ...] = ()

    @functools.cached_property
    def _files(self) -> list[tuple[str, int]]:
        return shards.mapped_files(self.ids)

    @classmethod
    def of(cls, cfg: Config, ids: Ids, lengths: Sequence[int] = ()) -> Batches:
        """The batches that a config draws from ids; `lengths` are those of the sources of its mixture."""
        numbers = cfg.order_seed, cfg.data.batch_size, cfg.model.context_length
        if not cfg.data.mixture:
            return cls(ids, *numbers)
        from jaxgpt.data.mixtures import order_of

        sizes = [num_windows(length, cfg.model.context_length) for length in lengths]
        return cls(ids, *numbers, order_of(cfg, sizes), tuple(lengths))

    def at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The batch of a step: [B, T + 1] int32; inputs are [:, :-1] and targets are [:, 1:]."""
        return shards.windows(self.ids, self.starts_at(step, rows), self.context_length + 1)

    def starts_at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The first positions of a step's windows: [B] int64."""
        if self.order is None:
            numbers = {"batch_size": self.batch_size, "context_length": self.context_length}
            return window_starts(len(self.ids), step, seed=self.seed, rows=rows, **numbers)
        sources_B, windows_B, keys_B = self.order.windows_of(samples_of(step, self.batch_size, rows))
        lengths_B = np.array(self.lengths)[sources_B]
        num_phases_B = lengths_B - np.array(self.order.sizes)[sources_B] * self.context_length
        first_B = (np.cumsum(self.lengths) - self.lengths)[sources_B]
        phases_B = (keys_B % num_phases_B.astype(np.uint64)).astype(np.int64)
        return first_B + phases_B + windows_B.astype(np.int64) * self.context_length

    def stack(
        self, step: int, count: int, *, starts_only: bool = False, rows: slice | None = None
    ) -> np.ndarray:
        """The batches of `count` steps: [count, B, T + 1] int32, or with starts_only their starts: [count, B] int32.

        A device that has the ids needs only the starts: see `check_on_device`.
        """
        if not starts_only:
            shards.check_not_cut(self._files)
        of_step = self.starts_at if starts_only else self.at
        return np.stack([of_step(step + i, rows) for i in range(count)]).astype(np.int32, copy=False)

    def for_device(self) -> np.ndarray:
        """The ids, from which a device cuts the windows at `starts_at`."""
        self.check_on_device()
        return np.asarray(self.ids)

    def check_on_device(self) -> None:
        """Raises UserError where a device cannot index the ids."""
        if len(self.ids) > 2**31 - 1:
            raise UserError(
                f"data.on_device=true: {len(self.ids):,} tokens, but positions on the device are 32-bit: "
                f"set data.on_device=false"
            )


def window_starts(
    num_ids: int, step: int, *, seed: int, batch_size: int, context_length: int, rows: slice | None = None
) -> np.ndarray:
    """The first positions of the windows of a step's batch: [B] int64.

    Samples are numbered over the run: row r of step s is sample s * batch_size + r. W samples are an epoch: every
    window once, in an order drawn from (seed, epoch). Windows start context_length apart and share one id: the last
    target of one is the first input of the next. All windows of an epoch are shifted by a phase drawn from
    (seed, epoch), so that an id is not always at the same position; phases use all the room that the windows leave,
    so that in the long run every id is trained on. Time and memory are O(batch) for any text length and step.
    """
    size = num_windows(num_ids, context_length)
    num_phases = num_ids - size * context_length  # the last window fits with each of them
    windows, keys = epoch_order(size, samples_of(step, batch_size, rows), seed)
    phases = keys % np.array(num_phases, np.uint64)
    starts = phases + windows * np.array(context_length, np.uint64)
    return starts.astype(np.int64)


def samples_of(step: int, batch_size: int, rows: slice | None = None) -> np.ndarray:
    """The numbers of a step's samples, counted over the run: [B] uint64."""
    first_sample = np.array(int(step) * batch_size, np.uint64)
    return np.arange(batch_size, dtype=np.uint64)[rows or slice(None)] + first_sample


def epoch_order(size: int, samples: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `size` windows each sample reads, and a key of (seed, epoch): [B] and [B] uint64.

    `size` samples are an epoch, which has every window once.
    """
    epochs, windows = np.divmod(samples.astype(np.uint64, copy=False), np.uint64(size))
    keys = _mix(_mix(np.array([int(seed) % 2**64], np.uint64) + _GOLDEN) + epochs * _GOLDEN)
    return permute(windows, size, keys), keys


# Zero-dimensional arrays: NumPy combines an array with them faster than with its scalars.
_GOLDEN = np.array(0x9E3779B97F4A7C15, np.uint64)
_MULTIPLIER_1 = np.array(0xBF58476D1CE4E5B9, np.uint64)
_MULTIPLIER_2 = np.array(0x94D049BB133111EB, np.uint64)
_SHIFT_27, _SHIFT_30, _SHIFT_31, _SHIFT_32 = (np.array(shift, np.uint64) for shift in (27, 30, 31, 32))
_ROUND_CONSTANTS = np.arange(1, 5, dtype=np.uint64)[:, None] * _GOLDEN  # four rounds


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea and Flood, 2014): [...] uint64, modulo 2**64."""
    x = (x ^ (x >> _SHIFT_30)) * _MULTIPLIER_1
    x = (x ^ (x >> _SHIFT_27)) * _MULTIPLIER_2
    return x ^ (x >> _SHIFT_31)


def key_of(seed: int, number: int) -> int:
    """A number drawn from (seed, number), from 0 to below 2**63."""
    (key,) = _mix(
        np.array([int(seed) % 2**64], np.uint64) ^ _mix(np.array([number + 1], np.uint64) * _GOLDEN)
    )
    return int(key) >> 1


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The images of indices [B] under keyed permutations of range(size), one key [B] each: [B], all uint64.

    A Feistel network of four rounds (Luby and Rackoff, 1988) on the cells (left, right) of a rectangle of at least
    `size` cells, with addition modulo its sides in place of XOR. A result outside range(size) is permuted again until
    it is inside ("cycle walking"). Both are from Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    The rectangle is nearly square and has fewer than sqrt(size) + 1 spare cells, so walking is rare. Not for
    cryptography.

    It does not use `np.random`, whose streams may change with the version of NumPy: a resumed run must keep its order.
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    end, left, right = (np.array(value, np.uint64) for value in (size, width, height))
    index = _rounds(index, left, right, keys)
    outside = np.flatnonzero(index >= end)
    while outside.size:
        index[outside] = _rounds(index[outside], left, right, keys[outside])
        outside = outside[index[outside] >= end]
    return index


def _rounds(index: np.ndarray, width: np.ndarray, height: np.ndarray, keys: np.ndarray) -> np.ndarray:
    right, left = np.divmod(index, width)
    for number, round_keys in enumerate(keys + _ROUND_CONSTANTS):
        # Each half in turn is shifted by an amount that depends on the other half only. Subtracting the amounts in
        # reverse order inverts this, so it is a permutation for any `_round_function`.
        if number % 2 == 0:
            left = (left + _round_function(right + round_keys)) % width
        else:
            right = (right + _round_function(left + round_keys)) % height
    return right * width + left


def _round_function(x: np.ndarray) -> np.ndarray:
    """[B] uint64 below 2**32, so that adding half an index cannot overflow; cheaper than `_mix`."""
    x = x * _MULTIPLIER_1
    return ((x ^ (x >> _SHIFT_32)) * _MULTIPLIER_2) >> _SHIFT_32


# ---- ids -> evaluation batches


MOST_PADDED = 1024  # windows


def eval_batches(
    ids: Ids, *, context_length: int, batch_size: int, max_tokens: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches that predict every id but the first once: (tokens [B, T + 1] int32, weights [B, T] float32).

    Weights are 1 for a target that counts and 0 for others (see `shards.Marked`) and padding. All batches have one shape,
    for one compilation. If `max_tokens` is not 0, only that many predictions count.
    """
    last = len(ids) - 1  # the position of the last predicted id
    if max_tokens > 0:
        last = min(last, max_tokens)
    if batch_size > MOST_PADDED:  # no more padding than a part of a batch, in numbers that any mesh divides
        batch_size = min(batch_size, -(-last // (context_length * MOST_PADDED)) * MOST_PADDED)
    files = shards.mapped_files(ids)
    for first in range(0, last, batch_size * context_length):
        shards.check_not_cut(files)
        starts = first + np.arange(batch_size) * context_length
        positions = starts[:, None] + np.arange(context_length + 1)
        tokens = np.where(positions <= last, ids[np.minimum(positions, last)], 0).astype(np.int32)
        counts = (positions[:, 1:] <= last) & (tokens[:, 1:] >= 0)
        yield shards.unmarked(tokens), counts.astype(np.float32)
