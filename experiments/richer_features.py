"""Does a wider table hold features that a narrow one does not? Number and tense, read by linear probes.

python -m experiments.richer_features [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import claim, comparing
from experiments.claim import Effect, Result, Setting
from jaxgpt.inspect import probes
from jaxgpt.vectors import tables

NOTE = "With d_model = 4, you can store just basic attributes (e.g., subject or verb). With d_model = 512, you can store richer features like: tense, tone, syntax, semantic relationships, context history."
CLAIM = "The rows of a narrow table tell nouns from verbs; a wider table also tells number and tense, better than a narrow one."
PREDICTION = "At d_model 4 a probe tells nouns from verbs better than one of shuffled labels; number and tense are told better at d_model 128 than at 4, after the same steps and at equal loss."
REFUTED_BY = "Number or tense told as well at d_model 4 as at 128; or only because the wide model has a lower loss; or nouns and verbs not told at d_model 4."
DESIGN = (
    "Word models of Shakespeare that differ in d_model, trained on the same windows with learning rates that suit every width (muP). On the rows of the token table: logistic "
    "regression, fitted to 70 % of the words and scored on the others, mean over four such splits. Number: singular and plural nouns; tense: present and past of verbs, mostly "
    "irregular; both forms of a word are on the same side of a split. Nouns or verbs: the singular nouns and the present verbs. Control: the same probe fitted to shuffled labels. Equal loss: "
    "the table, of twelve saved at log-spaced steps, at which the model's validation loss is nearest to the last loss of the narrowest. Intervals are over seeds."
)
MARGINS = {"accuracy": 0.05}
LIMITS = "Tense and number of the notes' list; tone, syntax and context history are not asked about. A probe of a wide table has more weights; the scores are of words that it has not seen."
SPLITS = 4
TABLES = 12
SAME, EQUAL = "after the same steps", "at equal loss"
NOUNS = (
    "day days, hand hands, eye eyes, friend friends, word words, thing things, king kings, lord lords, man men, woman women, wife wives, child children, foot feet, son sons, "
    "brother brothers, daughter daughters, sister sisters, father fathers, mother mothers, heart hearts, head heads, tongue tongues, sword swords, soul souls, hour hours, year years, "
    "month months, horse horses, dog dogs, spirit spirits, villain villains, devil devils, god gods, grief griefs, joy joys, sorrow sorrows, letter letters, ear ears, arm arms, leg legs, "
    "lip lips, cheek cheeks, knee knees, finger fingers, shoulder shoulders, wall walls, tree trees, gate gates, door doors, town towns, house houses, field fields, street streets, "
    "soldier soldiers, knight knights, prince princes, slave slaves, servant servants, traitor traitors, coward cowards, prisoner prisoners, law laws, war wars, deed deeds, fault faults, "
    "sin sins, oath oaths, virtue virtues, tale tales, book books, jewel jewels, crown crowns, star stars, cloud clouds, wind winds, sea seas, flower flowers, bird birds, beast beasts, "
    "lion lions, creature creatures, kingdom kingdoms, prayer prayers, tear tears, wound wounds, weapon weapons, master masters, maid maids, fool fools, boy boys, knave knaves, "
    "lover lovers, foe foes, thief thieves, angel angels, ship ships, rock rocks, stone stones, wing wings, garment garments"
)
VERBS = (
    "come came, see saw, take took, give gave, make made, say said, know knew, think thought, tell told, find found, bring brought, stand stood, speak spoke, hear heard, hold held, "
    "keep kept, leave left, lose lost, send sent, sit sat, begin began, write wrote, fall fell, break broke, swear swore, do did, have had, go went, get got, grow grew, draw drew, feel felt, "
    "win won, wear wore, buy bought, meet met, strike struck, fight fought, seek sought, die died, live lived, love loved, call called, look looked, turn turned, kill killed, bear bore, "
    "become became, drink drank, teach taught, lead led, lie lay, run ran, shake shook, steal stole, weep wept, sleep slept, catch caught, choose chose, drive drove, eat ate, fly fled, hang hung, "
    "promise promised, hate hated, serve served, follow followed, ask asked, show showed, seem seemed, hope hoped, play played, move moved, dare durst, will would, shall should, can could"
)  # fmt: skip
PROPERTIES = ("noun or verb", "number", "tense")


def known(table: tables.Table, text: str) -> np.ndarray:
    """The rows [N, 2] of the pairs that the table has."""
    of = table.vectors.row_of_word
    rows = [[of(word) for word in pair.split()] for pair in text.split(",")]
    return np.array([pair for pair in rows if None not in pair], int).reshape(-1, 2)


def examples(table: tables.Table) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each property: the vectors [N, D], the labels [N], and what is split as one [N]."""
    nouns, verbs = known(table, NOUNS), known(table, VERBS)
    values = np.asarray(table.values, np.float32)

    def of(rows: np.ndarray, labels: list[int], groups: np.ndarray) -> tuple:
        return values[rows], np.array(labels), groups

    kinds = np.concatenate([nouns[:, 0], verbs[:, 0]])
    forms = {
        name: of(pairs.T.ravel(), [0] * len(pairs) + [1] * len(pairs), np.tile(np.arange(len(pairs)), 2))
        for name, pairs in (("number", nouns), ("tense", verbs))
    }
    both = of(kinds, [0] * len(nouns) + [1] * len(verbs), np.arange(len(kinds)))
    return {"noun or verb": both, **forms}


def read(table: tables.Table, seed: int, splits: int) -> dict[str, list[float]]:
    """For each property: the accuracy on words that were not fitted, and that with shuffled labels."""
    found = {}
    for name, (x_ND, label_N, group_N) in examples(table).items():
        fits = [
            probes.probe(x_ND, label_N, group_N, l2=1e-2, bootstrap=1, seed=splits * seed + i)
            for i in range(splits)
        ]
        found[name] = [float(np.mean([getattr(fit, what) for fit in fits])) for what in ("score", "control")]
    return found


def at_loss(workdir: Path, loss: float) -> tuple[int, float]:
    """The step of the saved table whose validation loss is nearest to `loss`, and that loss (linear between evaluations)."""
    steps = [step for step in tables.saved_steps(workdir) if step]
    curve = comparing.curve(workdir)
    known_steps = sorted(curve)
    losses = np.interp(steps, known_steps, [curve[step] for step in known_steps])
    nearest = int(np.abs(losses - loss).argmin())
    return steps[nearest], float(losses[nearest])


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracies by width, seed and property, after the same steps and at equal loss."""
    pick = setting.pick
    widths, steps = pick((4, 8), (4, 16, 64, 128), (4, 64, 512)), pick(8, 300, 6_000)
    base = comparing.base(
        setting, **comparing.WIDTHS_ALIKE, optim__schedule="constant", data__tokenizer="word", data__vocab_size=pick(1_000, 4_096, 8_192),
        train__num_steps=steps, train__eval_every=max(1, steps // 15), train__eval_tokens=pick(64, 4_096, 65_536), train__embedding_snapshots=TABLES,
    )  # fmt: skip
    variants = {
        str(width): {"model.d_model": width, "model.num_heads": max(1, width // 32)} for width in widths
    }
    rows = comparing.train(setting, "richer_features", base, variants)
    narrow = [comparing.curve(row.workdir)[steps] for row in rows[str(widths[0])]]
    splits = pick(1, SPLITS, SPLITS)
    losses: dict[str, dict[str, list[float]]] = {SAME: {}, EQUAL: {}}
    accuracy: dict[str, dict[str, list[dict[str, list[float]]]]] = {SAME: {}, EQUAL: {}}
    for label, found in rows.items():
        equal = [at_loss(row.workdir, loss) for row, loss in zip(found, narrow, strict=True)]
        losses[SAME][label] = [comparing.curve(row.workdir)[steps] for row in found]
        losses[EQUAL][label] = [loss for _, loss in equal]
        for when, at in ((SAME, [steps] * len(found)), (EQUAL, [step for step, _ in equal])):
            accuracy[when][label] = [
                read(tables.open_run(row.workdir, step), seed, splits)
                for seed, row, step in zip(setting.seed_numbers, found, at, strict=True)
            ]
    table = tables.open_run(rows[str(widths[0])][0].workdir, steps)
    words = {name: len(labels) for name, (_, labels, _) in examples(table).items()}
    return {"widths": list(widths), "words": words, "losses": losses, "accuracy": accuracy}


def of(measurements: dict[str, Any], when: str, width: int, name: str, shuffled: bool = False) -> list[float]:
    """The accuracies by seed."""
    return [found[name][int(shuffled)] for found in measurements["accuracy"][when][str(width)]]


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    narrow, *_, wide = measurements["widths"]
    margin = MARGINS["accuracy"]
    basic, *rich = PROPERTIES
    stores = claim.difference(
        of(measurements, SAME, narrow, basic), of(measurements, SAME, narrow, basic, shuffled=True)
    )
    parts = [Effect(f"accuracy at d_model {narrow} minus that with shuffled labels", stores, under=f"{basic}, {SAME}", margin=margin)]  # fmt: skip
    for name in rich:
        for when in (SAME, EQUAL):
            more = claim.difference(of(measurements, when, wide, name), of(measurements, when, narrow, name))
            parts.append(Effect(f"accuracy at d_model {wide} minus that at {narrow}", more, under=f"{name}, {when}", margin=margin))  # fmt: skip

    def listed(name: str, when: str) -> str:
        by_width = [claim.mean(of(measurements, when, width, name)) for width in measurements["widths"]]
        return ", ".join(claim.show(found) for found in by_width)

    shuffled = [
        found[name][1] for by_seed in measurements["accuracy"][SAME].values() for found in by_seed for name in PROPERTIES
    ]  # fmt: skip
    losses = {when: [np.mean(x) for x in found.values()] for when, found in measurements["losses"].items()}
    ends = {name: [np.mean(of(measurements, SAME, width, name)) for width in (narrow, wide)] for name in PROPERTIES}  # fmt: skip
    return Result(
        parts=tuple(parts),
        says=(
            f"Accuracy on unseen words at d_model {', '.join(map(str, measurements['widths']))}: "
            + "; ".join(
                f"{name} ({measurements['words'][name]} words) {listed(name, SAME)} {SAME}, {listed(name, EQUAL)} {EQUAL}"
                for name in PROPERTIES
            )
            + f". With shuffled labels it is {np.mean(shuffled):.2f} on average. The losses are {', '.join(f'{x:.2f}' for x in losses[SAME])} nats a "
            f"word {SAME}, and {', '.join(f'{x:.2f}' for x in losses[EQUAL])} {EQUAL}."
        ),
        seeds=len(of(measurements, SAME, narrow, basic)),
        varies="the feature and what is kept equal",
        headline=f"A linear probe of a word's row is right at d_model {narrow} and at {wide}: "
        + ", ".join(f"{a:.0%} and {b:.0%} ({name})" for name, (a, b) in ends.items()) + "; half would be chance.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Accuracy by width, a panel per property, a point per seed."""
    axes = figure.subplots(1, len(PROPERTIES), sharey=True)
    widths = measurements["widths"]
    for axis, name in zip(axes, PROPERTIES, strict=True):
        for place, (when, shuffled) in enumerate(((SAME, False), (EQUAL, False), (SAME, True))):
            by_width = [of(measurements, when, width, name, shuffled) for width in widths]
            for width, found in zip(widths, by_width, strict=True):
                axis.plot([width] * len(found), found, "o", color=claim.COLOURS[place], markersize=2, alpha=0.3)  # fmt: skip
            means = [claim.mean(found) for found in by_width]
            axis.errorbar(
                widths, [e.value for e in means], [(e.high - e.low) / 2 for e in means], color=claim.COLOURS[place], capsize=3, marker="o",
                markersize=3, label="shuffled labels" if shuffled else when,
            )  # fmt: skip
        axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()
        axis.set(title=name, xlabel="d_model")
    axes[0].set_ylabel("accuracy on unseen words")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)


if __name__ == "__main__":
    claim.run()
