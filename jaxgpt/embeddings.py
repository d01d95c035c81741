"""Ask an embedding table: neighbours, similarity, analogies, tests of words, drift over a run, a map.

    python -m jaxgpt.embeddings neighbours king --workdir runs/word [--step 0] [--table position] [--json]
    python -m jaxgpt.embeddings analogy king man woman --answer queen --vectors minilm

The table is that of a run at a saved step (--workdir) or comes from elsewhere (--vectors FILE, or a package's name).
"""

from __future__ import annotations

import json
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.config import UserError

# Each question and its line of help. The function of the same name in vectors/questions.py answers it.
QUESTIONS = {
    "neighbours": "The nearest rows of each word, except the word itself.",
    "similarity": "Cosine, dot product and distance of pairs.",
    "analogy": "a - b + c, with and without the question's own words, and the rank of an answer.",
    "related": "AUC of related against random pairs.",
    "benchmark": "Google's analogies by section, WordSim-353, SimLex-999.",
    "drift": "How far rows have moved from their start, over the saved steps.",
    "plot": "A scatter plot of words on the first two principal axes, PNG or SVG.",
    "lookup": "Lookup against one-hot product.",
}
# How many words a command takes, and what --count is for it.
WORDS: dict[str, str | int] = {"neighbours": "+", "similarity": "+", "analogy": 3, "plot": "*"}
COUNTS = {
    "neighbours": (10, "neighbours"),
    "analogy": (5, "neighbours"),
    "drift": (10, "neighbours that are followed, tokens that are listed"),
    "plot": (100, "the first so many rows, where no words are given"),
    "lookup": (1024, "rows to look up"),
}


def _parser() -> cli.Parser:
    parser = cli.Parser("embeddings", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    for name, meaning in QUESTIONS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        if name in WORDS:
            command.add_argument("words", nargs=WORDS[name], help="words, tokens or positions")
        command.add_argument("--workdir", default=None, type=Path, help="a run's folder")
        command.add_argument("--table", default="token", help="which of the run's tables: token or position")
        if name != "drift":
            command.add_argument(
                "--step", type=cli.step, default=None, help="a saved step or 'best'; default: the newest"
            )
            command.add_argument("--vectors", default=None, help="a file of vectors, or glove, minilm")
            command.add_argument("--vocabulary", default=None, help="its words, for .npy and .safetensors")
            command.add_argument("--tensor", default=None, help="the table's name in a .safetensors file")
        command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
        command.add_argument("--seed", type=int, default=0, help="of what is drawn")
        if name in COUNTS:
            default, counted = COUNTS[name]
            command.add_argument("--count", type=int, default=default, help=counted)
    neighbour, question = commands.choices["neighbours"], commands.choices["analogy"]
    neighbour.add_argument("--metric", default="cosine", help="cosine, dot or euclidean")
    neighbour.add_argument("--centre", action="store_true", help="take the mean row away first")
    question.add_argument("--answer", default=None, help="a word whose rank is told")
    commands.choices["related"].add_argument(
        "--pairs", default=None, help="a file with two words a line; default: our own list"
    )
    test = commands.choices["benchmark"]
    test.add_argument(
        "--questions",
        default=None,
        help="analogies, four words a line; default: Google's, of the package gensim",
    )
    test.add_argument(
        "--similarities", nargs="*", default=None, help="files of two words and a number; default: gensim's"
    )
    commands.choices["plot"].add_argument("--out", required=True, help="a .png or .svg file")
    return parser


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    args = _parser().parse_args(argv)
    if getattr(args, "count", 1) < 1:
        raise UserError(f"--count={args.count}: give 1 or more")
    cli.set_up_process()
    from jaxgpt.vectors import questions, tables

    if args.command == "drift":
        if args.workdir is None:
            raise UserError("drift follows a run: give its folder as --workdir")
        history = tables.open_history(args.workdir, args.table)
        source, step = str(args.workdir), None
        result, lines = questions.drift(history, args)
    else:
        if (args.workdir is None) == (args.vectors is None):
            raise UserError("give either a run's folder as --workdir or vectors from elsewhere as --vectors")
        if args.vectors is not None:
            table = tables.open_vectors(args.vectors, args.vocabulary, args.tensor)
        else:
            table = tables.open_run(args.workdir, args.step, args.table)
        source, step = table.source, table.step
        result, lines = getattr(questions, args.command)(table, args)
    if args.json:
        print(json.dumps({"source": source, "step": step, **result}, ensure_ascii=False))
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
