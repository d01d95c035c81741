"""Everything that this project wants to measure on a GPU, one command after another: under ten minutes on a large one.

    git clone https://github.com/karpathy/nanoGPT
    python -m experiments.on_gpu --nanogpt nanoGPT --text tinyshakespeare.txt --out gpu/

Nothing is downloaded. Each part runs in its own process with a time limit and writes its results to --out; a part that
fails is skipped. `--tiny` runs the same on a CPU in two minutes, with tiny models, as a test.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from jaxgpt.common import cli

# By name: the time limit in seconds, the module, its arguments ({nanogpt}, {text} and {python} are filled in), and the
# arguments that make it tiny.
SMALL = (
    "--config.model.num_layers=1 --config.model.d_model=64 --config.model.num_heads=1 --config.data.batch_size=2 "
    "--config.train.grad_accumulation_steps=1 --config.model.context_length=128 --vocab_size=256 --steps=2"
)
ONE_BATCH = "--config.data.batch_size=64 --config.train.grad_accumulation_steps=1"
AGAINST = "--nanogpt {nanogpt} --text {text} --torch_python {python}"
PARTS = {
    "bench_gpt2": (90, "jaxgpt.bench", f"--config configs/gpt2.py {ONE_BATCH} --steps 20", SMALL),
    "bench_gpt2_fast": (90, "jaxgpt.bench", f"--config configs/gpt2_fast.py {ONE_BATCH} --steps 20", SMALL),
    "bench_char_gpu": (60, "jaxgpt.bench", "--config configs/char_gpu.py --vocab_size 65", SMALL),
    "decode_gpt2": (60, "jaxgpt.bench", "--config configs/gpt2.py --decode", SMALL),
    "step": (150, "experiments.against_nanogpt", f"{AGAINST} --part step --device cuda --rounds 5",
             "--device cpu --shape tiny --rounds 1"),
    "loss": (300, "experiments.against_nanogpt", f"{AGAINST} --part loss --device cuda --rounds 1",
             "--part step --device cpu --shape tiny --rounds 1"),
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the command line; see --help. The exit code is 1 if a part failed."""
    parser = cli.Parser(prog="python -m experiments.on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", required=True, type=Path, help="a clone of nanoGPT")
    parser.add_argument("--text", required=True, type=Path, help="tiny Shakespeare")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--out", required=True, type=Path, help="the folder for results")
    parser.add_argument(
        "--only", choices=list(PARTS), nargs="+", default=list(PARTS), help="only these parts"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a test on a CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.only:
        limit, module, arguments, small = PARTS[name]
        filled = arguments.format(nanogpt=args.nanogpt, text=args.text, python=args.torch_python)
        command = [sys.executable, "-m", module, *filled.split(), *(small.split() if args.tiny else [])]
        if module == "jaxgpt.bench":
            command += ["--json", str(args.out / f"{name}.json")]
        start = time.perf_counter()
        with open(args.out / f"{name}.txt", "w", encoding="utf-8") as file:
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"not done within {limit} s"
        print(f"== {name}: exit {code}, {time.perf_counter() - start:.0f} s", flush=True)
        print((args.out / f"{name}.txt").read_text("utf-8")[-4000:], flush=True)
        if code:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all parts done")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
