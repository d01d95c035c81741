"""What does a wider model cost, and what does it win, at equal steps and at equal time?

python -m experiments.width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing
from experiments.claim import Check, Effect, Result, Setting

CLAIM = "A small d_model is fast, small in memory and less accurate; a large one is the reverse."
DESIGN = (
    "Two-layer character models of Shakespeare that differ in d_model, at rates that suit all widths alike (muP), constant "
    "after a warm-up, the same windows for all. Loss after equally many steps; parameters and the memory of a training "
    "step as predicted; the time of a step, measured in turn. Narrow models train for more steps, so that losses can be "
    "read at equal time too: at the shortest of all runs, between evaluations on a straight line."
)


def plan(setting: Setting) -> dict[int, int]:
    """Steps for each width: the widest has fewest, which all are compared after."""
    return setting.pick(
        {4: 4, 8: 2}, {64: 800, 128: 400, 256: 200, 512: 100}, {64: 8000, 128: 8000, 256: 6000, 512: 4000, 1024: 2000}
    )  # fmt: skip


def measure(setting: Setting) -> Result:
    """Losses, sizes and times by width."""
    steps = plan(setting)
    common = min(steps.values())
    base = comparing.base(
        setting, **comparing.WIDTHS_ALIKE, optim__schedule="constant", train__eval_tokens=setting.pick(64, 8_192, 65_536)
    )  # fmt: skip
    variants = {
        str(width): {
            "model.d_model": width, "model.num_heads": max(1, width // 32), "train.num_steps": count,
            "train.eval_every": max(1, common // 4),
        }
        for width, count in steps.items()
    }  # fmt: skip
    configs = {label: comparing.changed(base, overrides) for label, overrides in variants.items()}
    sizes = {label: comparing.size(cfg) for label, cfg in configs.items()}
    times = comparing.step_times(configs, setting.pick(2, 20, 40))
    seconds = {label: statistics.median(values) for label, values in times.items()}
    rows = comparing.train(setting, "width", base, variants)
    curves = {label: [comparing.curve(row) for row in found] for label, found in rows.items()}

    budget = min(count * seconds[str(width)] for width, count in steps.items())
    equal_steps = {label: [curve[common] for curve in found] for label, found in curves.items()}
    equal_time = {
        label: [_at(curve, budget / seconds[label]) for curve in found] for label, found in curves.items()
    }
    small, *_, large = variants
    won = claim.difference(equal_steps[small], equal_steps[large])
    slower = claim.ratio(times[large], times[small])
    in_time = claim.difference(equal_time[small], equal_time[large])
    best = min(equal_time, key=lambda label: statistics.fmean(equal_time[label]))
    shrinks = sum(
        sizes[b][what] <= sizes[a][what]
        for a, b in zip(sizes, list(sizes)[1:], strict=False)
        for what in ("parameters", "bytes")
    )
    return Result(
        parts=(
            Effect(f"loss at d_model {small} less that at {large}, {common} steps each", won, "nats a character"),
            Effect(f"time of a step at d_model {large} over that at {small}", slower, "times", above=1.0),
            Check("widths that have fewer parameters or need less memory than the one before", shrinks, 0),
        ),
        says=(
            f"From d_model {small} to {large} the loss after {common} steps falls by {claim.show(won, 'nats a character')}, a "
            f"step takes {claim.show(slower, 'times')} as long, parameters grow from {sizes[small]['parameters']:,} to "
            f"{sizes[large]['parameters']:,} and memory from {sizes[small]['bytes'] / 1e6:.1f} to "
            f"{sizes[large]['bytes'] / 1e6:.1f} MB. In the same {budget:.1f} s of training the narrowest less the "
            f"widest is {claim.show(in_time, 'nats')}, and {best} is the best."
        ),
        measurements={
            "sizes": sizes, "milliseconds": {label: 1000 * s for label, s in seconds.items()}, "steps": common,
            "seconds": budget, "equal steps": equal_steps, "equal time": equal_time,
            "curves": {label: [sorted(curve.items()) for curve in found] for label, found in curves.items()},
        },
        seeds=setting.seeds,
    )  # fmt: skip


def _at(curve: dict[int, float], step: float) -> float:
    steps = sorted(curve)
    return float(np.interp(step, steps, [curve[step] for step in steps]))


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Loss over steps and over time, each width's mean; what it costs."""
    by_step, by_time, cost = figure.subplots(1, 3)
    for label, found in measurements["curves"].items():
        steps = [step for step, _ in found[0]]
        means = np.mean([[loss for _, loss in curve] for curve in found], axis=0)
        by_step.plot(steps, means, label=label)
        by_time.plot([step * measurements["milliseconds"][label] / 1000 for step in steps], means)
    by_step.axvline(measurements["steps"], color="#7a7a7a", linestyle="--", linewidth=1)
    by_time.axvline(measurements["seconds"], color="#7a7a7a", linestyle="--", linewidth=1)
    by_step.set(title="loss by steps", xlabel="step", ylabel="nats a character")
    by_time.set(title="loss by time", xlabel="seconds of training")
    by_step.legend(title="d_model")
    widths = [int(label) for label in measurements["sizes"]]
    cost.loglog(widths, measurements["milliseconds"].values(), "o-", label="ms a step")
    for what, scale, name in (("parameters", 1e-3, "thousand parameters"), ("bytes", 1e-6, "MB")):
        cost.loglog(widths, [scale * size[what] for size in measurements["sizes"].values()], "o-", label=name)
    cost.set_xticks(widths, list(measurements["sizes"]))
    cost.minorticks_off()
    cost.set(title="cost", xlabel="d_model")
    cost.legend()


if __name__ == "__main__":
    claim.run()
