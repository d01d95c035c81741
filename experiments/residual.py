"""What is the sum x + f(x) good for, and from which depth on?

python -m experiments.residual [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting
from jaxgpt import config
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.inspect.capture import capture
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training.steps import mean_loss

CLAIM = "With a residual, x + f(x), a layer only has to learn a change; without one, f(x), a deep model hardly learns."
DESIGN = (
    "Character models of Shakespeare of several depths, with and without the sums around attention and MLP. Matrices start "
    "as large as keeps signals of one size (fan_in); each is trained at two rates and counts with the better. Losses; the "
    "gradient of the first block relative to that of the last, at the start (over eight times as many draws of the parameters "
    "as seeds, as they vary by a factor of ten and need no training) and at the end; and how large the change of a block is "
    "beside the stream that it is added to, in the deepest model."
)
RATES = (1e-3, 4e-3)
DRAWS = 8  # of first parameters, a seed


@functools.partial(jax.jit, static_argnames="cfg")
def _block_norms(cfg: config.ModelConfig, params: dict, batch: jax.Array) -> jax.Array:
    grads = jax.grad(lambda p: mean_loss(GPT(cfg), p, batch))(params)
    blocks = [grads[f"block_{i}"] for i in range(cfg.num_layers)]
    return jnp.stack([jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(b))) for b in blocks])


def gradient_norms(cfg: config.ModelConfig, params: dict, ids: np.ndarray) -> list[float]:
    """The norm of each block's gradient [L] on the same 16 windows."""
    batch = Batches(ids, 99, 16, cfg.context_length).at(0)
    return np.asarray(_block_norms(cfg, params, batch)).tolist()


def change_sizes(run, ids: np.ndarray) -> list[float]:
    """What each block adds, relative to the stream before it: mean over the positions of a window, [L]."""
    shown = capture(run.config.model, run.params, ids[: run.config.model.context_length])
    norm = functools.partial(np.linalg.norm, axis=-1)
    return [
        float((norm(layer.after_TD - layer.before_TD) / norm(layer.before_TD)).mean())
        for layer in shown.layers
    ]


def measure(setting: Setting) -> Result:
    """Losses and gradients by depth, with and without."""
    depths = setting.pick((1, 2), (1, 2, 4, 8, 12), (1, 2, 4, 8, 12, 24))
    rates = setting.pick(RATES[:1], RATES, RATES)
    width = setting.pick(8, 32, 256)
    base = comparing.base(
        setting, model__d_model=width, model__num_heads=2, model__init="fan_in",
        model__tie_embeddings=False,
        train__num_steps=setting.pick(3, 200, 3_000), train__eval_tokens=setting.pick(64, 8_192, 65_536),
    )  # fmt: skip
    variants = {
        f"{kind} {depth} {rate:g}": {
            "model.residual": kind == "with", "model.num_layers": depth, "optim.learning_rate": rate,
        }
        for kind in ("with", "without")
        for depth in depths
        for rate in rates
    }  # fmt: skip
    rows = comparing.train(setting, "residual", base, variants)
    ids = prepare_dataset(base.data).train.ids
    losses: dict[str, dict[str, list[float]]] = {"with": {}, "without": {}}
    chosen: dict[str, float] = {}
    shares: dict[str, dict[str, dict[str, list[float]]]] = {"start": {}, "end": {}}
    changes: list[list[float]] = []
    for kind, by_depth in losses.items():
        for at in shares:
            shares[at][kind] = {}
        for depth in depths:
            by_rate = {rate: comparing.losses(rows[f"{kind} {depth} {rate:g}"]) for rate in rates}
            best = chosen[f"{kind} {depth}"] = min(rates, key=lambda rate: statistics.fmean(by_rate[rate]))
            by_depth[str(depth)] = by_rate[best]
            ends = [comparing.load(row) for row in rows[f"{kind} {depth} {best:g}"]]
            cfg = ends[0].config.model
            norms = {
                "start": [
                    gradient_norms(cfg, init_params(GPT(cfg), jax.random.key(seed)), ids)
                    for seed in range(DRAWS * setting.seeds)
                ],
                "end": [gradient_norms(cfg, run.params, ids) for run in ends],
            }
            for at, found in norms.items():
                shares[at][kind][str(depth)] = [row[0] / row[-1] for row in found]
            if (kind, depth) == ("with", depths[-1]):
                changes = [change_sizes(run, ids) for run in ends]
    shallow, deep = str(depths[0]), str(depths[-1])
    worse = {
        depth: claim.difference(losses["without"][depth], losses["with"][depth]) for depth in losses["with"]
    }
    harm = {
        depth: [a - b for a, b in zip(losses["without"][depth], losses["with"][depth], strict=True)]
        for depth in (shallow, deep)
    }
    grows = claim.difference(harm[deep], harm[shallow])
    reaches = claim.ratio(shares["start"]["with"][deep], shares["start"]["without"][deep])
    kept = claim.mean([1 - statistics.fmean(row[1:]) for row in changes])
    unit = "nats a character"
    return Result(
        parts=(
            Effect(f"loss without residuals less that with, {deep} layers", worse[deep], unit),
            Effect(f"the same less what it is with {shallow} layers", grows, unit),
            Effect(
                f"gradient of the first block over that of the last at the start, {deep} layers: with over without",
                reaches, "times", above=1.0,
            ),
            Effect("1 less the size of a block's change relative to the stream, all blocks but the first", kept),
        ),
        says=(
            "Without residuals the loss is higher by "
            + ", ".join(f"{claim.show(found)} ({depth} layers)" for depth, found in worse.items())
            + f" {unit}. At the start the first of {deep} blocks gets {_share(shares['start']['with'][deep])} of the last one's "
            f"gradient with them, {_share(shares['start']['without'][deep])} without. A block changes the stream by "
            f"{claim.show(claim.mean([statistics.fmean(row[1:]) for row in changes]))} of its size."
        ),
        measurements={
            "losses": losses, "rates": chosen, "first block's gradient over the last's": shares, "changes": changes,
        },
        seeds=setting.seeds,
    )  # fmt: skip


def _share(values: list[float]) -> str:
    return claim.show(claim.ratio(values, [1.0] * len(values)), "times")


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses and gradients by depth."""
    loss, gradient, change = figure.subplots(1, 3)
    shares = measurements["first block's gradient over the last's"]
    for place, (kind, by_depth) in enumerate(measurements["losses"].items()):
        _line(loss, by_depth, claim.COLOURS[place], f"{kind} residual")
        for at, style in (("start", "-"), ("end", ":")):
            _line(gradient, shares[at][kind], claim.COLOURS[place], f"{kind}, {at}", style)
    gradient.set_yscale("log")
    loss.set(title="validation loss, nats a character", xlabel="layers")
    gradient.set(title="first block's gradient / last's", xlabel="layers")
    loss.legend()
    gradient.legend(fontsize=7)
    for row in measurements["changes"]:
        change.plot(range(1, len(row) + 1), row, color=claim.COLOURS[0], alpha=0.6)
    change.set(title="size of a block's change / stream", xlabel="block", ylim=(0, None))


def _line(axis: Any, by_depth: dict[str, list[float]], colour: str, label: str, style: str = "-") -> None:
    found = [claim.mean(values) for values in by_depth.values()]
    axis.errorbar(
        [int(depth) for depth in by_depth], [e.value for e in found], [(e.high - e.low) / 2 for e in found],
        color=colour, label=label, linestyle=style, marker="o", markersize=3, capsize=3,
    )  # fmt: skip


if __name__ == "__main__":
    claim.run()
