"""Are widths that are powers of two faster?

python -m experiments.powers_of_two [--quick | --full]
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from experiments import claim
from experiments.claim import Effect, Result, Setting
from jaxgpt import config
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.training import costs, steps

NOTE = "Memory alignment on modern GPUs is faster with powers of 2. Efficient matrix multiplications in deep learning frameworks (PyTorch, TensorFlow) work better with powers of 2."
CLAIM = "A d_model that is a power of two makes training faster than a slightly smaller one that is not."
PREDICTION = "Per FLOP, a width just below a power of two takes at least 2 % longer than the power."
REFUTED_BY = "A width that is no power of two and takes no longer per FLOP."
DESIGN = (
    "Training steps (forward, backward, AdamW) of two layers with two heads on random tokens in float32, at d_model 250 and 256, and 500, 510 and 512; "
    "d_ff is 4 x d_model. One step of each in turns; of every five steps the fastest counts, as other processes can only add time. "
    "As the narrower model has less to compute, the time per FLOP decides: that of the other width divided by that of the power of "
    "two must be at least 2 % above 1. The ratio of step times is given as well."
)
MARGINS = {"time": 0.02}
PAIRS = {
    "standard": [(250, 256), (500, 512), (510, 512)],
    "full": [(250, 256), (500, 512), (510, 512), (1000, 1024)],
}
AMONG = 5  # of every so many steps the fastest counts


def make_config(d_model: int, setting: Setting) -> config.Config:
    """The config whose steps are timed."""
    pick = setting.pick
    return config.Config(
        model=config.ModelConfig(
            vocab_size=256, context_length=pick(16, 64, 512), d_model=d_model, num_layers=pick(1, 2, 8), num_heads=2,
            activation="relu", dtype=pick("float32", "float32", "bfloat16"),
        ),
        data=config.DataConfig(batch_size=pick(2, 8, 32)),
        train=config.TrainConfig(num_steps=100, attention="explicit"),  # cuDNN's kernel accepts only some head widths
    )  # fmt: skip


def times(setting: Setting, widths: list[int], repeats: int) -> dict[int, list[float]]:
    """Seconds [repeats] of a step at each width, taken in turns."""
    runs = {}
    for width in widths:
        cfg = make_config(width, setting)
        parts = steps.build(cfg)
        state = steps.init_state(parts.model, parts.optimizer, jax.random.key(0))
        shape = (cfg.data.batch_size, cfg.model.context_length + 1)
        tokens = np.random.default_rng(0).integers(256, size=shape).astype(np.int32)
        run = jax.jit(parts.train_step, donate_argnums=0)
        for _ in range(2):
            state, _ = jax.block_until_ready(run(state, tokens, jax.random.key(0)))
        runs[width] = [run, state, tokens]
    found: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(repeats):
        for width, entry in runs.items():
            run, state, tokens = entry
            start = time.perf_counter()
            entry[1], _ = jax.block_until_ready(run(state, tokens, jax.random.key(0)))
            found[width].append(time.perf_counter() - start)
    return found


def measure(setting: Setting) -> dict[str, Any]:
    """Step times and their ratios."""
    pairs = PAIRS.get(setting.scale, [(30, 32)])
    widths = sorted({width for pair in pairs for width in pair})
    seconds = times(setting, widths, AMONG * setting.pick(2, 10, 20))
    seconds = {width: claim.fastest(found, AMONG) for width, found in seconds.items()}
    flops = {width: costs.train_flops_per_step(make_config(width, setting)) for width in widths}
    rows = []
    for other, power in pairs:
        per_flop = ([s / flops[width] for s in seconds[width]] for width in (other, power))
        rows.append(
            {
                "other": other, "power": power, "time": claim.ratio(seconds[other], seconds[power]),
                "time a FLOP": claim.ratio(*per_flop),
            }
        )  # fmt: skip
    return {
        "rows": rows,
        "seconds": seconds,
        "flops": flops,
        "params": {width: count_params(param_shapes(make_config(width, setting).model)) for width in widths},
        "device": jax.devices()[0].device_kind,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found = [
        (row["other"], row["power"], claim.estimate(row["time a FLOP"]), claim.estimate(row["time"]))
        for row in measurements["rows"]
    ]
    parts = tuple(
        Effect(
            f"time per FLOP at d_model {other} / at {power}",
            per_flop,
            "times",
            margin=MARGINS["time"],
            above=1.0,
        )
        for other, power, per_flop, _ in found
    )
    ratios = "; ".join(
        f"{other} / {power}: {claim.show(per_flop)} (step time {claim.show(time)})"
        for other, power, per_flop, time in found
    )
    return Result(
        parts, f"On the {measurements['device']}, time per FLOP relative to the power of two: {ratios}."
    )


def draw(figure, measurements: dict[str, Any]) -> None:
    """Ratios with intervals; step times."""
    ratios, spread = figure.subplots(1, 2)
    rows = measurements["rows"]
    for i, (kind, label) in enumerate({"time a FLOP": "time per FLOP", "time": "step time"}.items()):
        values, low, high = (np.array([row[kind][key] for row in rows]) for key in ("value", "low", "high"))
        at = np.arange(len(rows)) + 0.15 * i
        ratios.errorbar(
            at, values, yerr=[values - low, high - values], fmt="o", capsize=3, color=f"C{i}", label=label
        )
    ratios.axhline(1, color="C4", linestyle=":")
    ratios.set_xticks(range(len(rows)), [f"{row['other']} / {row['power']}" for row in rows])
    ratios.set(title="other width / power of two")
    ratios.legend()
    names = list(measurements["seconds"])
    spread.boxplot(
        [np.array(measurements["seconds"][name]) / measurements["flops"][name] * 1e9 * 1e3 for name in names],
        showfliers=False,
    )
    spread.set_xticks(range(1, len(names) + 1), names)
    spread.set(title="milliseconds per billion FLOP", xlabel="d_model")


if __name__ == "__main__":
    claim.run()
