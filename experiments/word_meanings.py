"""Does a small model learn how words are related? Its token table during training.

    python -m experiments.word_meanings --workdir runs/meanings [--corpora shakespeare,kjv] [--config.optim.learning_rate=...]

Trains configs/word.py on each corpus, in a folder of its name (a run that exists is only read). For the table at every
saved step: how often the cosine of a related pair is higher than that of a random pair of the same words (AUC; 0.5 is
chance), the neighbours of twelve words, and the rank of queen for king - man + woman.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxgpt.common import cli
from jaxgpt.config import UserError
from jaxgpt.training import loop
from jaxgpt.vectors import nearest, tables, word_tests

CONFIG = "configs/word.py"
WORDS = "king man father day two good hand sword house great come thou".split()
QUESTION = "king man woman queen".split()


def auc(table: tables.Table) -> word_tests.Estimate:
    """The AUC of the built-in pairs whose words the run knows."""
    rows, _ = word_tests.rows_of(table.vectors.row_of_word, word_tests.RELATED_PAIRS)
    return word_tests.related_auc(table.values, rows)


def neighbours(table: tables.Table, word: str, count: int = 6) -> list[str]:
    """The nearest words by cosine."""
    row = np.array([table.row(word)])
    found, _ = nearest.nearest(table.values, table.values[row], count, exclude_QE=row[:, None])
    return [table.words[i] for i in found[0]]


def analogy_ranks(table: tables.Table) -> tuple[int, int]:
    """The rank of queen for king - man + woman: without the question's words, and among all words."""
    abcd = np.array([[table.row(word) for word in QUESTION]])
    aside, among_all = (int(word_tests.answer_rank(table.values, abcd, a)[0]) for a in (True, False))
    return aside, among_all


def report(workdir: Path) -> dict:
    """Print and return the figures of a run's tables."""
    history = tables.open_history(workdir)
    first, *_, last = history
    V = len(history[first].words)
    print(f"{workdir}: {V:,} words, {history[first].values.shape[1]} numbers each\n")
    print("    step  AUC of related pairs     queen for king - man + woman")
    figures: dict = {"steps": {}, "neighbours": {}}
    for step, table in history.items():
        found, (aside, among_all) = auc(table), analogy_ranks(table)
        figures["steps"][step] = {"auc": found.value, "low": found.low, "high": found.high, "pairs": found.count,
                                  "rank": aside, "rank_among_all": among_all}  # fmt: skip
        print(f"{step:>8}  {found}  number {aside:,} ({among_all:,} with the question's words)")
    print(f"\n{figures['steps'][last]['pairs']} pairs; neighbours at step {first} and at step {last}:")
    for word in WORDS:
        before, after = (neighbours(history[step], word) for step in (first, last))
        figures["neighbours"][word] = {"before": before, "after": after}
        print(f"  {word:<7} {' '.join(map(_shown, before))}\n  {'':<5}-> {' '.join(map(_shown, after))}")
    print(flush=True)
    return figures


def _shown(word: str) -> str:
    return word if word.strip() else repr(word)


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    file, overrides, rest = cli.split_config_flags(argv)
    parser = cli.Parser(prog="python -m experiments.word_meanings", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="the folder for the runs")
    parser.add_argument("--corpora", default="shakespeare,kjv", help="names, separated by commas")
    parser.add_argument("--json", default=None, type=Path, help="a file for the figures")
    args = parser.parse_args(rest)
    cli.set_up_process()
    figures = {}
    for corpus in args.corpora.split(","):
        cfg = cli.read_config(file or CONFIG, {"data.corpus": corpus} | overrides)
        if cfg.data.tokenizer != "word":
            raise UserError(
                f"data.tokenizer={cfg.data.tokenizer!r}: this experiment needs words, choose 'word'"
            )
        result = loop.train(cfg, args.workdir / corpus)
        if result.signal is not None:
            raise UserError(f"training on {corpus} was stopped: the same command resumes it")
        figures[corpus] = report(args.workdir / corpus)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main)
