"""Train a model, or resume a run.

    python -m jaxgpt.train --config configs/char.py [--config.model.d_model=256 ...] [--workdir runs/char]

The same command resumes a run. A run that was stopped anywhere, by a signal or a kill, and resumed gives bit for bit what it
gives without a stop: a batch and a dropout mask are functions of the step. A resumed run may have another train.num_steps,
and other values of the fields that only observe or keep: --help_config lists them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgpt.common import cli, config_files
from jaxgpt.config import UserError

if TYPE_CHECKING:
    from jaxgpt.config import Config
    from jaxgpt.training.loop import Result


def run(
    cfg: Config,
    workdir: str | Path,
    profile_steps: str | None = None,
    num_workers: int = 0,
    restart: bool = False,
) -> Result:
    """Train, and write the report at the end where the config asks for one."""
    from jaxgpt.training.loop import train

    def report(folder: Path) -> None:
        from jaxgpt.inspect.write import write_or_warn

        write_or_warn(folder)

    return train(cfg, workdir, None, profile_steps, num_workers, restart, report)


def _check_target_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags of --target that say nothing alone."""
    if args.target is not None and not args.dry_run:
        raise UserError(
            f"--target={args.target} compiles for a card that is not here, to report on it: add --dry_run, or leave it out"
        )
    for name, given in (("price_per_hour", args.price_per_hour is not None), ("json", args.json)):
        if given and args.target is None:
            raise UserError(f"--{name} belongs to a report on a card: add --dry_run --target=h100")
    if args.price_per_hour is not None and not 0 <= args.price_per_hour < 1e9:
        raise UserError(f"--price_per_hour={args.price_per_hour:g}: give a price of 0 or more")


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(
        "train",
        description="Train a model, or resume a run.",
        epilog="Any field of the config can be set: --config.model.d_model=256. --help_config lists them.",
    )
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/char.py (required)")
    parser.add_argument(
        "--workdir", type=cli.path, help="the run's folder; by default runs/<name of the config>"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="say what the run would be: shapes, memory, time; train nothing",
    )
    parser.add_argument(
        "--target",
        metavar="CARD",
        help="with --dry_run: compile the step for a card that is not here, such as h100 or h100x8, and report on it",
    )
    parser.add_argument(
        "--price_per_hour",
        type=float,
        metavar="PRICE",
        help="with --target: the price of one card for an hour",
    )
    parser.add_argument("--json", action="store_true", help="with --target: print the report as JSON")
    parser.add_argument(
        "--show_batch",
        action="store_true",
        help="print the first batch as text, with what counts in the loss marked; train nothing",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="start at step 0; what the folder has is kept in its folder before",
    )
    parser.add_argument(
        "--profile_steps",
        metavar="START:STOP",
        help="write a trace of these steps to the run's folder profile",
    )
    cli.add_data_flags(parser)
    cli.add_help_config(parser)
    cli.add_process_flags(parser)
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cli.check_at_least(0, args, "num_workers")
    _check_target_flags(args)
    cfg = cli.read_config(file, overrides)
    cli.set_up_process(joins=True, compiles=args.target is not None)
    from jaxgpt.common import processes

    processes.join(args)
    if args.target is not None:
        from jaxgpt.training.target import report

        print(report.dry_run(cfg, args.target, args.price_per_hour, args.json))
        return 0
    if args.dry_run:
        from jaxgpt.training import preflight

        print(preflight.dry_run(cfg))
        return 0
    if args.show_batch:
        from jaxgpt.training import show_batch

        print("\n".join(show_batch.lines(cfg, num_workers=args.num_workers)))
        return 0
    workdir = args.workdir or Path("runs") / Path(config_files.split_argument(file)[0]).stem
    result = run(cfg, workdir, args.profile_steps, args.num_workers, args.restart)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    cli.run(main)
