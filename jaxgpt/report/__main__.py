"""A page about a run: what it learned, and how.

python -m jaxgpt.report --workdir runs/char [--text "ROMEO:"] [--step 1000] [--out FOLDER]
"""

from __future__ import annotations

import json
from pathlib import Path

from jaxgpt import cli


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(
        prog="python -m jaxgpt.report", description="A page about a run: what it learned, and how."
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument(
        "--text", default=None, help="the text to look at; default: a piece of the validation split"
    )
    parser.add_argument("--text2", default=None, help="a second text that shares a token with the first")
    parser.add_argument(
        "--step", type=cli.step, default=None, help="a saved step or 'best'; default: the newest"
    )
    parser.add_argument("--out", default=None, help="the folder to write to; default: the run's")
    args = parser.parse_args(argv)
    cli.set_up_process()
    from jaxgpt.report.payload import payload
    from jaxgpt.report.subject import open_subject, probe_of

    subject = open_subject(args.workdir, args.step)
    other = None if args.text2 is None else probe_of(subject, args.text2)
    figures = payload(subject, probe_of(subject, args.text), other)
    out = Path(args.out or args.workdir)
    content = json.dumps(figures, ensure_ascii=False, separators=(",", ":"))
    (out / "report.json").write_text(content, "utf-8")
    print(f"{out / 'report.json'}: {len(content.encode()):,} bytes")


if __name__ == "__main__":
    cli.run(main)
