"""Two curves of losses, compared point by point; and what has changed on the machine between two runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.common.files import read_json
from jaxgpt.config import UserError
from jaxgpt.runs import records


@dataclass(frozen=True)
class Comparison:
    """Two curves, point by point: (step, split) in both."""

    points: int
    equal: int  # to the last bit
    largest: float  # difference of two losses, nats a token
    largest_at: tuple[int, str] | None
    parted_at: tuple[int, str] | None  # the first point further apart than the tolerance
    parted: tuple[float, float] | None  # the two losses there


def curve(workdir: Path) -> dict[tuple[int, str], float]:
    """(step, split) -> loss, of a run's metrics.jsonl. Raises UserError where there is none."""
    path = workdir / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        changed = [line["step"] for line in lines if line["split"] == "change" and line["step"] > 0]
        losses = [line for line in lines if line["split"] != "change"]
        found = {(line["step"], line["split"]): line["loss"] for line in losses if line["loss"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}): give the folder of a run") from None
    if changed:
        raise UserError(
            f"train.num_steps of {workdir} was changed at step {changed[0]}: no single run has its schedule, give a run "
            "with one num_steps"
        )
    return found


def compare(
    old: dict[tuple[int, str], float], new: dict[tuple[int, str], float], tolerance: float
) -> Comparison:
    """The two curves where both have a point. Raises UserError where they share none."""
    points = sorted(old.keys() & new.keys())
    if not points:
        raise UserError("the two runs have no step in common: give more --steps")
    differences = {point: abs(old[point] - new[point]) for point in points}
    largest_at = max(points, key=differences.__getitem__)
    parted = next((point for point in points if not differences[point] <= tolerance), None)
    return Comparison(
        points=len(points),
        equal=sum(old[point] == new[point] for point in points),
        largest=differences[largest_at],
        largest_at=largest_at if differences[largest_at] else None,
        parted_at=parted,
        parted=None if parted is None else (old[parted], new[parted]),
    )


def as_text(found: Comparison, tolerance: float) -> str:
    """The comparison in words."""
    if found.equal == found.points:
        return f"equal: all {found.points:,} losses, to the last bit"
    step, split = found.largest_at
    most = f"largest difference {found.largest:.2g} nats, {split} loss of step {step}"
    if found.parted_at is None:
        return f"within {tolerance:g} nats: {found.points:,} losses, {found.equal:,} of them equal to the last bit; {most}"
    step, split = found.parted_at
    return f"they part at step {step}, {split} loss {found.parted[0]:.6f} and {found.parted[1]:.6f}; {most}"


def changes(workdir: Path) -> list[str]:
    """What of the first start's versions, commit and machine is another now: `jax: 0.10.1 -> 0.10.2`."""

    def circumstances(start: dict[str, Any]) -> dict[str, Any]:
        return {**start["versions"], **{name: start[name] for name in ("commit", "device", "machine")}}

    try:
        old = circumstances(read_json(workdir / "run.json")["starts"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{workdir / 'run.json'} can't be read ({error}): give the folder of a run") from None
    now = circumstances(records.start_record(0))
    return [f"{name}: {old.get(name)} -> {value}" for name, value in now.items() if old.get(name) != value]
