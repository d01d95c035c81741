"""Everything, all but the embeddings, or the embeddings alone: what does fine-tuning learn and forget?

python -m experiments.fine_tuning [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.vectors.nearest import unit

CLAIM = (
    "Fine-tuning can update everything, keep the embeddings as they are, or train embeddings alone: each learns the new text, "
    "and frozen embeddings do not move."
)
DESIGN = (
    "Character models of Shakespeare go on with the King James Bible, each from a base model of its own seed: all parameters, "
    "all but the token table, the token table alone. Loss on both texts before and after, how far the known rows of "
    "the table have turned (cosine with where they began; 1: not at all), the time of a step, measured in turn."
)
# experiments/finetuning.py also has low-rank changes and word vectors.
MODES: dict[str, tuple[str, ...]] = {
    "everything": (),
    "frozen embeddings": ("-token_embedding/*", "*"),
    "embeddings alone": ("token_embedding/*",),
}


def measure(setting: Setting) -> Result:
    """Losses, drift and time by mode."""
    bases = trained.characters(setting)
    steps = setting.pick(2, 200, 1_000)
    tokens = setting.pick(64, 16_384, 65_536)
    first = bases[0].config
    base = comparing.changed(
        first,
        {
            "data.corpus": "kjv", "data.path": comparing.text_slice(setting, "kjv", 0, setting.pick(20_000, None, None)),
            "data.add_tokens": True, "data.tokenizer_path": str(bases[0].workdir / "tokenizer.json"),
            "model.vocab_size": None, "optim.learning_rate": 1e-3, "optim.warmup_steps": setting.pick(1, 20, 50),
            "train.num_steps": steps, "train.eval_every": steps, "train.eval_tokens": tokens,
            "train.embedding_snapshots": 0,
        },
    )  # fmt: skip
    variants = {mode: {"optim.trainable": rules} for mode, rules in MODES.items()}
    times = comparing.step_times(
        {mode: comparing.changed(base, fields) for mode, fields in variants.items()}, setting.pick(2, 20, 40)
    )
    rows = comparing.train(
        setting, "fine_tuning", base, variants, [{"init_from": str(run.workdir)} for run in bases]
    )
    old_ids = prepare_dataset(first.data).valid.ids  # known tokens keep their ids
    old = {"before": [comparing.loss_on(run.model, run.params, old_ids, tokens).loss for run in bases]}
    new: dict[str, list[float]] = {}
    cosines: dict[str, list[float]] = {}
    moved = 0
    for mode, found in rows.items():
        curves = [comparing.curve(row) for row in found]
        new["before"], new[mode] = ([curve[step] for curve in curves] for step in (0, steps))
        runs = [comparing.load(row) for row in found]
        old[mode] = [comparing.loss_on(run.model, run.params, old_ids, tokens).loss for run in runs]
        began, ended = (
            [_table(run)[: len(_table(b))] for run, b in zip(r, bases, strict=True)] for r in (bases, runs)
        )
        cosines[mode] = [
            float((unit(np.float64(a)) * unit(np.float64(b))).sum(axis=1).mean())
            for a, b in zip(began, ended, strict=True)
        ]
        if mode == "frozen embeddings":
            moved = sum(int((a != b).sum()) for a, b in zip(began, ended, strict=True))
    learned = {mode: claim.difference(new["before"], new[mode]) for mode in MODES}
    forgot = {mode: claim.difference(old[mode], old["before"]) for mode in MODES}
    unit_text = "nats a character"
    quicker = claim.ratio(times["everything"], times["embeddings alone"])
    drift = claim.mean([1 - cosine for cosine in cosines["everything"]])
    said = "; ".join(
        f"{mode} {claim.show(learned[mode])} and {claim.show(forgot[mode])}, cosine {claim.show(claim.mean(cosines[mode]))}"
        for mode in MODES
    )
    return Result(
        parts=(
            *(Effect(f"fall of the loss on the new text, {mode}", learned[mode], unit_text) for mode in MODES),
            Check("numbers of the frozen table that are not what they were", moved, 0),
            Effect("1 less the cosine of rows with where they began, everything", drift),
        ),
        says=(
            f"In {steps} steps the loss on the new text falls, and that on the old rises, by ({unit_text}): {said}. A step that "
            f"trains everything takes {claim.show(quicker, 'times')} as long as one of embeddings alone."
        ),
        measurements={
            "new": new, "old": old, "cosines": cosines,
            "milliseconds": {mode: 1000 * statistics.median(t) for mode, t in times.items()},
        },
        seeds=setting.seeds,
    )  # fmt: skip


def _table(run) -> np.ndarray:
    return np.asarray(run.params["token_embedding"]["embedding"])


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Loss on the new text and on the old."""
    axes = figure.subplots(1, 3)
    for axis, what in ((axes[0], "new"), (axes[1], "old")):
        by_mode = {name: measurements[what][name] for name in ("before", *MODES)}
        comparing.draw_seeds(axis, by_mode, "nats a character")
        axis.set_title(f"{what} text")
    comparing.draw_seeds(axes[2], measurements["cosines"], "cosine with where rows began")


if __name__ == "__main__":
    claim.run()
