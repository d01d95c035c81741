"""Is each column of a table a feature?

python -m experiments.columns [--quick]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import analogy, claim
from experiments.claim import Effect, Result, Setting
from jaxgpt.vectors import tables
from jaxgpt.vectors.nearest import unit
from jaxgpt.vectors.word_vectors import Vectors

NOTE = "Each row corresponds to a specific token ID and each column represents a feature of that token."
CLAIM = "The columns of a table of word vectors are features, more than other directions are."
PREDICTION = "The best column tells words with a property from others better than the best of as many random directions does."
REFUTED_BY = "Random rotations of the table whose best column does it as well."
DESIGN = (
    "Published vectors that are installed (GloVe 6B, 50 dimensions; MiniLM's). Eight properties, each with words that have it and words that have not. For each property the column (and its sign) with the "
    "highest AUC on every second word, and its AUC on the other words. The same for 20 random rotations of the table, which keep all distances and cosines. Intervals are "
    "over properties. Next to it, a line through all columns: the direction between the two means of the first words."
)
MARGINS = {"AUC": 0.05}
LIMITS = "Eight properties of common words; columns of tables that were trained with other aims may differ."
ROTATIONS = 20
PROPERTIES = {
    "female": "woman queen mother sister daughter wife lady princess aunt she girl her actress niece bride widow",
    "male": "man king father brother son husband lord prince uncle he boy his actor nephew groom widower",
    "plural": "days hands eyes words years friends tears things kings men brothers houses books trees roads ships",
    "singular": "day hand eye word year friend tear thing king man brother house book tree road ship",
    "past": "went came saw took gave made said knew found told became left felt brought began kept",
    "present": "go come see take give make say know find tell become leave feel bring begin keep",
    "number": "one two three four five six seven eight nine ten twenty thirty forty fifty hundred thousand",
    "month": "january february march april may june july august september october november december spring summer autumn winter",
    "country": "france germany italy spain china japan india russia brazil canada mexico egypt greece poland sweden turkey",
    "animal": "dog cat horse cow sheep pig lion bear wolf fox bird fish mouse rabbit goat deer",
    "body": "hand foot eye ear head heart arm leg nose mouth finger knee shoulder back neck face",
    "colour": "red blue green yellow black white brown grey pink purple orange gold silver violet scarlet crimson",
    "thing": "table chair window door cup plate knife spoon lamp bed desk shelf box bag bottle key",
}  # fmt: skip
AGAINST = {
    "female": "male", "plural": "singular", "past": "present", "number": "thing", "month": "thing", "country": "animal", "animal": "body", "colour": "thing",
}  # fmt: skip


def auc(have: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How often a word that has the property has the higher number, for each column [D]."""
    above = have[:, None] > others[None]
    return (above + 0.5 * (have[:, None] == others[None])).mean(axis=(0, 1))


def best_column(have: np.ndarray, others: np.ndarray) -> float:
    """The AUC on the second half of the words of the column that is best on the first half; either sign."""
    first, second = (auc(have[i::2], others[i::2]) for i in (0, 1))
    column = int(np.argmax(np.abs(first - 0.5)))
    return float(second[column] if first[column] >= 0.5 else 1 - second[column])


def direction(have: np.ndarray, others: np.ndarray) -> float:
    """The AUC on the second half of the words along the line between the means of the first half."""
    line = have[0::2].mean(axis=0) - others[0::2].mean(axis=0)
    return float(auc((have[1::2] @ line)[:, None], (others[1::2] @ line)[:, None])[0])


def look(table: tables.Table, rotations: int) -> dict[str, Any]:
    """For each property: the AUC of the best column, of the best after each rotation, and of a line."""
    row_of = table.vectors.row_of_word
    rows = {
        name: [row for word in text.split() if (row := row_of(word)) is not None]
        for name, text in PROPERTIES.items()
    }
    values = unit(np.asarray(table.values[sorted({r for found in rows.values() for r in found})], np.float64))
    place = {row: at for at, row in enumerate(sorted({r for found in rows.values() for r in found}))}
    rng = np.random.default_rng(0)
    turned = [values @ np.linalg.qr(rng.standard_normal((values.shape[1],) * 2))[0] for _ in range(rotations)]
    found = {}
    for name, other in AGAINST.items():
        have, others = ([place[row] for row in rows[which]] for which in (name, other))
        found[name] = {
            "columns": best_column(values[have], values[others]),
            "rotated": [best_column(x[have], x[others]) for x in turned],
            "line": direction(values[have], values[others]),
        }
    return {"source": table.source, "properties": found}


def measure(setting: Setting) -> dict[str, Any]:
    """`look` at every table that is installed."""
    if setting.scale == "quick":
        words = sorted({word for text in PROPERTIES.values() for word in text.split()})
        made_up = np.random.default_rng(0).standard_normal((len(words), 12)).astype(np.float32)
        return {"tables": [look(tables.Table("random", Vectors(words, made_up)), 3)]}
    return {"tables": [look(table, ROTATIONS) for table in analogy.real_tables()]}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    parts, says, headline = [], [], []
    for row in measurements["tables"]:
        found = row["properties"].values()
        columns, rotated, line = (
            [p["columns"] for p in found],
            [float(np.mean(p["rotated"])) for p in found],
            [p["line"] for p in found],
        )
        gain = claim.difference(columns, rotated)
        parts.append(
            Effect(
                "AUC of the best column minus that of the best column after a rotation",
                gain,
                under=f"in {row['source']}",
                margin=MARGINS["AUC"],
            )
        )
        says.append(
            f"{row['source']}: over {len(columns)} properties the best column has an AUC of {claim.show(claim.mean(columns))}, the best after random rotations "
            f"{claim.show(claim.mean(rotated))}, a line through all columns {claim.show(claim.mean(line))}."
        )
        headline.append(
            f"in {row['source']} the best column tells a property with an AUC of {np.mean(columns):.2f}, the best of a random rotation with {np.mean(rotated):.2f}, a line through all columns with {np.mean(line):.2f}"
        )
    return Result(
        tuple(parts),
        " ".join(says) or "No table of published vectors is installed.",
        untold="" if parts else "no table of published vectors is installed",
        varies="the table",
        headline=f"Features in single columns: {'; '.join(headline)}." if headline else "",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The AUC of each property: columns, rotations, a line."""
    found = measurements["tables"]
    axes = np.atleast_1d(figure.subplots(1, max(1, len(found)), sharey=True))
    for axis, row in zip(axes, found, strict=False):
        for at, p in enumerate(row["properties"].values()):
            axis.plot(
                [at] * len(p["rotated"]),
                p["rotated"],
                "o",
                color="#b0b0b0",
                markersize=3,
                label="" if at else "best column, rotated",
            )
            axis.plot(at, p["columns"], "s", color=claim.COLOURS[0], label="" if at else "best column")
            axis.plot(at, p["line"], "_", color=claim.COLOURS[1], markersize=10, label="" if at else "line")
        axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(row["properties"])), list(row["properties"]), rotation=45, fontsize=7)
        axis.set_title(row["source"])
    axes[0].set_ylabel("AUC on words that did not choose the column")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)


if __name__ == "__main__":
    claim.run()
