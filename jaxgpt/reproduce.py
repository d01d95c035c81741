"""Does a run come out the same again? Its config, run anew in a fresh folder, and the two curves beside each other.

    python -m jaxgpt.reproduce --workdir runs/char [--into runs/char-again] [--steps 200]

On the same machine, versions and number of devices the curves are equal to the last bit. On others sums are taken in
another order: losses part by a few 1e-7 nats at first, and by more the longer and the wilder the run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.common.files import read_json
from jaxgpt.config import UserError
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs import records
from jaxgpt.training.loop import train

TOLERANCE = 1e-3  # nats a token


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
        return {(line["step"], line["split"]): line["loss"] for line in lines if line["loss"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}): give the folder of a run") from None


def compare(
    old: dict[tuple[int, str], float], new: dict[tuple[int, str], float], tolerance: float = TOLERANCE
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


def main(argv: list[str]) -> int:
    """The command line: see --help. The exit code is 1 where the curves part."""
    parser = cli.Parser(
        prog="python -m jaxgpt.reproduce",
        description="Run a run again, in a fresh folder, and compare the curves.",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--into", type=Path, default=None, help="the new folder; by default RUN-again")
    parser.add_argument("--steps", type=int, default=None, help="only so many; by default as many as RUN has")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="nats a token that losses may differ by"
    )
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps={args.steps}: give 1 or more")
    if not (args.tolerance >= 0 and math.isfinite(args.tolerance)):
        raise UserError(f"--tolerance={args.tolerance}: give a number from 0")
    into = args.into or args.workdir.with_name(args.workdir.name + "-again")
    if into.exists() and any(into.iterdir() if into.is_dir() else [into]):
        raise UserError(f"{into} is not empty: give another folder as --into")
    old = curve(args.workdir)
    try:
        cfg = config.from_config_dict(read_json(args.workdir / "config.json"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{args.workdir / 'config.json'} can't be read ({error})") from None
    for line in changes(args.workdir):
        print(f"changed since: {line}")
    cli.set_up_process()
    done = max((step for step, _ in old), default=0)
    steps = min(done, args.steps or done)
    dataset = prepare_dataset(cfg.data)
    records.check_same_text(
        args.workdir, text_sha256=dataset.text_sha256, tokenizer_sha256=dataset.fingerprint
    )
    result = train(cfg, into, stop_at=None if steps == cfg.train.num_steps else steps)
    if result.signal is not None:
        return 128 + result.signal
    found = compare(old, curve(into), args.tolerance)
    print(as_text(found, args.tolerance))
    return 0 if found.parted_at is None else 1


if __name__ == "__main__":
    cli.run(main)
