"""Fit a scaling law to the runs of a sweep, and predict the loss of a larger run.

    python -m jaxgpt.scaling fit --sweep runs/sizes [--predict 1e8,2e9] [--budget 1e18] [--json]

loss = E + A / N^alpha + B / D^beta, with N parameters in matrix products and D training tokens.
"""

from __future__ import annotations

import json
import math

from jaxgpt.common import cli
from jaxgpt.config import UserError


def _pair(text: str) -> tuple[float, float]:
    try:
        parameters, tokens = (float(part) for part in text.split(","))
        if not all(math.isfinite(x) and x > 0 for x in (parameters, tokens)):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--predict={text}: give parameters and tokens, both above 0, such as 1e8,2e9"
        ) from None
    return parameters, tokens


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("scaling", description="Fit a scaling law to the finished runs of a sweep.")
    parser.add_argument("task", choices=["fit"], help="fit: the law, its intervals, and predictions")
    parser.add_argument("--sweep", type=cli.path, required=True, help="the folder of a sweep")
    parser.add_argument(
        "--predict", action="append", default=[], metavar="N,D",
        help="predict the loss of a run with N parameters and D tokens; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, action="append", default=[], metavar="FLOPS",
        help="the best N and D for so many operations (6 N D)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    predicted = [_pair(text) for text in args.predict]
    if wrong := [flops for flops in args.budget if not (math.isfinite(flops) and flops > 0)]:
        raise UserError(f"--budget={wrong[0]:g}: give a number of operations above 0, such as 1e18")
    from jaxgpt.sweeps import scaling_law

    points = scaling_law.points_of(scaling_law.open_sweep(args.sweep))
    found = scaling_law.fit(points)
    splits = [(flops, *found.law.best_split(flops)) for flops in args.budget]
    if args.json:
        values = scaling_law.as_json(found, points, predicted)
        values["budgets"] = [{"flops": f, "parameters": n, "tokens": d} for f, n, d in splits]
        print(json.dumps(values))
        return
    law = found.law
    print(f"{len(points)} sizes and lengths; a run deviates by {found.spread:.2%} (standard deviation)")
    print("loss = E + A / N^alpha + B / D^beta, 95 % intervals from resampled points:")
    for name, field in (("E", "irreducible"), ("alpha", "alpha"), ("beta", "beta")):
        low, high = found.interval(lambda law, field=field: getattr(law, field))
        print(f"  {name:<6} {getattr(law, field):.4f}  [{low:.4f}, {high:.4f}]")
    print(f"  A      {law.size_factor:.4g}\n  B      {law.data_factor:.4g}")
    for parameters, tokens in predicted:
        loss, low, high = found.prediction(parameters, tokens)
        print(f"{parameters:.3g} parameters, {tokens:.3g} tokens: loss {loss:.4f}  [{low:.4f}, {high:.4f}]")
    for flops, parameters, tokens in splits:
        print(f"{flops:.3g} operations: best with {parameters:.3g} parameters and {tokens:.3g} tokens")
    print("a prediction beyond the sizes that were fitted is a guess: the law may bend there")


if __name__ == "__main__":
    cli.run(main)
