"""What training many models in one program gains: runs per hour in a sweep, and one by one.

    python -m experiments.sweep_speed [--members 1 8 32] [--sizes tiny small char] [--steps 100]
    python -m experiments.sweep_speed --quick    # a test that it runs, in seconds; gives no result

Times are those that a user sees, from the start of the command to its end: a sweep with nothing compiled; single runs with
everything compiled by a first run, which is not counted. At most three single runs are timed, and the other members are
assumed to take as long. Then the time of a member's step, by the number of lanes that a core computes at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.data.dataset import Dataset, prepare_dataset
from jaxgpt.sweeps import groups
from jaxgpt.sweeps.members import Sweep
from jaxgpt.training import lanes
from jaxgpt.training.programs import VmappedRuns
from jaxgpt.training.starting import resolve

# Each: the fields that make it.
SIZES = {
    "tiny": {"model.d_model": 32, "model.num_layers": 2, "model.num_heads": 2, "model.context_length": 32, "data.batch_size": 8},
    "small": {"model.d_model": 64, "model.num_layers": 2, "model.num_heads": 2, "model.context_length": 64, "data.batch_size": 16},
    "char": {"model.d_model": 128, "model.num_layers": 4, "model.num_heads": 4, "model.context_length": 64, "data.batch_size": 16},
}  # fmt: skip
TIMED_ALONE = 3
WIDTHS = (1, 2, 4, 8)
ROUNDS = 20

FILE = """
from jaxgpt.config import default_config

FIELDS = {fields!r}

def get_config():
    config = default_config()
    for name, value in FIELDS.items():
        group, name = name.split(".")
        config[group][name] = value
    return config

def sweep():
    for seed in range({count}):
        yield {{"optim.learning_rate": 1e-3 * (1 + seed), "train.seed": seed}}
"""


def fields(size: str, steps: int) -> dict:
    return SIZES[size] | {
        "model.activation": "relu", "optim.warmup_steps": 10, "train.num_steps": steps, "train.eval_every": 0,
        "train.eval_tokens": 16_384, "train.checkpoint_every": 0, "train.sample_tokens": 0, "train.embedding_snapshots": 0,
        "train.steps_per_dispatch": 10,
    }  # fmt: skip


def seconds_of(arguments: list[str], cache: Path) -> float:
    """How long a command takes, from its start to its end."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def compare(size: str, counts: list[int], steps: int, folder: Path) -> list[dict]:
    """Runs an hour in a sweep and alone, for each number of members."""
    file, rows = folder / f"{size}.py", []
    file.write_text(FILE.format(fields=fields(size, steps), count=1))
    alone = ["jaxgpt.train", "--config", str(file)]
    seconds_of([*alone, "--workdir", str(folder / f"{size}-first")], folder / "cache-alone")
    times = [
        seconds_of(
            [*alone, "--workdir", str(folder / f"{size}-{i}"), f"--config.train.seed={i}"],
            folder / "cache-alone",
        )
        for i in range(min(TIMED_ALONE, max(counts)))
    ]
    each = sum(times) / len(times)
    for count in counts:
        file.write_text(FILE.format(fields=fields(size, steps), count=count))
        command = ["jaxgpt.sweep", "--config", str(file), "--workdir", str(folder / f"{size}-sweep-{count}")]
        together = seconds_of(command, folder / f"cache-{size}-{count}")
        rows.append(
            {
                "size": size,
                "members": count,
                "alone_runs_an_hour": 3600 / each,
                "sweep_runs_an_hour": 3600 * count / together,
                "ratio": count * each / together,
            }
        )
        row = rows[-1]
        print(f"{size:6} {count:3} members: {row['alone_runs_an_hour']:7.0f} runs an hour alone, "
              f"{row['sweep_runs_an_hour']:7.0f} in a sweep, {row['ratio']:.2f} x", flush=True)  # fmt: skip
    return rows


def step_timer(cfgs: Sequence[config.Config], dataset: Dataset, width: int) -> Callable[[], float]:
    """A function that takes one step of all lanes and returns its seconds per lane."""
    cfgs = [lanes.with_values(cfg, {"train.steps_per_dispatch": 1}) for cfg in cfgs]
    program = VmappedRuns(cfgs, dataset.train.ids, width)
    first = [jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), program.shapes.params)] * len(cfgs)
    step, state = program.compile().result(), program.init(first)

    def timed() -> float:
        nonlocal state
        arguments = program.feed(0)
        began = time.perf_counter()
        state, metrics = step(state, *arguments)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / len(cfgs)

    return timed


def widths(size: str, count: int, folder: Path) -> dict:
    """Milliseconds of a member's step by lanes at once: medians, timed in turns."""
    values = config.default_config()
    for name, value in fields(size, 1_000).items():
        group, name = name.split(".")
        values[group][name] = value
    found = Sweep(values, [{"train.seed": i} for i in range(count)], folder / f"{size}-widths")
    dataset = prepare_dataset(found.members[0].cfg.data)
    cfgs = [resolve(member.cfg, dataset.tokenizer) for member in found.members]
    timers = {
        w: step_timer(cfgs[: max(2 * w, 4) * jax.local_device_count()], dataset, w)
        for w in WIDTHS
        if 2 * w <= count
    }
    rounds = [{w: 1e3 * timed() for w, timed in timers.items()} for _ in range(ROUNDS + 1)][1:]  # in turns
    times = {w: statistics.median(turn[w] for turn in rounds) for w in timers}
    text = ", ".join(f"{w}: {ms:.2f}" for w, ms in times.items())
    print(f"{size:6} {count} lanes, ms of a member's step by lanes at once on each core: {text}", flush=True)
    return {"size": size, "lanes": count, "ms_a_step": times}


def main(argv: list[str]) -> None:
    """The command line: see the module."""
    parser = cli.Parser(prog="python -m experiments.sweep_speed", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--members", type=int, nargs="*", default=[1, 8, 32], help="none: only what a width is worth"
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.quick:
        args.members, args.sizes, args.steps = [2], ["tiny"], 10
    cli.set_up_process()
    groups.use_all_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = []
        for size in args.sizes if args.members else ():
            runs += compare(size, args.members, args.steps, folder)
        steps = [widths(size, 4 if args.quick else 16, folder) for size in args.sizes]
    if args.out:
        args.out.write_text(json.dumps({"runs": runs, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
