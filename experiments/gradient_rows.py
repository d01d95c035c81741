"""Which rows of the embedding table does a training step reach?

python -m experiments.gradient_rows [--quick | --full]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, trained
from experiments.claim import Check, Result, Setting
from jaxgpt import config
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import steps

NOTE = "The embedding matrix's weights get updated like everything else; they're just like W_q, W_k, etc."
CLAIM = (
    "Backpropagation updates embeddings like any weight; if the table is not tied to the head, it updates only the rows that "
    "occur in the batch."
)
PREDICTION = "With a separate head, exactly the rows that occur in the batch get a gradient."
REFUTED_BY = "A row that occurs and gets none, or one that does not occur and gets one."
DESIGN = (
    "Untrained word models of Shakespeare, with a separate head and with a tied head, on the first batches of training, one per seed. "
    "Measured: the gradient of each row of the token table; the table's gradient against a finite difference of the loss "
    "along it; the rows that the first step of AdamW changes, with and without weight decay of the table, and those that a later step changes "
    "(Adam's averages keep moving a row after its gradient is 0). A row occurs if its token is an input of the batch; being a target is not enough."
)
MARGINS = {}
TABLE = "token_embedding/embedding"


def base_config(setting: Setting, **model: Any) -> config.Config:
    """The config of the models."""
    pick = setting.pick
    text = trained.text_of(setting, "shakespeare", pick(40_000, 1_000_000, None))
    sizes = config.ModelConfig(
        context_length=pick(16, 64, 64),
        d_model=pick(16, 64, 256),
        num_layers=2,
        num_heads=2,
        activation="relu",
        **model,
    )
    return config.Config(
        model=sizes,
        data=dataclasses.replace(
            text, tokenizer="word", vocab_size=pick(512, 4_096, 8_192), batch_size=pick(4, 16, 16)
        ),
        optim=config.OptimConfig(warmup_steps=0),
        train=config.TrainConfig(num_steps=100),
    )


def table_of(params: dict) -> np.ndarray:
    """The token table [V, D]."""
    return np.array(dict(named_leaves(params))[TABLE], copy=True)


def moved_rows(cfg: config.Config, ids: np.ndarray, seeds: int, num_steps: int) -> list[list[dict[str, int]]]:
    """For each seed and step: how many rows occur, move, and move without occurring."""
    parts = steps.build(cfg)
    step = jax.jit(parts.train_step)
    found = []
    for seed in range(seeds):
        state = steps.init_state(parts.model, parts.optimizer, jax.random.key(seed))
        found.append([])
        for at in range(num_steps):
            batch = batch_of(cfg, ids, seed, at)
            before = table_of(state.params)
            state, _ = step(state, batch, jax.random.key(seed))
            moved_V = (table_of(state.params) != before).any(axis=1)
            occurs_V = occurring(batch, len(before))
            counts = {"occur": occurs_V, "moved": moved_V, "unseen": moved_V & ~occurs_V}
            found[-1].append({name: int(rows_V.sum()) for name, rows_V in counts.items()})
    return found


def batch_of(cfg: config.Config, ids: np.ndarray, seed: int, at: int) -> np.ndarray:
    """The windows of one step [B, T + 1]."""
    return Batches(ids, seed, cfg.data.batch_size, cfg.model.context_length).at(at)


def occurring(batch: np.ndarray, V: int) -> np.ndarray:
    """Which tokens are inputs of the batch [V]."""
    return np.bincount(np.asarray(batch)[:, :-1].ravel(), minlength=V) > 0


def gradients(cfg: config.Config, ids: np.ndarray, seeds: int) -> list[dict[str, Any]]:
    """For each seed: the first batch's gradient by row, and its distance from a finite difference."""
    model = GPT(cfg.model)
    loss = jax.jit(lambda params, batch: steps.mean_loss(model, params, batch))
    gradient = jax.jit(jax.grad(loss))
    return [_gradient(model, loss, gradient, batch_of(cfg, ids, seed, 0), seed) for seed in range(seeds)]


def _gradient(model: GPT, loss: Callable, gradient: Callable, batch: np.ndarray, seed: int) -> dict[str, Any]:
    params = init_params(model, jax.random.key(seed))
    gradient_VD = table_of(gradient(params, batch))
    size_V = np.abs(gradient_VD).max(axis=1)
    occurs_V = occurring(batch, len(size_V))

    length = float(np.linalg.norm(gradient_VD))
    reach = 0.002 / length  # the loss changes by 0.002 each way: far above rounding, and still nearly linear

    def at(distance: float) -> float:
        moved = params | {
            "token_embedding": {"embedding": jnp.asarray(table_of(params) + distance * gradient_VD / length)}
        }
        return float(loss(moved, batch))

    slope = (at(reach) - at(-reach)) / (2 * reach)
    return {
        "rows": len(size_V),
        "occur": int(occurs_V.sum()),
        "reached": int((size_V > 0).sum()),
        "largest_unseen": float(size_V[~occurs_V].max()),
        "occur_without": int((size_V[occurs_V] == 0).sum()),
        "slope_error": abs(slope / length - 1),
        "sizes": {
            "occur": np.quantile(size_V[occurs_V], [0.1, 0.5, 0.9]),
            "unseen": np.quantile(size_V[~occurs_V], [0.1, 0.5, 0.9]),
        },
    }


def measure(setting: Setting) -> dict[str, Any]:
    """Gradients and moved rows, with a separate and a tied head."""
    found: dict[str, list[dict]] = {}
    steps_of: dict[str, list[list[dict]]] = {}
    num_steps = setting.pick(2, 20, 20)
    for kind, tied in (("untied", False), ("tied", True)):
        cfg = base_config(setting, tie_embeddings=tied)
        dataset = prepare_dataset(cfg.data)
        cfg = trained.changed(cfg, {"model.vocab_size": dataset.tokenizer.vocab_size})
        ids = dataset.train.ids
        found[kind] = gradients(cfg, ids, setting.seeds)
        steps_of[kind] = moved_rows(cfg, ids, setting.seeds, num_steps)
        if not tied:
            decayed = trained.changed(cfg, {"optim.decay_embeddings": True})
            steps_of[f"{kind}, decayed"] = moved_rows(decayed, ids, setting.seeds, num_steps)
    return {"gradients": found, "steps": steps_of}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    untied, tied = (measurements["gradients"][kind] for kind in ("untied", "tied"))
    plain, decayed = (measurements["steps"][kind] for kind in ("untied", "untied, decayed"))
    rows = untied[0]["rows"]

    def mean_of(counts: list[int]) -> str:
        return f"{claim.mean(counts).value:,.0f}"

    largest_unseen = max(row["largest_unseen"] for row in untied)
    slope_error = max(row["slope_error"] for row in untied + tied)
    says = (
        f"Of {rows:,} rows {mean_of([row['occur'] for row in untied])} occur in a batch. With a separate head, "
        f"{mean_of([row['reached'] for row in untied])} get a gradient and {mean_of([run[0]['moved'] for run in plain])} move in the "
        f"first step; the largest gradient of the other rows is {largest_unseen:g}. With a tied head, "
        f"{mean_of([row['reached'] for row in tied])} get a gradient. The gradient predicts the change of the loss to {slope_error:.1%}. "
        f"At step {len(plain[0])} AdamW moves {mean_of([run[-1]['moved'] for run in plain])} rows, while "
        f"{mean_of([run[-1]['occur'] for run in plain])} occur in that batch; with weight decay of the table it moves "
        f"{mean_of([run[0]['moved'] for run in decayed])} in the first step."
    )
    parts = (
        Check("largest gradient of a row that does not occur, separate head", largest_unseen, 0.0),
        Check("rows that occur and get no gradient, separate head", max(row["occur_without"] for row in untied), 0),
        Check("rows that get no gradient, tied head", max(rows - row["reached"] for row in tied), 0),
        Check("rows that move in step 1 without occurring, separate head", max(run[0]["unseen"] for run in plain), 0),
        Check("relative error of the gradient against a finite difference", slope_error, 0.01),
    )  # fmt: skip
    return Result(parts, says)


def draw(figure, measurements: dict[str, Any]) -> None:
    """Rows that move at each step; sizes of the rows' gradients."""
    moved, sizes = figure.subplots(1, 2)
    for i, (name, runs) in enumerate(measurements["steps"].items()):
        at = range(1, len(runs[0]) + 1)
        if not i:
            moved.plot(
                at,
                [np.mean([run[k - 1]["occur"] for run in runs]) for k in at],
                color="k",
                label="occur in the batch",
            )
        style = {"color": f"C{i}", "linestyle": ("-", "--", "-.", ":")[i]}
        moved.plot(
            at, [np.mean([run[k - 1]["moved"] for run in runs]) for k in at], label=f"move: {name}", **style
        )
    moved.set(title="rows of the table", xlabel="step", ylim=(0, None))
    moved.legend(fontsize=7)
    for i, (kind, rows) in enumerate(measurements["gradients"].items()):
        for j, what in enumerate(("occur", "unseen")):
            low, middle, high = np.mean([row["sizes"][what] for row in rows], axis=0)
            place = 2.5 * i + j
            sizes.bar(place, middle, yerr=[[middle - low], [high - middle]], color=f"C{j}", capsize=3)
            sizes.annotate(
                f"{kind},\n{'occurs' if not j else 'does not'}",
                (place, 0),
                xytext=(0, -4),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7,
            )
    sizes.set(title="largest gradient in a row: median, 10 % and 90 %", xticks=[])


if __name__ == "__main__":
    claim.run()
