"""Are several heads better than one of the same total width?

python -m experiments.number_of_heads [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments import claim, comparing, timing, trained, tuning
from experiments.claim import Effect, Result, Setting

NOTE = "Input dimension is 512: we want to split those into 8 x 64 dim; it's going to process that head in parallel."
CLAIM = "Attention with several parallel heads does better than with one head of the same total width."
PREDICTION = "Two, four and eight heads have a lower loss than one."
REFUTED_BY = "A number of heads whose loss is not lower than that of one by 0.01 nats."
DESIGN = (
    "Character models of Shakespeare that differ in the number of heads that d_model is split into; parameters and matrix "
    "products are the same. Each at its own best learning rate of at least five, chosen with other seeds. The loss with one head minus that "
    "with each other number, paired by seed. Times of a step in turns, in five fresh processes."
)
MARGINS = {"loss": 0.01}


def measure(setting: Setting) -> dict[str, Any]:
    """Losses and step times by the number of heads."""
    counts = setting.pick((1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16))
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    variants = {str(count): {"model.num_heads": count} for count in counts}
    configs = {label: trained.changed(base, fields) for label, fields in variants.items()}
    times = timing.step_times(setting, configs, setting.pick(2, 20, 40))
    rows, chosen = tuning.train(setting, "number_of_heads", base, variants)
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()},
        "tuning": chosen,
        "milliseconds": {label: 1000 * statistics.median(found) for label, found in times.items()},
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, milliseconds = measurements["losses"], measurements["milliseconds"]
    chosen = measurements.get("tuning", {})
    better = {label: claim.difference(losses["1"], found) for label, found in losses.items() if label != "1"}
    gains = ", ".join(f"{claim.show(found)} with {label}" for label, found in better.items())
    most = list(losses)[-1]
    return Result(
        parts=tuple(
            Effect(
                f"loss with 1 head minus loss with {label}", found, "nats a character", margin=MARGINS["loss"]
            )
            for label, found in better.items()
        ),
        says=(
            f"The loss with one head is {claim.show(claim.mean(losses['1']), 'nats a character')}; minus that with more heads of the "
            f"same total width it is {gains} (above 0: more heads are better). The median "
            f"step takes {milliseconds['1']:.1f} ms with 1 head and {milliseconds[most]:.1f} ms with {most}."
        ),
        seeds=len(losses["1"]),
        untold=tuning.at_the_edge(chosen),
        headline=f"The loss with one head minus that with {most} heads of the same total width is {claim.show(better[most], 'nats')}.",
    )


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses and times by the number of heads."""
    losses, times = figure.subplots(1, 2)
    comparing.draw_seeds(losses, measurements["losses"], "validation loss, nats a character")
    losses.set_xlabel("heads")
    times.bar(
        list(measurements["milliseconds"]),
        list(measurements["milliseconds"].values()),
        color=claim.COLOURS[0],
    )
    times.set(xlabel="heads", ylabel="milliseconds per step")


if __name__ == "__main__":
    claim.run()
