"""Ask an embedding table: neighbours, analogies, tests of words, drift over a run, a map.

    python -m jaxgpt.embeddings neighbours king --workdir runs/word [--step 0] [--table position] [--json]
    python -m jaxgpt.embeddings analogy king man woman --answer queen --vectors minilm

The table is that of a run at a saved step (--workdir), or other vectors (--vectors FILE, or the name of a package).
"""

from __future__ import annotations

import json

from jaxgpt.common import cli
from jaxgpt.config import UserError

# Each question and its help; the function of the same name in vectors/questions.py answers it.
QUESTIONS = {
    "neighbours": "The nearest rows of each word, without the word itself.",
    "similarity": "Cosine, dot product and distance of pairs of words.",
    "analogy": "The nearest rows of a - b + c, without and with a, b and c, and the rank of an answer.",
    "related": "AUC of related pairs of words against random pairs.",
    "benchmark": "Google's analogies by section, WordSim-353 and SimLex-999.",
    "drift": "How far the rows have moved from step 0, at every saved step.",
    "plot": "A scatter plot of words on the first two principal axes, as PNG or SVG.",
    "lookup": "Table lookup against the product with one-hot vectors: numbers, times, bytes.",
}
# How many words a question takes, and the default and the meaning of its --count.
WORDS: dict[str, str | int] = {"neighbours": "+", "similarity": "+", "analogy": 3, "plot": "*"}
COUNTS = {
    "neighbours": (10, "number of neighbours"),
    "analogy": (5, "number of neighbours"),
    "drift": (10, "number of neighbours to follow, and of tokens to list"),
    "plot": (100, "number of rows to plot, where no words are given"),
    "lookup": (1024, "number of rows to look up"),
}


def _parser() -> cli.Parser:
    parser = cli.Parser("embeddings", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    for name, meaning in QUESTIONS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        if name in WORDS:
            command.add_argument("words", nargs=WORDS[name], help="words, tokens or positions")
        if name in COUNTS:
            default, counted = COUNTS[name]
            command.add_argument("--count", type=int, default=default, help=counted)
        if name in ("related", "drift"):
            command.add_argument("--seed", type=int, default=0, help="seed of the random draws")
        source = command.add_argument_group("the table")
        source.add_argument("--workdir", type=cli.path, help="the folder of a run")
        source.add_argument("--table", default="token", help="the run's table: token or position")
        if name != "drift":
            source.add_argument("--step", type=cli.step, help="a saved step or 'best'; None: the latest")
            source.add_argument("--vectors", help="a file of vectors, or glove or minilm")
            source.add_argument("--vocabulary", help="the words of a .npy or .safetensors file")
            source.add_argument("--tensor", help="the name of the table in a .safetensors file")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    neighbours = commands.choices["neighbours"]
    neighbours.add_argument("--metric", default="cosine", help="cosine, dot or euclidean")
    neighbours.add_argument("--centre", action="store_true", help="subtract the mean row first")
    commands.choices["analogy"].add_argument("--answer", help="a word whose rank is printed")
    commands.choices["related"].add_argument(
        "--pairs", type=cli.path, help="a file with two words per line; None: the built-in list"
    )
    benchmark = commands.choices["benchmark"]
    benchmark.add_argument(
        "--questions",
        type=cli.path,
        help="a file of analogies, four words per line; None: Google's, from gensim",
    )
    benchmark.add_argument(
        "--similarities",
        nargs="*",
        type=cli.path,
        help="files with two words and a number per line; None: gensim's",
    )
    commands.choices["plot"].add_argument("--out", required=True, type=cli.path, help="a .png or .svg file")
    return parser


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    args = _parser().parse_args(argv)
    cli.check_at_least(1, args, "count")
    cli.check_at_least(0, args, "seed")
    options = vars(args)
    question, as_json = options.pop("command"), options.pop("json")
    workdir, kind = options.pop("workdir"), options.pop("table")
    step, vectors, *file_options = (
        options.pop(name, None) for name in ("step", "vectors", "vocabulary", "tensor")
    )
    if question == "drift" and workdir is None:
        raise UserError("drift needs the tables of a run: give its folder as --workdir")
    if (workdir is None) == (vectors is None):
        raise UserError("give either the folder of a run as --workdir or a file of vectors as --vectors")

    cli.set_up_process()
    from jaxgpt.vectors import questions, tables, word_vectors

    if question == "drift":
        table = tables.open_history(workdir, kind)
        source, step = str(workdir), None
    else:
        if vectors is not None:
            loaded = word_vectors.load(vectors, *file_options)
            table = tables.Table(vectors, loaded)
            if not as_json:
                print(f"{vectors}: {loaded.description}")
        else:
            table = tables.open_run(workdir, step, kind)
        source, step = table.source, table.step
    answer = getattr(questions, question)(table, **options)
    if as_json:
        print(json.dumps({"source": source, "step": step, **answer.values}, ensure_ascii=False))
    else:
        print("\n".join(answer.lines))


if __name__ == "__main__":
    cli.run(main)
