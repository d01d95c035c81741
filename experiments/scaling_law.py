"""Does the loss of small models follow a law that predicts a larger one?

python -m experiments.scaling_law [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, trained, tuning
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.sweeps import scaling_law
from jaxgpt.sweeps.scaling_law import Point
from jaxgpt.training import costs

NOTE = "The loss falls with parameters and with tokens as a sum of powers, and the law of small models predicts large ones (Kaplan et al. 2020; Hoffmann et al. 2022)."
CLAIM = "A law E + A / N^alpha + B / D^beta, fitted to small character models, predicts a model of twice the width that is trained twice as long."
PREDICTION = "The loss of the largest models is within the 95 % prediction interval of a law that has not seen them, and within 0.03 nats."
REFUTED_BY = "A mean of the largest models outside the interval, or further than 0.03 nats from the law."
DESIGN = (
    "Character models of Shakespeare of six widths, each trained for six lengths with the seeds. The learning rate is tuned at "
    "one width for each length, with other seeds, and holds for all widths by muP. The law is fitted to the means over seeds (Huber's "
    "loss of the logarithms; see jaxgpt/sweeps/scaling_law.py) without the largest width and the longest training, and predicts that width at that length."
)
MARGINS = {"loss": 0.01}
LIMITS = "Models of 1,000 to 400,000 parameters and up to 7 epochs of one text: the longest trainings repeat it, where the law of new text does not hold any more."


def measure(setting: Setting) -> dict[str, Any]:
    """Losses by width and length, each with the rate of its length."""
    widths = setting.pick((8, 16, 24, 32), (8, 16, 32, 48, 64, 128), (64, 128, 192, 256, 384, 768))
    lengths = setting.pick(
        (2, 3, 4, 5), (60, 120, 240, 480, 960, 1_920), (500, 1_000, 2_000, 4_000, 8_000, 16_000)
    )
    base = comparing.base(setting, model__num_heads=2, train__num_steps=lengths[0])
    base = trained.changed(base, comparing.WIDTHS_ALIKE)
    tuned = {
        str(steps): {"model.d_model": widths[len(widths) // 2], "train.num_steps": steps} for steps in lengths
    }
    chosen = tuning.best_rates(setting, "scaling_law_rates", base, tuned)
    variants = {
        f"{width} {steps}": {"model.d_model": width, "train.num_steps": steps, **chosen[str(steps)]["rates"]}
        for width in widths
        for steps in lengths
    }
    rows = comparing.train(setting, "scaling_law", base, variants)
    sizes = {
        width: costs.matmul_params(comparing.resolved(trained.changed(base, {"model.d_model": width})).model)
        for width in widths
    }
    return {
        "cells": [
            {
                "width": width, "steps": steps, "parameters": sizes[width],
                "tokens": steps * base.data.batch_size * base.model.context_length,
                "losses": comparing.losses(rows[f"{width} {steps}"]),
            }
            for width in widths
            for steps in lengths
        ],
        "chosen": chosen,
    }  # fmt: skip


def points_of(cells: list[dict[str, Any]]) -> list[Point]:
    """The mean over seeds of each cell."""
    return [Point(cell["parameters"], cell["tokens"], statistics.fmean(cell["losses"])) for cell in cells]


def split(cells: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The cells that the law is fitted to, and the largest one, which it predicts."""
    widest, longest = (max(cell[name] for cell in cells) for name in ("width", "steps"))
    fitted = [cell for cell in cells if cell["width"] < widest and cell["steps"] < longest]
    (held_out,) = [cell for cell in cells if cell["width"] == widest and cell["steps"] == longest]
    return fitted, held_out


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    fitted, held_out = split(measurements["cells"])
    if len(fitted) < scaling_law.LEAST_POINTS:
        return Result((), "Too few cells for a law.", untold="a law of five numbers needs more cells")
    found = scaling_law.fit(points_of(fitted))
    predicted, low, high = found.prediction(held_out["parameters"], held_out["tokens"])
    error = claim.mean([0.04 - abs(loss - predicted) for loss in held_out["losses"]])
    mean = statistics.fmean(held_out["losses"])
    alpha, beta = (found.interval(lambda law, name=name: getattr(law, name)) for name in ("alpha", "beta"))
    law = found.law
    return Result(
        parts=(
            Effect("0.04 minus the distance of the largest models' loss from the law", error, "nats a character", margin=MARGINS["loss"]),
            Check("distance of their mean from the middle of the prediction interval / its half width", abs(mean - (low + high) / 2) / ((high - low) / 2), 1.0),
        ),
        says=(
            f"The law of {len(fitted)} cells is {law.irreducible:.2f} + {law.size_factor:.3g} / N^{law.alpha:.2f} + {law.data_factor:.3g} / D^{law.beta:.2f} "
            f"(alpha [{alpha[0]:.2f}, {alpha[1]:.2f}], beta [{beta[0]:.2f}, {beta[1]:.2f}]). For {held_out['parameters']:,} parameters and "
            f"{held_out['tokens']:,} tokens it predicts {predicted:.3f} [{low:.3f}, {high:.3f}]; measured: {claim.show(claim.mean(held_out['losses']))}. "
            f"{tuning.says(measurements['chosen'])}"
        ),
        untold=tuning.at_the_edge(measurements["chosen"]),
        seeds=len(held_out["losses"]),
        headline=f"A law fitted to smaller models predicts {predicted:.3f} nats for the largest, which reaches {mean:.3f}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by tokens, a line per width, and the fitted law."""
    axis = figure.subplots()
    cells = measurements["cells"]
    fitted, held_out = split(cells)
    found = scaling_law.fit_law(points_of(fitted)) if len(fitted) >= scaling_law.LEAST_POINTS else None
    widths = sorted({cell["width"] for cell in cells})
    for place, width in enumerate(widths):
        own = [cell for cell in cells if cell["width"] == width]
        colour = claim.COLOURS[place % len(claim.COLOURS)]
        for cell in own:
            axis.plot([cell["tokens"]] * len(cell["losses"]), cell["losses"], ".", color=colour, alpha=0.4)
        tokens = np.array([cell["tokens"] for cell in own], float)
        if found is not None:
            axis.plot(
                tokens,
                [found.loss(own[0]["parameters"], d) for d in tokens],
                "-",
                color=colour,
                label=f"d_model {width}",
            )
    axis.plot(
        held_out["tokens"],
        statistics.fmean(held_out["losses"]),
        "s",
        color="#333333",
        fillstyle="none",
        markersize=9,
        label="predicted, not fitted",
    )
    axis.set_xscale("log")
    axis.set(xlabel="training tokens", ylabel="validation loss, nats a character (lines: the law)")
    axis.legend(fontsize=7, loc="upper right")


if __name__ == "__main__":
    claim.run()
