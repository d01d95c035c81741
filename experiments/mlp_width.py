"""What is the MLP worth, and how wide should it be?

python -m experiments.mlp_width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments import claim, comparing, trained
from experiments.claim import Effect, Result, Setting

NOTE = "Input (d_model=512), Linear layer: 512 -> 2048 (4x expansion), ReLU activation (non-linearity), Linear layer: 2048 -> 512 (back to original)."
CLAIM = "A block needs an MLP besides attention, and an MLP of 4 x d_model is better than a narrow one."
PREDICTION = "No MLP is worst; each doubling up to 4 x d_model lowers the loss."
REFUTED_BY = "A narrower MLP, or none, that is not worse than 4 x d_model by 0.01 nats."
DESIGN = (
    "Character models of Shakespeare with ReLU MLPs of 0 (none), 1, 2, 4 and 8 times d_model. For comparison, attention alone "
    "in three times as many blocks, which has about as many parameters as MLPs of 4 x d_model."
)
MARGINS = {"loss": 0.01}


def measure(setting: Setting) -> dict[str, Any]:
    """Losses, sizes and step times by the width of the MLP."""
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    width, depth = base.model.d_model, base.model.num_layers
    variants = {
        str(factor): {"model.d_ff": factor * width} for factor in setting.pick((0, 1, 4), (0, 1, 2, 4, 8), (0, 1, 2, 4, 8))
    } | {"0, deep": {"model.d_ff": 0, "model.num_layers": 3 * depth}}  # fmt: skip
    configs = {label: trained.changed(base, fields) for label, fields in variants.items()}
    times = comparing.step_times(configs, setting.pick(2, 20, 40))
    rows = comparing.train(setting, "mlp_width", base, variants)
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()},
        "parameters": {label: comparing.size(cfg)["parameters"] for label, cfg in configs.items()},
        "milliseconds": {label: 1000 * statistics.median(found) for label, found in times.items()},
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, sizes = measurements["losses"], measurements["parameters"]
    unit = "nats a character"
    above = {label: claim.difference(found, losses["4"]) for label, found in losses.items() if label != "4"}
    others = ", ".join(
        f"{claim.show(found)} with {label} x d_model" for label, found in above.items() if "deep" not in label
    )
    return Result(
        parts=(
            Effect("loss without an MLP minus loss with 4 x d_model", above["0"], unit, margin=MARGINS["loss"]),
            Effect("loss with 1 x d_model minus loss with 4 x d_model", above["1"], unit, margin=MARGINS["loss"]),
            Effect("loss of attention alone in three times as many blocks minus loss with 4 x d_model", above["0, deep"], unit, margin=MARGINS["loss"]),
        ),
        says=(
            f"Compared with 4 x d_model ({claim.show(claim.mean(losses['4']), unit)}), the loss is higher by {others} (below 0: "
            f"lower). Attention alone in three times as many blocks ({sizes['0, deep']:,} parameters against {sizes['4']:,}) "
            f"is worse by {claim.show(above['0, deep'])}."
        ),
        seeds=len(losses["4"]),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by the width of the MLP and by the time of a step."""
    losses, times = figure.subplots(1, 2)
    comparing.draw_seeds(losses, measurements["losses"], "validation loss, nats a character")
    losses.set_xlabel("d_ff / d_model")
    for label, milliseconds in measurements["milliseconds"].items():
        loss = statistics.fmean(measurements["losses"][label])
        times.plot(milliseconds, loss, "o", color=claim.COLOURS[0])
        times.annotate(label, (milliseconds, loss), textcoords="offset points", xytext=(4, 4))
    times.set(xlabel="milliseconds per step", ylabel="mean validation loss")


if __name__ == "__main__":
    claim.run()
