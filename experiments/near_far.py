"""Are man and woman near, and paper and water far, in a real table?

python -m experiments.near_far [--quick]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import analogy, claim
from experiments.claim import Check, Effect, Estimate, Result, Setting
from jaxgpt.vectors import tables, word_tests
from jaxgpt.vectors.nearest import unit
from jaxgpt.vectors.word_vectors import Vectors

NOTE = 'In an embedding space, similar words (like "man" and "woman") have a high similarity score and low vector distance, while unrelated words (like "paper" and "water") are positioned far apart.'
CLAIM = "In a real table man and woman are near, and paper and water are far apart."
PREDICTION = "Man and woman are nearer than 95 % of pairs of common words; paper and water are farther than most pairs; related words are nearer than others."
REFUTED_BY = "Man and woman no nearer than one pair in twenty, or paper and water nearer than most pairs."
DESIGN = (
    "Tables of published vectors that are installed (GloVe 6B, 50 dimensions; MiniLM's). The cosines of the two pairs, and the shares of 100,000 random pairs of the 10,000 "
    f"first (most frequent) words that are nearer. Then the AUC of {len(word_tests.RELATED_PAIRS)} related pairs against the same words paired differently; its interval is a bootstrap over pairs."
)
MARGINS = {"AUC": 0.05}
PAIRS = {"man and woman": ("man", "woman"), "paper and water": ("paper", "water")}
COMMON = 10_000


def made_up() -> tables.Table:
    """A random table for a test of this file."""
    words = sorted({word for pair in [*word_tests.RELATED_PAIRS, *PAIRS.values()] for word in pair})
    return tables.Table(
        "random",
        Vectors(words, np.random.default_rng(0).standard_normal((len(words), 20)).astype(np.float32)),
    )


def look(table: tables.Table) -> dict[str, Any]:
    """Cosines and shares of both pairs; the AUC; and some of the random pairs' cosines."""
    values = unit(np.asarray(table.values, np.float64))
    common = np.flatnonzero([word.isalpha() for word in table.words[: 2 * COMMON]])[:COMMON]
    one, two = np.random.default_rng(0).choice(common, (2, 100_000))
    random_cosines = (values[one] * values[two]).sum(axis=1)[one != two]
    found: dict[str, Any] = {"source": table.source, "pairs": {}}
    for name, pair in PAIRS.items():
        a, b = (table.row(word) for word in pair)
        cosine = float(values[a] @ values[b])
        found["pairs"][name] = {"cosine": cosine, "nearer": float((random_cosines > cosine).mean())}
    rows, _ = word_tests.rows_of(table.vectors.row_of_word, word_tests.RELATED_PAIRS)
    return found | {
        "auc": word_tests.related_auc(table.values, rows),
        "quantiles": np.quantile(random_cosines, np.linspace(0, 1, 101)),
    }


def measure(setting: Setting) -> dict[str, Any]:
    """`look` at every table that is installed."""
    found = [made_up()] if setting.scale == "quick" else analogy.real_tables()
    return {"tables": [look(table) for table in found]}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found = measurements["tables"]
    parts: list[Effect | Check] = []
    for row in found:
        near, far = (row["pairs"][name]["nearer"] for name in PAIRS)
        auc: Estimate = claim.estimate(row["auc"])
        parts += [
            Check("share of random pairs that are nearer than man and woman", near, 0.05, under=f"man and woman, in {row['source']}"),
            Check("share of random pairs that are farther apart than paper and water", 1 - far, 0.5, under=f"paper and water, in {row['source']}"),
            Effect("AUC of related words", auc, above=0.5, under=f"related words, in {row['source']}", margin=MARGINS["AUC"]),
        ]  # fmt: skip
    says = " ".join(
        f"{row['source']}: "
        + "; ".join(f"{name} have cosine {p['cosine']:.2f}, nearer than {1 - p['nearer']:.1%} of random pairs" for name, p in row["pairs"].items())
        + f"; related words have an AUC of {claim.show(claim.estimate(row['auc']))}."
        for row in found
    )  # fmt: skip
    headline = "; ".join(
        f"in {row['source']} nearer than {1 - row['pairs']['paper and water']['nearer']:.0%} of pairs of common words"
        for row in found
    )
    return Result(
        tuple(parts),
        says or "No table of published vectors is installed.",
        untold="" if found else "no table of published vectors is installed",
        varies="the pair and the table",
        headline=f"Paper and water, the notes' unrelated words, are {headline}." if found else "",
    )


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The cosines of random pairs, and those of the two pairs."""
    axis = figure.subplots()
    for i, row in enumerate(measurements["tables"]):
        axis.plot(
            row["quantiles"], np.linspace(0, 1, 101), color=f"C{i}", label=f"{row['source']}, random pairs"
        )
        for (name, found), marker in zip(row["pairs"].items(), "os", strict=True):
            axis.plot(
                found["cosine"], 1 - found["nearer"], marker, color=f"C{i}", label=f"{row['source']}, {name}"
            )
    axis.set(xlabel="cosine", ylabel="share of random pairs with a lower cosine", ylim=(0, 1.05))
    if measurements["tables"]:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7)


if __name__ == "__main__":
    claim.run()
