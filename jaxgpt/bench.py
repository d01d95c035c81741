"""Measure how fast a config trains and generates text on this machine.

    python -m jaxgpt.bench --config configs/gpt2.py [--config.data.batch_size=16 ...] [--steps 10] [--json -]
    python -m jaxgpt.bench --config configs/char.py --decode
    python -m jaxgpt.bench --config configs/char.py --sweep model.context_length=64,128,256

It runs the training step of train.py on random tokens and new parameters: no text is needed. Times are medians over
steps, each waited for, after warm-up steps that are not counted. The ceilings (matrix products, memory) are measured in
the same run, so that a busy machine is compared with itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jaxgpt.common import cli, jax_settings
from jaxgpt.config import UserError, to_json


def _sweep(spec: str) -> tuple[str, list[str]]:
    field, equals, values = spec.partition("=")
    listed = [value for value in values.split(",") if value]
    if not equals or "." not in field or not listed:
        raise UserError(f"--sweep={spec}: give FIELD=a,b,c, such as model.context_length=256,512,1024")
    return field, listed


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(
        "bench",
        description="Measure how fast a config trains and decodes on this machine.",
        epilog="Any field of the config: --config.data.batch_size=16",
    )
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/gpt2.py (required)")
    parser.add_argument("--steps", type=int, default=10, help="number of timed training steps")
    parser.add_argument("--warmup", type=int, default=2, help="number of dispatches before them, not timed")
    parser.add_argument(
        "--vocab_size", type=int, help="vocabulary size; None: that of the config or its tokenizer"
    )
    parser.add_argument("--decode", action="store_true", help="measure generation instead of training")
    parser.add_argument("--sweep", metavar="FIELD=A,B,C", help="measure training with each value of a field")
    parser.add_argument(
        "--json", type=cli.path, metavar="FILE", help="write all numbers to a file; -: to stdout"
    )
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cli.check_at_least(1, args, "steps", "vocab_size")
    cli.check_at_least(0, args, "warmup")
    if args.decode and args.sweep:
        raise UserError("--decode and --sweep exclude each other: give one of them")
    field, values = _sweep(args.sweep) if args.sweep else ("", [""])
    changes = [{**overrides, field: value} if field else overrides for value in values]
    configs = [cli.read_config(file, change) for change in changes]
    jax_settings.check()
    jax_settings.check_platform()
    from jaxgpt.training import benchmark

    configs = [benchmark.with_vocabulary(cfg, file, args.vocab_size) for cfg in configs]
    cli.keep_freed_memory()  # as in training, but without a compilation cache: compilation is timed
    say = (lambda _: None) if args.json == Path("-") else (lambda text: print(text, flush=True))
    limits = benchmark.machine(configs[0].model.dtype)
    say(f"{limits['device']}, jax {limits['jax']}, {file}")
    results: list[dict[str, Any]] = []
    for value, cfg in zip(values, configs, strict=True):
        result: dict[str, Any] = {"config": to_json(cfg)}
        if args.decode:
            result["decoding"] = [
                benchmark.bench_decoding(cfg, limits, size, new_tokens=128, repeats=3)
                for size in benchmark.DECODE_BATCHES
            ]
            for found in result["decoding"]:
                say(benchmark.decoding_text(found, limits))
        else:
            result["training"] = benchmark.bench_training(cfg, limits, args.steps, args.warmup)
            if not field:
                say(benchmark.training_text(result["training"], limits))
        results.append({"value": value, **result})
    if field:
        say(benchmark.sweep_text(field, results))
    if args.json is not None:
        text = json.dumps({"machine": limits, "field": field or None, "results": results}, indent=2)
        if args.json == Path("-"):
            sys.stdout.write(text + "\n")
        else:
            args.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)
