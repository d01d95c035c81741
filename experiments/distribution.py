"""Do tokens that occur in similar contexts get similar rows of the embedding table?

python -m experiments.distribution [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import claim, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import Run
from jaxgpt.vectors import tables, word_vectors
from jaxgpt.vectors.nearest import unit

NOTE = "Words that occur in similar contexts have similar meanings (Harris 1954), and learned vectors factorise a table of how often words meet (Levy and Goldberg 2014)."
CLAIM = "Tokens with similar contexts get similar rows, also if their frequency is taken out."
PREDICTION = "The cosines of the learned rows follow those of counted contexts more and more during training, and not at all where the text is shuffled."
REFUTED_BY = "A partial correlation below 0.05 at the end, or one as high after training on shuffled words."
DESIGN = (
    "Word models of Shakespeare, one per seed, and the same models trained on the same words in random order. For the most "
    "frequent words: how often each meets each other word within two words in the training text, as positive pointwise mutual "
    "information, reduced to its strongest directions by a singular value decomposition. Spearman's correlation over all pairs of "
    "words between the cosine of their learned rows and that of their counted contexts, after the logarithms of both frequencies (their "
    "sum and the size of their difference) are taken out of both by regression on ranks."
)
MARGINS = {"correlation": 0.05}
LIMITS = "One text of a million characters: its counts are noisy too, so that a correlation of 1 cannot be reached."
WINDOW = 2  # words to each side


def word_rows(words: Sequence[str], counts: np.ndarray, most: int) -> np.ndarray:
    """The rows of the most frequent tokens that are words, with at least 10 occurrences: [N]."""
    rows = [row for row in np.argsort(-counts, kind="stable") if words[row].isalpha() and counts[row] >= 10]
    return np.array(rows[:most])


def context_vectors(ids: np.ndarray, rows: np.ndarray, vocab_size: int, dimensions: int) -> np.ndarray:
    """Vectors of the contexts of `rows` in a text of ids that are words alone: [N, dimensions], of length 1.

    Positive pointwise mutual information of (word, word within WINDOW), and its strongest directions, each times the
    root of its singular value (Levy, Goldberg and Dagan 2015).
    """
    place = np.full(vocab_size, -1)
    place[rows] = np.arange(len(rows))
    met = np.zeros((len(rows), vocab_size))
    for distance in range(1, WINDOW + 1):
        for centre, other in ((ids[:-distance], ids[distance:]), (ids[distance:], ids[:-distance])):
            known = place[centre] >= 0
            np.add.at(met, (place[centre[known]], other[known]), 1.0)
    expected = met.sum(axis=1, keepdims=True) * met.sum(axis=0) / met.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.where(met > 0, np.maximum(np.log(met / expected), 0.0), 0.0)
    left, strengths, _ = np.linalg.svd(ppmi, full_matrices=False)
    return unit(left[:, :dimensions] * np.sqrt(strengths[:dimensions]))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 0; equal values in their order."""
    found = np.empty(len(values))
    found[np.argsort(values, kind="stable")] = np.arange(len(values))
    return found


def partial_spearman(a: np.ndarray, b: np.ndarray, without: np.ndarray) -> float:
    """The correlation of the ranks of a [P] and b [P] after a regression of both on the ranks of `without` [P, C]."""
    base = np.column_stack([np.ones(len(a)), *(ranks(column) for column in without.T)])
    rests = [x - base @ np.linalg.lstsq(base, x, rcond=None)[0] for x in (ranks(a), ranks(b))]
    return float(np.corrcoef(*rests)[0, 1])


@dataclasses.dataclass(frozen=True)
class Contexts:
    """The words that are compared, and the similarity of their contexts, for every pair of them."""

    words: list[str]
    cosines: np.ndarray  # [P]
    without: np.ndarray  # [P, 2]

    @classmethod
    def of(cls, run: Run, most: int) -> Contexts:
        """The contexts in the training text of a run."""
        ids = np.asarray(prepare_dataset(run.config.data).train.ids)
        words = word_vectors.tokens_of(run.tokenizer)
        counts = np.bincount(ids, minlength=len(words))
        rows = word_rows(words, counts, most)
        is_word = np.array([word.isalpha() for word in words])
        vectors = context_vectors(ids[is_word[ids]], rows, len(words), dimensions=64)
        one, two = np.triu_indices(len(rows), 1)
        frequency = np.log(counts[rows])
        without = [frequency[one] + frequency[two], np.abs(frequency[one] - frequency[two])]
        return cls([words[row] for row in rows], (vectors @ vectors.T)[one, two], np.column_stack(without))

    def agreement(self, table: tables.Table) -> float:
        """The partial correlation with the cosines of a table's rows."""
        row_of = {word: row for row, word in enumerate(table.words)}
        rows = unit(np.asarray(table.values, np.float64)[[row_of[word] for word in self.words]])
        one, two = np.triu_indices(len(rows), 1)
        return partial_spearman((rows @ rows.T)[one, two], self.cosines, self.without)


def shuffled(source: Path) -> Path:
    """A file with the words of a text in random order; everything between the words stays where it is."""
    path = source.with_stem(f"{source.stem}_shuffled")
    if not path.exists():
        text = source.read_text("utf-8")
        words = trained.WORD.findall(text)
        random.Random(0).shuffle(words)
        new = iter(words)
        path.write_text(trained.WORD.sub(lambda _: next(new), text), "utf-8")
    return path


def measure(setting: Setting) -> dict[str, Any]:
    """The partial correlation by step, a curve per seed."""
    source = Path(trained.text_slice(setting.folder, "shakespeare", setting.pick(40_000, None, None)))
    runs = {"text": trained.words(setting, str(source))}
    runs["shuffled"] = trained.words(setting, str(shuffled(source)))
    contexts = Contexts.of(runs["text"][0], setting.pick(30, 400, 1_000))
    curves = {
        kind: [
            [(step, contexts.agreement(table)) for step, table in tables.open_history(run.workdir).items()]
            for run in found
        ]
        for kind, found in runs.items()
    }
    return {"curves": curves, "words": len(contexts.words)}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    curves = measurements["curves"]
    end = {kind: [curve[-1][1] for curve in found] for kind, found in curves.items()}
    start = [curve[0][1] for curve in curves["text"]]
    last, margin = curves["text"][0][-1][0], MARGINS["correlation"]
    parts = (
        Effect(f"partial correlation at step {last:,}", claim.mean(end["text"]), margin=margin),
        Effect("its rise over training", claim.difference(end["text"], start), margin=margin),
        Effect(
            "it minus that of models trained on shuffled words",
            claim.difference(end["text"], end["shuffled"]),
            margin=margin,
        ),
    )
    become = claim.worded(
        parts[1], "become more similar", "do not become more similar", "may or may not become more similar"
    )
    return Result(
        parts=parts,
        says=(
            f"Over all pairs of the {measurements['words']} most frequent words, the partial correlation of learned and counted "
            f"similarity is {claim.show(claim.mean(start))} before training and {claim.show(claim.mean(end['text']))} at step "
            f"{last:,}; after training on shuffled words it is {claim.show(claim.mean(end['shuffled']))}."
        ),
        seeds=len(end["text"]),
        headline=(
            f"Rows of words with similar contexts {become} in training: a partial correlation of {claim.show(claim.mean(end['text']))} after it, "
            f"on shuffled words of {claim.show(claim.mean(end['shuffled']))}."
        ),
    )


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The correlation by step, a line per seed."""
    axis = figure.subplots()
    for place, (kind, found) in enumerate(measurements["curves"].items()):
        for number, curve in enumerate(found):
            name = {"text": "trained on the text", "shuffled": "trained on shuffled words"}[kind]
            axis.plot(
                *zip(*curve, strict=True),
                ".-",
                color=claim.COLOURS[place],
                alpha=0.6,
                label="" if number else name,
            )
    axis.axhline(0, color="#7a7a7a", linestyle="--", linewidth=1)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=0)
    axis.set(xlabel="step", ylabel="partial rank correlation with counted contexts")
    axis.legend(loc="upper left")


if __name__ == "__main__":
    claim.run()
