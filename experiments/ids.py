"""Do ids and one-hot rows say which words are related?

python -m experiments.ids [--quick]
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from experiments import claim, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.vectors import word_tests, word_vectors

NOTE = 'While token IDs [...] allow computers to process data, they do not capture the fact that "cat" and "kitten" are related. One-hot encoding similarly fails because every word is treated as equidistant from every other word.'
CLAIM = "Neither ids nor one-hot rows say which words are related."
PREDICTION = "All one-hot rows are equally far apart; ids tell related words from others no better than chance, in whatever order they were given."
REFUTED_BY = "Two distances of one-hot rows that differ; or an order of ids in which related words are nearer than others (an AUC above 0.55)."
DESIGN = (
    "The words of Shakespeare's vocabulary. One-hot rows: the distances of all pairs of the first 500. Ids in three orders: by frequency, as word tokenizers give "
    f"them; by alphabet; at random. AUC: how often the ids of a related pair (of {len(word_tests.RELATED_PAIRS)}, such as king and queen) are nearer than those of the same "
    "words paired differently; the interval is over pairs. Each order is a condition."
)
MARGINS = {"AUC": 0.05}
LIMITS = "Words of one text, and pairs of common words."


def auc_by_pair(numbers_P2: np.ndarray) -> list[float]:
    """For each pair: how often it is nearer than its first number is to the second of another pair."""
    apart_PP = np.abs(numbers_P2[:, :1].astype(float) - numbers_P2[:, 1])
    own_P1 = np.diag(apart_PP)[:, None]
    rest = ~np.eye(len(own_P1), dtype=bool)
    wins_PP = (own_P1 < apart_PP) + 0.5 * (own_P1 == apart_PP)
    return [float(row[keep].mean()) for row, keep in zip(wins_PP, rest, strict=True)]


def measure(setting: Setting) -> dict[str, Any]:
    """Shares by pair for each order of the ids; distances of one-hot rows."""
    base = trained.text_of(setting, "shakespeare", setting.pick(40_000, None, None))
    dataset = prepare_dataset(
        dataclasses.replace(base, tokenizer="word", vocab_size=setting.pick(512, 5_000, 5_000))
    )
    tokens = word_vectors.tokens_of(dataset.tokenizer)
    counts = np.bincount(dataset.train.ids, minlength=len(tokens))
    words = [tokens[row] for row in np.argsort(-counts, kind="stable") if tokens[row].isalpha()]
    shuffled = list(words)
    random.Random(0).shuffle(shuffled)
    orders = {"by frequency": words, "by alphabet": sorted(words), "at random": shuffled}
    found = {}
    for name, order in orders.items():
        place = {word: at for at, word in enumerate(order)}
        pairs_P2, kept = word_tests.rows_of(place.get, word_tests.RELATED_PAIRS)
        found[name] = auc_by_pair(np.asarray(pairs_P2))
    one_hot = np.eye(500)
    products = one_hot @ one_hot.T
    squares = (np.diag(products)[:, None] + np.diag(products) - 2 * products)[np.triu_indices(500, 1)]
    return {
        "shares": found,
        "pairs": [list(word_tests.RELATED_PAIRS[i]) for i in kept],
        "distances": [float(np.sqrt(x)) for x in (squares.min(), squares.max())],
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    shares, (nearest, farthest) = measurements["shares"], measurements["distances"]
    found = {order: claim.mean(by_pair) for order, by_pair in shares.items()}
    margin = MARGINS["AUC"]
    listed = ", ".join(f"{claim.show(auc)} ({order})" for order, auc in found.items())
    most = max(found, key=lambda order: found[order].value)
    return Result(
        parts=(
            *(
                Effect("two margins minus the distance of the AUC from chance (0.5)", claim.within(auc, 0.5, margin), under=f"ids {order}", margin=margin)
                for order, auc in found.items()
            ),
            Check("largest minus smallest distance of two one-hot rows", farthest - nearest, 0.0),
        ),
        says=f"All one-hot rows have distance {nearest:.4f}. Nearness of ids tells {len(measurements['pairs'])} related pairs from the same words paired differently with an AUC of {listed}.",
        varies="the order of the ids",
        headline=f"Of all orders, ids {most} tell related words from others best: an AUC of {claim.show(found[most])}, where 0.5 is chance.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The share of each pair, and the mean, by order."""
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    for at, by_pair in enumerate(measurements["shares"].values()):
        axis.plot(at + rng.uniform(-0.1, 0.1, len(by_pair)), by_pair, "o", color="#9db8d6", markersize=3)
        found = claim.mean(by_pair)
        axis.errorbar(
            [at],
            [found.value],
            [[found.value - found.low], [found.high - found.value]],
            fmt="s",
            color=claim.COLOURS[0],
            capsize=4,
        )
    axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(measurements["shares"])), [f"ids {order}" for order in measurements["shares"]])
    axis.set(ylabel="AUC, a point per related pair", ylim=(-0.02, 1.02))


if __name__ == "__main__":
    claim.run()
