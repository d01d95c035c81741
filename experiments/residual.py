"""What is the residual connection x + f(x) worth, and from which depth on?

python -m experiments.residual [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, comparing, tuning
from experiments.claim import Amendment, Effect, Result, Setting
from jaxgpt import config
from jaxgpt.data import baselines
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.inspect.capture import capture
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import load
from jaxgpt.training.steps import mean_loss

NOTE = 'Without residual: x_new = f(x): must learn everything from scratch. With residual: x_new = x + f(x): only needs to learn the "delta" (change).'
CLAIM = "With a residual, x + f(x), a layer only has to learn a change; without one, f(x), a deep model hardly learns."
PREDICTION = "Without residuals the loss is higher at each depth, the more so the deeper; the gradient of the first block fades; with residuals a block adds a small change."
REFUTED_BY = "A depth at which a model without residuals learns as well at its own best rate."
DESIGN = (
    "Character models of Shakespeare of several depths, with and without the residual connections around attention and MLP. Initial "
    "matrices keep the scale of signals (fan_in). Each model has its own best learning rate of at least five, chosen with other seeds. Measured: losses; the "
    "gradient of the first block relative to that of the last, at the start (over several initial parameters per seed, as it varies by a factor of ten) and at "
    "the end; and, in the deepest model, the size of a block's change relative to the stream that it is added to. Each depth is a condition."
)
MARGINS = {"loss": 0.02, "gradient": 0.1, "change": 0.1}
LIMITS = (
    "No start that makes f(x) close to x has been tried, which can let deep models without residuals learn."
)
AMENDMENTS = (
    Amendment(
        "2026-11-22 (d2961d3)", "The gradient at the start is over eight times as many initial parameters as seeds; before, one per seed.",
        "The first five draws gave 2.86 [0.68, 12.0] times, which could not be told.", "inside noise",
    ),
    Amendment(
        "2026-11-26", "At least five rates per model, and each depth is a part.",
        "There were two rates, and every model chose the upper one.", "holds",
    ),
)  # fmt: skip
DRAWS = 4  # initial parameters per seed


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
    """The size of each block's change relative to the stream before it [L], mean over the positions of a window."""
    shown = capture(run.config.model, run.params, ids[: run.config.model.context_length])
    norm = functools.partial(np.linalg.norm, axis=-1)
    return [
        float((norm(layer.after_TD - layer.before_TD) / norm(layer.before_TD)).mean())
        for layer in shown.layers
    ]


def measure(setting: Setting) -> dict[str, Any]:
    """Losses and gradients by depth, with and without residuals."""
    depths = setting.pick((1, 2), (1, 2, 4, 8, 12), (1, 2, 4, 8, 12, 24))
    width = setting.pick(8, 32, 256)
    base = comparing.base(
        setting, model__d_model=width, model__num_heads=2, model__init="fan_in",
        model__tie_embeddings=False,
        train__num_steps=setting.pick(3, 200, 3_000), train__eval_tokens=setting.pick(64, 8_192, 65_536),
    )  # fmt: skip
    variants = {
        f"{kind} {depth}": {"model.residual": kind == "with", "model.num_layers": depth}
        for kind in ("with", "without")
        for depth in depths
    }
    rows, chosen = tuning.train(setting, "residual", base, variants)
    dataset = prepare_dataset(base.data)
    ids = dataset.train.ids
    losses: dict[str, dict[str, list[float]]] = {"with": {}, "without": {}}
    shares: dict[str, dict[str, dict[str, list[float]]]] = {"start": {}, "end": {}}
    changes: list[list[float]] = []
    for kind, by_depth in losses.items():
        for at in shares:
            shares[at][kind] = {}
        for depth in depths:
            found = rows[f"{kind} {depth}"]
            by_depth[str(depth)] = comparing.losses(found)
            ends = [load(row.workdir) for row in found]
            cfg = ends[0].config.model
            norms = {
                "start": [
                    gradient_norms(cfg, init_params(GPT(cfg), jax.random.key(seed)), ids)
                    for seed in range(DRAWS * setting.seeds)
                ],
                "end": [gradient_norms(cfg, run.params, ids) for run in ends],
            }
            for at, by_draw in norms.items():
                shares[at][kind][str(depth)] = [row[0] / row[-1] for row in by_draw]
            if (kind, depth) == ("with", depths[-1]):
                changes = [change_sizes(run, ids) for run in ends]
    return {
        "losses": losses, "tuning": chosen, "first block's gradient over the last's": shares, "changes": changes,
        "tables": baselines.losses(ids, dataset.valid.ids, dataset.tokenizer.vocab_size, 16_384),
    }  # fmt: skip


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, shares = measurements["losses"], measurements["first block's gradient over the last's"]["start"]
    shallow, *_, deep = losses["with"]
    if "tuning" not in measurements:
        edge = "each model had two rates, and chose the upper one"
    else:
        edge = tuning.at_the_edge(measurements["tuning"])
    harm = {
        depth: [a - b for a, b in zip(losses["without"][depth], losses["with"][depth], strict=True)]
        for depth in losses["with"]
    }
    worse = {depth: claim.mean(found) for depth, found in harm.items()}
    grows = claim.difference(harm[deep], harm[shallow])
    reaches = claim.ratio(shares["with"][deep], shares["without"][deep])
    changes = [statistics.fmean(row[1:]) for row in measurements["changes"]]
    unit = "nats a character"
    collapsed = {depth: statistics.fmean(losses["without"][depth]) for depth in harm}
    letters = measurements.get("tables", {}).get("unigram")
    says = (
        "Without residuals the loss is higher by "
        + ", ".join(f"{claim.show(found)} ({_layers(depth)})" for depth, found in worse.items())
        + f" {unit}; it is {', '.join(f'{loss:.2f} ({_layers(depth)})' for depth, loss in collapsed.items())}"
        + (f", where the frequencies of characters alone give {letters:.2f}" if letters else "")
        + f". At the start, the gradient of the first of {deep} blocks is {_share(shares['with'][deep])} that of the last "
        f"with residuals, and {_share(shares['without'][deep])} without. With residuals, a block's change is "
        f"{claim.show(claim.mean(changes))} of the size of the stream."
    )
    return Result(
        parts=(
            *(
                Effect("loss without residuals minus loss with", found, unit, under=f"with {_layers(depth)}", margin=MARGINS["loss"])
                for depth, found in worse.items()
            ),
            Effect(f"this difference with {_layers(deep)} minus that with {_layers(shallow)}", grows, unit, margin=MARGINS["loss"]),
            Effect(
                f"gradient of the first block / of the last at the start, {deep} layers: with residuals / without",
                reaches, "times", above=1.0, margin=MARGINS["gradient"],
            ),
            Effect(
                "1 minus the size of a block's change relative to the stream, all blocks but the first",
                claim.mean([1 - size for size in changes]), margin=MARGINS["change"],
            ),
        ),
        says=says,
        seeds=len(losses["with"][deep]),
        untold=edge,
        varies="the depth",
        headline=f"Without residuals, a model of {_layers(deep)} ends at {collapsed[deep]:.2f} nats a character"
        + (f" (the frequencies of characters give {letters:.2f})" if letters else "")
        + f", {claim.show(worse[deep], 'nats')} above the same model with residuals.",
    )  # fmt: skip


def _layers(depth: str) -> str:
    return f"{depth} layer{'s' * (depth != '1')}"


def _share(values: list[float]) -> str:
    return claim.show(claim.ratio(values, [1.0] * len(values)), "times")


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses and gradients by depth."""
    loss, gradient, change = figure.subplots(1, 3)
    shares = measurements["first block's gradient over the last's"]
    for place, (kind, by_depth) in enumerate(measurements["losses"].items()):
        _line(loss, by_depth, claim.COLOURS[place], f"{kind} residual")
        for at, style in (("start", "-"), ("end", ":")):
            _line(gradient, shares[at][kind], claim.COLOURS[place], f"{kind}, {at}", style, logarithms=True)
    if "tables" in measurements:
        loss.axhline(measurements["tables"]["unigram"], color="#7a7a7a", linestyle="--", linewidth=1)
    gradient.set_yscale("log")
    loss.set(ylabel="validation loss, nats a character", xlabel="layers")
    gradient.set(ylabel="gradient, first block / last", xlabel="layers")
    loss.margins(y=0.3)
    loss.legend(loc="upper left", fontsize=7)
    figure.legend(*gradient.get_legend_handles_labels(), loc="outside upper center", fontsize=7, ncols=4)
    for row in measurements["changes"]:
        change.plot(range(1, len(row) + 1), row, color=claim.COLOURS[0], alpha=0.6)
    change.set(ylabel="size of change / of stream", xlabel="block", ylim=(0, None))


def _line(
    axis: Any,
    by_depth: dict[str, list[float]],
    colour: str,
    label: str,
    style: str = "-",
    logarithms: bool = False,
) -> None:
    depths = [int(depth) for depth in by_depth]
    for depth, values in zip(depths, by_depth.values(), strict=True):
        axis.plot([depth] * len(values), values, "o", color=colour, markersize=2, alpha=0.3)
    average = (lambda values: claim.ratio(values, [1.0] * len(values))) if logarithms else claim.mean
    found = [average(values) for values in by_depth.values()]
    axis.errorbar(
        depths, [e.value for e in found], [[e.value - e.low for e in found], [e.high - e.value for e in found]],
        color=colour, label=label, linestyle=style, marker="o", markersize=3, capsize=3,
    )  # fmt: skip


if __name__ == "__main__":
    claim.run()
