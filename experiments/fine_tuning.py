"""What does fine-tuning learn and forget: all parameters, all but the embeddings, or the embeddings alone?

python -m experiments.fine_tuning [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from experiments import claim, comparing, timing, trained, tuning
from experiments.claim import Amendment, Check, Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import load
from jaxgpt.vectors.nearest import unit

NOTE = "Train everything: embeddings are updated. Freeze embeddings: embeddings stay fixed (no updates). Use new embeddings: you may initialize or fine-tune."
CLAIM = (
    "Fine-tuning can update everything, freeze the embeddings, or train the embeddings alone: each learns the new text, "
    "and frozen embeddings do not move."
)
PREDICTION = (
    "Each way lowers the loss of the new text, with a tied and with an untied head; frozen rows do not move."
)
REFUTED_BY = "A way that does not lower it by 0.02 nats, or a frozen number that changed."
DESIGN = (
    "Character models of Shakespeare, with a head that is tied to the token table or has parameters of its own, are fine-tuned on the King James Bible, each from a base model "
    "of its own seed: all parameters, all but the token table, or the token table alone. Each way has its own best learning rate of at least five, chosen with other seeds "
    "and bases. Measured: the loss on both texts before and after; how far the known rows of the table have turned (cosine with their start; 1: not at all); "
    "the time of a step, in turns, in five fresh processes. Each head is a condition."
)
MARGINS = {"loss": 0.02, "turn": 0.005}
LIMITS = "With a tied head, freezing the embeddings freezes the head as well, and training the embeddings alone trains it."
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Models with an untied head were added, and each way has its own rate.",
        "With a tied head alone, what the embeddings do and what the head does is one.", "holds",
    ),
)  # fmt: skip
# experiments/finetuning.py also measures LoRA and word vectors.
MODES: dict[str, tuple[str, ...]] = {
    "everything": (),
    "frozen embeddings": ("-token_embedding/*", "*"),
    "embeddings alone": ("token_embedding/*",),
}


HEADS = {"tied": "with a tied head", "untied": "with an untied head"}


def of_head(setting: Setting, tied: bool) -> dict[str, Any]:
    """Losses, drift and time by mode, for models with a tied head or an untied one."""
    bases = trained.characters(setting, tied)
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
    times = timing.step_times(
        setting,
        {mode: trained.changed(base, fields) for mode, fields in variants.items()},
        setting.pick(2, 20, 40),
    )

    def by_seed(those: Setting) -> list[dict[str, Any]]:
        return [{"init_from": str(run.workdir)} for run in trained.characters(those, tied)]

    rows, chosen = tuning.train(setting, "fine_tuning", base, variants, by_seed)
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
        "milliseconds": {mode: 1000 * statistics.median(found) for mode, found in times.items()}, "tuning": chosen,
    }  # fmt: skip


def measure(setting: Setting) -> dict[str, Any]:
    """`of_head` for both heads."""
    return {head: of_head(setting, head == "tied") for head in HEADS}


def by_head(measurements: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measurements of each head; earlier ones are of tied heads alone."""
    return measurements if "tied" in measurements else {"tied": measurements}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    unit_name = "nats a character"
    parts: list[Effect | Check] = []
    says, edges, headline = [], [], []
    for head, found in by_head(measurements).items():
        new, old, cosines = (found[name] for name in ("new", "old", "cosines"))
        learned = {mode: claim.difference(new["before"], new[mode]) for mode in MODES}
        forgot = {mode: claim.difference(old[mode], old["before"]) for mode in MODES}
        drift = claim.mean([1 - cosine for cosine in cosines["everything"]])
        under = HEADS[head]
        parts += [
            *(Effect(f"fall of the loss on the new text, {mode}", learned[mode], unit_name, under=under, margin=MARGINS["loss"]) for mode in MODES),
            Effect("1 minus the cosine of rows with their start, everything", drift, under=under, margin=MARGINS["turn"]),
            Check("numbers of the frozen table that changed", found["frozen numbers that moved"], 0, under=under),
        ]  # fmt: skip
        by_mode = "; ".join(
            f"{mode} {claim.show(learned[mode])} and {claim.show(forgot[mode])}, cosine {claim.show(claim.mean(cosines[mode]))}"
            for mode in MODES
        )
        says.append(
            f"{under}: {by_mode}, {', '.join(f'{ms:.1f}' for ms in found['milliseconds'].values())} ms a step"
        )
        edges.append(tuning.at_the_edge(found.get("tuning", {})))
        alone = learned["embeddings alone"].value / learned["everything"].value
        headline.append(f"{alone:.0%} {under}")
    steps = next(iter(by_head(measurements).values()))["steps"]
    return Result(
        parts=tuple(parts),
        says=f"In {steps} steps the loss on the new text falls and the loss on the old text rises by ({unit_name}), {'. '.join(says)}.",
        seeds=len(next(iter(by_head(measurements).values()))["new"]["before"]),
        untold="; ".join(filter(None, edges)),
        varies="the head",
        headline=f"Training the embeddings alone learns {' and '.join(headline)} of what training everything learns.",
    )


def _table(run) -> np.ndarray:
    return np.asarray(run.params["token_embedding"]["embedding"])


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Loss on the new and the old text; cosine of the table's rows with their start."""
    axes = figure.subplots(1, 3, sharey=True)
    found = by_head(measurements)
    for axis, what, label in zip(
        axes, ("new", "old", "cosines"),
        ("loss on the new text,\nnats a character", "loss on the old text,\nnats a character", "cosine of rows\nwith their start"), strict=True,
    ):  # fmt: skip
        by_label = {
            f"{name}, {head}" if len(found) > 1 else name: own[what].get(name, [1.0] * len(own["new"][name]))
            for head, own in found.items()
            for name in ("before", *MODES)
        }
        comparing.draw_seeds(axis, by_label, label)


if __name__ == "__main__":
    claim.run()
