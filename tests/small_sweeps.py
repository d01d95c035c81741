"""A small sweep for tests: four members, and its table of results."""

import csv
from pathlib import Path

from tests.commands import CONFIG

SWEEP = (
    CONFIG
    + """
def sweep():
    from jaxgpt.sweeps.search_space import grid
    yield from grid({"optim.learning_rate": [1e-3, 1e-2], "train.seed": range(2)})
"""
)
COMMAND = "sweep --config sweep.py --workdir found --width 1"


def read(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))
