"""What is the MLP worth, and how wide should it be?

python -m experiments.mlp_width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting

CLAIM = "A block needs an MLP beside attention, and one of 4 x d_model is better than a narrow one."
DESIGN = (
    "Character models of Shakespeare with ReLU MLPs of 0 (none), 1, 2, 4 and 8 times d_model. Beside them attention alone "
    "in three times as many blocks, which has the parameters of 4 x d_model."
)


def measure(setting: Setting) -> Result:
    """Losses by the MLP's width."""
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    width, depth = base.model.d_model, base.model.num_layers
    variants = {
        str(factor): {"model.d_ff": factor * width} for factor in setting.pick((0, 1, 4), (0, 1, 2, 4, 8), (0, 1, 2, 4, 8))
    } | {"0, deep": {"model.d_ff": 0, "model.num_layers": 3 * depth}}  # fmt: skip
    configs = {label: comparing.changed(base, fields) for label, fields in variants.items()}
    sizes = {label: comparing.size(cfg)["parameters"] for label, cfg in configs.items()}
    times = comparing.step_times(configs, setting.pick(2, 20, 40))
    rows = comparing.train(setting, "mlp_width", base, variants)
    losses = {label: comparing.losses(found) for label, found in rows.items()}
    unit = "nats a character"
    above = {label: claim.difference(found, losses["4"]) for label, found in losses.items() if label != "4"}
    others = ", ".join(
        f"{label} x d_model {claim.show(found)}" for label, found in above.items() if "deep" not in label
    )
    return Result(
        parts=(
            Effect("loss without an MLP less that with 4 x d_model", above["0"], unit),
            Effect("loss with 1 x d_model less that with 4 x d_model", above["1"], unit),
            Effect(
                f"loss of {3 * depth} blocks of attention alone less that of {depth} with 4 x d_model", above["0, deep"], unit
            ),
        ),
        says=(
            f"Beside 4 x d_model ({claim.show(claim.mean(losses['4']), unit)}) the loss is higher by: {others}; attention alone at "
            f"{sizes['0, deep']:,} parameters against {sizes['4']:,}: {claim.show(above['0, deep'])}."
        ),
        measurements={
            "losses": losses, "parameters": sizes,
            "milliseconds": {n: 1000 * statistics.median(t) for n, t in times.items()},
        },
        seeds=setting.seeds,
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by width, and over the time of a step."""
    losses, times = figure.subplots(1, 2)
    comparing.draw_seeds(losses, measurements["losses"], "validation loss, nats a character")
    losses.set_xlabel("d_ff / d_model")
    for label, milliseconds in measurements["milliseconds"].items():
        loss = statistics.fmean(measurements["losses"][label])
        times.plot(milliseconds, loss, "o", color=claim.COLOURS[0])
        times.annotate(label, (milliseconds, loss), textcoords="offset points", xytext=(4, 4))
    times.set(xlabel="milliseconds a step", ylabel="mean validation loss")


if __name__ == "__main__":
    claim.run()
