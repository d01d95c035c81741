"""Do embeddings start random, and do tokens with similar uses become similar?

python -m experiments.meaning [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import itertools
import string
from typing import Any

import numpy as np

from experiments import claim, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.vectors import tables, word_tests
from jaxgpt.vectors.nearest import unit

NOTE = "These numbers start random and are learned during training so that similar words get similar vectors. [...] Words used in similar contexts get similar vectors."
CLAIM = "Embeddings start random, and training makes tokens with similar uses similar."
PREDICTION = "At step 0 the AUC of related pairs is 0.5; training raises it."
REFUTED_BY = "An AUC at step 0 that is not 0.5 (a control), or one that does not rise by 0.02."
DESIGN = (
    "The token tables of word models and character models of Shakespeare, kept at log-spaced steps. AUC: how often is the "
    "cosine of a related pair higher than that of an unrelated pair (0.5 is chance)? Words: 73 pairs such as king and queen, "
    "against the same words paired differently. Characters: two vowels or two consonants against one of each; a capital and "
    "its small letter against two different letters. Control: at step 0 the words must be at chance."
)
MARGINS = {"AUC": 0.02}
VOWELS = "aeiou"


def word_auc(table: tables.Table) -> float:
    """The AUC of the built-in pairs whose words are in the table."""
    rows, _ = word_tests.rows_of(table.vectors.row_of_word, word_tests.RELATED_PAIRS)
    return word_tests.related_auc(table.values, rows, draws=2).value


def vowel_auc(table: tables.Table) -> float:
    """The AUC of pairs of small letters in the same class, against pairs from both classes."""
    letters = [letter for letter in string.ascii_lowercase if letter in table.words]
    rows_ND = unit(np.asarray([table.values[table.words.index(letter)] for letter in letters], np.float64))
    cosines = rows_ND @ rows_ND.T
    same, other = [], []
    for i, j in itertools.combinations(range(len(letters)), 2):
        alike = (letters[i] in VOWELS) == (letters[j] in VOWELS)
        (same if alike else other).append(cosines[i, j])
    above = np.subtract.outer(same, other)
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def case_auc(table: tables.Table) -> float:
    """The AUC of a letter in both cases, against two different letters."""
    pairs = [(letter.upper(), letter) for letter in string.ascii_lowercase]
    known = [pair for pair in pairs if all(letter in table.words for letter in pair)]
    rows = np.array([[table.words.index(letter) for letter in pair] for pair in known])
    return word_tests.related_auc(table.values, rows, draws=2).value


def measure(setting: Setting) -> dict[str, Any]:
    """AUC by step, a curve per seed, for each kind of relation."""
    runs = {"words": trained.words(setting), "characters": trained.characters(setting)}
    kinds = {
        "related words": (runs["words"], word_auc),
        "vowels and consonants": (runs["characters"], vowel_auc),
        "capital and small letters": (runs["characters"], case_auc),
    }
    curves = {
        kind: [
            [(step, auc(table)) for step, table in tables.open_history(run.workdir).items()] for run in found
        ]
        for kind, (found, auc) in kinds.items()
    }
    return {"curves": curves}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    curves = measurements["curves"]
    starts = {kind: [curve[0][1] for curve in found] for kind, found in curves.items()}
    ends = {kind: [curve[-1][1] for curve in found] for kind, found in curves.items()}
    control = claim.mean(starts["related words"])
    rises = "; ".join(
        f"from {claim.show(claim.mean(starts[kind]))} to {claim.show(claim.mean(ends[kind]))} for {kind}"
        for kind in curves
    )
    return Result(
        parts=tuple(
            Effect(
                f"rise of the AUC for {kind} in {found[0][-1][0]:,} steps",
                claim.difference(ends[kind], starts[kind]),
                margin=MARGINS["AUC"],
            )
            for kind, found in curves.items()
        ),
        says=f"Training raises the AUC {rises}.",
        untold=""
        if control.low <= 0.5 <= control.high
        else f"related words are not at chance at step 0: AUC {claim.show(control)}",
        seeds=len(curves["related words"]),
    )


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """AUC by step, a line per seed."""
    axes = figure.subplots(1, len(measurements["curves"]), sharey=True)
    for axis, (kind, found) in zip(axes, measurements["curves"].items(), strict=True):
        for curve in found:
            axis.plot(
                [step for step, _ in curve],
                [auc for _, auc in curve],
                ".-",
                color=claim.COLOURS[0],
                alpha=0.6,
            )
        axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.set(title=kind, xlabel="step")
    axes[0].set_ylabel("AUC")


if __name__ == "__main__":
    claim.run()
