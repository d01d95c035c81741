"""Norms before or after each layer: which needs a warm-up?

python -m experiments.norm_order [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, comparing, trained, tuning
from experiments.claim import Effect, Result, Setting
from jaxgpt.config import ModelConfig
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training.steps import mean_loss

NOTE = "With norms after each sum, the gradients of the last layers are large at the start and training needs a warm-up; with norms before each layer it needs none (Xiong et al. 2020)."
CLAIM = "With norms after each sum a warm-up lowers the loss, more than with norms before each layer."
PREDICTION = "Without a warm-up, the model with norms after each sum is worse even at its own best rate; with norms before each layer the warm-up changes little."
REFUTED_BY = "A gain of the warm-up below 0.02 nats with norms after each sum, or one as large with norms before each layer."
DESIGN = (
    "Character models of Shakespeare with norms before each layer (as GPT-2) and after each sum (as the first Transformer), with a "
    "warm-up over a fifth of the steps and without one, each at its own best learning rate of at least five, chosen with other seeds. And, at the "
    "start, the norm of the gradient of the last block divided by that of the first."
)
MARGINS = {"loss": 0.02, "gradient": 0.2}


def gradient_ratio(cfg: ModelConfig, params: dict, batch: jax.Array) -> float:
    """The norm of the last block's gradient divided by the first block's."""
    grads = jax.jit(jax.grad(lambda p: mean_loss(GPT(cfg), p, batch)))(params)
    norms = [
        np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads[f"block_{i}"])))
        for i in (0, cfg.num_layers - 1)
    ]
    return float(norms[1] / norms[0])


def measure(setting: Setting) -> dict[str, Any]:
    """Losses by the place of the norms and the warm-up, each at its best rate; gradients at the start."""
    steps = setting.pick(3, 250, 3_000)
    base = comparing.base(
        setting, model__num_layers=setting.pick(2, 8, 12), model__d_model=setting.pick(8, 32, 256),
        model__num_heads=2, model__tie_embeddings=False, train__num_steps=steps,
    )  # fmt: skip
    variants = {
        f"{place}, {warmup}": {"model.post_norm": place == "after", "optim.warmup_steps": max(1, steps // 5) if warmup == "warm-up" else 0}
        for place in ("before", "after")
        for warmup in ("warm-up", "no warm-up")
    }  # fmt: skip
    rows, chosen = tuning.train(setting, "norm_order", base, variants)
    ids = prepare_dataset(base.data).train.ids
    ratios: dict[str, list[float]] = {}
    for place in ("before", "after"):
        cfg = comparing.resolved(trained.changed(base, variants[f"{place}, warm-up"])).model
        batch = Batches(ids, 99, setting.pick(2, 16, 16), cfg.context_length).at(0)
        ratios[place] = [
            gradient_ratio(cfg, init_params(GPT(cfg), jax.random.key(seed)), batch)
            for seed in setting.seed_numbers
        ]
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()},
        "chosen": chosen,
        "ratios": ratios,
        "layers": base.model.num_layers,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, ratios, unit = measurements["losses"], measurements["ratios"], "nats a character"
    gains = {
        place: [
            a - b for a, b in zip(losses[f"{place}, no warm-up"], losses[f"{place}, warm-up"], strict=True)
        ]
        for place in ratios
    }
    gain = {place: claim.mean(found) for place, found in gains.items()}
    placed = claim.difference(losses["after, warm-up"], losses["before, warm-up"])
    return Result(
        parts=(
            Effect("gain by the warm-up, norms after each sum", gain["after"], unit, margin=MARGINS["loss"]),
            Effect("the same minus the gain with norms before each layer", claim.difference(gains["after"], gains["before"]), unit, margin=MARGINS["loss"]),
            Effect("gradient of the last block / of the first at the start: after / before", claim.ratio(ratios["after"], ratios["before"]), "times", above=1.0, margin=MARGINS["gradient"]),
        ),
        says=(
            f"In {measurements['layers']} layers, the loss without a warm-up minus that with one is {claim.show(gain['after'], unit)} with norms after each sum and "
            f"{claim.show(gain['before'])} with norms before each layer. With the warm-up, the loss with norms after each sum minus that with norms before each "
            f"layer is {claim.show(placed)}. {tuning.says(measurements['chosen'])}"
        ),
        untold=tuning.at_the_edge(measurements["chosen"]),
        seeds=len(gains["after"]),
        headline=f"The loss without a warm-up minus that with one is {claim.show(gain['after'])} nats with norms after each sum and {claim.show(gain['before'])} with norms before each layer.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by kind, and by rate."""
    end, rates = figure.subplots(1, 2)
    comparing.draw_seeds(end, measurements["losses"], "validation loss, nats a character")
    for place, (label, found) in enumerate(measurements["chosen"].items()):
        means = {float(factor): np.mean(values) for factor, values in found["losses"].items()}
        rates.plot(list(means), list(means.values()), ".-", color=claim.COLOURS[place], label=label)
    rates.set_xscale("log", base=2)
    rates.set(xlabel="learning rate / 0.004", ylabel="loss of the tuning seeds")
    rates.legend(fontsize=7)


if __name__ == "__main__":
    claim.run()
