"""jaxgpt and nanoGPT on the same machine, in turns, in one run: a step, the time to a loss, decoding.

    git clone https://github.com/karpathy/nanoGPT
    python -m experiments.against_nanogpt --nanogpt nanoGPT --text tinyshakespeare.txt [--part step]

Needs an interpreter with PyTorch (`--torch_python`, if it is not this one; for `--part decode` with transformers
too). nanoGPT is run from its folder as it is. Each contender is a process of its own that waits until it is
its turn, so that neither's threads disturb the other; figures are medians over rounds, and their ratios.

    step    milliseconds a training step: nanoGPT eager, nanoGPT under torch.compile, jaxgpt (configs/nanogpt_cpu.py)
    loss    seconds from the start of the process, nothing compiled before, to nanoGPT's final loss: nanoGPT's own
            command for a CPU against configs/char_fast.py
    decode  tokens a second at batch 1: nanoGPT's generate, Hugging Face's with its cache, jaxgpt
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxgpt import cli
from jaxgpt.config import UserError

# A step's shapes: layers, heads, width, context, batch.
SHAPES = {"4 x 128": (4, 4, 128, 64, 12), "6 x 384": (6, 6, 384, 256, 8)}
VOCAB_SIZE = 65
# What nanoGPT's README says for a CPU.
NANOGPT_COMMAND = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)

# The contenders' processes: each prints a line when it is ready, then one of seconds for every line that it reads.
NANOGPT_STEP = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from model import GPT, GPTConfig
layers, heads, width, context, batch = map(int, sys.argv[3:])
torch.manual_seed(0)
model = GPT(GPTConfig(block_size=context, vocab_size=65, n_layer=layers, n_head=heads, n_embd=width, bias=False))
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
start = time.perf_counter()
if sys.argv[2] == "compile":
    model = torch.compile(model)

def step():
    x = torch.randint(65, (batch, context + 1))
    _, loss = model(x[:, :-1].contiguous(), x[:, 1:].contiguous())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

step(); step()
print("READY", time.perf_counter() - start, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)): step()
    print("TOOK", time.perf_counter() - start, flush=True)
"""

JAXGPT_STEP = """
import sys, time
from jaxgpt import cli
cli.set_up_process()
import jax, numpy as np
from jaxgpt import config, optim, steps
from jaxgpt.model import GPT
layers, heads, width, context, batch = map(int, sys.argv[3:])
values = cli.load_config_dict("configs/nanogpt_cpu.py").to_dict()
values["model"] |= {"vocab_size": 65, "num_layers": layers, "num_heads": heads, "d_model": width, "context_length": context}
cfg = config.from_config_dict(values)
model, schedule = GPT(cfg.model), optim.make_schedule(cfg.optim, 2000)
optimizer = optim.make_optimizer(cfg.optim, schedule)
rng = np.random.default_rng(0)
start = time.perf_counter()
state = steps.init_state(model, optimizer, jax.random.key(0))
dispatch = steps.make_dispatch(steps.make_train_step(model, optimizer, schedule), 1, context, False)
dispatch = jax.jit(dispatch, donate_argnums=0)

def step():
    global state
    state, metrics = dispatch(state, None, rng.integers(65, size=(1, batch, context + 1), dtype=np.int32), jax.random.key(0))
    return float(metrics["loss"][0])

step()
print("READY", time.perf_counter() - start, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)): step()
    print("TOOK", time.perf_counter() - start, flush=True)
"""

NANOGPT_DECODE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
layers, heads, width, context, _ = map(int, sys.argv[3:])
torch.manual_seed(0)
if sys.argv[2] == "transformers":
    from transformers import GPT2Config, GPT2LMHeadModel
    # It can't slide its window: it gets as many positions as tokens.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=65, n_positions=1024, n_embd=width, n_layer=layers, n_head=heads,
                                       bos_token_id=0, eos_token_id=None)).eval()
    generate = lambda ids, n: model.generate(ids, max_new_tokens=n, do_sample=True, top_k=0, pad_token_id=0)
else:
    from model import GPT, GPTConfig
    model = GPT(GPTConfig(block_size=context, vocab_size=65, n_layer=layers, n_head=heads, n_embd=width)).eval()
    generate = lambda ids, n: model.generate(ids, n)
ids = torch.zeros((1, 1), dtype=torch.long)
with torch.no_grad():
    generate(ids, 10)
    print("READY", 0, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        generate(ids, int(line))
        print("TOOK", time.perf_counter() - start, flush=True)
"""

JAXGPT_DECODE = """
import sys, time
from jaxgpt import cli
cli.set_up_process()
import jax, numpy as np
from jaxgpt import config, generate
from jaxgpt.model import GPT, init_params
layers, heads, width, context, _ = map(int, sys.argv[3:])
cfg = config.Model(vocab_size=65, num_layers=layers, num_heads=heads, d_model=width, context_length=context)
model = GPT(cfg)
params = init_params(model, jax.random.key(0))
run = lambda n: sum(piece.shape[1] for piece in generate.generate_ids(model, params, [[0]], n))
print("READY", 0, flush=True)
for line in sys.stdin:
    run(int(line))  # compiles where it must
    start = time.perf_counter()
    run(int(line))
    print("TOOK", time.perf_counter() - start, flush=True)
"""


class Contender:
    """A process that does so many steps, or tokens, when told to."""

    def __init__(self, python: str, program: str, *arguments: object) -> None:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp()},
        )  # fmt: skip
        self.seconds_to_compile = self._read("READY")
        self.seconds_to_start = time.perf_counter() - began

    def seconds(self, count: int) -> float:
        """For `count` steps or tokens."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read("TOOK")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self, word: str) -> float:
        for line in self._process.stdout:
            if line.startswith(word):
                return float(line.split()[1])
        raise UserError("a contender came to an early end: its message stands above")


def take_turns(contenders: dict[str, Contender], count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step (or token) of each contender in each round."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender.seconds(count) / count)
    for contender in contenders.values():
        contender.close()
    return seconds


def compare_steps(nanogpt: Path, torch_python: str, rounds: int, shapes: list[str]) -> dict:
    """Milliseconds a training step, and seconds until the first two are done."""
    result = {}
    for name in shapes:
        shape = SHAPES[name]
        contenders = {
            "nanoGPT, eager": Contender(torch_python, NANOGPT_STEP, nanogpt, "eager", *shape),
            "nanoGPT, torch.compile": Contender(torch_python, NANOGPT_STEP, nanogpt, "compile", *shape),
            "jaxgpt": Contender(sys.executable, JAXGPT_STEP, "-", "-", *shape),
        }
        compile_seconds = {name: contender.seconds_to_compile for name, contender in contenders.items()}
        seconds = take_turns(contenders, 20 if shape[2] < 300 else 2, rounds)
        ours = seconds["jaxgpt"]
        for other, theirs in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            result[f"{name}, {other}"] = {
                "milliseconds": 1e3 * statistics.median(theirs),
                "fastest round": 1e3 * min(theirs),
                "seconds to compile": compile_seconds[other],
                "jaxgpt over it": ratio,
            }
    return result


def compare_decoding(
    nanogpt: Path, torch_python: str, rounds: int, shapes: list[str], tokens: int = 1000
) -> dict:
    """Tokens a second for one text of 1,000 tokens; transformers with room for all, the others at their context."""
    result = {}
    for name in shapes:
        shape = (*SHAPES[name][:3], 256, 1)
        contenders = {
            "nanoGPT": Contender(torch_python, NANOGPT_DECODE, nanogpt, "nanogpt", *shape),
            "transformers": Contender(torch_python, NANOGPT_DECODE, nanogpt, "transformers", *shape),
            "jaxgpt": Contender(sys.executable, JAXGPT_DECODE, "-", "-", *shape),
        }
        seconds = take_turns(contenders, tokens, rounds)
        for other, theirs in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(theirs, seconds["jaxgpt"], strict=True))
            result[f"{name}, {other}"] = {
                "tokens a second": 1 / statistics.median(theirs),
                "jaxgpt over it": ratio,
            }
    return result


def compare_time_to_loss(nanogpt: Path, torch_python: str, text: Path, rounds: int) -> dict:
    """Wall-clock of two whole processes with nothing cached: nanoGPT's command, and configs/char_fast.py."""
    folder = Path(tempfile.mkdtemp())
    clone = folder / "nanogpt"
    shutil.copytree(nanogpt, clone, ignore=shutil.ignore_patterns(".git"))
    shutil.copy(text, clone / "data/shakespeare_char/input.txt")
    subprocess.run(
        [torch_python, "prepare.py"], cwd=clone / "data/shakespeare_char", check=True, capture_output=True
    )
    result = {"nanoGPT": [], "jaxgpt": []}
    for round_number in range(rounds):
        began = time.perf_counter()
        done = subprocess.run(
            [torch_python, *NANOGPT_COMMAND.split()], cwd=clone, check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        losses = re.findall(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", done.stdout)
        result["nanoGPT"].append({"seconds": seconds, "validation loss": float(losses[-1])})
        workdir = folder / f"run{round_number}"
        command = [
            sys.executable, "-m", "jaxgpt.train", "--config", "configs/char_fast.py", f"--config.data.path={text}",
            f"--workdir={workdir}", f"--config.train.seed={round_number}",
        ]  # fmt: skip
        cache = folder / f"cache{round_number}"
        began = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "JAXGPT_CACHE": str(cache)},
        )
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["split"] == "valid"][-1]
        result["jaxgpt"].append({"seconds": seconds, "validation loss": last["loss"], "steps": last["step"]})
    shutil.rmtree(folder)
    pairs = zip(result["nanoGPT"], result["jaxgpt"], strict=True)
    result["jaxgpt over nanoGPT"] = float(np.median([b["seconds"] / a["seconds"] for a, b in pairs]))
    return result


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.against_nanogpt", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", required=True, type=Path, help="a clone of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare, for the part loss")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--part", choices=["step", "loss", "decode"], default="step")
    parser.add_argument("--shape", choices=list(SHAPES), default=None, help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    args = parser.parse_args(argv)
    if not (args.nanogpt / "model.py").is_file():
        raise UserError(f"--nanogpt={args.nanogpt} is no clone of nanoGPT: it has no model.py")
    nanogpt = args.nanogpt.absolute()
    if args.part == "loss":
        if args.text is None or not args.text.is_file():
            raise UserError("--part loss needs --text FILE: tiny Shakespeare")
        result = compare_time_to_loss(nanogpt, args.torch_python, args.text.absolute(), args.rounds)
    else:
        compare = {"step": compare_steps, "decode": compare_decoding}[args.part]
        result = compare(
            nanogpt, args.torch_python, args.rounds, [args.shape] if args.shape else list(SHAPES)
        )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    cli.run(main)
