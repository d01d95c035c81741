"""What bfloat16 in the loss's logits and in Muon's products does to a training: short runs in float32 and bfloat16, paired by seed.

    python -m experiments.low_precision [--seeds 5] [--steps 200] [--out FILE]

The fast recipe (configs/char_fast.py) as a word model of Shakespeare: its vocabulary of 2,000 is wider than the model, so that
the logits are what a chunk of the loss stores. The model computes in bfloat16, which a CPU emulates: the same roundings as on a
GPU, products in another order. Each arm differs from the first in one field; the differences are those of the losses on the
validation text after the last step, with Student's 95 % interval over the seeds. Written as JSON.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import claim, comparing, intervals, trained
from experiments.trained import changed
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import UserError

OUT = Path(__file__).parent / "results" / "low_precision.json"
BASE = "float32 logits and products"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "logits in bfloat16": {"train.logits_dtype": "bfloat16"},
    "Muon's products in bfloat16": {"optim.muon_dtype": "bfloat16"},
    "both": {"train.logits_dtype": "bfloat16", "optim.muon_dtype": "bfloat16"},
}
FIELDS = {
    "model.dtype": "bfloat16", "model.d_model": 64, "model.num_layers": 2, "model.num_heads": 2, "model.context_length": 64,
    "data.tokenizer": "word", "data.vocab_size": 2_000, "data.batch_size": 8,
    "train.loss_chunk": 32, "train.eval_tokens": 65_536, "train.sample_tokens": 0, "train.log_every": 50,
}  # fmt: skip


def measure(seeds: int, steps: int, folder: Path) -> dict[str, Any]:
    """The losses by arm and seed, and what each arm's are above the first's."""
    base = changed(cli.read_config("configs/char_fast.py", {}), {**FIELDS, "train.num_steps": steps})
    members = [{"train.seed": seed, **arm} for arm in ARMS.values() for seed in range(seeds)]
    start = time.perf_counter()
    rows = trained.run(base, members, folder)
    if failed := [f"{row.workdir}: {row.status}" for row in rows if not row.done]:
        raise UserError(f"training failed: {'; '.join(failed)}")
    by_arm = {tuple(arm.items()): name for name, arm in ARMS.items()}
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    for row, loss in zip(rows, comparing.losses(rows), strict=True):
        values = {name: value for name, value in row.overrides.items() if name != "train.seed"}
        losses[by_arm[tuple(values.items())]].append(loss)
    return {
        "seeds": seeds,
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "losses": losses,
        "differences": {
            name: claim.plain(intervals.difference(found, losses[BASE]))
            for name, found in losses.items()
            if name != BASE
        },
    }


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.low_precision", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each arm")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--out", type=Path, default=OUT, help="write the results to this file")
    args = parser.parse_args(argv)
    cli.check_at_least(1, args, "seeds")
    cli.check_at_least(1, args, "steps")
    cli.set_up_process()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.seeds, args.steps, Path(folder))
    write_json(args.out, {"commit": claim.commit(), "machine": claim.machine(), **found})
    for name, difference in found["differences"].items():
        print(
            f"{name}: {difference['value']:+.5f} nats ({difference['low']} to {difference['high']}), {found['seconds']} s"
        )


if __name__ == "__main__":
    cli.run(main)
