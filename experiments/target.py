"""Reports on cards that are not here: five configs on four targets, what was compiled next to the formulas.

    pip install "jaxgpt[gpu-compile]"
    python -m experiments.target [--write experiments/results/target.json]

Nothing runs on a card. Each pair compiles one dispatch, half a minute to a few minutes on two cores; a pair that the file
has of this commit is not compiled again.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from jaxgpt.common import cli, jax_settings
from jaxgpt.config import UserError

CONFIGS = (
    "configs/char.py",
    "configs/char_fast.py",
    "configs/char_gpu.py",
    "configs/gpt2.py",
    "configs/gpt2_fast.py",
)
TARGETS = ("h100", "h100x8", "a100", "l4")


def measure(file: str, target: str) -> dict:
    """The report of one config on one target as JSON, or the line that refuses it, with what the formulas say."""
    from jaxgpt.training import benchmark
    from jaxgpt.training.target import cards, report

    cfg = benchmark.with_vocabulary(cli.read_config(file, {}), file, None)
    try:
        found = report.make(cfg, cards.parse(target), largest=False)
    except UserError as error:
        return {"refused": str(error)}
    values = found.as_dict()
    products = found.products
    attention = products.pop("fused attention", None)
    formula = values["flops_by_formula"]
    # 12 L H K T of a token is attention's part of the formula: full squares.
    square = 12 * cfg.model.num_layers * cfg.model.num_heads * cfg.model.head_width * cfg.model.context_length
    square *= found.tokens_per_step / found.count
    expected = sum(formula.values()) - (square if attention is not None else 0)
    state = values["memory"]["state_by_formula"]
    values["ratios"] = {
        "products over formula, without fused attention": sum(products.values()) / expected,
        "fused attention over its full squares": None if attention is None else attention / square,
        "arguments over state by formula": found.compiled.arguments / (state["params"] + state["opt_state"]),
        "memory over formula": found.compiled.memory / found.predicted.total,
        "traffic over formula": (
            sum(x["bytes"] for x in values["collectives"]) / found.traffic.total if found.count > 1 else None
        ),
    }
    return values


def line(file: str, target: str, values: dict) -> str:
    if "refused" in values:
        return f"{file:<30}{target:<8} {values['refused']}"
    tokens, ratios = values["tokens_per_second"], values["ratios"]
    text = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items() if ratio is not None)
    return f"{file:<30}{target:<8}{values['memory']['total'] / 2**30:>8.2f} GiB{tokens['large kernels']:>14,.0f} tokens/s; {text}"


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.target", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="add the results to this file")
    parser.add_argument("--only", nargs="+", default=CONFIGS, choices=CONFIGS, help="these configs alone")
    args = parser.parse_args(argv)
    jax_settings.check(compiles=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    results: dict = {}
    if args.write and args.write.exists():
        results = json.loads(args.write.read_text("utf-8"))
    for file in args.only:
        for target in TARGETS:
            if results.get(f"{file} {target}", {}).get("commit") == commit.strip():
                continue
            values = {"commit": commit.strip(), **measure(file, target)}
            results[f"{file} {target}"] = values
            print(line(file, target, values), flush=True)
            if args.write:
                args.write.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)
