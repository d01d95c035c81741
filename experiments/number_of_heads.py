"""Are several heads better than one of the same total width?

python -m experiments.number_of_heads [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting

CLAIM = (
    "Attention split into several heads that work side by side does better than one head of the same width."
)
DESIGN = (
    "Character models of Shakespeare that differ in the number of heads that d_model is split into: parameters and matrix "
    "products are the same. Loss with one head less that with each other number, seed by seed."
)


def measure(setting: Setting) -> Result:
    """Losses by the number of heads."""
    counts = setting.pick((1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16))
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    variants = {str(count): {"model.num_heads": count} for count in counts}
    configs = {label: comparing.changed(base, fields) for label, fields in variants.items()}
    times = comparing.step_times(configs, setting.pick(2, 20, 40))
    rows = comparing.train(setting, "number_of_heads", base, variants)
    losses = {label: comparing.losses(found) for label, found in rows.items()}
    better = {label: claim.difference(losses["1"], found) for label, found in losses.items() if label != "1"}
    slower = claim.ratio(times[str(counts[-1])], times["1"])
    said = ", ".join(f"{label} heads by {claim.show(found)}" for label, found in better.items())
    return Result(
        parts=tuple(
            Effect(f"loss with 1 head less that with {label}", found, "nats a character")
            for label, found in better.items()
        ),
        says=(
            f"At d_model {base.model.d_model} the loss of one head, {claim.show(claim.mean(losses['1']))}, falls with {said} nats a "
            f"character; a step with {counts[-1]} takes {claim.show(slower, 'times')} as long as with one."
        ),
        measurements={
            "losses": losses, "milliseconds": {n: 1000 * statistics.median(t) for n, t in times.items()},
        },
        seeds=setting.seeds,
    )  # fmt: skip


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
    times.set(xlabel="heads", ylabel="milliseconds a step")


if __name__ == "__main__":
    claim.run()
