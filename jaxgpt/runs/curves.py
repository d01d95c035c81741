"""Compare the losses of two runs, and the machines and versions they ran with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.common.files import read_json
from jaxgpt.config import UserError
from jaxgpt.runs import metrics_log, records


@dataclass(frozen=True)
class Comparison:
    """The comparison of two curves at their common points (step, split)."""

    points: int
    equal: int  # points with bit-equal losses
    largest: float  # largest difference, nats per token
    largest_at: tuple[int, str]
    parted_at: tuple[int, str] | None  # the first point with a difference above the tolerance
    parted: tuple[float, float] | None  # the two losses at that point


def curve(workdir: Path) -> dict[tuple[int, str], float]:
    """The losses in a run's metrics.jsonl by (step, split). Raises UserError if it can't be read."""
    found: dict[tuple[int, str], float] = {}
    changed = []
    for line in metrics_log.lines(workdir):
        if line["split"] == "change":
            changed += [line["step"]] if line["step"] > 0 else []
        elif line.get("loss") is not None:
            found[line["step"], line["split"]] = line["loss"]
    if not found:
        raise UserError(f"{workdir / metrics_log.NAME} has no losses: give the folder of a run")
    if changed:
        raise UserError(
            f"train.num_steps of {workdir} was changed at step {changed[0]}: no single run has its schedule, give a run "
            "with one num_steps"
        )
    return found


def compare(
    old: dict[tuple[int, str], float], new: dict[tuple[int, str], float], tolerance: float
) -> Comparison:
    """Compare two curves at their common points. Raises UserError if there are none."""
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
        largest_at=largest_at,
        parted_at=parted,
        parted=None if parted is None else (old[parted], new[parted]),
    )


def as_text(found: Comparison, tolerance: float) -> str:
    """The comparison as a sentence."""
    if found.equal == found.points:
        return f"equal: all {found.points:,} losses, to the last bit"
    step, split = found.largest_at
    most = f"largest difference {found.largest:.2g} nats, {split} loss of step {step}"
    if found.parted_at is None or found.parted is None:
        return f"within {tolerance:g} nats: {found.points:,} losses, {found.equal:,} of them equal to the last bit; {most}"
    step, split = found.parted_at
    return f"they part at step {step}, {split} loss {found.parted[0]:.6f} and {found.parted[1]:.6f}; {most}"


def changes(workdir: Path) -> list[str]:
    """The differences in versions, commit and machine since the first start: `jax: 0.10.1 -> 0.10.2`."""

    def circumstances(start: dict[str, Any]) -> dict[str, Any]:
        return {**start["versions"], **{name: start[name] for name in ("commit", "device", "machine")}}

    try:
        old = circumstances(read_json(workdir / "run.json")["starts"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{workdir / 'run.json'} can't be read ({error}): give the folder of a run") from None
    now = circumstances(records.start_record(0))
    return [f"{name}: {old.get(name)} -> {value}" for name, value in now.items() if old.get(name) != value]
