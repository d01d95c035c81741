"""What is the loss of a character, and does it fall with training and with context?

python -m experiments.character_loss [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import claim, comparing, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.data import batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import Run
from jaxgpt.training.evaluation import window_losses
from jaxgpt.training.steps import token_losses

NOTE = "At each step model will output 8 probabilities [...] the model confidence is 0.2, so we have a loss [...] After that it will learn iteratively."
CLAIM = "The loss of a character is -log of the probability that the model gave it, and falls as the model learns."
PREDICTION = "The worked example gives -ln 0.2, -ln 0.6 and -ln 0.7; the loss falls in training; early positions of a window have a higher loss."
REFUTED_BY = "Another loss in the example, or a loss that does not fall."
DESIGN = (
    "The worked example of the notes (a vocabulary of a to h; the text abc, with probabilities 0.2, 0.6 and 0.7) through the "
    "loss function of training. Then character models of Shakespeare, one per seed: the validation loss at step 0 minus that "
    "at the end, paired by seed; and the mean validation loss at each position of the window, the first eighth minus the "
    "last half."
)
MARGINS = {"loss": 0.02}
# The probabilities of a to h at times 1, 2 and 3. The notes give some; the others share the rest equally.
EXAMPLE = [
    [0.2, 0.5, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02],
    [0.1, 0.6, *[0.3 / 6] * 6],
    [0.05, 0.1, 0.7, *[0.15 / 5] * 5],
]


def example_losses() -> list[float]:
    """The losses of a, b and c, in nats, by the loss function of training."""
    logits_BTV = jnp.log(jnp.asarray(EXAMPLE, jnp.float32))[None]
    return np.asarray(token_losses(logits_BTV, jnp.arange(3)[None]))[0].tolist()


def by_position(run: Run, tokens: int) -> list[float]:
    """Mean validation loss [T] at each position of the window."""
    windows = batches.eval_batches(
        prepare_dataset(run.config.data).valid.ids, context_length=run.config.model.context_length, batch_size=64,
        max_tokens=tokens,
    )  # fmt: skip
    # Complete windows only, so that all positions have equally many tokens.
    losses = [np.asarray(window_losses(run.model, run.params, t))[(w > 0).all(axis=1)] for t, w in windows]
    return np.concatenate(losses).mean(axis=0).tolist()


def measure(setting: Setting) -> dict[str, Any]:
    """Losses of the example, by step, and by position."""
    runs = trained.characters(setting)
    return {
        "example": example_losses(),
        "curves": [sorted(comparing.curve(run.workdir).items()) for run in runs],
        "positions": [by_position(run, setting.pick(2_048, 65_536, 65_536)) for run in runs],
        "uniform": math.log(runs[0].tokenizer.vocab_size),
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    example, curves, positions, uniform = (
        measurements[name] for name in ("example", "curves", "positions", "uniform")
    )
    by_hand = [-math.log(row[i]) for i, row in enumerate(EXAMPLE)]
    T = len(positions[0])
    early = [np.mean(row[: max(1, T // 8)]) for row in positions]
    late = [np.mean(row[T // 2 :]) for row in positions]
    starts, ends = ([curve[at][1] for curve in curves] for at in (0, -1))
    fall, context = claim.difference(starts, ends), claim.difference(early, late)
    says = (
        f"Probabilities 0.2, 0.6 and 0.7 give losses of {', '.join(f'{x:.3f}' for x in example)} nats. Training starts at "
        f"{claim.show(claim.mean(starts))} (log V = {uniform:.3f}, a guess among all {round(math.exp(uniform))} characters) and reaches "
        f"{claim.show(claim.mean(ends))} at step {curves[0][-1][0]}, {claim.show(fall)} nats less. The first {max(1, T // 8)} positions of a "
        f"window have a loss {claim.show(context)} nats higher than the last {T - T // 2}."
    )
    parts = (
        Check(
            "largest difference from -log p in the worked example",
            max(abs(a - b) for a, b in zip(example, by_hand, strict=True)),
            1e-6,
        ),
        Effect("fall of the validation loss over training", fall, "nats a character", margin=MARGINS["loss"]),
        Effect(
            "loss of the first eighth of positions minus loss of the last half",
            context,
            "nats a character",
            margin=MARGINS["loss"],
        ),
    )
    return Result(parts, says, seeds=len(curves))


def draw(figure, measurements: dict[str, Any]) -> None:
    """Loss by step and by position, a line per seed."""
    training, positions = figure.subplots(1, 2)
    for i, curve in enumerate(measurements["curves"]):
        training.plot(
            *zip(*curve, strict=True),
            marker="o",
            markersize=3,
            color="C0",
            alpha=0.6,
            label="seeds" if not i else None,
        )
    training.axhline(measurements["uniform"], color="C4", linestyle=":", label="log V")
    training.set(title="validation loss, nats a character", xlabel="step")
    training.legend()
    for row in measurements["positions"]:
        positions.plot(range(1, len(row) + 1), row, color="C1", alpha=0.6)
    positions.set(title="loss by position, nats a character", xlabel="position", xscale="log")


if __name__ == "__main__":
    claim.run()
