"""What does a wider model cost, and what does it gain, after equally many steps and after equal time?

python -m experiments.width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, timing, trained
from experiments.claim import Amendment, Check, Effect, Result, Setting

NOTE = "Small (e.g., 64): fast, low memory; less accurate, loses context. Large (e.g., 1024+): high accuracy, deep context; needs powerful GPU/TPU."
CLAIM = "A small d_model is fast, needs little memory and is less accurate; a large d_model is the reverse."
PREDICTION = "Whatever the budget, each wider model has a lower loss; it has more parameters, more memory and slower steps."
REFUTED_BY = "A budget at which a wider model's loss is not lower by 0.01 nats, or a wider model whose step is not slower."
DESIGN = (
    "Two-layer character models of Shakespeare that differ in d_model, trained on the same windows with learning rates that "
    "suit every width (muP; constant after a warm-up). Each is compared with the next wider one under three budgets: few steps, four times as "
    "many, and equal time (that of the shortest run; losses are interpolated linearly between evaluations). Besides, the number of parameters, the "
    "predicted memory of a training step, and the time of a step, measured in turns in five fresh processes."
)
MARGINS = {"loss": 0.01, "time": 0.05}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Each width is compared with the next, under each budget; a second number of steps was added.",
        "The comparison after equal time was measured and stood in the text alone: there the narrow model wins.", "holds",
    ),
)  # fmt: skip


def plan(setting: Setting) -> dict[int, int]:
    """Steps for each width. The widest has the fewest, after which all are compared; and after a quarter of them."""
    return setting.pick(
        {4: 8, 8: 4}, {64: 3200, 128: 1600, 256: 800, 512: 400}, {64: 8000, 128: 8000, 256: 6000, 512: 4000, 1024: 2000}
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
            "train.eval_every": max(1, common // 8),
        }
        for width, count in steps.items()
    }  # fmt: skip
    configs = {label: trained.changed(base, overrides) for label, overrides in variants.items()}
    times = timing.step_times(setting, configs, setting.pick(2, 20, 40))
    rows = comparing.train(setting, "width", base, variants)
    curves = {label: [comparing.curve(row.workdir) for row in found] for label, found in rows.items()}
    return {
        "sizes": {label: comparing.size(cfg) for label, cfg in configs.items()},
        "step seconds": times, "budgets": [common // 4, common],
        "curves": {label: [sorted(curve.items()) for curve in found] for label, found in curves.items()},
    }  # fmt: skip


def milliseconds_of(measurements: dict[str, Any]) -> dict[str, float]:
    """The time of a step by width."""
    if "milliseconds" in measurements:  # before times came from several processes
        return measurements["milliseconds"]
    return {label: 1000 * statistics.median(found) for label, found in measurements["step seconds"].items()}


def losses_by_budget(measurements: dict[str, Any]) -> tuple[dict[str, dict[str, list[float]]], float]:
    """The losses by budget and width, and the seconds of the budget of time."""
    curves = {label: [dict(curve) for curve in found] for label, found in measurements["curves"].items()}
    milliseconds = milliseconds_of(measurements)
    found = {
        f"after {steps:,} steps": {label: [_at(c, steps) for c in own] for label, own in curves.items()}
        for steps in measurements.get("budgets", [measurements.get("steps")])
    }
    seconds = min(max(own[0]) * milliseconds[label] / 1000 for label, own in curves.items())
    found[f"after {seconds:.1f} s"] = {
        label: [_at(c, 1000 * seconds / milliseconds[label]) for c in own] for label, own in curves.items()
    }
    return found, seconds


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    sizes = measurements["sizes"]
    by_budget, _ = losses_by_budget(measurements)
    widths = list(sizes)
    narrow, *_, wide = widths
    unit = "nats a character"
    pairs = list(itertools.pairwise(widths))
    pairs = [(narrow, wide), *pairs] if len(widths) > 2 else pairs
    gains = {
        (budget, a, b): claim.difference(losses[a], losses[b])
        for budget, losses in by_budget.items()
        for a, b in pairs
    }
    parts: list[Effect | Check] = [
        Effect(f"loss at d_model {a} minus loss at {b}", found, unit, under=budget, margin=MARGINS["loss"])
        for (budget, a, b), found in gains.items()
    ]
    if "step seconds" in measurements:
        times = measurements["step seconds"]
        slower = claim.ratio(times[wide], times[narrow])
        parts.append(
            Effect(
                f"time of a step at d_model {wide} / at {narrow}",
                slower,
                "times",
                above=1.0,
                margin=MARGINS["time"],
            )
        )
    shrinks = sum(sizes[b][what] <= sizes[a][what] for a, b in pairs for what in ("parameters", "bytes"))
    parts.append(Check("wider models with no more parameters or no more memory", shrinks, 0))
    listed = "; ".join(
        f"{budget}, {claim.show(claim.difference(losses[narrow], losses[wide]), 'nats')}"
        for budget, losses in by_budget.items()
    )
    best = {
        budget: min(widths, key=lambda w: statistics.fmean(losses[w])) for budget, losses in by_budget.items()
    }
    milliseconds = milliseconds_of(measurements)
    return Result(
        parts=tuple(parts),
        says=(
            f"The loss at d_model {narrow} minus that at {wide}: {listed}. From {narrow} to {wide}, a step takes "
            f"{milliseconds[narrow]:.1f} and {milliseconds[wide]:.1f} ms, parameters grow from {sizes[narrow]['parameters']:,} to "
            f"{sizes[wide]['parameters']:,} and memory from {sizes[narrow]['bytes'] / 1e6:.1f} to {sizes[wide]['bytes'] / 1e6:.1f} MB."
        ),
        seeds=len(measurements["curves"][narrow]),
        varies="the budget",
        headline="The width with the lowest mean loss by budget: "
        + ", ".join(f"d_model {width} {budget}" for budget, width in best.items()) + ".",
    )  # fmt: skip


def _at(curve: dict[int, float], step: float) -> float:
    steps = sorted(curve)
    return float(np.interp(step, steps, [curve[step] for step in steps]))


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Mean loss of each width by steps and by time; the cost of a step."""
    by_step, by_time, cost = figure.subplots(1, 3)
    milliseconds = milliseconds_of(measurements)
    _, seconds = losses_by_budget(measurements)
    for i, (label, found) in enumerate(measurements["curves"].items()):
        for j, curve in enumerate(found):
            steps, losses = zip(*curve, strict=True)
            style = {"color": f"C{i}", "alpha": 0.4, "linewidth": 0.8}
            by_step.plot(steps, losses, label=None if j else label, **style)
            by_time.plot([step * milliseconds[label] / 1000 for step in steps], losses, **style)
    for steps in measurements.get("budgets", [measurements.get("steps")]):
        by_step.axvline(steps, color="#7a7a7a", linestyle="--", linewidth=1)
    by_time.axvline(seconds, color="#7a7a7a", linestyle="--", linewidth=1)
    by_step.set(xlabel="step", ylabel="validation loss, nats a character")
    by_time.set(xlabel="seconds of training", ylabel="validation loss, nats a character")
    for line in by_step.legend(title="d_model, a line per seed", loc="upper right").get_lines():
        line.set_alpha(1)
    widths = [int(label) for label in measurements["sizes"]]
    cost.loglog(widths, milliseconds.values(), "o-", label="ms a step")
    for what, scale, name in (("parameters", 1e-3, "thousand parameters"), ("bytes", 1e-6, "MB")):
        cost.loglog(widths, [scale * size[what] for size in measurements["sizes"].values()], "o-", label=name)
    cost.set_xticks(widths, list(measurements["sizes"]))
    cost.minorticks_off()
    cost.set(ylabel="cost", xlabel="d_model")
    cost.legend(loc="upper left")
    cost.margins(y=0.4)


if __name__ == "__main__":
    claim.run()
