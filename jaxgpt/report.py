"""Write a report about a run: what it learned, and how.

python -m jaxgpt.report --workdir runs/char [--text "ROMEO:"] [--step 1000] [--compare runs/other] [--out FOLDER] [--gif]
"""

from __future__ import annotations

from pathlib import Path

from jaxgpt.common import cli


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(
        "report",
        description="Write a report about a run, report.html and report.json: what it learned, and how.",
    )
    cli.add_run_flags(parser)
    parser.add_argument("--text", help="the text to show; default: part of the validation split")
    parser.add_argument(
        "--text2", help="a second text that shares a token with the first, to compare the token's vectors"
    )
    parser.add_argument("--compare", type=cli.path, metavar="RUN", help="another run to compare with")
    parser.add_argument("--out", type=cli.path, help="the folder to write to; default: the run's")
    parser.add_argument(
        "--gif", action="store_true", help="also write learn.gif: how the run learned, as a moving picture"
    )
    args = parser.parse_args(argv)
    cli.set_up_process()
    from jaxgpt.inspect.write import report, write

    figures = report(args.workdir, args.text, args.text2, args.step, args.compare)
    for path in write(figures, Path(args.out or args.workdir)):
        print(f"{path}  {path.stat().st_size / 1e3:,.0f} kB")
    if args.gif:
        from jaxgpt.inspect import moving_picture

        print(moving_picture.write(figures, Path(args.out or args.workdir)))
    for finding in figures["summary"]["findings"]:
        print(f"- {finding['text']}")
    for sentence in (*figures["cut"], *figures["missing"]):
        print(f"note: {sentence}")


if __name__ == "__main__":
    cli.run(main)
