"""Does the best learning rate stay the same when the model gets wider? AdamW with and without muP.

python -m experiments.mup [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, trained
from experiments.claim import Amendment, Effect, Result, Setting
from jaxgpt import config
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.training import optim, steps

NOTE = "With optim.parametrization=mup the best learning rate of a narrow model is also the best of a wide one (docs/fast.md; Yang et al. 2022)."
CLAIM = "For AdamW, two layers and 100 steps: with muP the best rate of a narrow model is also that of a wider one; without, it is not."
PREDICTION = "The best rate falls about as 1 / width without muP, and stays within a quarter of a power of two per doubling with it; taking it from the narrowest model costs the widest nothing."
REFUTED_BY = "A best rate that moves with width under muP by more than a quarter of a power of two per doubling, or a rate taken over that costs 0.02 nats."
DESIGN = (
    "AdamW, 100 steps, d_model 64 to 256, five seeds. Two layers, heads of width 32, context 64, batch 4; a warm-up of 10 steps, then a constant rate; the same windows for all. Nine rates at each width. The "
    "score is the mean training loss of the last fifth of the steps (no window occurs twice). The best rate of a seed is the minimum of a parabola through the lowest three "
    "scores, in powers of two; the slope is that of a line through the best rates over log2 of the width. The cost: the widest model's score at the rate that is best for the narrowest (over "
    "the other seeds), minus its own best score."
)
MARGINS = {"slope": 0.25, "loss": 0.02}
LIMITS = "For AdamW, two layers, widths of 64 to 256 and 100 steps. Other depths, Muon and 1,000 steps have not been tried; `--full` runs 1,000 steps, on a GPU."
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Slopes and costs are by seed, of five seeds; before, of the mean of two.",
        "Two seeds give no interval. The earlier scores were not kept.", "not kept",
    ),
)  # fmt: skip
BASE_WIDTH = 64
SEEDS = 5  # nine rates at three widths, twice, with each: 10 minutes on two cores
POWERS = range(-12, -3)  # of two: the learning rates
KINDS = {"standard": "without muP", "mup": "with muP"}


def make_config(parametrization: str, width: int, vocab_size: int) -> config.Config:
    """The config of one curve."""
    values = {
        "model": {
            "vocab_size": vocab_size, "context_length": 64, "d_model": width, "num_layers": 2,
            "num_heads": width // 32, "use_bias": False, "init": "fan_in", "zero_init": True, "tie_embeddings": False,
        },
        "data": {"batch_size": 4},
        "optim": {
            "parametrization": parametrization, "mup_base_width": BASE_WIDTH, "b2": 0.95, "weight_decay": 0.0,
            "schedule": "constant", "warmup_steps": 10,
        },
    }  # fmt: skip
    return config.from_config_dict(values)


def scores(
    cfg: config.Config, ids: np.ndarray, num_steps: int, seeds: range, powers: range
) -> list[list[float]]:
    """The score of each seed [S][rates] at each rate. The rate is an argument of the step, so one program serves all."""
    model = GPT(cfg.model)
    shape = optim.make_schedule(cfg.optim, num_steps)

    def optimizer(rate):
        return optim.make_optimizer(cfg.optim, lambda step: rate * shape(step) / cfg.optim.learning_rate)

    @jax.jit
    def step(state, batch, key, rate):
        return steps.make_train_step(model, optimizer(rate), shape, cfg)(state, batch, key)

    found = []
    for seed in seeds:
        found.append([])
        for power in powers:
            key, losses = jax.random.key(seed), []
            state = steps.init_state(model, optimizer(1.0), key)
            for at in range(num_steps):
                batch = Batches(ids, seed, cfg.data.batch_size, cfg.model.context_length).at(at)
                state, metrics = step(state, batch, key, jnp.float32(2.0**power))
                losses.append(metrics["loss"])
            found[-1].append(float(np.mean(np.array(losses)[-max(1, num_steps // 5) :])))
    return found


def best_power(found: list[float], powers: list[int]) -> float:
    """The minimum of a parabola through the lowest score and its neighbours, as a power of two; the rate itself at an edge."""
    values = np.array(found, float)  # JSON has None for a loss that is not finite
    i = int(np.nanargmin(values))
    if i in (0, len(values) - 1) or not np.isfinite(values[i - 1 : i + 2]).all():
        return float(powers[i])
    a, b, c = values[i - 1 : i + 2]
    return float(powers[i] + 0.5 * (a - c) / (a - 2 * b + c))


def measure(setting: Setting) -> dict[str, Any]:
    """Scores by parametrization, width, seed and rate."""
    pick = setting.pick
    dataset = prepare_dataset(trained.text_of(setting, "shakespeare", pick(40_000, None, None)))
    widths = pick((32, 64), (64, 128, 256), (64, 256, 1024))
    powers = pick(range(-9, -6), POWERS, POWERS)
    ids = np.asarray(dataset.train.ids)
    found = {
        kind: {
            width: scores(
                make_config(kind, width, dataset.tokenizer.vocab_size),
                ids,
                pick(3, 100, 1_000),
                setting.seed_numbers[:SEEDS],
                powers,
            )
            for width in widths
        }
        for kind in KINDS
    }
    return {"powers": list(powers), "scores": found}


def slopes(by_width: dict[str, list[list[float]]], powers: list[int]) -> list[float]:
    """For each seed: by how many powers of two the best rate changes when the width doubles."""
    widths = np.log2([int(width) for width in by_width])
    seeds = zip(*by_width.values(), strict=True)
    return [float(np.polyfit(widths, [best_power(row, powers) for row in rows], 1)[0]) for rows in seeds]


def transfer_costs(by_width: dict[str, list[list[float]]]) -> list[float]:
    """For each seed: the widest model's score at the narrowest's best rate of the other seeds, minus its own best score."""
    narrow, wide = (
        np.array(by_width[width], float) for width in (min(by_width, key=int), max(by_width, key=int))
    )
    costs = []
    for seed in range(len(wide)):
        others = np.delete(narrow, seed, axis=0) if len(narrow) > 1 else narrow
        rate = int(np.nanargmin(others.mean(axis=0)))
        own = np.delete(wide, seed, axis=0) if len(wide) > 1 else wide
        costs.append(float(wide[seed, rate] - wide[seed, int(np.nanargmin(own.mean(axis=0)))]))
    return costs


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    powers, found = measurements["powers"], measurements["scores"]
    slope = {kind: slopes(by_width, powers) for kind, by_width in found.items()}
    cost = {kind: transfer_costs(by_width) for kind, by_width in found.items()}
    edges = [
        f"{KINDS[kind]}, {width}"
        for kind, by_width in found.items()
        for width, rows in by_width.items()
        if int(np.nanargmin(np.array(rows, float).mean(axis=0))) in (0, len(powers) - 1)
    ]
    moves = claim.mean([abs(x) for x in slope["mup"]])
    says = "; ".join(
        f"{name}, the best rate is proportional to width^{claim.show(claim.mean(slope[kind]))}, and the narrowest model's rate costs the widest "
        f"{claim.show(claim.mean(cost[kind]), 'nats')}"
        for kind, name in KINDS.items()
    )
    return Result(
        parts=(
            Effect("fall of the best rate per doubling of the width without muP, powers of two", claim.mean([-x for x in slope["standard"]]), margin=MARGINS["slope"]),
            Effect(
                "two margins minus the size of that change with muP",
                claim.within(claim.mean(slope["mup"]), 0.0, MARGINS["slope"]),
                margin=MARGINS["slope"],
            ),
            Effect("cost of the narrowest model's rate for the widest, without muP minus with", claim.difference(cost["standard"], cost["mup"]), "nats a character", margin=MARGINS["loss"]),
        ),
        says=f"{says[0].upper()}{says[1:]}.",
        seeds=len(slope["mup"]),
        untold=f"the best rate is at the edge of its grid ({'; '.join(edges)})" if edges else "",
        headline=f"For AdamW, two layers and 100 steps: when the width doubles, the best rate changes by {claim.show(claim.mean(slope['standard']))} powers of two, "
        f"with muP its change has a mean size of {claim.show(moves)}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Scores by rate, a line per width and seed."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (kind, by_width) in zip(axes, measurements["scores"].items(), strict=True):
        for place, (width, rows) in enumerate(by_width.items()):
            for number, row in enumerate(rows):
                axis.plot(
                    measurements["powers"], np.array(row, float), color=claim.COLOURS[place], alpha=0.5, linewidth=0.8,
                    label="" if number else width,
                )  # fmt: skip
        best = statistics.fmean(np.nanmin(np.array(rows, float), axis=1).mean() for rows in by_width.values())
        axis.set(title=KINDS[kind], xlabel="log2 of the learning rate", ylim=(best - 0.3, best + 1.2))
    axes[0].set_ylabel("training loss at the end, nats a character")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="d_model")


if __name__ == "__main__":
    claim.run()
