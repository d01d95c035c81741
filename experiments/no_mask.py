"""What does a model learn if it can see the tokens that it must predict?

python -m experiments.no_mask [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import jax
import numpy as np

from experiments import claim, comparing, tuning
from experiments.claim import Effect, Result, Setting
from jaxgpt.data import baselines
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.load import load
from jaxgpt.training.evaluation import window_losses
from jaxgpt.training.steps import token_losses

NOTE = "We don't want later words to influence earlier words cause it would give away the answer. [...] This is like cheating - it knows what comes next!"
CLAIM = "Without the causal mask a model cheats: it reads the answer, and has learned nothing that it could write with."
PREDICTION = "Without a mask the loss in training is far lower, and the loss of a character that cannot be seen is far higher."
REFUTED_BY = "A model without a mask that predicts unseen characters as well as one with a mask."
DESIGN = (
    "Character models of Shakespeare with and without a causal mask, each at its own best learning rate of at least five (that of the lowest apparent loss, chosen with other seeds). First the apparent loss on the validation text, "
    "computed as in training (the last answer of each window is not visible). Then the true loss: each character is predicted from the "
    "characters before it alone, one prefix after another; and the true loss of the unmasked model's parameters used with a mask. Then both write, "
    "one character at a time, and a masked model of another seed scores what they wrote."
)
MARGINS = {"loss": 0.02}


@functools.partial(jax.jit, static_argnames="model")
def last_logits(model: GPT, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """The logits for the token after the last [B, V]. With or without a mask, the model sees only the given tokens."""
    return model.apply({"params": params}, tokens_BT)[:, -1]


def prefix_loss(model: GPT, params: dict, windows: np.ndarray, every: int) -> float:
    """Mean -log p of the token after a prefix of windows [B, T + 1], over every `every`-th prefix length."""
    lengths = range(windows.shape[1] - 1, 0, -every)
    return float(
        np.mean(
            [token_losses(last_logits(model, params, windows[:, :n]), windows[:, n]).mean() for n in lengths]
        )
    )


def write(model: GPT, params: dict, prompts_BT: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` sampled tokens after each prompt [B, count], each from a forward pass over the last T tokens."""
    T, ids = prompts_BT.shape[1], prompts_BT
    key = jax.random.key(seed)
    for at in range(count):
        logits_BV = last_logits(model, params, ids[:, -T:])
        drawn = jax.random.categorical(jax.random.fold_in(key, at), logits_BV)
        ids = np.concatenate([ids, np.asarray(drawn, np.int32)[:, None]], axis=1)
    return ids[:, T:]


def measure(setting: Setting) -> dict[str, Any]:
    """Losses with and without the mask, apparent and true."""
    base = comparing.base(setting)
    variants = {"mask": {"model.causal": True}, "no mask": {"model.causal": False}}
    rows, chosen = tuning.train(setting, "no_mask", base, variants)
    dataset = prepare_dataset(base.data)
    T, count = base.model.context_length, setting.pick(2, 256, 512)
    ids = dataset.valid.ids.astype(np.int32)
    windows = ids[: count * (T + 1)].reshape(count, T + 1)
    runs = {label: [load(row.workdir) for row in found] for label, found in rows.items()}
    every = setting.pick(4, 1, 16)
    masked = GPT(dataclasses.replace(runs["mask"][0].config.model, causal=True), attention="explicit")
    prompts, length = windows[:16, :T], setting.pick(4, 96, 96)
    texts: dict[str, str] = {}
    judged: dict[str, list[float]] = {}
    for label, found in runs.items():
        judged[label] = []
        for seed, run in enumerate(found):
            judge = runs["mask"][(seed + 1) % len(found)]
            written = write(run.model, run.params, prompts, length, seed)
            tokens = np.concatenate([prompts, written], axis=1)
            losses = [
                token_losses(
                    last_logits(judge.model, judge.params, tokens[:, at : at + T]), tokens[:, at + T]
                )
                for at in range(length)
            ]
            judged[label].append(float(np.mean(losses)))
            if seed == 0:
                texts[label] = run.tokenizer.decode(written[0])
        texts["prompt"] = runs[label][0].tokenizer.decode(prompts[0])
    return {
        "apparent": {label: comparing.losses(found) for label, found in rows.items()},
        "true": {
            label: [prefix_loss(run.model, run.params, windows, every) for run in found]
            for label, found in runs.items()
        },
        "under a mask": [float(window_losses(masked, run.params, windows).mean()) for run in runs["no mask"]],
        "judged": judged,
        "texts": texts,
        "tuning": chosen,
        "tables": baselines.losses(
            dataset.train.ids, dataset.valid.ids, dataset.tokenizer.vocab_size, 16_384
        ),
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    apparent, true, judged, tables, texts = (
        measurements[name] for name in ("apparent", "true", "judged", "tables", "texts")
    )

    chosen = measurements.get("tuning", {})
    T = len(texts["prompt"])  # the length of a window: one character a token
    cheated = claim.mean([T * loss for loss in apparent["no mask"]])

    def mean_loss(losses: list[float]) -> str:
        return claim.show(claim.mean(losses))

    unit = "nats a character"
    return Result(
        parts=(
            Effect("apparent loss with the mask minus without", claim.difference(apparent["mask"], apparent["no mask"]), unit, margin=MARGINS["loss"]),
            Effect("true loss without the mask minus with", claim.difference(true["no mask"], true["mask"]), unit, margin=MARGINS["loss"]),
            Effect(
                "loss of the text written without the mask minus with, scored by a masked model of another seed",
                claim.difference(judged["no mask"], judged["mask"]), unit, margin=MARGINS["loss"],
            ),
        ),
        says=(
            f"The apparent loss is {mean_loss(apparent['no mask'])} {unit} without a mask and {mean_loss(apparent['mask'])} with one. "
            f"The true loss is {mean_loss(true['no mask'])} without a mask (the same parameters used with a mask: "
            f"{mean_loss(measurements['under a mask'])}; a bigram table: {tables['bigram']:.2f}; character frequencies: "
            f"{tables['unigram']:.2f}) and {mean_loss(true['mask'])} with one. After a line of Shakespeare the model without a mask "
            f"writes {texts['no mask'][:40]!r}, the one with a mask {texts['mask'][:40]!r}. The last answer of each window of {T} cannot be seen "
            f"even without a mask: {T} times the apparent loss is {claim.show(cheated, 'nats')}; one character that is guessed from the "
            f"frequencies of characters costs {tables['unigram']:.2f}."
        ),
        seeds=len(apparent["mask"]),
        untold=tuning.at_the_edge(chosen),
        headline=f"Without a mask a window of {T} characters costs {T} x {statistics.fmean(apparent['no mask']):.3f} = {cheated.value:.2f} nats (one character that is guessed: "
        f"{tables['unigram']:.2f}); where no answer can be seen, a character costs {statistics.fmean(true['no mask']):.2f}, with a mask {statistics.fmean(true['mask']):.2f}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Apparent and true losses; losses of the written text."""
    axes = figure.subplots(1, 3, sharey=True)
    titles = {"apparent": "apparent loss", "true": "true loss", "judged": "loss of the text it writes"}
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        comparing.draw_seeds(axis, measurements[what], "nats a character" if what == "apparent" else "")
        axis.set_title(title)
        if what != "judged":
            axis.axhline(measurements["tables"]["bigram"], color="#7a7a7a", linestyle="--", linewidth=1)
    axes[0].annotate(
        "bigram table", (-0.4, measurements["tables"]["bigram"] + 0.05), color="#7a7a7a", fontsize=8
    )


if __name__ == "__main__":
    claim.run()
