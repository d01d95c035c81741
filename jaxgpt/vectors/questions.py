"""Questions to an embedding table: neighbours, similarity, analogies, tests of words, drift over a run, a map.

Every question is a function of a table (drift: of the tables of a run by step) and returns an `Answer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.vectors import geometry, nearest, word_tests
from jaxgpt.vectors.tables import Table


class Answer(NamedTuple):
    """The answer as JSON values and as lines of text."""

    values: dict[str, Any]
    lines: list[str]


def neighbours(
    table: Table, words: Sequence[str], count: int = 10, metric: str = "cosine", centre: bool = False
) -> Answer:
    """The nearest rows of each word, without the word itself."""
    rows = np.array([table.row(word) for word in words])
    mean_D = nearest.mean_row(table.values) if centre else None
    found, scores = nearest.nearest(table.values, table.values[rows], count, metric, rows[:, None], mean_D)
    results = [
        {"word": table.words[row], "neighbours": _listed(table, found[i], scores[i])}
        for i, row in enumerate(rows)
    ]
    lines = [f"{r['word']!r:<14} " + "  ".join(f"{w} {s:.3f}" for w, s in r["neighbours"]) for r in results]
    return Answer({"metric": metric, "centred": centre, "results": results}, lines)


def similarity(table: Table, words: Sequence[str]) -> Answer:
    """Cosine, dot product and distance of pairs of words."""
    if len(words) % 2:
        raise UserError(f"{len(words)} words: give pairs, A B or A B C D")
    values = table.values.astype(np.float64)[np.array([table.row(word) for word in words])]
    results = []
    for i in range(0, len(words), 2):
        a, b = values[i], values[i + 1]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        figures = {"cosine": float(a @ b) / lengths if lengths else 0.0, "dot": float(a @ b)}
        results.append({"pair": words[i : i + 2], **figures, "euclidean": float(np.linalg.norm(a - b))})
    lines = [
        f"{' '.join(r['pair']):<24} cosine {r['cosine']:+.4f}   dot {r['dot']:+.4f}   distance {r['euclidean']:.4f}"
        for r in results
    ]
    return Answer({"results": results}, lines)


def analogy(table: Table, words: Sequence[str], count: int = 5, answer: str | None = None) -> Answer:
    """The nearest rows of a - b + c, without and with a, b and c, and the rank of an answer."""
    abc = np.array([[table.row(word) for word in words]])
    query = word_tests.analogy_queries(table.values, abc)
    result: dict[str, Any] = {"question": "{} - {} + {}".format(*words)}
    lines = [result["question"]]
    answer_row = None if answer is None else np.array([table.row(answer)])
    for name, excluded, label in (
        ("set_aside", abc, "its own words excluded"),
        ("all_words", None, "no word excluded"),
    ):
        found, scores = nearest.nearest(table.values, query, count, exclude_QE=excluded)
        result[name] = {"neighbours": _listed(table, found[0], scores[0])}
        lines.append(f"  {label:<24} " + "  ".join(f"{w} {s:.3f}" for w, s in result[name]["neighbours"]))
        if answer_row is not None:
            rank = int(nearest.rank_of(table.values, query, answer_row, exclude_QE=excluded)[0])
            result[name]["answer_rank"] = rank
            lines.append(f"  {'':<24} {answer} is number {rank:,} of {len(table.words):,}")
    return Answer(result, lines)


def related(table: Table, pairs: str | None = None, seed: int = 0) -> Answer:
    """AUC of related pairs of words against random pairs."""
    listed = word_tests.read_pairs(Path(pairs), scored=False) if pairs else word_tests.RELATED_PAIRS
    rows, _ = word_tests.rows_of(table.vectors.row_of_word, [pair[:2] for pair in listed])
    result = word_tests.related_auc(table.values, rows, seed=seed)
    chance = "contains" if result.low <= 0.5 <= result.high else "does not contain"
    line = f"AUC {result} ({result.count} of {len(listed)} pairs known; its interval {chance} chance, 0.5)"
    return Answer({"auc": _values(result), "pairs": len(listed)}, [line])


def benchmark(
    table: Table, questions: str | None = None, similarities: Sequence[str] | None = None
) -> Answer:
    """Google's analogies by section, WordSim-353 and SimLex-999."""
    find = table.vectors.row_of_word
    path = Path(questions) if questions else word_tests.installed_test_set("questions-words.txt")
    if similarities:
        sets = {Path(file).name: Path(file) for file in similarities}
    else:
        named = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
        sets = {name: word_tests.installed_test_set(file) for name, file in named.items()}
    result: dict[str, Any] = {"similarity": {}, "analogies": {}}
    lines = []
    for name, file in sets.items():
        pairs = word_tests.read_pairs(file, scored=True)
        rows, kept = word_tests.rows_of(find, [pair[:2] for pair in pairs])
        rho = word_tests.spearman(
            word_tests.similarity(table.values, rows), np.array([pairs[i][2] for i in kept])
        )
        result["similarity"][name] = _values(rho) | {"pairs": len(pairs)}
        lines.append(f"{name:<30} rho {rho}  {len(rows):,} of {len(pairs):,} pairs known")
    right = known = plain = total = 0
    for section, asked in word_tests.read_questions(path).items():
        rows, _ = word_tests.rows_of(find, asked)
        # "Athens Greece Baghdad Iraq" asks for Greece - Athens + Baghdad.
        excluded_Q, plain_Q = word_tests.analogies(table.values, rows[:, [1, 0, 2, 3]])
        share = word_tests.proportion(int(excluded_Q.sum()), len(rows))
        result["analogies"][section] = _values(share) | {"questions": len(asked)}
        lines.append(f"{section:<30} accuracy {share}  {len(rows):,} of {len(asked):,} known")
        right, plain = right + int(excluded_Q.sum()), plain + int(plain_Q.sum())
        known, total = known + len(rows), total + len(asked)
    share = word_tests.proportion(right, known)
    with_all = plain / max(known, 1)
    result["all_analogies"] = _values(share) | {"questions": total, "no_word_set_aside": with_all}
    lines.append(
        f"{'all analogies':<30} accuracy {share}  {known:,} of {total:,} known; "
        f"{with_all:.3f} with no word excluded"
    )
    return Answer(result, lines)


def drift(history: dict[int, Table], count: int = 10, seed: int = 0) -> Answer:
    """How far the rows have moved from step 0, at every saved step."""
    found = geometry.drift({step: table.values for step, table in history.items()}, count, seed=seed)
    words = next(iter(history.values())).words
    lines = [
        f"{'step':>8}  cosine to the start: mean  10 %  90 %   {count} nearest kept: of the start, of the step before"
    ]
    steps = []
    for at in found:
        low, high = np.percentile(at.cosine_N, [10, 90])
        mean = float(at.cosine_N.mean())
        kept = {"kept_start": at.kept_start, "kept_before": at.kept_before}
        steps.append({"step": at.step, "cosine": mean, "p10": float(low), "p90": float(high), **kept})
        lines.append(
            f"{at.step:>8}  {'':20} {mean:5.3f} {low:5.2f} {high:5.2f}   {'':16}"
            f" {at.kept_start:>11.1%}, {at.kept_before:.1%}"
        )
    last = found[-1].cosine_N
    moved = [(words[i], float(last[i])) for i in np.argsort(last, kind="stable")[:count]]
    least = [(words[i], float(last[i])) for i in np.argsort(-last, kind="stable")[:count]]
    lines += ["moved most   " + "  ".join(f"{w!r} {c:.2f}" for w, c in moved)]
    lines += ["moved least  " + "  ".join(f"{w!r} {c:.2f}" for w, c in least)]
    return Answer({"count": count, "steps": steps, "moved_most": moved, "moved_least": least}, lines)


def plot(table: Table, out: str | Path, words: Sequence[str] = (), count: int = 100) -> Answer:
    """A scatter plot of words on the first two principal axes, as PNG or SVG."""
    if Path(out).suffix not in (".png", ".svg"):
        raise UserError(f"--out={out}: give a file name that ends in .png or .svg")
    rows = np.array([table.row(word) for word in words] or range(min(count, len(table.words))))
    if len(rows) < 3 or table.values.shape[1] < 2:
        raise UserError(
            f"{len(rows)} words with {table.values.shape[1]} numbers each: give 3 or more words with 2 or more numbers"
        )
    mean_D, axes_2D, shares = geometry.principal_axes(table.values[rows], 2)
    xy_R2 = (table.values[rows] - mean_D) @ axes_2D.T
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('a plot needs matplotlib: pip install "jaxgpt[plots]"') from None
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*xy_R2.T, s=8)
    for row, (x, y) in zip(rows, xy_R2, strict=True):
        name = table.words[row]
        label = (name if name.strip() else repr(name)).replace("$", r"\$")
        axes.annotate(label, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
    axes.set(title=table.source, xlabel=f"axis 1: {shares[0]:.1%}", ylabel=f"axis 2: {shares[1]:.1%}")
    figure.savefig(out, dpi=120)
    points = [(table.words[row], float(x), float(y)) for row, (x, y) in zip(rows, xy_R2, strict=True)]
    line = (
        f"{out}: {len(rows)} words; the two axes have {shares[0]:.1%} and {shares[1]:.1%} of their variance"
    )
    return Answer({"file": str(out), "explained_variance": shares.tolist(), "points": points}, [line])


def lookup(table: Table, count: int = 1024) -> Answer:
    """Table lookup against the product with one-hot vectors: same numbers, times, bytes."""
    result = geometry.compare_lookups(table.values, count)
    same = "bit-equal" if result["bit_equal"] else f"different by up to {result['max_difference']:.2e}"
    lines = [f"{result['ids']:,} rows of a table of {result['rows']:,} x {result['width']:,}: {same}"]
    lines += [
        f"  {name:<16} {result[key]['seconds'] * 1e6:>12,.0f} microseconds {result[key]['bytes'] / 1e6:>10,.2f} MB read and written"
        for name, key in (("lookup", "lookup"), ("one-hot product", "one_hot"))
    ]
    return Answer(result, lines)


def _listed(table: Table, rows: np.ndarray, scores: np.ndarray) -> list[tuple[str, float]]:
    return [(table.words[row], float(score)) for row, score in zip(rows, scores, strict=True)]


def _values(estimate: word_tests.Estimate) -> dict[str, Any]:
    """As JSON values, which have no nan: None where nothing could be measured."""
    return {name: None if math.isnan(x) else x for name, x in vars(estimate).items()}
