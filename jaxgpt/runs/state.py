"""What training changes, and what a checkpoint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """All that training changes. With the config, the data and the seed it determines the rest of the run."""

    step: jax.Array  # int32: optimizer steps done
    params: dict
    opt_state: Any
