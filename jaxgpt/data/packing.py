"""Windows of complete documents (data.windows="documents"): which documents share a window, and batches of such windows.

A window has `size` = context_length + 1 places. Documents are packed by best-fit decreasing: the longest first, each into
the window with the least room that it fits into. A longer document is first cut into pieces of `size` tokens and a rest.
Every token is in exactly one window.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt.config import Config, UserError
from jaxgpt.data import shards
from jaxgpt.data.batches import Batches, epoch_order, marked, samples_of
from jaxgpt.data.shards import Ids

if TYPE_CHECKING:
    from jaxgpt.data.mixtures import Order


def document_ends(
    ids: Ids, end_id: int, first: int = 0, last: int | None = None, block: int = 1 << 24
) -> np.ndarray:
    """The positions after each document of ids[first:last]: [N] int64. The last one is `last`, also where no `end_id` stands there."""
    last = len(ids) if last is None else last
    found = [
        np.flatnonzero(ids[i : min(i + block, last)] == end_id) + (i + 1) for i in range(first, last, block)
    ]
    ends = np.concatenate([*found, np.zeros(0, np.int64)])
    return ends if len(ends) and ends[-1] == last else np.append(ends, last)


def best_fit(lengths: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """The window of each document [N] by best-fit decreasing, and how many windows there are. Lengths are 1 to `size`.

    Documents of one length are placed together. A step places as many as fit into the windows with the least room; what
    is left in such a window is below the length and below half of the room, so that O(size log size) steps suffice, each
    a few operations on arrays.
    """
    window_of = np.empty(len(lengths), np.int64)
    order = np.argsort(lengths.astype(np.uint16 if size < 2**16 else np.int64), kind="stable")[::-1]
    room: dict[int, list[np.ndarray]] = {}  # windows by the places that they have left
    rooms: list[int] = []  # its keys, ascending
    count = done = 0

    def put(left: int, windows: np.ndarray) -> None:
        if left and len(windows):
            if left not in room:
                bisect.insort(rooms, left)
            room.setdefault(left, []).append(windows)

    def take(left: int, most: int) -> np.ndarray:
        taken, missing = [], most
        parts = room[left]
        while parts and missing:
            part = parts.pop()
            taken.append(part[:missing])
            if len(part) > missing:
                parts.append(part[missing:])
            missing -= len(taken[-1])
        if not parts:
            del room[left]
            rooms.remove(left)
        return np.concatenate(taken)

    for length, todo in zip(*(x[::-1].tolist() for x in np.unique(lengths, return_counts=True)), strict=True):
        while todo:
            at = bisect.bisect_left(rooms, length)
            left = rooms[at] if at < len(rooms) else size
            each = left // length
            needed = -(-todo // each)
            if at < len(rooms):
                windows = take(left, needed)
            else:
                windows = np.arange(count, count + needed)
                count += needed
            placed = min(todo, len(windows) * each)
            window_of[order[done : done + placed]] = np.repeat(windows, each)[:placed]
            filled, rest = divmod(placed, each)
            put(left - each * length, windows[:filled])
            if rest:
                put(left - rest * length, windows[filled:])
            done, todo = done + placed, todo - placed
    return window_of, count


@dataclass(frozen=True, eq=False)
class Packing:
    """Documents, and pieces of those that are longer than a window, in windows. A pure function of (ids, size, lengths).

    The documents of a mixture's source share windows among themselves; the windows of its sources are one after another.
    """

    size: int  # places of a window
    end_id: int
    # [W + 1] int64: pieces first_W[w] to first_W[w + 1] are in window w, in the order of the text
    first_W: np.ndarray
    starts: np.ndarray  # [P] int64, of each piece in the ids
    lengths: np.ndarray  # [P] int32
    continues: np.ndarray  # [P] bool: the piece is not the first of its document
    num_documents: int
    num_cut: int  # documents that are longer than a window
    sizes: tuple[int, ...]  # the windows of each source of a mixture; W without one

    @classmethod
    def of(cls, ids: Ids, end_id: int, size: int, lengths: Sequence[int] = ()) -> Packing:
        """Pack ids, which are `lengths` of each source of a mixture one after another.

        Time and memory are O(N) for N documents and one pass over the ids.
        """
        ids = ids.ids if isinstance(ids, shards.Marked) else ids
        lasts = np.cumsum(lengths or [len(ids)]).tolist()
        parts = [
            cls._of_source(ids, end_id, size, *ends) for ends in zip([0, *lasts[:-1]], lasts, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        pieces = np.cumsum([0, *(len(part.starts) for part in parts)])
        first_W = [part.first_W[:-1] + before for part, before in zip(parts, pieces, strict=False)]
        return cls(
            size,
            end_id,
            np.concatenate([*first_W, pieces[-1:]]),
            starts=np.concatenate([part.starts for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            continues=np.concatenate([part.continues for part in parts]),
            num_documents=sum(part.num_documents for part in parts),
            num_cut=sum(part.num_cut for part in parts),
            sizes=tuple(len(part) for part in parts),
        )

    @classmethod
    def _of_source(cls, ids: Ids, end_id: int, size: int, first: int, last: int) -> Packing:
        """The packing of ids[first:last]; its starts are positions in `ids`."""
        ends = document_ends(ids, end_id, first, last)
        starts = np.concatenate([[first], ends[:-1]])
        pieces = -(-(ends - starts) // size)  # of each document
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(starts, pieces) + nth * size
        lengths = np.minimum(np.repeat(ends, pieces) - starts, size).astype(np.int32)
        window_of, count = best_fit(lengths, size)
        order = np.argsort(window_of, kind="stable")
        first_W = np.concatenate([[0], np.cumsum(np.bincount(window_of, minlength=count))])
        cut = int((pieces > 1).sum())
        return cls(
            size, end_id, first_W, starts[order], lengths[order], (nth > 0)[order], len(pieces), cut, (count,)
        )

    def __len__(self) -> int:
        """W: the number of windows."""
        return len(self.first_W) - 1

    @property
    def padding(self) -> float:
        """The share of places without a token."""
        return 1.0 - int(self.lengths.sum(dtype=np.int64)) / (len(self) * self.size)

    def facts(self) -> dict[str, int | float]:
        """The record of the windows in run.json."""
        return {
            "windows": len(self),
            "padding": round(self.padding, 6),
            "train_documents": self.num_documents,
            "train_documents_cut": self.num_cut,
        }

    def as_text(self) -> str:
        """One line."""
        cut = f", {self.num_cut:,} of them longer than a window and cut" if self.num_cut else ""
        return (
            f"{self.num_documents:,} documents{cut}, in {len(self):,} windows with {self.padding:.2%} padding"
        )

    def at(self, ids: Ids, windows_B: np.ndarray) -> np.ndarray:
        """Windows by number: [B, size] int32, with what is no target marked (see `batches.marked`).

        That is padding, and the first token of a piece that continues a document: what it follows is in another window.
        """
        first_B = self.first_W[windows_B]
        counts_B = self.first_W[windows_B + 1] - first_B
        pieces = _ranges(first_B, counts_B)
        starts, lengths = self.starts[pieces], self.lengths[pieces].astype(np.int64)
        taken_B = np.add.reduceat(lengths, np.cumsum(counts_B) - counts_B)
        places = _ranges(np.arange(len(windows_B)) * self.size, taken_B)
        found = np.full(len(windows_B) * self.size, self.end_id, np.int32)
        found[places] = ids[_ranges(starts, lengths)]
        counts = np.zeros(found.shape, bool)
        counts[places] = True
        counts[places[(np.cumsum(lengths) - lengths)[self.continues[pieces]]]] = False
        return marked(found, counts).reshape(-1, self.size)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, joined."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True, eq=False)
class PackedBatches:
    """The training batches of windows that hold complete documents; the methods are those of `Batches`.

    An epoch visits every window once, in an order drawn from (seed, epoch); `order` says it for a mixture. The windows are
    those of every epoch.
    """

    ids: Ids
    packing: Packing
    seed: int
    batch_size: int
    order: Order | None = None  # of a mixture

    @classmethod
    def of(cls, cfg: Config, ids: Ids, packing: Packing) -> PackedBatches:
        """The batches that a config draws from a packing of ids."""
        numbers = cfg.order_seed, cfg.data.batch_size
        if not cfg.data.mixture:
            return cls(ids, packing, *numbers)
        from jaxgpt.data.mixtures import order_of

        return cls(ids, packing, *numbers, order_of(cfg, packing.sizes))

    @functools.cached_property
    def _files(self) -> list[tuple[str, int]]:
        return shards.mapped_files(self.ids)

    def _windows_at(self, step: int, rows: slice | None) -> np.ndarray:
        samples = samples_of(step, self.batch_size, rows)
        if self.order is None:
            return epoch_order(len(self.packing), samples, self.seed)[0].astype(np.int64)
        sources_B, windows_B, _ = self.order.windows_of(samples)
        sizes = np.array(self.packing.sizes)
        return (np.cumsum(sizes) - sizes)[sources_B] + windows_B.astype(np.int64)

    def at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The batch of a step: [B, T + 1] int32, marked."""
        return self.packing.at(self.ids, self._windows_at(step, rows))

    def starts_at(self, step: int, rows: slice | None = None) -> np.ndarray:
        """The first positions of a step's windows in `for_device()`: [B] int64."""
        return self._windows_at(step, rows) * self.packing.size

    def stack(
        self, step: int, count: int, *, starts_only: bool = False, rows: slice | None = None
    ) -> np.ndarray:
        """The batches of `count` steps: [count, B, T + 1] int32, or with starts_only their starts: [count, B] int32."""
        if not starts_only:
            shards.check_not_cut(self._files)
        of_step = self.starts_at if starts_only else self.at
        return np.stack([of_step(step + i, rows) for i in range(count)]).astype(np.int32, copy=False)

    def for_device(self) -> np.ndarray:
        """All windows one after another, marked: int32. Raises UserError where a device cannot index them."""
        places = len(self.packing) * self.packing.size
        if places > 2**31 - 1:
            raise UserError(
                f"data.on_device=true: {places:,} places in windows, but positions on the device are 32-bit: "
                f"set data.on_device=false"
            )
        return self.packing.at(self.ids, np.arange(len(self.packing))).reshape(-1)


def training_batches(
    cfgs: Sequence[Config], ids: Ids, lengths: Sequence[int] = ()
) -> list[Batches] | list[PackedBatches]:
    """The batches of runs that differ in their seeds at most; `lengths` are those of the sources of a mixture."""
    cfg = cfgs[0]
    if cfg.data.windows == "flat":
        return [Batches.of(cfg, ids, lengths) for cfg in cfgs]
    packing = Packing.of(ids, cfg.model.end_id, cfg.model.context_length + 1, lengths)
    return [PackedBatches.of(cfg, ids, packing) for cfg in cfgs]
