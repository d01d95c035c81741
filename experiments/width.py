"""What does a wider model cost, and what does it gain, after equally many steps and after equal time?

python -m experiments.width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, trained
from experiments.claim import Check, Effect, Result, Setting

NOTE = "Small (e.g., 64): fast, low memory; less accurate, loses context. Large (e.g., 1024+): high accuracy, deep context; needs powerful GPU/TPU."
CLAIM = "A small d_model is fast, needs little memory and is less accurate; a large d_model is the reverse."
PREDICTION = "Each wider model has a lower loss, more parameters, more memory and slower steps."
REFUTED_BY = "A wider model whose loss is not lower by 0.01 nats, or whose step is not slower."
DESIGN = (
    "Two-layer character models of Shakespeare that differ in d_model, trained on the same windows with learning rates that "
    "suit every width (muP; constant after a warm-up). Compared: the loss after equally many steps; the number of parameters and the "
    "predicted memory of a training step; the time of a step, measured in turns. Narrow models train for more steps, so that "
    "losses can also be compared after equal time: that of the shortest run, interpolated linearly between evaluations."
)
MARGINS = {"loss": 0.01, "time": 0.05}


def plan(setting: Setting) -> dict[int, int]:
    """Steps for each width. The widest has the fewest, after which all are compared."""
    return setting.pick(
        {4: 4, 8: 2}, {64: 800, 128: 400, 256: 200, 512: 100}, {64: 8000, 128: 8000, 256: 6000, 512: 4000, 1024: 2000}
    )  # fmt: skip


def measure(setting: Setting) -> dict[str, Any]:
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
    configs = {label: trained.changed(base, overrides) for label, overrides in variants.items()}
    times = comparing.step_times(configs, setting.pick(2, 20, 40))
    seconds = {label: statistics.median(values) for label, values in times.items()}
    rows = comparing.train(setting, "width", base, variants)
    curves = {label: [comparing.curve(row.workdir) for row in found] for label, found in rows.items()}
    budget = min(count * seconds[str(width)] for width, count in steps.items())
    narrow, *_, wide = variants
    return {
        "sizes": {label: comparing.size(cfg) for label, cfg in configs.items()},
        "milliseconds": {label: 1000 * s for label, s in seconds.items()},
        "step time ratio": claim.ratio(times[wide], times[narrow]), "steps": common, "seconds": budget,
        "equal steps": {label: [curve[common] for curve in found] for label, found in curves.items()},
        "equal time": {
            label: [_at(curve, budget / seconds[label]) for curve in found] for label, found in curves.items()
        },
        "curves": {label: [sorted(curve.items()) for curve in found] for label, found in curves.items()},
    }  # fmt: skip


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    sizes, steps = measurements["sizes"], measurements["steps"]
    equal_steps, equal_time = measurements["equal steps"], measurements["equal time"]
    narrow, *_, wide = sizes
    slower = claim.estimate(measurements["step time ratio"])
    gained = claim.difference(equal_steps[narrow], equal_steps[wide])
    means = {label: statistics.fmean(losses) for label, losses in equal_time.items()}
    best = min(means, key=means.get)
    better, worse = sorted((narrow, wide), key=means.get)
    in_time = claim.difference(equal_time[worse], equal_time[better])
    shrinks = sum(
        sizes[b][what] <= sizes[a][what]
        for a, b in zip(sizes, list(sizes)[1:], strict=False)
        for what in ("parameters", "bytes")
    )
    return Result(
        parts=(
            Effect(f"loss at d_model {narrow} minus loss at {wide}, after {steps} steps", gained, "nats a character", margin=MARGINS["loss"]),
            Effect(f"time of a step at d_model {wide} / at {narrow}", slower, "times", above=1.0, margin=MARGINS["time"]),
            Check("widths with fewer parameters or less memory than the width before", shrinks, 0),
        ),
        says=(
            f"From d_model {narrow} to {wide}, the loss after {steps} steps falls by {claim.show(gained, 'nats a character')}, a "
            f"step takes {claim.show(slower, 'times')} as long, parameters grow from {sizes[narrow]['parameters']:,} to "
            f"{sizes[wide]['parameters']:,} and memory from {sizes[narrow]['bytes'] / 1e6:.1f} to "
            f"{sizes[wide]['bytes'] / 1e6:.1f} MB. After the same {measurements['seconds']:.1f} s of training, d_model {better} is "
            f"{claim.show(in_time, 'nats')} better than d_model {worse}; d_model {best} is the best of all."
        ),
        seeds=len(equal_steps[narrow]),
    )  # fmt: skip


def _at(curve: dict[int, float], step: float) -> float:
    steps = sorted(curve)
    return float(np.interp(step, steps, [curve[step] for step in steps]))


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Mean loss of each width by steps and by time; the cost of a step."""
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
