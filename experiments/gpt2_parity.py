"""GPT-2's weights in and out, compared with transformers: logits, loss, greedy text, tokenizers.

    python -m experiments.gpt2_parity --torch_python PATH [--small]

Needs an interpreter with PyTorch and transformers (`--torch_python`, if it is not this one); nothing is downloaded.

    import  GPT-2 models of odd shapes with random weights, made and saved by transformers in one file and in shards, and
            GPT-2 small's full shape (not with --small): the largest difference of logits over all positions, of the
            loss, the greedy continuation, and whether export gives the same tensors again
    export  runs trained here for a few steps, one per tokenizer, loaded by transformers: its warnings, the largest
            difference of logits, the greedy text, the ids of a text and the text of the ids

The exit code is 1 if anything differs by more than the limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from jaxgpt.common import cli
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from jaxgpt.data import corpora, tokenizers
from jaxgpt.model.generation import Sampler, generate_ids
from jaxgpt.model.parameters import count_params
from jaxgpt.runs import published
from jaxgpt.runs.tensor_files import open_tensors
from jaxgpt.training import loop
from jaxgpt.training.steps import token_losses

LIMIT = 1e-4  # on logits, float32
NEW_TOKENS = 50
SHAPES: dict[str, dict[str, Any]] = {
    "1 head, context 16": {"n_layer": 1, "n_head": 1, "n_embd": 24, "n_positions": 16, "vocab_size": 7},
    "2 heads, untied": {"n_layer": 2, "n_head": 2, "n_embd": 34, "n_positions": 64, "vocab_size": 101,
                        "tie_word_embeddings": False},
    "3 heads, gelu": {"n_layer": 3, "n_head": 3, "n_embd": 48, "n_positions": 80, "vocab_size": 1009,
                      "activation_function": "gelu", "n_inner": 77},
    "4 heads, relu, no scale": {"n_layer": 4, "n_head": 4, "n_embd": 64, "n_positions": 257, "vocab_size": 513,
                                "activation_function": "relu", "scale_attn_weights": False,
                                "tie_word_embeddings": False},
    "5 heads, context 1,024": {"n_layer": 5, "n_head": 5, "n_embd": 80, "n_positions": 1024, "vocab_size": 4099},
}  # fmt: skip
FULL = {
    "gpt2 small's shape": {"reorder_and_upcast_attn": True}
}  # otherwise the defaults; it has no effect here

# The program of the other side: `make` or `read`, with its arguments as JSON.
TORCH = """
import json, os, sys
import numpy as np, torch, transformers
torch.set_num_threads(2)
transformers.utils.logging.disable_progress_bar()
task, asked = sys.argv[1], json.loads(sys.argv[2])

def greedy(model, prompt, count):
    return model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, use_cache=True,
                          attention_mask=torch.ones(1, len(prompt), dtype=torch.long), pad_token_id=0,
                          eos_token_id=None)[0, len(prompt):].tolist()

with torch.no_grad():
    if task == "make":
        torch.manual_seed(0)
        config = transformers.GPT2Config(**asked["config"], bos_token_id=None, eos_token_id=None)
        model = transformers.GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():  # biases and scales too, and logits that lie apart
            parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(asked["folder"] + "/whole")
        size = sum(p.numel() for p in model.parameters()) * 4
        model.save_pretrained(asked["folder"] + "/sharded", max_shard_size=max(size // 3, 1000))
        tokens = torch.randint(0, config.vocab_size, (asked["rows"], config.n_positions))
        out = model(tokens, labels=tokens)
        prompt = tokens[0, : asked["prompt"]].tolist()
        np.savez(asked["folder"] + "/expected.npz", tokens=tokens.numpy(), logits=out.logits.numpy(),
                 loss=out.loss.item(), prompt=prompt, greedy=greedy(model, prompt, asked["new"]))
    else:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(asked["folder"], output_loading_info=True)
        model.eval()
        tokens = torch.tensor(asked["tokens"])
        found = {"info": {name: sorted(map(str, value)) for name, value in info.items() if value},
                 "greedy": greedy(model, asked["prompt"], asked["new"])}
        np.save(asked["folder"] + "/logits.npy", model(tokens).logits.numpy())
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked["folder"])
        found["ids"] = tokenizer(asked["text"], add_special_tokens=False, verbose=False)["input_ids"]
        found["text"] = tokenizer.decode(found["ids"])
        found["greedy_text"] = tokenizer.decode(found["greedy"])
        print(json.dumps(found))
"""


def other_side(python: str, task: str, **asked: Any) -> tuple[str, str]:
    """What the program prints, on stdout and on stderr. Raises UserError if it fails."""
    done = subprocess.run([python, "-c", TORCH, task, json.dumps(asked)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a message"]
        raise UserError(f"{python} can't run transformers' side ({lines[-1]}): give --torch_python")
    return done.stdout, done.stderr


class Report:
    """Prints lines, and knows whether all of them held."""

    def __init__(self) -> None:
        self.held = True

    def line(self, name: str, value: Any, held: bool) -> None:
        self.held &= bool(held)
        print(f"  {name:<34} {value!s:<28} {'ok' if held else 'DIFFERS'}", flush=True)


def logits_of(run: published.Run, tokens_BT: np.ndarray) -> jnp.ndarray:
    return run.model.apply({"params": run.params}, jnp.asarray(tokens_BT))


def greedy(run: published.Run, prompt: list[int], count: int) -> list[int]:
    pieces = generate_ids(run.model, run.params, [prompt], count, sampler=Sampler(temperature=0))
    return np.concatenate(list(pieces), axis=1)[0].tolist()


def importing(report: Report, python: str, shapes: dict[str, dict[str, Any]]) -> None:
    for name, values in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            T = values.get("n_positions", 1024)
            prompt, new = (1, T - 1) if T < NEW_TOKENS + 2 else (min(T - NEW_TOKENS, 64), NEW_TOKENS)
            rows = 1 if "n_embd" not in values else 3
            other_side(python, "make", config=values, folder=folder, rows=rows, prompt=prompt, new=new)
            expected = np.load(Path(folder, "expected.npz"))
            published.import_folder(Path(folder, "whole"), Path(folder, "run"))
            run = jaxgpt.load(Path(folder, "run"))
            print(
                f"import: {name}, {count_params(run.params):,} parameters, vocabulary {run.config.model.vocab_size:,}"
            )
            tokens = expected["tokens"]
            logits = logits_of(run, tokens)
            apart = np.abs(np.asarray(logits) - expected["logits"])
            report.line(
                "largest difference of logits",
                f"{apart.max():.1e} (of {np.abs(expected['logits']).max():.1f})",
                apart.max() < LIMIT,
            )
            loss = float(token_losses(logits[:, :-1], jnp.asarray(tokens[:, 1:])).mean())
            report.line(
                "loss, transformers'",
                f"{loss:.6f}, {expected['loss']:.6f}",
                abs(loss - expected["loss"]) < 1e-5,
            )
            del logits
            same = greedy(run, expected["prompt"].tolist(), new) == expected["greedy"].tolist()
            what = f"greedy, {new} tokens" + ("" if new == NEW_TOKENS else ", all that fit")
            report.line(what, "the same" if same else "other tokens", same)
            count = len(list(Path(folder, "sharded").glob("*.safetensors")))
            sharded = published.load(Path(folder, "sharded"))
            equal = all(
                np.array_equal(np.asarray(a), np.asarray(b))
                for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(sharded.params), strict=True)
            )
            report.line(
                f"the same from {count} shards",
                "bit for bit" if equal else "other numbers",
                equal and count > 1,
            )
            del sharded
            published.export_run(run, Path(folder, "out"))
            ours, theirs = open_tensors(Path(folder, "out")), open_tensors(Path(folder, "whole"))
            equal = ours.names() == theirs.names() and all(
                ours.read(n).tobytes() == theirs.read(n).tobytes() for n in ours.names()
            )
            report.line("export after import", "bit for bit" if equal else "other tensors", equal)


EXPORTS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "characters": ({"activation": "gelu_tanh"}, {"tokenizer": "char"}, 200),
    "words; no biases, grouped heads": (
        {"use_bias": False, "num_kv_heads": 1, "activation": "gelu"}, {"tokenizer": "word", "vocab_size": 800}, 30,
    ),
    "byte pairs; untied, padded rows": (
        {"tie_embeddings": False, "vocab_multiple": 128, "activation": "relu"}, {"tokenizer": "bpe", "vocab_size": 600}, 30,
    ),
    "GPT-2's tokens; sinusoidal": ({"position": "sinusoidal"}, {"tokenizer": "gpt2"}, 3),
}  # fmt: skip


def exporting(report: Report, python: str) -> None:
    text = "".join(corpora.open_corpus("python_docs", "").read())[:300_000]
    for name, (model, data, steps) in EXPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "text.txt").write_text(text, "utf-8")
            cfg = Config(
                model=ModelConfig(
                    **{"context_length": 64, "d_model": 64, "num_layers": 2, "num_heads": 4} | model
                ),
                data=DataConfig(path=str(Path(folder, "text.txt")), batch_size=16, **data),
                optim=OptimConfig(warmup_steps=10, learning_rate=3e-3),
                train=TrainConfig(
                    num_steps=steps, eval_every=0, checkpoint_every=0, sample_tokens=0, embedding_snapshots=0
                ),
            )
            print(f"export: {name}, after {steps} steps", flush=True)
            loop.train(cfg, Path(folder, "run"))
            run = jaxgpt.load(Path(folder, "run"))
            for note in published.export_run(run, Path(folder, "out")):
                print(f"  note: {note}")
            said = text[-20_000:] + "\n\ttabs, café, 中文\r\n" * (run.tokenizer.kind != "char")
            ids = run.tokenizer.encode(said).tolist()
            tokens = np.array(ids[:640]).reshape(10, 64)
            found, warnings = other_side(
                python, "read", folder=str(Path(folder, "out")), tokens=tokens.tolist(), prompt=ids[:8],
                new=NEW_TOKENS, text=said,
            )  # fmt: skip
            found = json.loads(found.strip().splitlines()[-1])
            report.line("what transformers warns of", warnings.strip() or "nothing", not warnings.strip())
            report.line("keys missing, unexpected, ...", found["info"] or "none", not found["info"])
            apart = np.abs(
                np.asarray(logits_of(run, tokens)) - np.load(Path(folder, "out", "logits.npy"))
            ).max()
            report.line("largest difference of logits", f"{apart:.1e}", apart < LIMIT)
            ours = greedy(run, ids[:8], NEW_TOKENS)
            same = run.tokenizer.decode(ours) == found["greedy_text"] and ours == found["greedy"]
            report.line(f"greedy text, {NEW_TOKENS} tokens", repr(found["greedy_text"][:24]), same)
            report.line(f"ids of {len(said):,} characters", f"{len(ids):,} ids", found["ids"] == ids)
            report.line("text of these ids", "the same", found["text"] == run.tokenizer.decode(ids))
            again = published.load(Path(folder, "out"))
            same = tokenizers.fingerprint(again.tokenizer) == tokenizers.fingerprint(run.tokenizer)
            report.line("imported again", "the same tokenizer", same)


def main(argv: list[str]) -> int:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.gpt2_parity", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch_python", default=sys.executable, help="an interpreter with PyTorch and transformers"
    )
    parser.add_argument("--small", action="store_true", help="skip GPT-2 small's full shape")
    parser.add_argument("--part", choices=["import", "export", "all"], default="all", help="what to compare")
    args = parser.parse_args(argv)
    cli.set_up_process()
    report = Report()
    if args.part in ("import", "all"):
        importing(report, args.torch_python, SHAPES if args.small else SHAPES | FULL)
    if args.part in ("export", "all"):
        exporting(report, args.torch_python)
    print("all held" if report.held else "NOT all held")
    return 0 if report.held else 1


if __name__ == "__main__":
    cli.run(main)
