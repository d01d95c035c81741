"""Do embeddings start random, and do tokens with similar uses become similar?

python -m experiments.meaning [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import itertools
import string
from typing import Any

import numpy as np

from experiments import claim, distribution, trained
from experiments.claim import Amendment, Effect, Outdated, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import Run
from jaxgpt.vectors import tables, word_tests, word_vectors
from jaxgpt.vectors.nearest import unit

NOTE = "These numbers start random and are learned during training so that similar words get similar vectors. [...] Words used in similar contexts get similar vectors."
NEAR = 20  # words of about the same frequency
CLAIM = "Embeddings start random, and training makes tokens with similar uses similar."
PREDICTION = (
    "At step 0 the AUC of related pairs is 0.5; training raises it, also against words of the same frequency."
)
REFUTED_BY = "An AUC at step 0 that is not 0.5 (a control), or one that does not rise by 0.02 where frequencies are equal."
DESIGN = (
    "The token tables of word models and character models of Shakespeare, kept at log-spaced steps. AUC: how often is the "
    "cosine of a related pair higher than that of an unrelated one (0.5 is chance)? Words: those of "
    f"{len(word_tests.RELATED_PAIRS)} pairs such as king and queen that are in the vocabulary, against pairs of one of the two and each of the {NEAR} words whose frequency in "
    "the training text is nearest to the other's, as frequency alone tells related words from others (also measured: pairs that are scored by how near their "
    "frequencies are, against the same words paired differently). Next to it: vectors of counted contexts of the same text (PPMI and SVD), which no training made. Characters: two "
    "vowels or two consonants against one of each; a capital and its small letter against two different letters. Control: at step 0 the words must be at chance."
)
MARGINS = {"AUC": 0.02}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Unrelated pairs have the frequencies of related ones; counting stands next to learning.",
        "Similar frequency alone gives related words an AUC of 0.673 [0.593, 0.738]; counting gives 0.915 where learning gives 0.764.", "holds",
    ),
)  # fmt: skip
VOWELS = "aeiou"
WORDS = "related words, frequencies equal"


class Words:
    """The related pairs that a word model knows, and words of the same frequency."""

    def __init__(self, run: Run) -> None:
        self.ids = np.asarray(prepare_dataset(run.config.data).train.ids)
        self.tokens = word_vectors.tokens_of(run.tokenizer)
        self.counts = np.bincount(self.ids, minlength=len(self.tokens))
        row_of = {word: row for row, word in enumerate(self.tokens)}
        self.pairs_P2, _ = word_tests.rows_of(row_of.get, word_tests.RELATED_PAIRS)
        words = np.array([row for row, word in enumerate(self.tokens) if word.isalpha()])
        self.others = {int(row): nearest_in(self.counts, words, int(row)) for row in self.pairs_P2.ravel()}

    def auc(self, values_ND: np.ndarray) -> float:
        """How often a word is nearer to its partner than to a word of the partner's frequency."""
        unit_ND = unit(np.asarray(values_ND, np.float64))
        found = []
        for pair in self.pairs_P2.tolist():
            for one, other in (pair, pair[::-1]):
                rest = self.others[other][self.others[other] != one]
                own, all_others = unit_ND[one] @ unit_ND[other], unit_ND[rest] @ unit_ND[one]
                found.append((own > all_others).mean() + 0.5 * (own == all_others).mean())
        return float(np.mean(found))

    def frequency_auc(self) -> float:
        """How often a related pair is nearer in frequency than the same words paired differently."""
        one_P, two_P = np.log(np.maximum(self.counts[self.pairs_P2], 1)).T
        apart_PP = np.abs(one_P[:, None] - two_P)
        own_P = np.diag(apart_PP)
        rest_PP = apart_PP[~np.eye(len(own_P), dtype=bool)].reshape(len(own_P), -1)
        return float((own_P[:, None] < rest_PP).mean() + 0.5 * (own_P[:, None] == rest_PP).mean())

    def counted(self) -> np.ndarray:
        """Vectors of the contexts of all words; 0 for tokens that are no words."""
        is_word = np.array([word.isalpha() for word in self.tokens])
        rows = np.flatnonzero(is_word & (self.counts > 0))
        vectors = distribution.context_vectors(
            self.ids[is_word[self.ids]], rows, len(self.tokens), dimensions=64
        )
        values = np.full((len(self.tokens), vectors.shape[1]), 1e-9)
        values[rows] = vectors
        return values


def nearest_in(counts_V: np.ndarray, words: np.ndarray, row: int) -> np.ndarray:
    """The NEAR words whose frequency is nearest to that of a row, without it."""
    apart = np.abs(np.log(np.maximum(counts_V[words], 1)) - np.log(max(counts_V[row], 1)))
    return np.array([w for w in words[np.argsort(apart, kind="stable")] if w != row][:NEAR])


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
    """AUC by step, a curve per seed, for each kind of relation; of frequency and of counting."""
    runs = {"words": trained.words(setting), "characters": trained.characters(setting)}
    words = Words(runs["words"][0])
    kinds = {
        WORDS: (runs["words"], lambda table: words.auc(table.values)),
        "vowels and consonants": (runs["characters"], vowel_auc),
        "capital and small letters": (runs["characters"], case_auc),
    }
    curves = {
        kind: [
            [(step, auc(table)) for step, table in tables.open_history(run.workdir).items()] for run in found
        ]
        for kind, (found, auc) in kinds.items()
    }
    known = {
        "pairs": len(words.pairs_P2),
        "frequency": words.frequency_auc(),
        "counted": words.auc(words.counted()),
    }
    return {"curves": curves, "words": known}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    curves = measurements["curves"]
    if WORDS not in curves:
        raise Outdated("unrelated words of the same frequency, and counted contexts")
    words = measurements["words"]
    starts = {kind: [curve[0][1] for curve in found] for kind, found in curves.items()}
    ends = {kind: [curve[-1][1] for curve in found] for kind, found in curves.items()}
    control = claim.mean(starts[WORDS])
    rises = "; ".join(
        f"from {claim.show(claim.mean(starts[kind]))} to {claim.show(claim.mean(ends[kind]))} for {kind}"
        for kind in curves
    )
    learned = claim.mean(ends[WORDS])
    return Result(
        parts=tuple(
            Effect(
                f"rise of the AUC for {kind} in {found[0][-1][0]:,} steps",
                claim.difference(ends[kind], starts[kind]),
                margin=MARGINS["AUC"],
            )
            for kind, found in curves.items()
        ),
        says=(
            f"Over training the AUC goes {rises}. Of {len(word_tests.RELATED_PAIRS)} pairs {words['pairs']} are known. Counted contexts of the same text give "
            f"{words['counted']:.3f}. How near their frequencies are tells related words from the same words paired differently with an AUC of {words['frequency']:.3f}."
        ),
        untold=""
        if control.low <= 0.5 <= control.high
        else f"related words are not at chance at step 0: AUC {claim.show(control)}",
        seeds=len(curves[WORDS]),
        headline=f"Learned rows tell related words from words of the same frequency with an AUC of {claim.show(learned)}, counts of which words meet with one of "
        f"{words['counted']:.3f}; 0.5 is chance.",
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
        axis.set_xlim(left=0)
        if kind == WORDS:
            for what, style in (("counted", "-."), ("frequency", ":")):
                axis.axhline(
                    measurements["words"][what], color=claim.COLOURS[1], linestyle=style, linewidth=1
                )
                axis.annotate(
                    f"{what} {'contexts' if what == 'counted' else 'alone'}",
                    (1, measurements["words"][what]),
                    fontsize=6,
                    va="bottom",
                )
        axis.set(title=kind, xlabel="step")
    axes[0].set_ylabel("AUC (0.5: chance), a line per seed")


if __name__ == "__main__":
    claim.run()
