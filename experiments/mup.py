"""Does the best learning rate stay the same when the model grows? AdamW with and without muP.

    python -m experiments.mup --text tinyshakespeare.txt [--widths 64,128,256,512] [--steps 100] [--json FILE]

Two layers, heads of width 32, context 64, batch 4; a warm-up of 10 steps, then a constant rate; the same windows for all. The
score is the mean training loss of the last 20 steps (no window occurs twice), averaged over seeds. The best rate is the
minimum of a parabola through the lowest three scores, in powers of two.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.training import optim, steps

BASE_WIDTH = 64
POWERS = range(-12, -3)  # of two: the learning rates
LAST = 20  # steps that the score averages over


def make_config(parametrization: str, width: int, vocab_size: int) -> config.Config:
    """The config of one curve."""
    values = {
        "model": {
            "vocab_size": vocab_size, "context_length": 64, "d_model": width, "num_layers": 2,
            "num_heads": width // 32, "use_bias": False, "init": "fan_in", "zero_init": True, "tie_embeddings": False,
        },
        "data": {"batch_size": 4},
        "optim": {
            "parametrization": parametrization, "mup_base_width": BASE_WIDTH, "b2": 0.95, "weight_decay": 0.0,
            "schedule": "constant", "warmup_steps": 10,
        },
    }  # fmt: skip
    return config.from_config_dict(values)


def scores(cfg: config.Config, ids: np.ndarray, num_steps: int, seeds: list[int]) -> list[float]:
    """The score at each rate of POWERS. The rate is an argument of the step, so one program serves all."""
    model = GPT(cfg.model)
    shape = optim.make_schedule(cfg.optim, num_steps)

    def optimizer(rate):
        return optim.make_optimizer(cfg.optim, lambda step: rate * shape(step) / cfg.optim.learning_rate)

    @jax.jit
    def step(state, batch, key, rate):
        return steps.make_train_step(model, optimizer(rate), shape, cfg)(state, batch, key)

    found = []
    for power in POWERS:
        losses = []
        for seed in seeds:
            key = jax.random.key(seed)
            state = steps.init_state(model, optimizer(1.0), key)
            for at in range(num_steps):
                batch = Batches(ids, seed, cfg.data.batch_size, cfg.model.context_length).at(at)
                state, metrics = step(state, batch, key, jnp.float32(2.0**power))
                losses.append(metrics["loss"])
        by_seed = np.array(losses).reshape(len(seeds), num_steps)
        found.append(float(by_seed[:, -LAST:].mean()))
    return found


def best_power(found: list[float]) -> float:
    """The minimum of a parabola through the lowest score and its neighbours, as a power of two."""
    i = int(np.nanargmin(found))
    if i in (0, len(found) - 1):
        return float(POWERS[i])
    a, b, c = found[i - 1 : i + 2]
    return POWERS[i] + 0.5 * (a - c) / (a - 2 * b + c)


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.mup", description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="a text, such as tiny Shakespeare")
    parser.add_argument("--widths", default="64,128,256,512", help="values of d_model, multiples of 32")
    parser.add_argument("--steps", type=int, default=100, help="steps per run")
    parser.add_argument("--seeds", type=int, default=2, help="runs per rate")
    parser.add_argument("--json", default=None, type=Path, help="a file for the scores")
    args = parser.parse_args(argv)
    cli.set_up_process()
    dataset = prepare_dataset(config.DataConfig(path=args.text))
    widths = [int(width) for width in args.widths.split(",")]
    result: dict[str, dict[int, list[float]]] = {}
    for parametrization in ("standard", "mup"):
        print(f"{parametrization:>9}  " + "  ".join(f"  2^{power:<3}" for power in POWERS) + "  best rate")
        result[parametrization] = {}
        for width in widths:
            cfg = make_config(parametrization, width, dataset.tokenizer.vocab_size)
            found = scores(cfg, np.asarray(dataset.train.ids), args.steps, list(range(args.seeds)))
            result[parametrization][width] = found
            best = best_power(found)
            print(f"{width:>9}  " + "  ".join(f"{x:7.3f}" for x in found) + f"  2^{best:.2f}", flush=True)
        bests = [best_power(found) for found in result[parametrization].values()]
        slope = np.polyfit(np.log2(widths), bests, 1)[0] if len(widths) > 1 else math.nan
        print(f"{'':9}  the best rate is proportional to width^{slope:.2f}")
    if args.json:
        args.json.write_text(json.dumps({"powers": list(POWERS), **result}, indent=1))


if __name__ == "__main__":
    cli.run(main)
