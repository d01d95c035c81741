"""What does fine-tuning learn and forget: all parameters, all but the embeddings, or the embeddings alone?

python -m experiments.fine_tuning [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import load
from jaxgpt.vectors.nearest import unit

NOTE = "Train everything: embeddings are updated. Freeze embeddings: embeddings stay fixed (no updates). Use new embeddings: you may initialize or fine-tune."
CLAIM = (
    "Fine-tuning can update everything, freeze the embeddings, or train the embeddings alone: each learns the new text, "
    "and frozen embeddings do not move."
)
PREDICTION = "Each way lowers the loss of the new text; frozen rows do not move."
REFUTED_BY = "A way that does not lower it by 0.02 nats, or a frozen number that changed."
DESIGN = (
    "Character models of Shakespeare are fine-tuned on the King James Bible, each from a base model of its own seed: all "
    "parameters, all but the token table, or the token table alone. Measured: the loss on both texts before and after; how far the "
    "known rows of the table have turned (cosine with their start; 1: not at all); the time of a step, in turns."
)
MARGINS = {"loss": 0.02, "turn": 0.005}
# experiments/finetuning.py also measures LoRA and word vectors.
MODES: dict[str, tuple[str, ...]] = {
    "everything": (),
    "frozen embeddings": ("-token_embedding/*", "*"),
    "embeddings alone": ("token_embedding/*",),
}


def measure(setting: Setting) -> dict[str, Any]:
    """Losses, drift and time by mode."""
    bases = trained.characters(setting)
    steps = setting.pick(2, 200, 1_000)
    tokens = setting.pick(64, 16_384, 65_536)
    first = bases[0].config
    base = trained.changed(
        first,
        {
            "data.corpus": "kjv", "data.path": trained.text_slice(setting.folder, "kjv", setting.pick(20_000, None, None)),
            "data.add_tokens": True, "data.tokenizer_path": str(bases[0].workdir / "tokenizer.json"),
            "model.vocab_size": None, "optim.learning_rate": 1e-3, "optim.final_learning_rate_ratio": 0.1, "optim.warmup_steps": setting.pick(1, 20, 50),
            "train.num_steps": steps, "train.eval_every": steps, "train.eval_tokens": tokens,
            "train.embedding_snapshots": 0,
        },
    )  # fmt: skip
    variants = {mode: {"optim.trainable": rules} for mode, rules in MODES.items()}
    times = comparing.step_times(
        {mode: trained.changed(base, fields) for mode, fields in variants.items()}, setting.pick(2, 20, 40)
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
        curves = [comparing.curve(row.workdir) for row in found]
        new["before"], new[mode] = ([curve[step] for curve in curves] for step in (0, steps))
        runs = [load(row.workdir) for row in found]
        old[mode] = [comparing.loss_on(run.model, run.params, old_ids, tokens).loss for run in runs]
        start, end = (
            [_table(run)[: len(_table(b))] for run, b in zip(r, bases, strict=True)] for r in (bases, runs)
        )
        cosines[mode] = [
            float((unit(np.float64(a)) * unit(np.float64(b))).sum(axis=1).mean())
            for a, b in zip(start, end, strict=True)
        ]
        if mode == "frozen embeddings":
            moved = sum(int((a != b).sum()) for a, b in zip(start, end, strict=True))
    return {
        "new": new, "old": old, "cosines": cosines, "frozen numbers that moved": moved, "steps": steps,
        "milliseconds": {mode: 1000 * statistics.median(found) for mode, found in times.items()},
    }  # fmt: skip


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    new, old, cosines, milliseconds = (
        measurements[name] for name in ("new", "old", "cosines", "milliseconds")
    )
    learned = {mode: claim.difference(new["before"], new[mode]) for mode in MODES}
    forgot = {mode: claim.difference(old[mode], old["before"]) for mode in MODES}
    drift = claim.mean([1 - cosine for cosine in cosines["everything"]])
    unit = "nats a character"
    by_mode = "; ".join(
        f"{mode} {claim.show(learned[mode])} and {claim.show(forgot[mode])}, cosine {claim.show(claim.mean(cosines[mode]))}"
        for mode in MODES
    )
    return Result(
        parts=(
            *(
                Effect(
                    f"fall of the loss on the new text, {mode}", learned[mode], unit, margin=MARGINS["loss"]
                )
                for mode in MODES
            ),
            Check("numbers of the frozen table that changed", measurements["frozen numbers that moved"], 0),
            Effect("1 minus the cosine of rows with their start, everything", drift, margin=MARGINS["turn"]),
        ),
        says=(
            f"In {measurements['steps']} steps the loss on the new text falls and the loss on the old text rises by ({unit}): {by_mode}. "
            f"The median step takes {milliseconds['everything']:.1f} ms for everything and "
            f"{milliseconds['embeddings alone']:.1f} ms for embeddings alone."
        ),
        seeds=len(new["before"]),
    )


def _table(run) -> np.ndarray:
    return np.asarray(run.params["token_embedding"]["embedding"])


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Loss on the new and the old text; cosine of the table's rows with their start."""
    axes = figure.subplots(1, 3)
    for axis, what in ((axes[0], "new"), (axes[1], "old")):
        by_mode = {name: measurements[what][name] for name in ("before", *MODES)}
        comparing.draw_seeds(axis, by_mode, "nats a character")
        axis.set_title(f"{what} text")
    comparing.draw_seeds(axes[2], measurements["cosines"], "cosine of rows with their start")


if __name__ == "__main__":
    claim.run()
