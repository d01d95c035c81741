"""What is the MLP worth, and how wide should it be?

python -m experiments.mlp_width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments import claim, comparing, timing, trained, tuning
from experiments.claim import Amendment, Effect, Result, Setting

NOTE = "Input (d_model=512), Linear layer: 512 -> 2048 (4x expansion), ReLU activation (non-linearity), Linear layer: 2048 -> 512 (back to original)."
CLAIM = "A block needs an MLP besides attention, and 4 x d_model is the width for it."
PREDICTION = "4 x d_model has a lower loss than none, than 1 and 2 x d_model, and about that of 8 x d_model or a lower one."
REFUTED_BY = (
    "Another width, or attention alone, whose loss is not higher than that of 4 x d_model by 0.01 nats."
)
DESIGN = (
    "Character models of Shakespeare with ReLU MLPs of 0 (none), 1, 2, 4 and 8 times d_model, and attention alone "
    "in three times as many blocks, which has about as many parameters as MLPs of 4 x d_model. Each at its own best learning rate of "
    "at least five, chosen with other seeds. Each other width is a condition."
)
MARGINS = {"loss": 0.01}
LIMITS = "At 1 x d_model some seeds end at a much higher loss than others: its mean is one of two groups (see the picture)."
AMENDMENTS = (
    Amendment(
        "2026-11-26", "2 and 8 x d_model are parts of the verdict, and each width has its own rate.",
        "They were measured and stood in the text alone: 8 x d_model was better than 4 x d_model.", "holds",
    ),
)  # fmt: skip


def measure(setting: Setting) -> dict[str, Any]:
    """Losses, sizes and step times by the width of the MLP."""
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    width, depth = base.model.d_model, base.model.num_layers
    variants = {
        str(factor): {"model.d_ff": factor * width} for factor in setting.pick((0, 4), (0, 1, 2, 4, 8), (0, 1, 2, 4, 8))
    } | {"0, deep": {"model.d_ff": 0, "model.num_layers": 3 * depth}}  # fmt: skip
    configs = {label: trained.changed(base, fields) for label, fields in variants.items()}
    times = timing.step_times(setting, configs, setting.pick(2, 20, 40))
    rows, chosen = tuning.train(setting, "mlp_width", base, variants)
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()}, "tuning": chosen,
        "parameters": {label: comparing.size(cfg)["parameters"] for label, cfg in configs.items()},
        "step seconds": times,
    }  # fmt: skip


def _name(label: str) -> str:
    if label == "0":
        return "no MLP"
    return "attention alone in three times as many blocks" if label == "0, deep" else f"{label} x d_model"


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, sizes, chosen = measurements["losses"], measurements["parameters"], measurements.get("tuning", {})
    unit = "nats a character"
    above = {label: claim.difference(found, losses["4"]) for label, found in losses.items() if label != "4"}
    listed = ", ".join(f"{claim.show(found)} with {_name(label)}" for label, found in above.items())
    best = min(losses, key=lambda label: statistics.fmean(losses[label]))
    return Result(
        parts=tuple(
            Effect(f"loss with {_name(label)} minus loss with 4 x d_model", found, unit, under=f"against {_name(label)}", margin=MARGINS["loss"])
            for label, found in above.items()
        ),
        says=(
            f"Compared with 4 x d_model ({claim.show(claim.mean(losses['4']), unit)}, {sizes['4']:,} parameters), the loss is higher by {listed} "
            f"(below 0: lower; attention alone has {sizes['0, deep']:,} parameters). {tuning.says(chosen) if chosen else ''}"
        ).strip(),
        seeds=len(losses["4"]),
        untold=tuning.at_the_edge(chosen),
        varies="what it is compared with",
        headline=f"The loss without an MLP minus that with 4 x d_model is {claim.show(above['0'], unit)}; the lowest mean loss has {_name(best)}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by the width of the MLP and by the time of a step."""
    losses, times = figure.subplots(1, 2)
    comparing.draw_seeds(losses, measurements["losses"], "validation loss, nats a character")
    losses.set_xlabel("d_ff / d_model")
    seconds = measurements.get("step seconds", {})
    milliseconds = {label: 1000 * statistics.median(found) for label, found in seconds.items()}
    for label, middle in (milliseconds or measurements["milliseconds"]).items():
        loss = statistics.fmean(measurements["losses"][label])
        times.plot(middle, loss, "o", color=claim.COLOURS[0])
        times.annotate(label, (middle, loss), textcoords="offset points", xytext=(4, 4))
    times.set(xlabel="milliseconds per step", ylabel="mean validation loss, nats a character")


if __name__ == "__main__":
    claim.run()
