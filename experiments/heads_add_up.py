"""Do attention heads work in parallel, do their outputs add up, and what is each head worth?

python -m experiments.heads_add_up [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import claim, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.data import batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.inspect.capture import Layer, capture
from jaxgpt.runs.load import Run
from jaxgpt.training.evaluation import window_losses

NOTE = "Every head in the attention produces a change; we sum together all the proposed change, one for each head, and then add that to the original embeddings."
CLAIM = "Heads work in parallel, each proposes a change, and the changes add up to what attention adds to the stream."
PREDICTION = "The sum of the heads is what attention adds; a head does not see the others of its layer; each is worth something."
REFUTED_BY = "A sum that differs, a head that moves another, or heads whose removal costs nothing."
DESIGN = (
    "Character models of Shakespeare, one per seed. Sum: concat(heads) W_O against the sum of the heads' separate changes. "
    "Parallel: if one head's part of W_O is set to 0, the changes of the other heads of its layer must stay equal bit for "
    "bit. Worth of a head: how much the validation loss rises without it, paired by window; and the sum of these rises over a layer, compared with the "
    "rise without all of the layer's heads at once, as losses, unlike changes, need not add up."
)
MARGINS = {"loss": 0.01}


def without(params: dict, heads: list[tuple[int, int]]) -> dict:
    """The parameters with the output of these (layer, head) set to 0."""
    params = dict(params)
    for layer, head in heads:
        block = params[f"block_{layer}"]
        attention = block["attention"]
        out = attention["out"]
        kernel_HKD = jnp.asarray(out["kernel"]).at[head].set(0.0)
        params[f"block_{layer}"] = block | {"attention": attention | {"out": out | {"kernel": kernel_HKD}}}
    return params


def sum_error(layer: Layer) -> float:
    """How far the sum of the heads' changes is from attention's change, relative to the largest number of the stream."""
    change_TD = layer.between_TD.astype(np.float64) - layer.before_TD
    summed_TD = layer.head_changes_HTD.astype(np.float64).sum(axis=0) + layer.attention_bias_D
    return float(np.abs(change_TD - summed_TD).max() / np.abs(layer.between_TD).max())


def identity(run: Run, tokens_T: np.ndarray) -> dict[str, float]:
    """How far the sum of the heads is from attention's change, and how far other heads move if one is set to 0."""
    shown = capture(run.config.model, run.params, tokens_T)
    error = moved = 0.0
    for i, layer in enumerate(shown.layers):
        error = max(error, sum_error(layer))
        fewer = capture(run.config.model, without(run.params, [(i, 0)]), tokens_T).layers[i]
        moved = max(moved, np.abs(fewer.head_changes_HTD[1:] - layer.head_changes_HTD[1:]).max())
    return {"error": float(error), "moved": float(moved)}


def losses(run: Run, params: dict, windows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean loss of each complete window."""
    found = [np.asarray(window_losses(run.model, params, t))[(w > 0).all(axis=1)] for t, w in windows]
    return np.concatenate(found).mean(axis=1)


def ablate(run: Run, windows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The rise of the loss without each head [layer][head], without each layer's heads, and without all heads."""
    L, H = run.config.model.num_layers, run.config.model.num_heads
    base = losses(run, run.params, windows)

    def rise(heads: list[tuple[int, int]]):
        return claim.difference(losses(run, without(run.params, heads), windows), base)

    return {
        "single": [[rise([(layer, head)]) for head in range(H)] for layer in range(L)],
        "layers": [rise([(layer, head) for head in range(H)]) for layer in range(L)],
        "all": rise([(layer, head) for layer in range(L) for head in range(H)]),
    }


def measure(setting: Setting) -> dict[str, Any]:
    """The sum of the heads, and the rise of the loss without them."""
    runs = trained.characters(setting)
    ids = prepare_dataset(runs[0].config.data).valid.ids
    T = runs[0].config.model.context_length
    windows = list(
        batches.eval_batches(ids, context_length=T, batch_size=64, max_tokens=T * setting.pick(16, 256, 256))
    )
    return {
        "identity": [identity(run, np.asarray(ids[:T])) for run in runs],
        "ablation": [ablate(run, windows) for run in runs],
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found = measurements["ablation"]
    heads = [[head for layer in row["single"] for head in layer] for row in found]  # of each seed
    rise = claim.mean([np.mean([head["value"] for head in row]) for row in heads])
    needed = sum((head["low"] or 0) > 0 for row in heads for head in row)
    # One value per seed: the layers of one model are not independent.
    summed = [sum(head["value"] for head in row) for row in heads]
    at_once = [sum(layer["value"] for layer in row["layers"]) for row in found]
    times = (
        f"{claim.show(claim.ratio(at_once, summed))} times"
        if min(summed + at_once) > 0
        else "an unknown number of times"
    )
    error, moved = (max(row[key] for row in measurements["identity"]) for key in ("error", "moved"))
    says = (
        f"The sum of the heads' changes equals what attention adds, to {error:.1e} of the stream; heads do not affect each other "
        f"within a layer (largest change {moved:g}). Without one head the loss rises by {claim.show(rise)} nats on average, "
        f"measurably for {needed} of {sum(map(len, heads))} heads. Losses do not add up: removing all heads of a layer at once "
        f"raises the loss {times} as much as the sum of removing each alone."
    )
    parts = (
        Check("largest relative difference between the sum of the heads and attention's change", error, 1e-5),
        Check("largest change of another head of the layer if one is set to 0", moved, 0.0),
        Effect(
            "rise of the loss without a head, mean over heads",
            rise,
            "nats a character",
            margin=MARGINS["loss"],
        ),
    )
    return Result(parts, says, seeds=len(found))


def draw(figure, measurements: dict[str, Any]) -> None:
    """The rise without each head of the first seed; sums of single rises against all heads at once."""
    heads, sums = figure.subplots(1, 2, width_ratios=(1.6, 1))
    singles = measurements["ablation"][0]["single"]
    for i, layer in enumerate(singles):
        at = np.arange(len(layer)) + i * (len(layer) + 1)
        values, low, high = (np.array([head[key] for head in layer]) for key in ("value", "low", "high"))
        heads.bar(
            at, values, yerr=[values - low, high - values], capsize=2, color=f"C{i % 6}", label=f"layer {i}"
        )
    heads.axhline(0, color="k", linewidth=0.6)
    heads.set(title="rise of the loss without one head, nats (first seed)", xticks=[])
    heads.legend(fontsize=7)
    for i in range(len(singles)):
        rows = measurements["ablation"]
        x = [sum(head["value"] for head in row["single"][i]) for row in rows]
        sums.scatter(x, [row["layers"][i]["value"] for row in rows], s=14, color=f"C{i % 6}")
    low, high = sums.get_xlim()
    sums.plot([low, high], [low, high], color="C4", linestyle=":")
    sums.set(title="a layer's heads, rise in nats", xlabel="one at a time, summed", ylabel="all at once")


if __name__ == "__main__":
    claim.run()
