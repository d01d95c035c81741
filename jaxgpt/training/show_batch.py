"""A batch of training as text, with the tokens that count in the loss marked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from jaxgpt.config import Config
from jaxgpt.data.dataset import check_documents, check_windows, prepare_dataset
from jaxgpt.data.packing import training_batches
from jaxgpt.data.shards import unmarked
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.training.starting import resolve

MOST_ROWS = 16
OPEN, CLOSE = "\u27e6", "\u27e7"  # around tokens that count


def lines(cfg: Config, step: int = 0, num_workers: int = 0) -> Iterator[str]:
    """The batch of a step, a row of it a line: `read but not predicted` and, in brackets, what is predicted."""
    dataset = prepare_dataset(cfg.data, num_workers)
    check_windows(dataset, cfg.model.context_length)
    cfg = resolve(cfg, dataset.tokenizer)
    if cfg.finds_documents:
        check_documents(dataset, cfg.model.end_id)
    (batches,) = training_batches([cfg], dataset.train.targets, dataset.lengths)
    batch = batches.at(step)
    counted = int((batch[:, 1:] >= 0).sum())
    yield f"step {step}: {batch.shape[0]} windows of {batch.shape[1]} tokens, {counted:,} of {batch[:, 1:].size:,} targets count"
    for number, row in enumerate(batch[:MOST_ROWS]):
        yield f"{number:>4}  {row_as_text(row, dataset.tokenizer)}"
    if len(batch) > MOST_ROWS:
        yield f"... and {len(batch) - MOST_ROWS} more"


def row_as_text(row: np.ndarray, tokenizer: Tokenizer) -> str:
    """A marked window [T + 1] as one line. The first token is never predicted."""
    counts = row >= 0
    counts[0] = False
    ids = unmarked(row)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(counts)) + 1, [len(row)]])
    parts = []
    for start, stop in itertools.pairwise(starts):
        text = tokenizer.decode(ids[start:stop])
        parts.append(f"{OPEN}{text}{CLOSE}" if counts[start] else text)
    return "".join(parts).replace("\n", "\u23ce")
