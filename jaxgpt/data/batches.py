"""Token ids -> batches: `Batches` for training, `eval_batches` for evaluation.

A training batch is a pure function of (seed, step), so a run has no data state to save or restore. Everything here
is NumPy on the host: a batch is small compared to the work of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxgpt.config import Config, UserError


def num_windows(num_ids: int, context_length: int) -> int:
    """W: windows in an epoch. Ids beyond W windows leave room for the epoch's phase.

    Raises UserError where not even one window of context_length + 1 ids fits.
    """
    if num_ids < context_length + 1:
        raise UserError(
            f"{num_ids} tokens are fewer than one window of context_length + 1 = {context_length + 1}: "
            f"use a longer text or a smaller model.context_length"
        )
    return max(1, (num_ids - context_length) // context_length)


def steps_per_epoch(num_ids: int, *, context_length: int, batch_size: int) -> float:
    """Steps that visit every window once: a fraction, because batches run on across the end of an epoch."""
    return num_windows(num_ids, context_length) / batch_size


@dataclass(frozen=True, eq=False)
class Batches:
    """The training batches of a run. A batch is a pure function of (seed, step): see `window_starts` for the order.

    ids: [N] the training tokens. `rows` of a method selects rows of the global batch, for a process that feeds only
    those. Every method raises UserError where the ids are fewer than one window.
    """

    ids: np.ndarray
    seed: int
    batch_size: int
    context_length: int

    @classmethod
    def of(cls, cfg: Config, ids: np.ndarray) -> Batches:
        """The batches that a config draws from ids."""
        return cls(ids, cfg.order_seed, cfg.data.batch_size, cfg.model.context_length)

    def at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The batch of a step: [B, T + 1] int32; inputs are [:, :-1] and targets are [:, 1:]."""
        starts_B = self.starts_at(step, rows)
        return self.ids[starts_B[:, None] + np.arange(self.context_length + 1)].astype(np.int32)

    def starts_at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The first positions of a step's windows: [B] int64."""
        return window_starts(
            len(self.ids),
            step,
            seed=self.seed,
            batch_size=self.batch_size,
            context_length=self.context_length,
            rows=rows,
        )

    def stack(
        self, step: int, count: int, *, starts_only: bool = False, rows: slice | None = None
    ) -> np.ndarray:
        """The batches of `count` steps: [count, B, T + 1] int32, or with starts_only their starts: [count, B] int32.

        A device that holds the ids needs the starts only: see `check_on_device`.
        """
        of_step = self.starts_at if starts_only else self.at
        return np.stack([of_step(step + i, rows) for i in range(count)]).astype(np.int32, copy=False)

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
    """Where the windows of a step's batch begin: [B] int64 positions in the ids.

    Samples are counted through the whole run: row r of step s is sample s * batch_size + r. Every W samples
    are an epoch: all W windows once each, in an order drawn from (seed, epoch). Windows lie context_length
    apart and share one id, the last target of one and the first input of the next. All windows of an epoch
    are shifted by a phase drawn from (seed, epoch), so that an id is not always at the same place in them;
    phases range over all the room that the windows leave, so that in the long run every id is trained on.
    Costs O(batch) time and memory, however long the text and whatever the step.
    """
    size = num_windows(num_ids, context_length)
    num_phases = num_ids - size * context_length  # with any of these the last window fits
    first_sample = np.array(int(step) * batch_size, np.uint64)
    samples = np.arange(batch_size, dtype=np.uint64)[rows or slice(None)] + first_sample
    epochs, windows = np.divmod(samples, np.uint64(size))
    keys = _mix(_mix(np.array([int(seed) % 2**64], np.uint64) + _GOLDEN) + epochs * _GOLDEN)
    phases = keys % np.array(num_phases, np.uint64)
    starts = phases + permute(windows, size, keys) * np.array(context_length, np.uint64)
    return starts.astype(np.int64)


# Zero-dimensional arrays, because NumPy combines an array with these faster than with its scalars.
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


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each index: [B] uint64, with one key each, [B] uint64.

    A Feistel network of four rounds (Luby and Rackoff, 1988) on pairs (left, right) of a rectangle that
    holds `size` cells, with addition modulo its sides in place of XOR; a result outside range(size) goes
    through again until it falls inside ("cycle walking"). Both are from Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", 2002. The rectangle is nearly square and has fewer than sqrt(size) + 1 cells
    to spare, so that walking is rare. Not for secrets: it has to look random to a training run only.

    Arithmetic of our own, and not `np.random`: its streams may change with the version of NumPy, and a run
    that is resumed must go on in the same order.
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    end, *sides = (np.array(value, np.uint64) for value in (size, width, height))
    index = _rounds(index, *sides, keys)
    outside = np.flatnonzero(index >= end)
    while outside.size:
        index[outside] = _rounds(index[outside], *sides, keys[outside])
        outside = outside[index[outside] >= end]
    return index


def _rounds(index: np.ndarray, width: np.ndarray, height: np.ndarray, keys: np.ndarray) -> np.ndarray:
    right, left = np.divmod(index, width)
    for number, round_keys in enumerate(keys + _ROUND_CONSTANTS):
        # Each half in turn is shifted by a pseudorandom amount that the other determines: undone by the
        # same amounts subtracted in reverse order, hence a permutation whatever `_round_function` is.
        if number % 2 == 0:
            left = (left + _round_function(right + round_keys)) % width
        else:
            right = (right + _round_function(left + round_keys)) % height
    return right * width + left


def _round_function(x: np.ndarray) -> np.ndarray:
    """[B] uint64 below 2**32, so that adding a half of an index cannot overflow; cheaper than `_mix`."""
    x = x * _MULTIPLIER_1
    return ((x ^ (x >> _SHIFT_32)) * _MULTIPLIER_2) >> _SHIFT_32


# ---- ids -> evaluation batches


def eval_batches(
    ids: np.ndarray, *, context_length: int, batch_size: int, max_tokens: int = 0, rows: slice | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches in which every id but the first is predicted once: (tokens [B, T + 1] int32, weights [B, T]).

    weights, float32, are 1 for a target that counts and 0 for padding; all batches have the same shape, so
    that one compilation serves. Only the first `max_tokens` predictions count where that is not 0. `rows`
    selects rows of each batch, as in `Batches`.
    """
    last = len(ids) - 1  # the last id that is predicted
    if max_tokens > 0:
        last = min(last, max_tokens)
    for first in range(0, last, batch_size * context_length):
        starts = first + np.arange(batch_size)[rows or slice(None)] * context_length
        positions = starts[:, None] + np.arange(context_length + 1)
        tokens = np.where(positions <= last, ids[np.minimum(positions, last)], 0).astype(np.int32)
        yield tokens, (positions[:, 1:] <= last).astype(np.float32)
