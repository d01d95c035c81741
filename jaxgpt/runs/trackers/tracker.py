"""What every tracker does, and the table of those that there are. A new one is a module with a class and an entry here."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxgpt.common.files import read_json, write_json
from jaxgpt.config import FIELDS, Config, UserError, value_of

PROJECT = "jaxgpt"  # the project of all runs, where the environment names no other
ID_FILE = "trackers.json"
NOTHING = -1  # the position of a store that has no step of the run

# By name: the package that it needs, and the class in the module of this name.
TRACKERS = {
    "tensorboard": ("tensorboardX", "TensorBoard"),
    "wandb": ("wandb", "WeightsAndBiases"),
    "trackio": ("trackio", "Trackio"),
    "mlflow": ("mlflow", "MLflow"),
}


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of a run from the start."""

    id: str  # the same each time the run is resumed
    name: str
    group: str  # the sweep that it is a member of; empty outside of one
    workdir: Path
    step: int  # that the run resumes from
    config: dict[str, Any]  # every field by dotted name

    @property
    def unique_name(self) -> str:
        """A name for stores that know runs by their names."""
        return f"{self.name}-{self.id[:6]}"


@dataclass(frozen=True)
class Row:
    """All that is logged of one step."""

    step: int
    time: float  # seconds since 1970
    numbers: dict[str, float]  # "train/loss", "valid/bits_per_byte"
    texts: dict[str, str]  # "sample"


class Tracker(Protocol):
    """One tracker of one run. All methods may raise anything, and take as long as they like."""

    def start(self, run: TrackedRun) -> int:
        """Open the run, or continue it. Returns the last step that the store has, or NOTHING."""
        ...

    def log(self, rows: Sequence[Row]) -> None:
        """Add steps, in ascending order, none of which the store has."""
        ...

    def finish(self, report: Path | None) -> None:
        """Write all that is left, add the report, and close."""
        ...


def make(name: str) -> Tracker:
    """The tracker of a name."""
    _, kind = TRACKERS[name]
    return getattr(importlib.import_module(f"jaxgpt.runs.trackers.{name}"), kind)()


def require(names: Iterable[str]) -> None:
    """Raise UserError with the package to install if one is missing. Imports none of them: that may take seconds."""
    for name in names:
        package, _ = TRACKERS[name]
        there = (
            sys.modules[package] is not None
            if package in sys.modules
            else importlib.util.find_spec(package) is not None
        )
        if not there:
            raise UserError(f'the tracker {name} needs {package}: pip install "jaxgpt[{name}]"')


def describe(cfg: Config, workdir: Path, group: str, step: int) -> TrackedRun:
    """A run for its trackers. Its id is made once and kept in RUN/trackers.json."""
    name = workdir.resolve().name or "run"
    fields = {
        dotted: list(value) if isinstance(value := value_of(cfg, dotted), tuple) else value
        for dotted in FIELDS
    }
    return TrackedRun(
        _id_of(workdir), f"{group}-{name}" if group else name, group, workdir.resolve(), step, fields
    )


def _id_of(workdir: Path) -> str:
    path = workdir / ID_FILE
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:16]})
    try:
        found = read_json(path)["id"]
        if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{16}", found):
            raise ValueError('its "id" is not 16 hexadecimal digits')
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read ({error}): remove it, and trackers show the run as a new one"
        ) from None
