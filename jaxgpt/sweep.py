"""Train many models. Those that differ only in numbers share one compiled program, as its lanes.

    python -m jaxgpt.sweep --config configs/sweeps/char_lr.py [--config.train.num_steps=500 ...] --workdir runs/char_lr

Every member has its own run folder. The same command resumes a sweep: finished members are skipped, started ones resume
from their checkpoints, and a member that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import signal as signals
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgpt.common import cli
from jaxgpt.common.say import say
from jaxgpt.config import UserError, apply_overrides
from jaxgpt.sweeps import launchers

if TYPE_CHECKING:
    from jaxgpt.sweeps.members import Sweep


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(
        "sweep",
        description="Train the members of a sweep, or resume one.",
        epilog="Any field of the base config can be set: --config.train.num_steps=500",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a sweep, such as configs/sweeps/char_lr.py (required)"
    )
    parser.add_argument("--workdir", type=cli.path, help="the sweep's folder; default: runs/<name of FILE>")
    parser.add_argument(
        "--width",
        type=int,
        help="members that a device computes at once; default: 1 on a CPU, on a GPU as many as fit, at most 32",
    )
    parser.add_argument(
        "--group_size", type=int, help="members in one program; default: as many as fit in memory"
    )
    parser.add_argument(
        "--halving",
        default="",
        metavar="STEP,STEP",
        help="at each of these steps only the better half continues",
    )
    parser.add_argument("--retry_failed", action="store_true", help="train failed members again")
    parser.add_argument(
        "--table", action="store_true", help="train nothing; write and show the results so far"
    )
    launchers.add_flags(parser)
    cli.add_help_config(parser)
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    if file is None:
        raise UserError("--config is missing: give a sweep, such as --config configs/sweeps/char_lr.py")
    cli.check_at_least(1, args, "width", "group_size")
    try:
        rungs = _steps(args.halving)
    except ValueError:
        raise UserError(f"--halving={args.halving}: give steps such as 250,500") from None
    values, module = cli.load_config_file(file)
    base = type(values)(apply_overrides(values, overrides))
    from jaxgpt.sweeps import members, plots, results
    from jaxgpt.sweeps.halving import check_halving

    sweep = members.Sweep(
        *members.from_file(base, module, file), args.workdir or Path("runs") / Path(file).stem
    )
    check_halving(sweep, rungs)
    part = launchers.check(args, bool(rungs))
    sweep.open()
    if args.retry_failed:
        sweep.forget_failures()
    signal = None if args.table else _train_all(args, argv, sweep, rungs, part)
    if args.part is None and not (args.launcher == "slurm" and not args.table):
        results.write(sweep)
        plots.draw(sweep)
        print(results.as_text(sweep))
    if signal is not None:
        say("stopped and saved: the same command resumes the sweep")
        return 128 + signal
    return 1 if any(row.status.startswith("failed") for row in sweep.rows()) else 0


def _train_all(
    args: argparse.Namespace, argv: list[str], sweep: Sweep, rungs: tuple[int, ...], part: tuple[int, int]
) -> int | None:
    """Train in this process or with a launcher. Returns the signal that stopped it, or None."""
    from jaxgpt.sweeps import groups
    from jaxgpt.sweeps.halving import with_halving

    options = groups.Options(args.width, args.group_size, rungs, *part)
    here = args.launcher == "local" and args.workers == 1
    if here:
        cli.set_up_process()
        groups.use_all_cores(args.cores)

    def train(until: int | None) -> None:
        if here:
            groups.train_members(sweep, options, until)
        else:
            count = len(groups.plan(sweep.members, args.group_size, args.workers))
            signal = launchers.launch(args, argv, count, sweep.folder, until)
            if signal is not None:
                raise KeyboardInterrupt(signal)

    try:
        with_halving(sweep, rungs, train, args.until)
    except KeyboardInterrupt as stop:
        return stop.args[0] if stop.args else int(signals.SIGINT)
    return None


if __name__ == "__main__":
    cli.run(main)
