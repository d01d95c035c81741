"""What saving costs a run: for how long training stops, and how much slower it is, with a save every 50 steps.

    python -m experiments.checkpoint_cost [--only char] [--step_seconds 0.25]

`char` trains configs/char.py for 1,000 steps with a save every 100, so that every other stretch of 50 steps has one.
`gpt2` is a state of GPT-2's size (124M parameters with Adam's moments, 1.4 GiB) with simulated steps: each updates a small
part of the donated state and then waits, as a host waits for a GPU, `--step_seconds` in total. The stop is the time in the
call that saves. Each save is read back in the background, the first one whole. The total cost is how much longer a stretch
with a save takes; on two cores that is mostly because writing shares them.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config.presets import PRESETS
from jaxgpt.data import tokenizers
from jaxgpt.runs import checkpoint
from jaxgpt.training import loop
from jaxgpt.training.steps import build, init_state

EVERY = 50


class Stopwatch:
    """The start and the duration of each call of a function."""

    def __init__(self, function) -> None:
        self._function, self.starts, self.seconds = function, [], []

    def __call__(self, *args, **kwargs):
        self.starts.append(time.perf_counter())
        try:
            return self._function(*args, **kwargs)
        finally:
            self.seconds.append(time.perf_counter() - self.starts[-1])


def describe(name: str, starts: list[float], saves: list[float], nbytes: int, checks: list[float]) -> str:
    """One line. `starts` has the start of each step; saves are before steps 100, 200, ...; `checks` read each save back."""
    stretches = np.diff(starts[::EVERY])[1:]  # the first has the compiling
    without, with_save = stretches[::2], stretches[1::2]
    usual = float(np.median(without))
    extra = float(np.median(with_save)) - usual
    still = statistics.median(saves)
    first, *others = checks
    check, every = statistics.median(others), 2 * usual
    return (
        f"{name}: {nbytes / 2**20:,.1f} MiB a save; 50 steps take {usual:,.2f} s; {len(with_save)} saves: training stands "
        f"still {1e3 * still:,.1f} ms in the call (most {1e3 * max(saves):,.1f}), {still / usual:.2%} of its time; a stretch "
        f"with a save takes {1e3 * extra:,.0f} ms longer in all, {extra / usual:.2%} "
        f"(stretches without vary by {np.ptp(without) / usual:.1%}); reading a save back takes {1e3 * check:,.0f} ms in the "
        f"background, {check / every:.2%} of the time between two saves (the first, whole: {1e3 * first:,.0f} ms)"
    )


def worked(verify: Stopwatch) -> list[float]:
    """The seconds of the calls that had a save to read back."""
    return [seconds for seconds in verify.seconds if seconds > 1e-3]


def char(folder: Path) -> str:
    """configs/char.py, with a clock around what its loop calls."""
    values = cli.load_config_dict("configs/char.py")
    overrides = {
        "train.num_steps": "1000", "train.eval_every": "0", "train.checkpoint_every": str(2 * EVERY),
        "train.embedding_snapshots": "0", "train.sample_tokens": "0", "train.eval_tokens": "4096",
    }  # fmt: skip
    cfg = config.from_config_dict(config.apply_overrides(values, overrides))
    trainer = loop.Trainer([(cfg, folder)])
    checkpoints = trainer.runs[0].checkpoints
    save = checkpoints.save = Stopwatch(checkpoints.save)
    verify = checkpoints._verify = Stopwatch(checkpoints._verify)
    feed = trainer.program.feed = Stopwatch(trainer.program.feed)
    state = trainer.run()[0].state
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    # The first batch is that of compiling; the last save is of the run's end.
    return describe("char", feed.starts[1:], save.seconds[:-1], nbytes, worked(verify))


def gpt2(folder: Path, step_seconds: float, saves: int) -> str:
    """A state of GPT-2's size, saved while simulated steps change it."""
    cfg = config.Config(model=PRESETS["gpt2"])
    model, _, optimizer, _ = build(cfg)
    state = init_state(model, optimizer, jax.random.key(0))
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        params = {**state.params, "final_norm": jax.tree.map(lambda x: x * 0.999, state.params["final_norm"])}
        return state._replace(step=state.step + 1, params=params)

    tokenizer = tokenizers.CharTokenizer("ab")
    checkpoints = checkpoint.Checkpoints(folder, keep=1)
    verify = checkpoints._verify = Stopwatch(checkpoints._verify)
    state = jax.block_until_ready(step(state))
    checkpoints.save(state, cfg, tokenizer)  # compiles what a first save compiles
    checkpoints.wait()
    save, starts = Stopwatch(checkpoints.save), []
    for i in range(2 * EVERY * (saves + 1) + 1):
        starts.append(time.perf_counter())
        if i and i % (2 * EVERY) == 0:
            save(state, cfg, tokenizer)
        now = time.perf_counter()
        state = jax.block_until_ready(step(state))
        time.sleep(max(0.0, step_seconds - (time.perf_counter() - now)))
    checkpoints.close()
    return describe("gpt2", starts, save.seconds, nbytes, worked(verify))


def main(argv: list[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.checkpoint_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["char", "gpt2"], default=None)
    parser.add_argument("--step_seconds", type=float, default=0.25, help="of a simulated step")
    parser.add_argument("--saves", type=int, default=4, help="of the simulated run")
    args = parser.parse_args(argv)
    cli.set_up_process()
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "gpt2":
            print(char(Path(folder) / "char"), flush=True)
        if args.only != "char":
            print(gpt2(Path(folder) / "gpt2", args.step_seconds, args.saves), flush=True)


if __name__ == "__main__":
    cli.run(main)
