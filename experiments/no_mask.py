"""What does a model learn that sees the tokens that it is to predict?

python -m experiments.no_mask [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting
from jaxgpt.data import baselines
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.training.evaluation import window_losses
from jaxgpt.training.steps import token_losses

CLAIM = "Without the triangular mask a model cheats: it reads the answer, and has learned nothing that it could write with."
DESIGN = (
    "Character models of Shakespeare with and without a causal mask, trained alike. First the loss as "
    "training has it, on the validation text (of each window the last answer is not in sight). Then the true loss: each character is predicted from the characters before it and nothing else, "
    "one prefix after another; and that of the same parameters under a mask. Then both write, one character after another, "
    "and a masked model of another seed says how likely it finds what they wrote."
)


@functools.partial(jax.jit, static_argnames="model")
def last_logits(model: GPT, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """What the model says of the token after the last [B, V]: whether it has a mask makes no difference to what it is given."""
    return model.apply({"params": params}, tokens_BT)[:, -1]


def prefix_loss(model: GPT, params: dict, windows: np.ndarray, every: int) -> float:
    """Mean -log p of the token after each prefix of windows [B, T + 1], every so many lengths of them."""
    lengths = range(windows.shape[1] - 1, 0, -every)
    return float(
        np.mean(
            [token_losses(last_logits(model, params, windows[:, :n]), windows[:, n]).mean() for n in lengths]
        )
    )


def write(model: GPT, params: dict, prompts_BT: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` drawn tokens after each prompt [B, count], each from a pass over the last T tokens."""
    T, ids = prompts_BT.shape[1], prompts_BT
    key = jax.random.key(seed)
    for at in range(count):
        logits_BV = last_logits(model, params, ids[:, -T:])
        drawn = jax.random.categorical(jax.random.fold_in(key, at), logits_BV)
        ids = np.concatenate([ids, np.asarray(drawn, np.int32)[:, None]], axis=1)
    return ids[:, T:]


def measure(setting: Setting) -> Result:
    """Losses with and without the mask, apparent and true."""
    base = comparing.base(setting)
    variants = {"mask": {"model.causal": True}, "no mask": {"model.causal": False}}
    rows = comparing.train(setting, "no_mask", base, variants)
    apparent = {label: comparing.losses(found) for label, found in rows.items()}
    dataset = prepare_dataset(base.data)
    T, count = base.model.context_length, setting.pick(2, 256, 512)
    ids = dataset.valid.ids.astype(np.int32)
    windows = ids[: count * (T + 1)].reshape(count, T + 1)
    runs = {label: [comparing.load(row) for row in found] for label, found in rows.items()}
    every = setting.pick(4, 1, 16)
    true = {
        label: [prefix_loss(run.model, run.params, windows, every) for run in found]
        for label, found in runs.items()
    }
    masked = GPT(dataclasses.replace(runs["mask"][0].config.model, causal=True), attention="explicit")
    put_under = [float(window_losses(masked, run.params, windows).mean()) for run in runs["no mask"]]
    prompts, length = windows[:16, :T], setting.pick(4, 96, 96)
    texts: dict[str, str] = {}
    judged: dict[str, list[float]] = {}
    for label, found in runs.items():
        judged[label] = []
        for seed, run in enumerate(found):
            judge = runs["mask"][(seed + 1) % len(found)]
            written = write(run.model, run.params, prompts, length, seed)
            whole = np.concatenate([prompts, written], axis=1)
            losses = [
                token_losses(last_logits(judge.model, judge.params, whole[:, at : at + T]), whole[:, at + T])
                for at in range(length)
            ]
            judged[label].append(float(np.mean(losses)))
            if seed == 0:
                texts[label] = run.tokenizer.decode(written[0])
        texts["prompt"] = runs[label][0].tokenizer.decode(prompts[0])
    tables = baselines.losses(dataset.train.ids, dataset.valid.ids, dataset.tokenizer.vocab_size, 16_384)
    seems = claim.difference(apparent["mask"], apparent["no mask"])
    worse = claim.difference(true["no mask"], true["mask"])
    unlikely = claim.difference(judged["no mask"], judged["mask"])
    unit = "nats a character"
    return Result(
        parts=(
            Effect("loss as trained, with the mask less without", seems, unit),
            Effect("true loss of the model without a mask less that of the one with", worse, unit),
            Effect("loss of what it writes, by a masked model of another seed, less that of what one with writes", unlikely, unit),
        ),
        says=(
            f"As training has it the loss without a mask is {claim.show(claim.mean(apparent['no mask']), unit)}, with it "
            f"{claim.show(claim.mean(apparent['mask']))}. Predicting what it has not seen, the one without has a loss of "
            f"{claim.show(claim.mean(true['no mask']))} (its parameters under a mask: {claim.show(claim.mean(put_under))}; a bigram "
            f"table {tables['bigram']:.2f}, letter frequencies {tables['unigram']:.2f}), the masked one of {claim.show(claim.mean(true['mask']))}. "
            f"It goes on from a true line with {texts['no mask'][:40]!r}; the masked one with {texts['mask'][:40]!r}."
        ),
        measurements={
            "apparent": apparent, "true": true, "under a mask": put_under, "judged": judged, "texts": texts, "tables": tables,
        },
        seeds=setting.seeds,
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Apparent and true losses; what others think of the text."""
    axes = figure.subplots(1, 3, sharey=True)
    titles = {"apparent": "as trained", "true": "of what it has not seen", "judged": "of what it writes"}
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
