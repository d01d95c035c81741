"""Questions to an embedding table. Each answer is a pair: what --json prints, and lines for people."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.vectors import geometry, nearest, tables, word_tests
from jaxgpt.vectors.tables import Table
from jaxgpt.vectors.word_tests import Estimate

Figures = dict[str, Any]
Answer = tuple[Figures, list[str]]


def neighbours(table: Table, args: argparse.Namespace) -> Answer:
    """The nearest rows of each word, itself set aside."""
    rows = np.array([table.row(word) for word in args.words])
    mean_D = nearest.mean_row(table.values) if args.centre else None
    found, scores = nearest.nearest(
        table.values, table.values[rows], args.count, args.metric, rows[:, None], mean_D
    )
    results = [
        {"word": table.words[row], "neighbours": _listed(table, found[i], scores[i])}
        for i, row in enumerate(rows)
    ]
    lines = [f"{r['word']!r:<14} " + "  ".join(f"{w} {s:.3f}" for w, s in r["neighbours"]) for r in results]
    return {"metric": args.metric, "centred": args.centre, "results": results}, lines


def similarity(table: Table, args: argparse.Namespace) -> Answer:
    """Cosine, dot product and distance of pairs."""
    if len(args.words) % 2:
        raise UserError(f"{len(args.words)} words: give pairs, A B or A B C D")
    values = table.values.astype(np.float64)[np.array([table.row(word) for word in args.words])]
    results = []
    for i in range(0, len(args.words), 2):
        a, b = values[i], values[i + 1]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        figures = {"cosine": float(a @ b) / lengths if lengths else 0.0, "dot": float(a @ b)}
        results.append({"pair": args.words[i : i + 2], **figures, "euclidean": float(np.linalg.norm(a - b))})
    lines = [
        f"{' '.join(r['pair']):<24} cosine {r['cosine']:+.4f}   dot {r['dot']:+.4f}   distance {r['euclidean']:.4f}"
        for r in results
    ]
    return {"results": results}, lines


def analogy(table: Table, args: argparse.Namespace) -> Answer:
    """a - b + c, with and without the question's own words, and the rank of an answer."""
    abc = np.array([[table.row(word) for word in args.words]])
    query = word_tests.analogy_queries(table.values, abc)
    result: Figures = {"question": "{} - {} + {}".format(*args.words)}
    lines = [result["question"]]
    answer = None if args.answer is None else np.array([table.row(args.answer)])
    for name, aside in (("set_aside", abc), ("all_words", None)):
        found, scores = nearest.nearest(table.values, query, args.count, aside_QE=aside)
        result[name] = {"neighbours": _listed(table, found[0], scores[0])}
        what = "its own words set aside" if aside is not None else "no word set aside"
        lines.append(f"  {what:<24} " + "  ".join(f"{w} {s:.3f}" for w, s in result[name]["neighbours"]))
        if answer is not None:
            rank = int(nearest.rank_of(table.values, query, answer, aside_QE=aside)[0])
            result[name]["answer_rank"] = rank
            lines.append(f"  {'':<24} {args.answer} is number {rank:,} of {len(table.words):,}")
    return result, lines


def related(table: Table, args: argparse.Namespace) -> Answer:
    """AUC of related against random pairs."""
    pairs = word_tests.read_pairs(Path(args.pairs), scored=False) if args.pairs else word_tests.RELATED_PAIRS
    rows, _ = word_tests.rows_of(tables.finder(table), [pair[:2] for pair in pairs])
    result = word_tests.related_auc(table.values, rows, seed=args.seed)
    chance = "its interval covers" if result.low <= 0.5 <= result.high else "its interval does not cover"
    line = f"AUC {result} ({result.count} of {len(pairs)} pairs known; {chance} chance, 0.5)"
    return {"auc": _figures(result), "pairs": len(pairs)}, [line]


def benchmark(table: Table, args: argparse.Namespace) -> Answer:
    """Google's analogies by section, WordSim-353, SimLex-999."""
    find = tables.finder(table)
    path = Path(args.questions) if args.questions else word_tests.installed_test_set("questions-words.txt")
    named = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
    if args.similarities:
        sets = {Path(file).name: Path(file) for file in args.similarities}
    else:
        sets = {name: word_tests.installed_test_set(file) for name, file in named.items()}
    result: Figures = {"similarity": {}, "analogies": {}}
    lines = []
    for name, file in sets.items():
        pairs = word_tests.read_pairs(file, scored=True)
        rows, kept = word_tests.rows_of(find, [pair[:2] for pair in pairs])
        rho = word_tests.spearman(
            word_tests.similarity(table.values, rows), np.array([pairs[i][2] for i in kept])
        )
        result["similarity"][name] = _figures(rho) | {"pairs": len(pairs)}
        lines.append(f"{name:<30} rho {rho}  {len(rows):,} of {len(pairs):,} pairs known")
    right = known = plain = total = 0
    for section, questions in word_tests.read_questions(path).items():
        rows, _ = word_tests.rows_of(find, questions)
        aside_Q, plain_Q = word_tests.analogies(
            table.values, rows[:, [1, 0, 2, 3]]
        )  # Athens : Greece = b : a
        share = word_tests.proportion(int(aside_Q.sum()), len(rows))
        result["analogies"][section] = _figures(share) | {"questions": len(questions)}
        lines.append(f"{section:<30} accuracy {share}  {len(rows):,} of {len(questions):,} known")
        right, plain = right + int(aside_Q.sum()), plain + int(plain_Q.sum())
        known, total = known + len(rows), total + len(questions)
    share = word_tests.proportion(right, known)
    result["all_analogies"] = _figures(share) | {
        "questions": total,
        "no_word_set_aside": plain / max(known, 1),
    }
    lines.append(
        f"{'all analogies':<30} accuracy {share}  {known:,} of {total:,} known; "
        f"{plain / max(known, 1):.3f} with no word set aside"
    )
    return result, lines


def drift(history: dict[int, Table], args: argparse.Namespace) -> Answer:
    """How far rows have come from their start, over the saved steps."""
    found = geometry.drift(
        {step: table.values for step, table in history.items()}, args.count, seed=args.seed
    )
    words = next(iter(history.values())).words
    lines = [
        f"{'step':>8}  cosine to the start: mean  10 %  90 %   {args.count} nearest kept: of the start, of the step before"
    ]
    steps = []
    for at in found:
        low, high = np.percentile(at.cosine_N, [10, 90])
        kept = {"kept_start": at.kept_start, "kept_before": at.kept_before}
        steps.append(
            {
                "step": at.step,
                "cosine": float(at.cosine_N.mean()),
                "p10": float(low),
                "p90": float(high),
                **kept,
            }
        )
        lines.append(
            f"{at.step:>8}  {'':20} {at.cosine_N.mean():5.3f} {low:5.2f} {high:5.2f}   {'':16}"
            f" {at.kept_start:>11.1%}, {at.kept_before:.1%}"
        )
    last = found[-1].cosine_N
    moved = [(words[i], float(last[i])) for i in np.argsort(last, kind="stable")[: args.count]]
    least = [(words[i], float(last[i])) for i in np.argsort(-last, kind="stable")[: args.count]]
    lines += ["moved most   " + "  ".join(f"{w!r} {c:.2f}" for w, c in moved)]
    lines += ["moved least  " + "  ".join(f"{w!r} {c:.2f}" for w, c in least)]
    return {"count": args.count, "steps": steps, "moved_most": moved, "moved_least": least}, lines


def plot(table: Table, args: argparse.Namespace) -> Answer:
    """A scatter plot of words on the first two principal axes, PNG or SVG."""
    out = Path(args.out)
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"--out={out}: give a file that ends in .png or .svg")
    rows = np.array([table.row(word) for word in args.words] or range(min(args.count, len(table.words))))
    if len(rows) < 3 or table.values.shape[1] < 2:
        raise UserError(
            f"{len(rows)} words of {table.values.shape[1]} numbers: 3 words of 2 or more are needed"
        )
    mean_D, axes_2D, shares = geometry.principal_axes(table.values[rows], 2)
    xy_R2 = (table.values[rows] - mean_D) @ axes_2D.T
    try:
        import matplotlib
    except ImportError:
        raise UserError('a plot needs matplotlib: pip install "jaxgpt[plots]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 8), layout="constrained")
    axes.scatter(*xy_R2.T, s=8)
    for row, (x, y) in zip(rows, xy_R2, strict=True):
        name = table.words[row]
        label = (name if name.strip() else repr(name)).replace("$", r"\$")
        axes.annotate(label, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
    axes.set(title=table.source, xlabel=f"axis 1: {shares[0]:.1%}", ylabel=f"axis 2: {shares[1]:.1%}")
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    points = [(table.words[row], float(x), float(y)) for row, (x, y) in zip(rows, xy_R2, strict=True)]
    line = (
        f"{out}: {len(rows)} words; the two axes hold {shares[0]:.1%} and {shares[1]:.1%} of their variance"
    )
    return {"file": str(out), "explained_variance": shares.tolist(), "points": points}, [line]


def lookup(table: Table, args: argparse.Namespace) -> Answer:
    """Lookup against one-hot product."""
    result = geometry.compare_lookups(table.values, args.count)
    same = "bit-equal" if result["bit_equal"] else f"different by up to {result['max_difference']:.2e}"
    lines = [f"{result['ids']:,} rows of a table of {result['rows']:,} x {result['width']:,}: {same}"]
    lines += [
        f"  {name:<16} {result[key]['seconds'] * 1e6:>12,.0f} microseconds {result[key]['bytes'] / 1e6:>10,.2f} MB read and written"
        for name, key in (("lookup", "lookup"), ("one-hot product", "one_hot"))
    ]
    return result, lines


def _listed(table: Table, rows: np.ndarray, scores: np.ndarray) -> list[tuple[str, float]]:
    return [(table.words[row], float(score)) for row, score in zip(rows, scores, strict=True)]


def _figures(estimate: Estimate) -> Figures:
    """JSON has no nan: None where there was nothing to measure."""
    names = ("value", "low", "high")
    values = {name: getattr(estimate, name) for name in names}
    return {n: None if math.isnan(v) else v for n, v in values.items()} | {"count": estimate.count}
