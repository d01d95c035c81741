"""Train a run again and compare the two loss curves.

    python -m jaxgpt.reproduce --workdir runs/char [--into runs/char-again] [--steps 200]

On the same machine, versions and number of devices the curves are equal bit for bit. Elsewhere sums are computed in
another order: losses differ by a few 1e-7 nats at first, and by more in long or unstable runs.
"""

from __future__ import annotations

import math

from jaxgpt import config
from jaxgpt.common import cli, door
from jaxgpt.common.files import read_json
from jaxgpt.config import UserError

TOLERANCE = 1e-3  # nats per token


def main(argv: list[str]) -> int:
    """The command line: see --help. The exit code is 1 where the curves differ."""
    parser = cli.Parser(
        "reproduce", description="Run a run again in a new folder, and compare the two loss curves."
    )
    parser.add_argument("--workdir", required=True, type=cli.path, help="the folder of the run")
    parser.add_argument("--into", type=cli.path, help="the new folder; None: WORKDIR-again")
    parser.add_argument("--steps", type=int, help="number of steps; None: as many as the run has")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="the largest allowed difference of two losses, in nats per token",
    )
    args = parser.parse_args(argv)
    cli.check_at_least(1, args, "steps")
    if not (args.tolerance >= 0 and math.isfinite(args.tolerance)):
        raise UserError(f"--tolerance={args.tolerance}: give a number of 0 or more")
    into = args.into or args.workdir.with_name(args.workdir.name + "-again")
    if into.exists() and any(into.iterdir() if into.is_dir() else [into]):
        raise UserError(f"{into} is not empty: give another folder as --into")
    cli.set_up_process()
    from jaxgpt.data.dataset import prepare_dataset
    from jaxgpt.runs import curves, records
    from jaxgpt.training.loop import train

    door.check(args.workdir)
    old = curves.curve(args.workdir)
    try:
        cfg = config.from_json(read_json(args.workdir / "config.json"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"can't read {args.workdir / 'config.json'} ({error}): give the folder of a run as --workdir"
        ) from None
    for line in curves.changes(args.workdir):
        print(f"changed since: {line}")
    done = max((step for step, _ in old), default=0)
    steps = min(done, args.steps or done)
    dataset = prepare_dataset(cfg.data)
    records.check_same_text(
        args.workdir,
        text_sha256=dataset.text_sha256,
        valid_text_sha256=dataset.valid_sha256,
        tokenizer_sha256=dataset.fingerprint,
    )
    result = train(cfg, into, stop_at=None if steps == cfg.train.num_steps else steps)
    if result.signal is not None:
        return 128 + result.signal
    found = curves.compare(old, curves.curve(into), args.tolerance)
    print(curves.as_text(found, args.tolerance))
    return 0 if found.parted_at is None else 1


if __name__ == "__main__":
    cli.run(main)
