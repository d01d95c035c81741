"""Are widths that are powers of two faster?

python -m experiments.powers_of_two [--quick | --full]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import numpy as np

from experiments import claim, timing
from experiments.claim import Amendment, Effect, Outdated, Result, Setting
from jaxgpt import config
from jaxgpt.training import costs, steps

NOTE = "Memory alignment on modern GPUs is faster with powers of 2. Efficient matrix multiplications in deep learning frameworks (PyTorch, TensorFlow) work better with powers of 2."
CLAIM = "A d_model that is a power of two makes training faster than a width near it that is not."
PREDICTION = "Per FLOP, every width that is no power of two takes at least 2 % longer than the nearest power."
REFUTED_BY = "A width that is no power of two and takes no longer per FLOP, such as a multiple of 16 or 128."
DESIGN = (
    "Training steps (forward, backward, AdamW) of two layers with two heads on random tokens in float32; d_ff is 4 x d_model. Widths: "
    "256 and 512; and others that are divisible by 2 (250, 510), 4 (500), 16 (240, 272), 128 (384) and 256 (768). One step of each in turns, in "
    "five fresh processes; of every five steps in a row the fastest counts, then the median; n is the number of processes. As widths "
    "differ in what they compute, the time per FLOP decides: that of the other width / that of the nearest power of two."
)
MARGINS = {"time": 0.02}
LIMITS = (
    "A CPU. No GPU has been tried, which the note is about; `--full` measures one, in bfloat16. The width of a head (d_model / 2) "
    "changes with d_model, so that its divisibility is tested as well, not apart."
)
AMENDMENTS = (
    *timing.AMENDMENTS,
    Amendment(
        "2026-11-26", "Widths 240, 272, 384 and 768 were added, and each divisor is a condition.",
        "250, 500 and 510 differ from powers of two in being divisible by 2 or 4 alone.", "holds",
    ),
)  # fmt: skip
WIDTHS = {
    "quick": [30, 32, 48],
    "standard": [240, 250, 256, 272, 384, 500, 510, 512, 768],
    "full": [240, 250, 256, 272, 384, 500, 510, 512, 768, 1000, 1024, 1536],
}
AMONG = 5  # of every so many steps the fastest counts


def is_power(width: int) -> bool:
    """Whether it is a power of two."""
    return width & (width - 1) == 0


def divisor(width: int) -> int:
    """The largest power of two that divides it."""
    return width & -width


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


def once(scale: str, repeats: int) -> dict[str, float]:
    """The median seconds of a step at each width, taken in turns, in this process."""
    setting = Setting(scale)
    runs = {}
    for width in WIDTHS[scale]:
        cfg = make_config(width, setting)
        parts = steps.build(cfg)
        state = steps.init_state(parts.model, parts.optimizer, jax.random.key(0))
        shape = (cfg.data.batch_size, cfg.model.context_length + 1)
        tokens = np.random.default_rng(0).integers(256, size=shape).astype(np.int32)
        run = jax.jit(parts.train_step, donate_argnums=0)
        for _ in range(2):
            state, _ = jax.block_until_ready(run(state, tokens, jax.random.key(0)))
        runs[width] = [run, state, tokens]
    found: dict[int, list[float]] = {width: [] for width in runs}
    for _ in range(repeats):
        for width, entry in runs.items():
            run, state, tokens = entry
            start = time.perf_counter()
            entry[1], _ = jax.block_until_ready(run(state, tokens, jax.random.key(0)))
            found[width].append(time.perf_counter() - start)
    return {str(width): statistics.median(claim.fastest(taken, AMONG)) for width, taken in found.items()}


def measure(setting: Setting) -> dict[str, Any]:
    """Step times of each process, and FLOPs."""
    processes = timing.in_processes(
        setting, "powers_of_two", "once", setting.scale, AMONG * setting.pick(1, 10, 20)
    )
    widths = WIDTHS[setting.scale]
    return {
        "processes": processes,
        "flops": {width: costs.train_flops_per_step(make_config(width, setting)) for width in widths},
        "device": jax.devices()[0].device_kind,
    }


def ratios_of(measurements: dict[str, Any], per_flop: bool) -> dict[tuple[int, int], claim.Estimate]:
    """The time of a step (per FLOP) at each other width / at the nearest power of two, by both widths."""
    widths = [int(width) for width in measurements["flops"]]
    powers = [width for width in widths if is_power(width)]
    found = {}
    for other in (width for width in widths if not is_power(width)):
        power = min(powers, key=lambda p: abs(p - other))
        times = (
            [
                row[str(width)] / (measurements["flops"][str(width)] if per_flop else 1)
                for row in measurements["processes"]
            ]
            for width in (other, power)
        )
        found[other, power] = claim.ratio(*times)
    return dict(sorted(found.items(), key=lambda item: (divisor(item[0][0]), item[0][0])))


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if "processes" not in measurements:
        raise Outdated("times from five processes, at more widths")
    per_flop, plain = (ratios_of(measurements, each) for each in (True, False))
    parts = tuple(
        Effect(
            f"time per FLOP at d_model {other} / at {power}", found, "times", above=1.0, margin=MARGINS["time"],
            under=f"against a width divisible by {divisor(other)}",
        )
        for (other, power), found in per_flop.items()
    )  # fmt: skip
    listed = "; ".join(
        f"{other} / {power}: {claim.show(found)} (step time {claim.show(plain[other, power])})"
        for (other, power), found in per_flop.items()
    )
    slow, fast = (
        max(per_flop, key=lambda k: per_flop[k].value),
        min(per_flop, key=lambda k: per_flop[k].value),
    )
    return Result(
        parts,
        f"On the {measurements['device']}, time per FLOP relative to the nearest power of two: {listed}.",
        varies="what the other width is divisible by",
        headline=f"Per FLOP, d_model {slow[0]} takes {per_flop[slow].value:.2f} times as long as {slow[1]}, and {fast[0]} "
        f"{per_flop[fast].value:.2f} times as long as {fast[1]} ({measurements['device']}).",
    )


def draw(figure, measurements: dict[str, Any]) -> None:
    """Ratios with intervals; the time per FLOP of every width and process."""
    ratios, spread = figure.subplots(1, 2)
    for i, (each, label) in enumerate(((True, "time per FLOP"), (False, "step time"))):
        found = ratios_of(measurements, each)
        values, low, high = np.array([(e.value, e.low, e.high) for e in found.values()]).T
        at = np.arange(len(found)) + 0.15 * i
        ratios.errorbar(
            at,
            values,
            yerr=[values - low, high - values],
            fmt="o",
            markersize=3,
            capsize=3,
            color=f"C{i}",
            label=label,
        )
        ratios.set_xticks(
            range(len(found)), [f"{other}/{power}\n:{divisor(other)}" for other, power in found], fontsize=7
        )
    ratios.axhline(1, color="C4", linestyle=":")
    ratios.set(ylabel="times", xlabel="width / power of two, and what divides the width")
    ratios.margins(y=0.3)
    ratios.legend(loc="upper center", ncols=2)
    widths = [int(width) for width in measurements["flops"]]
    for row in measurements["processes"]:
        per_flop = [row[str(width)] / measurements["flops"][str(width)] * 1e12 for width in widths]
        spread.plot(range(len(widths)), per_flop, "o", color="C0", markersize=3, alpha=0.7)
    spread.set_xticks(range(len(widths)), [str(width) for width in widths], fontsize=7)
    spread.set(ylabel="milliseconds per billion FLOP", xlabel="d_model (a point per process)")


if __name__ == "__main__":
    claim.run()
