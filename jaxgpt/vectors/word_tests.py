"""Tests of word vectors: analogies, related against random pairs, and the usual test sets, with intervals.

The tests take a table [N, D] and row numbers; `rows_of` finds the rows of words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data.packages import find_package
from jaxgpt.vectors.nearest import nearest, rank_of, unit

# Related words, each word once; all are common in Shakespeare and in the King James Bible.
RELATED = """
king queen, father mother, brother sister, son daughter, man woman, husband wife, day night, sun moon, heaven earth,
life death, love hate, hand foot, eye ear, head heart, flesh blood, sword spear, bread wine, gold silver, fire water,
good evil, great small, old young, first second, two three, seven eight, east west, north south, morning evening,
summer winter, sea land, sheep goats, horse ass, lion bear, house door, city town, master servant, prince duke,
friend enemy, peace war, joy sorrow, truth falsehood, right left, come go, give take, speak hear, eat drink, sit stand,
live die, thou ye, he she, his her, my our, was were, shall will, do did, hath have, before after, here there, up down,
many few, mouth tongue
"""
RELATED_PAIRS = [tuple(pair.split()) for pair in RELATED.replace("\n", " ").split(",")]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, from `count` cases."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


# --- analogies ------------------------------------------------------------------------------------------


def analogy_queries(table_ND: np.ndarray, abc_Q3: np.ndarray) -> np.ndarray:
    """a - b + c of rows scaled to length 1: [Q, D] (3CosAdd, Mikolov et al. 2013). b is to a as c is to the answer."""
    a, b, c = (unit(np.asarray(table_ND[abc_Q3[:, i]], np.float32)) for i in range(3))
    return a - b + c


def analogies(table_ND: np.ndarray, abcd_Q4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the row nearest to a - b + c is d: [Q] without a, b, c (as is customary), and [Q] with all rows."""
    # One search for both: at most three of the four nearest are a, b and c.
    nearest_Q4, _ = nearest(table_ND, analogy_queries(table_ND, abcd_Q4), 4)
    own_Q4 = (nearest_Q4[:, :, None] == abcd_Q4[:, None, :3]).any(axis=2)
    other_Q = np.take_along_axis(nearest_Q4, own_Q4.argmin(axis=1)[:, None], axis=1)[:, 0]
    return other_Q == abcd_Q4[:, 3], nearest_Q4[:, 0] == abcd_Q4[:, 3]


def answer_rank(table_ND: np.ndarray, abcd_Q4: np.ndarray, exclude_abc: bool) -> np.ndarray:
    """The rank [Q] of d among the neighbours of a - b + c, 1 for the nearest; exclude_abc: without a, b, c."""
    queries_QD = analogy_queries(table_ND, abcd_Q4)
    return rank_of(table_ND, queries_QD, abcd_Q4[:, 3], exclude_QE=abcd_Q4[:, :3] if exclude_abc else None)


# --- related against random -----------------------------------------------------------------------------


def related_auc(table_ND: np.ndarray, pairs_P2: np.ndarray, draws: int = 2000, seed: int = 0) -> Estimate:
    """The probability that a related pair has a higher cosine than a random pair: 0.5 is chance.

    Random pairs combine the words of different pairs (a_i with b_j), so word frequencies are the same on both sides.
    The interval is a percentile bootstrap over the related pairs, with all random pairs of their words: random pairs
    that share words are not independent cases.
    """
    first, second = (unit(np.asarray(table_ND[pairs_P2[:, i]], np.float64)) for i in range(2))
    cosines_PP = first @ second.T
    P = len(pairs_P2)
    known = {frozenset(pair) for pair in pairs_P2.tolist()}
    random_PP = np.array(
        [[a != b and frozenset((a, b)) not in known for b in pairs_P2[:, 1]] for a in pairs_P2[:, 0]], bool
    ).reshape(P, P)
    if P < 2 or not random_PP.any():
        raise UserError(f"{P} pairs of known words: give 2 or more, to compare them with random ones")
    at_i, at_j = np.nonzero(random_PP)
    order = np.argsort(cosines_PP[at_i, at_j], kind="stable")
    at_i, at_j = at_i[order], at_j[order]
    sorted_R, own_P = cosines_PP[at_i, at_j], np.diagonal(cosines_PP)
    below_P, up_to_P = np.searchsorted(sorted_R, own_P, "left"), np.searchsorted(sorted_R, own_P, "right")

    def auc(weights_P: np.ndarray) -> float:
        sums = np.concatenate([[0.0], np.cumsum(weights_P[at_i] * weights_P[at_j])])
        wins_P = (sums[below_P] + sums[up_to_P]) / 2  # a tie counts half
        return float(weights_P @ wins_P / (weights_P.sum() * sums[-1])) if sums[-1] else math.nan

    return _bootstrapped(auc, (P,), draws, seed)


def group_auc(table_ND: np.ndarray, group_G: np.ndarray, others_M: np.ndarray, draws: int = 2000) -> Estimate:
    """The probability that two rows of a group have a higher cosine than a row of it and one of the others.

    0.5 is chance. The interval is a percentile bootstrap over the rows of the group and over the others.
    """
    G, M = len(group_G), len(others_M)
    if G < 3 or M < 3:
        raise UserError(f"groups of {G} and {M} rows: give 3 or more of each")
    rows = unit(np.asarray(table_ND[np.concatenate([group_G, others_M])], np.float64))
    cosines = rows @ rows.T
    one_W, two_W = np.triu_indices(G, 1)
    one_B, two_B = (x.reshape(-1) for x in np.meshgrid(np.arange(G), np.arange(G, G + M), indexing="ij"))
    values = np.concatenate([cosines[one_W, two_W], cosines[one_B, two_B]])
    _, place = np.unique(values, return_inverse=True)

    def auc(weights_N: np.ndarray) -> float:
        within = np.bincount(place[: len(one_W)], weights_N[one_W] * weights_N[two_W], place.max() + 1)
        between = np.bincount(place[len(one_W) :], weights_N[one_B] * weights_N[two_B], place.max() + 1)
        total = within.sum() * between.sum()
        wins = np.cumsum(between) - between / 2  # a tie counts half
        return float(within @ wins / total) if total else math.nan

    return _bootstrapped(auc, (G, M), draws, seed=0)


def _bootstrapped(
    statistic: Callable[[np.ndarray], float], sizes: tuple[int, ...], draws: int, seed: int
) -> Estimate:
    """A statistic of case weights and its percentile bootstrap interval; cases are drawn within groups of these sizes."""
    rng = np.random.default_rng(seed)

    def drawn() -> np.ndarray:
        counts = [np.bincount(rng.integers(size, size=size), minlength=size) for size in sizes]
        return np.concatenate(counts).astype(float)

    low, high = np.nanpercentile([statistic(drawn()) for _ in range(draws)], [2.5, 97.5])
    return Estimate(statistic(np.ones(sum(sizes))), float(low), float(high), sizes[0])


# --- statistics -----------------------------------------------------------------------------------------


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share their mean rank."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> Estimate:
    """Spearman's rank correlation; the interval is Fisher's z with the standard error of Bonett and Wright (2000)."""
    N = len(x_N)
    ranks = np.stack([_ranks(x_N), _ranks(y_N)])
    if N < 4 or (ranks.std(axis=1) == 0).any():
        return Estimate(math.nan, math.nan, math.nan, N)
    rho = float(np.corrcoef(ranks)[0, 1])
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (N - 3))
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    return Estimate(rho, math.tanh(z - half), math.tanh(z + half), N)


def proportion(successes: int, count: int) -> Estimate:
    """A proportion and its Wilson interval (1927), which assumes independent cases."""
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z, p = 1.96, successes / count
    middle, scale = p + z**2 / (2 * count), 1 + z**2 / count
    half = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return Estimate(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), count)


def similarity(table_ND: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """The cosines of pairs of rows: [P] float64."""
    first, second = (unit(np.asarray(table_ND[pairs_P2[:, i]], np.float64)) for i in range(2))
    return np.einsum("PD,PD->P", first, second)


# --- files ----------------------------------------------------------------------------------------------


def installed_test_set(name: str) -> Path:
    """A test set of the package gensim: questions-words.txt, wordsim353.tsv or simlex999.txt."""
    instead = "give files as --questions and --similarities"
    return find_package("gensim", name, '"jaxgpt[words]"', instead) / "test" / "test_data" / name


def _read_lines(path: Path) -> list[tuple[int, str]]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"can't read {path} ({error.strerror or error}): give a UTF-8 text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start:,}: convert it to UTF-8") from None
    lines = [(number, line.strip()) for number, line in enumerate(content.split("\n"), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def read_questions(path: Path) -> dict[str, list[list[str]]]:
    """Analogies by section: `: name` starts a section, `Athens Greece Baghdad Iraq` is a question (Mikolov et al. 2013)."""
    sections: dict[str, list[list[str]]] = {}
    section = "all"
    for number, line in _read_lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
        elif len(words := line.split()) == 4:
            sections.setdefault(section, []).append(words)
        else:
            raise UserError(
                f"{path}: line {number} has {len(words)} words: give 4, such as Athens Greece Baghdad Iraq"
            )
    if not sections:
        raise UserError(f"{path} has no analogies: give four words per line")
    return sections


def read_pairs(path: Path, scored: bool) -> list[tuple[str, str, float]]:
    """Two words per line and, where `scored`, their similarity by human judgement, separated by white space."""
    pairs = []
    for number, line in _read_lines(path):
        fields = line.split()
        try:
            first, second, *score = fields
            if len(score) != int(scored):
                raise ValueError
            pairs.append((first, second, float(score[0]) if scored else math.nan))
        except ValueError:
            what = "two words and a number" if scored else "two words"
            raise UserError(f"{path}: line {number} is {line[:40]!r}: give {what}") from None
    if not pairs:
        raise UserError(f"{path} has no pairs of words: give one per line")
    return pairs


def rows_of(
    find: Callable[[str], int | None], tuples: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows [M, words] of the tuples whose words are known and have distinct rows, and their indices [M].

    `find(word)` returns a row or None.
    """
    rows = [[find(word) for word in words] for words in tuples]
    kept = [i for i, found in enumerate(rows) if None not in found and len(set(found)) == len(found)]
    width = len(tuples[0]) if len(tuples) else 0
    return np.array([rows[i] for i in kept], np.int64).reshape(-1, width), np.array(kept, np.int64)
