"""Everything that this project wants to measure on a GPU, in one command of at most ten minutes.

    pip install "jaxgpt[cuda12]"
    python -m experiments.on_gpu --out gpu/ [--text tinyshakespeare.txt] [--nanogpt nanoGPT]

Benches say what share of the bound of the compiled step is reached. A plain Flax GPT-2 runs in turns with jaxgpt; so does nanoGPT
with torch.compile, where a clone of it is given. Nothing is downloaded. Each part runs in its own process with a time limit
and writes its results to --out; a part that fails, or for which no time is left, is named at the end. `--tiny` runs the same on a
CPU, with tiny models, as a test.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from jaxgpt.common import cli

# By name: the time limit in seconds, the module, its arguments ({nanogpt}, {text}, {out} and {python} are filled in), and the
# arguments that make it tiny.
SMALL_MODEL = "--config.model.num_layers=1 --config.model.d_model=64 --config.model.num_heads=1 --config.model.context_length=128"
SMALL = f"{SMALL_MODEL} --config.data.batch_size=2 --config.train.grad_accumulation_steps=1 --vocab_size=256 --steps=2"
AGAINST = "--nanogpt {nanogpt} --torch_python {python}"
PARTS = {
    "bench_gpt2": (90, "jaxgpt.bench", "--config configs/gpt2.py --steps 4", SMALL),
    "bench_gpt2_fast": (90, "jaxgpt.bench", "--config configs/gpt2_fast.py --steps 4", SMALL),
    "bench_char_gpu": (60, "jaxgpt.bench", "--config configs/char_gpu.py --vocab_size 65 --steps 200", SMALL),
    "flax": (90, "experiments.plain_flax", "--windows 16 --rounds 5", f"{SMALL_MODEL} --windows 2 --rounds 1 --steps 2"),
    "step": (120, "experiments.against_nanogpt", f"{AGAINST} --part step --device cuda --rounds 3",
             "--device cpu --shape tiny --rounds 1"),
    "char": (90, "jaxgpt.train", "--config configs/char_gpu.py --config.data.path={text} --workdir {out}/char",
             f"{SMALL_MODEL} --config.data.batch_size=2 --config.train.num_steps=20 --config.train.eval_every=10"),
    "decode_gpt2": (60, "jaxgpt.bench", "--config configs/gpt2.py --decode", SMALL),
    "loss": (240, "experiments.against_nanogpt", f"{AGAINST} --text {{text}} --part loss --device cuda --rounds 1",
             "--part step --device cpu --shape tiny --rounds 1"),
}  # fmt: skip
MINUTES, SLOWER = 10, 10  # a CPU is given ten times as long


def missing(name: str, args) -> str:
    """The flag without which a part can't run; empty: it can."""
    _, _, arguments, _ = PARTS[name]
    return next(
        (
            f"--{flag}"
            for flag in ("nanogpt", "text")
            if f"{{{flag}}}" in arguments and not getattr(args, flag)
        ),
        "",
    )


def main(argv: list[str]) -> int:
    """Run the command line; see --help. The exit code is 1 if a part failed."""
    parser = cli.Parser(prog="python -m experiments.on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=cli.path, help="a clone of nanoGPT, to measure it too")
    parser.add_argument("--text", type=cli.path, help="tiny Shakespeare, to train on it")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--out", required=True, type=Path, help="the folder for results")
    parser.add_argument(
        "--only", choices=list(PARTS), nargs="+", default=list(PARTS), help="only these parts"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a test on a CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    slower = SLOWER if args.tiny else 1
    failed, end = [], time.monotonic() + 60 * MINUTES * slower
    for name in args.only:
        limit, module, arguments, small = PARTS[name]
        if flag := missing(name, args):
            print(f"== {name}: not measured, it needs {flag}", flush=True)
            continue
        limit = min(slower * limit, end - time.monotonic())
        if limit <= 0:
            print(f"== {name}: not measured, the {MINUTES} minutes are over", flush=True)
            failed.append(name)
            continue
        filled = arguments.format(
            nanogpt=args.nanogpt, text=args.text, python=args.torch_python, out=args.out
        )
        command = [sys.executable, "-m", module, *filled.split(), *(small.split() if args.tiny else [])]
        if module in ("jaxgpt.bench", "experiments.plain_flax"):
            command += ["--json", str(args.out / f"{name}.json")]
        start = time.perf_counter()
        with open(args.out / f"{name}.txt", "w", encoding="utf-8") as file:
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"not done within {limit:.0f} s"
        print(f"== {name}: exit {code}, {time.perf_counter() - start:.0f} s", flush=True)
        print((args.out / f"{name}.txt").read_text("utf-8")[-4000:], flush=True)
        if code:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all parts done")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
