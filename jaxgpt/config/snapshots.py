"""The steps at which a run keeps its parameters: train.snapshots.

    log:24        about 24 steps, evenly spaced on a log scale
    pythia        1, 2, 4, ..., 512, then every 1000 (Biderman et al. 2023)
    every:500     every 500 steps
    (empty)       none

Each of them has step 0 and the last step. A step within a dispatch of several (train.steps_per_dispatch) is rounded up to its end.
"""

from __future__ import annotations

import re

from jaxgpt.config.errors import UserError

MOST = 100_000  # snapshots of a run
_PYTHIA_FIRST, _PYTHIA_EVERY = tuple(2**i for i in range(10)), 1_000


def log_spaced(num_steps: int, count: int) -> list[int]:
    """Step 0 and `count` log-spaced steps from 1 to num_steps, without duplicates. Empty if count is 0."""
    import numpy as np

    if count == 0:
        return []
    return sorted(
        {0, *np.unique(np.round(np.geomspace(1, num_steps, count)).astype(int)).tolist(), num_steps}
    )


def steps(text: str, num_steps: int, steps_per_dispatch: int = 1) -> list[int]:
    """The steps that a value of train.snapshots names, in ascending order. Raises UserError for another value."""
    if not text:
        return []
    kind, _, number = text.partition(":")
    if text == "pythia":
        _check_count(text, num_steps // _PYTHIA_EVERY)
        planned = [*_PYTHIA_FIRST, *range(_PYTHIA_EVERY, num_steps, _PYTHIA_EVERY)]
    elif kind in ("log", "every") and re.fullmatch("[1-9][0-9]{0,9}", number):
        _check_count(text, min(num_steps, int(number)) if kind == "log" else num_steps // int(number))
        planned = (
            log_spaced(num_steps, max(1, min(int(number), MOST) - 1))
            if kind == "log"
            else [*range(int(number), num_steps, int(number))]
        )
    else:
        raise UserError(
            f"train.snapshots={text!r:.60}: give log:NUMBER (log:24), pythia, every:STEPS (every:500), or nothing"
        )
    rounded = {-(-step // steps_per_dispatch) * steps_per_dispatch for step in planned}
    return sorted({0, num_steps, *(step for step in rounded if step < num_steps)})


def _check_count(text: str, count: int) -> None:
    if count > MOST:
        raise UserError(
            f"train.snapshots={text!r} is {count:,} snapshots of this run: give a value with at most {MOST:,}"
        )
