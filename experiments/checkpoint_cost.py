"""What saving costs a run: the time for which training stands still, with a save every 50 steps.

    python -m experiments.checkpoint_cost [--only char] [--step_seconds 0.25]

`char` is configs/char.py as it trains, 500 steps. `gpt2` is a state of GPT-2's size (124M parameters with Adam's moments,
1.4 GiB) whose steps are simulated: each updates a small part of the donated state and then waits, as a host waits for a
GPU, `--step_seconds` in all. Standing still is the time in the call that saves, and what the next step takes longer than
the median one.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax

from jaxgpt import checkpoint, cli, config, tokenizers, train
from jaxgpt.presets import PRESETS
from jaxgpt.steps import build, init_state

EVERY = 50


class Stopwatch:
    """Seconds of every call of a function, and when each ended."""

    def __init__(self, function) -> None:
        self._function, self.seconds, self.ends = function, [], []

    def __call__(self, *args, **kwargs):
        began = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.ends.append(time.perf_counter())
            self.seconds.append(self.ends[-1] - began)


def told(name: str, step_seconds: list[float], saves: list[float], nbytes: int) -> str:
    """One line: a save's cost as a share of the steps between two. `step_seconds[i * EVERY]` follows the i-th save."""
    median = statistics.median(step_seconds)
    after = [max(0.0, step_seconds[i] - median) for i in range(EVERY, len(step_seconds), EVERY)]
    still = statistics.median(saves) + statistics.median(after)
    return (
        f"{name}: {nbytes / 2**20:,.1f} MiB a save, {len(saves)} saves; a step {1e3 * median:,.1f} ms; training stands "
        f"still {1e3 * statistics.median(saves):,.1f} ms in the call (most {1e3 * max(saves):,.1f}) and "
        f"{1e3 * statistics.median(after):,.1f} ms in the next step: {still / (EVERY * median):.2%} of its time"
    )


def char(folder: Path) -> str:
    """configs/char.py, with a clock around what its loop calls."""
    values = cli.load_config_dict("configs/char.py")
    overrides = {"train.num_steps": "500", "train.eval_every": "0", "train.checkpoint_every": str(EVERY)}
    cfg = config.from_config_dict(
        config.apply_overrides(
            values, overrides | {"train.embedding_snapshots": "0", "train.sample_tokens": "0"}
        )
    )
    trainer = train.Trainer(cfg, folder)
    save = trainer.checkpoints.save = Stopwatch(trainer.checkpoints.save)
    feed = trainer._batches = Stopwatch(trainer._batches)
    state = trainer.run().state
    # A step lasts from one batch to the next, without the save between them; the last has no next.
    steps = [b - a for a, b in zip(feed.ends[1:], feed.ends[2:], strict=False)]
    for i, seconds in enumerate(save.seconds[:-1]):
        steps[(i + 1) * EVERY - 1] -= seconds
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    return told("char", steps[:1] + steps, save.seconds[:-1], nbytes)


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
    state = jax.block_until_ready(step(state))
    checkpoints.save(state, cfg, tokenizer)  # compiles what a first save compiles
    checkpoints.wait()
    save, seconds = Stopwatch(checkpoints.save), []
    for i in range(EVERY * (saves + 1)):
        if i and i % EVERY == 0:
            save(state, cfg, tokenizer)
        began = time.perf_counter()
        state = jax.block_until_ready(step(state))
        time.sleep(max(0.0, step_seconds - (time.perf_counter() - began)))
        seconds.append(time.perf_counter() - began)
    checkpoints.close()
    return told("gpt2", seconds, save.seconds, nbytes)


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
