"""jaxgpt and nanoGPT on the same machine, measured in turns in one run: a step, the time to a loss, decoding.

    git clone https://github.com/karpathy/nanoGPT
    python -m experiments.against_nanogpt --nanogpt nanoGPT --text tinyshakespeare.txt [--part step]

Needs an interpreter with PyTorch (`--torch_python`, if it is not this one; for `--part decode` with transformers as
well). nanoGPT runs unchanged from its folder. Each contender is a process that waits for its turn, so that their
threads do not disturb each other. Figures are medians over rounds, and ratios of them.

    step    milliseconds per training step: nanoGPT eager, nanoGPT with torch.compile, jaxgpt (configs/nanogpt_cpu.py)
    loss    seconds from the start of the process, with nothing compiled, to nanoGPT's final loss: nanoGPT's own command
            for a CPU, and configs/char_fast.py
    decode  tokens per second at batch 1: nanoGPT's generate, Hugging Face's with its cache, jaxgpt
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

from jaxgpt.common import cli
from jaxgpt.config import UserError

# A step's shapes: layers, heads, width, context, batch, vocabulary.
SHAPES = {
    "4 x 128": (4, 4, 128, 64, 12, 65),
    "6 x 384": (6, 6, 384, 256, 8, 65),
    "gpt2": (12, 12, 768, 1024, 64, 50304),
    "tiny": (1, 1, 32, 16, 2, 65),  # a test that everything runs
}
CPU_SHAPES = ("4 x 128", "6 x 384")
STEPS = {"4 x 128": 20, "6 x 384": 2, "gpt2": 10, "tiny": 2}  # per turn
# The time to a loss: nanoGPT's command for each device, from its README, and our config.
NANOGPT_CPU = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
RUNS = {
    "cpu": (NANOGPT_CPU, "configs/char_fast.py"),
    "cuda": ("train.py config/train_shakespeare_char.py", "configs/char_gpu.py"),
}

# The programs of the contenders. Each defines work(n), n steps or tokens, and ends with SERVE, which prints a line when it
# is ready and then, for every line that it reads, the seconds taken.
SERVE = """
work(warm_up)
print("READY", time.perf_counter() - start, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    work(int(line))
    print("TOOK", time.perf_counter() - start, flush=True)
"""

TORCH = """
import contextlib, sys, time
sys.path.insert(0, sys.argv[1])
import torch
kind, device, warm_up = sys.argv[2], sys.argv[3], int(sys.argv[4])
layers, heads, width, context, batch, vocabulary = map(int, sys.argv[5:])
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
half = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()
"""

NANOGPT_STEP = (
    TORCH
    + """
from model import GPT, GPTConfig
model = GPT(GPTConfig(block_size=context, vocab_size=vocabulary, n_layer=layers, n_head=heads, n_embd=width, bias=False))
model.to(device)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
start = time.perf_counter()
if kind == "compile":
    model = torch.compile(model)

def work(steps):
    for _ in range(steps):
        x = torch.randint(vocabulary, (batch, context + 1)).to(device)
        with half:
            _, loss = model(x[:, :-1].contiguous(), x[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()
"""
    + SERVE
)

NANOGPT_DECODE = (
    TORCH
    + """
if kind == "transformers":
    from transformers import GPT2Config, GPT2LMHeadModel
    # It can't slide its window: it gets as many positions as tokens.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=1024, n_embd=width, n_layer=layers,
                                       n_head=heads, bos_token_id=0, eos_token_id=None)).to(device).eval()
    generate = lambda ids, n: model.generate(ids, max_new_tokens=n, do_sample=True, top_k=0, pad_token_id=0)
else:
    from model import GPT, GPTConfig
    model = GPT(GPTConfig(block_size=context, vocab_size=vocabulary, n_layer=layers, n_head=heads, n_embd=width))
    model.to(device).eval()
    generate = lambda ids, n: model.generate(ids, n)
start = time.perf_counter()

def work(tokens):
    with torch.no_grad(), half:
        generate(torch.zeros((1, 1), dtype=torch.long, device=device), tokens)[0, -1].item()
"""
    + SERVE
)

JAXGPT = """
import sys, time
from jaxgpt.common import cli
cli.set_up_process()
import jax, numpy as np
from jaxgpt import config
from jaxgpt.model import generation
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training import steps
device, warm_up = sys.argv[3], int(sys.argv[4])
layers, heads, width, context, batch, vocabulary = map(int, sys.argv[5:])
values = cli.load_config_dict("configs/nanogpt_cpu.py").to_dict()
values["model"] |= {
    "vocab_size": vocabulary, "num_layers": layers, "num_heads": heads, "d_model": width, "context_length": context,
    "dtype": "bfloat16" if device == "cuda" else "float32",
}
cfg = config.from_config_dict(values)
start = time.perf_counter()
"""

JAXGPT_STEP = (
    JAXGPT
    + """
model, _, optimizer, train_step = steps.build(cfg)
rng, key = np.random.default_rng(0), jax.random.key(0)
state = steps.init_state(model, optimizer, key)
dispatch = jax.jit(steps.make_dispatch(train_step, cfg), donate_argnums=0)

def work(steps):
    global state
    for _ in range(steps):
        batches = rng.integers(vocabulary, size=(1, batch, context + 1), dtype=np.int32)
        state, metrics = dispatch(state, None, batches, key)
    float(metrics["loss"][0])
"""
    + SERVE
)

JAXGPT_DECODE = (
    JAXGPT
    + """
model = GPT(cfg.model)
params = init_params(model, jax.random.key(0))

def work(tokens):
    assert sum(piece.shape[1] for piece in generation.generate_ids(model, params, [[0]], tokens)) == tokens
"""
    + SERVE
)


class Contender:
    """A process that does a number of steps or tokens on request; READY after the first `warm_up` of them."""

    def __init__(self, python: str, program: str, *arguments: object) -> None:
        self._cache = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [python, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "JAX_COMPILATION_CACHE_DIR": self._cache.name, "TORCHINDUCTOR_CACHE_DIR": self._cache.name,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the others need memory on the device too
            },
        )  # fmt: skip
        self.seconds_to_compile = self._read("READY")

    def seconds(self, count: int) -> float:
        """The seconds for `count` steps or tokens."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read("TOOK")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._cache.cleanup()

    def _read(self, word: str) -> float:
        for line in self._process.stdout:
            if line.startswith(word):
                return float(line.split()[1])
        raise UserError("a contender failed: see its message above")


def take_turns(contenders: dict[str, Contender], count: int, rounds: int) -> dict[str, dict[str, float]]:
    """For each contender: seconds per step or token (median and minimum over rounds), and jaxgpt's time / its own."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender.seconds(count) / count)
    for contender in contenders.values():
        contender.close()
    return {
        name: {
            "seconds": statistics.median(theirs),
            "least seconds": min(theirs),
            "seconds to compile": contenders[name].seconds_to_compile,
            "jaxgpt over it": statistics.median(
                a / b for a, b in zip(seconds["jaxgpt"], theirs, strict=True)
            ),
        }
        for name, theirs in seconds.items()
    }


def compare_steps(args, shape: str) -> dict[str, dict[str, float]]:
    """Seconds per training step; the time to compile is until the first step is done."""
    numbers = (args.device, 1, *SHAPES[shape])
    contenders = {
        "nanoGPT, eager": Contender(args.torch_python, NANOGPT_STEP, args.nanogpt, "eager", *numbers),
        "nanoGPT, torch.compile": Contender(
            args.torch_python, NANOGPT_STEP, args.nanogpt, "compile", *numbers
        ),
        "jaxgpt": Contender(sys.executable, JAXGPT_STEP, "-", "-", *numbers),
    }
    result = take_turns(contenders, STEPS[shape], args.rounds)
    _, _, _, context, batch, _ = SHAPES[shape]
    return {
        name: {**found, "tokens a second": batch * context / found["seconds"]}
        for name, found in result.items()
    }


def compare_decoding(args, shape: str, tokens: int = 1000) -> dict[str, dict[str, float]]:
    """Seconds per token, for 1,000 tokens; transformers with a context for all of them, the others with 256."""
    layers, heads, width, _, _, vocabulary = SHAPES[shape]
    numbers = (layers, heads, width, 256, 1, vocabulary)
    contenders = {
        "nanoGPT": Contender(args.torch_python, NANOGPT_DECODE, args.nanogpt, "nanogpt", args.device, 10, *numbers),
        "transformers": Contender(args.torch_python, NANOGPT_DECODE, args.nanogpt, "transformers", args.device, 10, *numbers),
        "jaxgpt": Contender(sys.executable, JAXGPT_DECODE, "-", "-", args.device, tokens, *numbers),
    }  # fmt: skip
    result = take_turns(contenders, tokens, args.rounds)
    return {name: {**found, "tokens a second": 1 / found["seconds"]} for name, found in result.items()}


def _timed_lines(
    command: list[str], folder: Path | None = None, **environment: str
) -> list[tuple[float, str]]:
    """The lines that a process prints, with the seconds since its start; an empty line marks its end."""
    start = time.time()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )  # fmt: skip
    lines = [(time.time() - start, line) for line in process.stdout]
    if process.wait():
        raise UserError(f"{' '.join(command)}: exit code {process.returncode}, see its message above")
    return [*lines, (time.time() - start, "")]


def _reached(lines: list[tuple[float, str]], pattern: str) -> dict:
    """The lowest loss that a process printed, when it did so, and when the process ended."""
    losses = [(float(found[1]), at) for at, line in lines if (found := re.search(pattern, line))]
    loss, at = min(losses)
    return {"loss": loss, "seconds to it": at, "seconds in all": lines[-1][0], "losses": losses}


def compare_time_to_loss(args) -> dict:
    """Wall-clock time of two processes with nothing cached, from the start to nanoGPT's lowest loss; see RUNS."""
    folder = Path(tempfile.mkdtemp())
    clone = folder / "nanogpt"
    shutil.copytree(args.nanogpt, clone, ignore=shutil.ignore_patterns(".git"))
    shutil.copy(args.text, clone / "data/shakespeare_char/input.txt")
    _timed_lines([args.torch_python, "prepare.py"], clone / "data/shakespeare_char")
    command, config = RUNS[args.device]
    result = {"nanoGPT": [], "jaxgpt": []}
    for number in range(args.rounds):
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor{number}")}
        lines = _timed_lines([args.torch_python, *command.split()], clone, **environment)
        theirs = _reached(lines, r"step \d+: train loss [\d.]+, val loss ([\d.]+)")
        ours = [
            sys.executable, "-m", "jaxgpt.train", "--config", config, f"--config.data.path={args.text}",
            f"--workdir={folder / f'run{number}'}", f"--config.train.seed={number}",
        ]  # fmt: skip
        lines = _timed_lines(ours, JAXGPT_CACHE=str(folder / f"cache{number}"))
        ours = _reached(lines, r"validation loss ([\d.]+)  perplexity")
        soon_enough = [at for loss, at in ours["losses"] if loss <= theirs["loss"]]
        ours["seconds to nanoGPT's"] = soon_enough[0] if soon_enough else None
        result["nanoGPT"].append(theirs)
        result["jaxgpt"].append(ours)
    shutil.rmtree(folder)
    ratios = [
        ours["seconds to nanoGPT's"] / theirs["seconds to it"]
        for theirs, ours in zip(result["nanoGPT"], result["jaxgpt"], strict=True)
        if ours["seconds to nanoGPT's"] is not None
    ]
    result["jaxgpt over nanoGPT"] = statistics.median(ratios) if ratios else None
    return result


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.against_nanogpt", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", required=True, type=Path, help="a clone of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare, for the part loss")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--part", choices=["step", "loss", "decode"], default="step")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="PyTorch's; JAX takes a GPU it finds"
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default=None, help="default: the two for a CPU, or gpt2"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    args = parser.parse_args(argv)
    if not (args.nanogpt / "model.py").is_file():
        raise UserError(f"--nanogpt={args.nanogpt} is not a clone of nanoGPT: it has no model.py")
    args.nanogpt = args.nanogpt.absolute()
    if args.part == "loss":
        if args.text is None or not args.text.is_file():
            raise UserError("--part loss needs --text FILE: tiny Shakespeare")
        args.text = args.text.absolute()
        result = compare_time_to_loss(args)
    else:
        compare = {"step": compare_steps, "decode": compare_decoding}[args.part]
        shapes = [args.shape] if args.shape else CPU_SHAPES if args.device == "cpu" else ["gpt2"]
        result = {shape: compare(args, shape) for shape in shapes}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    cli.run(main)
