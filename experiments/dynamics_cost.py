"""What snapshots and statistics cost: configs/char.py trained without, with train.snapshots and with train.stats_every, in turns.

    python -m experiments.dynamics_cost [--steps 600] [--rounds 5] [--json]

Each round trains every variant once, in one process, in an order that rotates. The time is that from the log line of step 1 to that of the last
step. Ratios are those of a round; the result is their median, least and most, and the median of two equal variants is the noise. Parameters at the
end are compared bit for bit, and the bytes of the snapshots are counted. Statistics at every 100th step cost less than such ratios vary: a hundredth
of what those at every step cost is their share without compiling. --json writes experiments/results/dynamics_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.runs import load, records, snapshots
from jaxgpt.training.loop import Trainer

RESULT = Path(__file__).with_name("results") / "dynamics_cost.json"
PLAIN = {
    "train.report": "false", "train.snapshots": "", "train.eval_every": "0", "train.checkpoint_every": "0",
    "train.sample_tokens": "0", "train.embedding_snapshots": "0", "train.eval_tokens": "4096", "train.log_every": "1",
}  # fmt: skip
VARIANTS = {
    "plain": {},
    "plain again": {},
    "snapshots log:24": {"train.snapshots": "log:24"},
    "stats every 100": {"train.stats_every": "100"},
    "stats every step": {"train.stats_every": "1"},
}


def seconds(workdir: Path) -> float:
    """From the log line of step 1, which compiling comes before, to the last one."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    times = [line["time"] for line in lines if line["split"] == "train"]
    return times[-1] - times[0]


def bits(workdir: Path) -> list[bytes]:
    """The parameters at the end."""
    import jax

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load.load(workdir).params)]


def measure(steps: int, rounds: int) -> dict:
    """All rounds, and what follows from them."""
    names, taken = list(VARIANTS), []
    equal, size = True, 0
    for number in range(rounds):
        turn = number % len(names)
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in [*names[turn:], *names[:turn]]:
                overrides = {**PLAIN, "train.num_steps": str(steps), **VARIANTS[name]}
                workdir = Path(folder) / name
                Trainer([(cli.read_config("configs/char.py", overrides), workdir)]).run()
                found[name] = seconds(workdir)
            equal &= all(bits(Path(folder) / name) == bits(Path(folder) / "plain") for name in names)
            kept = list((Path(folder) / "snapshots log:24" / snapshots.FOLDER).iterdir())
            size = sum(path.stat().st_size for path in kept)
        taken.append(found)
        print(json.dumps({name: round(x, 2) for name, x in found.items()}), flush=True)
    ratios = {name: [found[name] / found["plain"] for found in taken] for name in names[1:]}
    each = statistics.median(ratios["stats every step"]) - 1
    return {
        "steps": steps,
        "seconds": taken,
        "ratio to plain": {
            name: {"median": statistics.median(x), "least": min(x), "most": max(x)}
            for name, x in ratios.items()
        },
        "share of statistics at every 100th step": each / 100,
        "parameters equal bit for bit": equal,
        "snapshots": {"number": len(kept), "bytes": size},
        "machine": records.start_record(0) | {"load average": os.getloadavg()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    cli.set_up_process()
    found = measure(args.steps, args.rounds)
    if args.json:
        write_json(RESULT, found)
    print(json.dumps({name: found[name] for name in found if name not in ("seconds", "machine")}, indent=2))


if __name__ == "__main__":
    main()
