"""Published models in and out, compared with transformers: logits, loss, greedy text, shards, half precision.

    python -m experiments.families [--only llama] [--results FOLDER]
    python -m experiments.families --trained    # this part alone, and results/families_trained.json

Needs transformers 5 and PyTorch in this environment; nothing is downloaded. For every family of runs/families:

    import  five models of odd shapes with random weights, made and saved by transformers in one file and in shards: the
            largest difference of logits over all positions, of the loss, 50 greedy tokens, and whether the export has the
            bytes of the tensors that were imported; bfloat16 and float16 files
    export  models of ours that the family writes in other terms: the largest difference of logits, and the missing and
            unexpected keys that transformers reports
    trained runs of ours, each trained for a few steps (characters, words, byte pairs, the portable fast config, LoRA), in
            every family that takes it: the same, and the ids of 20,000 characters by the exported tokenizer
    full    SmolLM2-135M's and Pythia-70m's shapes with random weights: logits, loss, greedy tokens, export

The exit code is 1 if a check fails. Writes results/families.json.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from experiments import claim
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from jaxgpt.data import corpora
from jaxgpt.data.tokenizers import IdsTokenizer
from jaxgpt.model.generation import Sampler, generate_ids
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.runs import published
from jaxgpt.runs.load import Run
from jaxgpt.runs.tensor_files import open_tensors
from jaxgpt.training import loop
from jaxgpt.training.steps import token_losses

LIMIT, EXPORT_LIMIT = 1e-4, 2e-5  # on logits, float32
PROMPT, NEW_TOKENS = 7, 50

_GPT2 = {"n_positions": 64}
_LLAMA = {"max_position_embeddings": 64}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
# Each: the class of the model, the class of the config, and the shapes.
MODELS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", [
        _GPT2 | {"n_layer": 1, "n_head": 1, "n_embd": 24, "vocab_size": 7},
        _GPT2 | {"n_layer": 2, "n_head": 2, "n_embd": 34, "vocab_size": 101, "tie_word_embeddings": False},
        _GPT2 | {"n_layer": 3, "n_head": 3, "n_embd": 48, "vocab_size": 1009, "activation_function": "gelu", "n_inner": 77},
        _GPT2 | {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 513, "scale_attn_weights": False},
        _GPT2 | {"n_layer": 2, "n_head": 5, "n_embd": 80, "vocab_size": 97, "layer_norm_epsilon": 1e-3},
    ]),
    "llama": ("LlamaForCausalLM", "LlamaConfig", [
        _LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 24, "intermediate_size": 31, "vocab_size": 11},
        _LLAMA | _HEADS | {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 101, "tie_word_embeddings": True},
        _LLAMA | {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "head_dim": 10,
                  "intermediate_size": 77, "vocab_size": 1009, "attention_bias": True},
        _LLAMA | _HEADS | {"num_hidden_layers": 4, "intermediate_size": 50, "vocab_size": 513, "mlp_bias": True,
                  "rms_norm_eps": 1e-3},
        _LLAMA | {"num_hidden_layers": 2, "num_attention_heads": 5, "hidden_size": 80, "intermediate_size": 96, "vocab_size": 97,
                  "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu",
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ]),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", [
        _LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 24, "head_dim": 8,
                  "intermediate_size": 31, "vocab_size": 11},
        _LLAMA | _HEADS | {"num_hidden_layers": 2, "head_dim": 12, "intermediate_size": 48, "vocab_size": 101,
                  "tie_word_embeddings": True},
        _LLAMA | {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 50, "head_dim": 10,
                  "intermediate_size": 77, "vocab_size": 1009, "attention_bias": True},
        _LLAMA | _HEADS | {"num_hidden_layers": 2, "head_dim": 8, "intermediate_size": 50, "vocab_size": 513,
                  "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0, "rms_norm_eps": 1e-3},
        _LLAMA | {"num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 5, "hidden_size": 77, "head_dim": 16,
                  "intermediate_size": 96, "vocab_size": 97,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ]),
    "arcee": ("ArceeForCausalLM", "ArceeConfig", [
        _LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 24, "intermediate_size": 31, "vocab_size": 11},
        _LLAMA | _HEADS | {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 101, "tie_word_embeddings": True},
        _LLAMA | {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "head_dim": 10,
                  "intermediate_size": 77, "vocab_size": 1009, "attention_bias": True},
        _LLAMA | _HEADS | {"num_hidden_layers": 4, "intermediate_size": 50, "vocab_size": 513, "mlp_bias": True,
                  "hidden_act": "gelu"},
        _LLAMA | {"num_hidden_layers": 2, "num_attention_heads": 5, "hidden_size": 80, "intermediate_size": 96, "vocab_size": 97,
                  "attention_bias": True, "mlp_bias": True},
    ]),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", [
        _LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 24, "intermediate_size": 31, "vocab_size": 11},
        _LLAMA | {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 101,
                  "tie_word_embeddings": True, "use_parallel_residual": False},
        _LLAMA | {"num_hidden_layers": 3, "num_attention_heads": 3, "hidden_size": 48, "intermediate_size": 77,
                  "vocab_size": 1009, "attention_bias": False,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
        _LLAMA | {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 50,
                  "vocab_size": 513, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "use_parallel_residual": False,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
        _LLAMA | {"num_hidden_layers": 2, "num_attention_heads": 5, "hidden_size": 80, "intermediate_size": 96, "vocab_size": 97,
                  "hidden_act": "relu",
                  "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.8}},
    ]),
}  # fmt: skip
# Published shapes: those of the other families are too large for two cores.
FULL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152,
              "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    "gpt_neox": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 50_304,
                 "num_attention_heads": 8, "max_position_embeddings": 2048},
}  # fmt: skip
_OURS = {
    "vocab_size": 53,
    "context_length": 64,
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_multiple": 16,
}
_MODERN = {
    "position": "rotary",
    "norm": "rmsnorm_plain",
    "use_bias": False,
    "num_kv_heads": 2,
    "attention_scale": 0.2,
}
# Models of ours that a family writes in other terms; each is exported with --family auto.
EXPORTS: dict[str, dict[str, Any]] = {
    "gpt2": {"use_bias": False, "num_kv_heads": 1, "position": "sinusoidal"},
    "llama": _MODERN | {"activation": "swiglu", "head_dim": 12},
    "qwen3": _MODERN
    | {"activation": "swiglu", "qk_norm": True, "attention_window": 9, "d_model": 30, "head_dim": 10},
    "arcee": _MODERN | {"activation": "relu_squared", "tie_embeddings": False},
    "gpt_neox": {
        "position": "rotary",
        "use_bias": False,
        "num_kv_heads": 1,
        "attention_scale": 0.2,
        "rotary_fraction": 0.5,
    },
}


def logits_of(run: Run, tokens_BT: np.ndarray) -> np.ndarray:
    return np.asarray(run.model.apply({"params": run.params}, jnp.asarray(tokens_BT)))


def greedy(run: Run, prompt: list[int]) -> list[int]:
    pieces = generate_ids(run.model, run.params, [prompt], NEW_TOKENS, sampler=Sampler(temperature=0))
    return np.concatenate(list(pieces), axis=1)[0].tolist()


def their_greedy(model: Any, prompt: list[int]) -> list[int]:
    import torch

    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, pad_token_id=0,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long), eos_token_id=None,
    )  # fmt: skip
    return made[0, len(prompt) :].tolist()


def equal_tensors(one: Path, other: Path) -> bool:
    """Whether two folders have the same tensors, bit for bit (a tied head may be stored or not)."""
    a, b = open_tensors(one), open_tensors(other)
    return a.names() == b.names() and all(
        a.shape(name) == b.shape(name) and a.read(name).tobytes() == b.read(name).tobytes()
        for name in a.names()
    )


def imported(family: str, shape: dict[str, Any], full: bool = False) -> dict[str, Any]:
    """One model of transformers, here and there; a full one without shards and half precision."""
    import torch
    import transformers

    model_class, config_class, _ = MODELS[family]
    torch.manual_seed(0)
    theirs = getattr(transformers, config_class)(
        **shape, bos_token_id=None, eos_token_id=None, attn_implementation="eager"
    )
    model = getattr(transformers, model_class)(theirs).eval()
    for parameter in model.parameters():  # biases and scales too, and logits that are far from each other
        parameter += (0.01 if full else 0.1) * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "one")
        tokens = torch.randint(0, theirs.vocab_size, (3, 64))
        out = model(tokens, labels=tokens)
        run = jaxgpt.load(published.import_folder(folder / "one", folder / "run").workdir)
        published.export_run(run, folder / "out", family)
        logits = logits_of(run, tokens.numpy())
        loss = float(np.mean(token_losses(logits[:, :-1], tokens.numpy()[:, 1:])))
        prompt = tokens[0, :PROMPT].tolist()
        found = {
            "shape": shape,
            "parameters": count_params(run.params),
            "largest_logit": float(np.abs(logits).max()),
            "logits": float(np.abs(logits - out.logits.numpy()).max()),
            "loss": abs(loss - out.loss.item()),
            "greedy_equal": greedy(run, prompt) == their_greedy(model, prompt),
            "export_equal": equal_tensors(folder / "one", folder / "out"),
        }
        return found if full else found | stored_otherwise(family, model, run, folder)


def stored_otherwise(family: str, model: Any, run: Run, folder: Path) -> dict[str, Any]:
    """The same model in shards and in half precision: the same numbers, and an export gives them again."""
    import torch

    size = sum(p.numel() for p in model.parameters()) * 4
    model.save_pretrained(folder / "sharded", max_shard_size=max(size // 3, 1000))
    sharded = published.load(folder / "sharded").params
    both = zip(jax.tree.leaves(run.params), jax.tree.leaves(sharded), strict=True)
    found: dict[str, Any] = {
        "shards": len(list((folder / "sharded").glob("*.safetensors"))),
        "sharded_equal": all(bool((np.asarray(a) == np.asarray(b)).all()) for a, b in both),
    }
    for dtype in ("bfloat16", "float16"):
        model.to(getattr(torch, dtype)).save_pretrained(folder / dtype)
        published.export_run(published.load(folder / dtype), folder / f"{dtype} out", family)
        found[f"{dtype}_equal"] = equal_tensors(folder / dtype, folder / f"{dtype} out")
        model.float()
    return found


def exported(family: str, fields: dict[str, Any]) -> dict[str, Any]:
    """One model of ours, here and there."""
    import torch
    import transformers

    cfg = ModelConfig(**_OURS | fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), param_shapes(cfg)
    )
    run = Run(Config(model=cfg), GPT(cfg), params, IdsTokenizer(cfg.num_tokens), 0, Path("ours"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "out")
        notes = published.export_run(run, folder)
        written = json.loads((folder / "config.json").read_text())["model_type"]
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
        tokens = rng.integers(0, cfg.num_tokens, (3, 64))
        theirs = model.eval()(torch.tensor(tokens)).logits.numpy()
        prompt = tokens[0, :PROMPT].tolist()
        return {
            "fields": fields,
            "family": written,
            "notes": notes,
            "largest_logit": float(np.abs(theirs).max()),
            "logits": float(np.abs(logits_of(run, tokens) - theirs).max()),
            "greedy_equal": greedy(run, prompt) == their_greedy(model, prompt),
            "keys": {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys},
            "family_right": written == family,
        }


SMALL = {"context_length": 64, "d_model": 64, "num_layers": 2, "num_heads": 4}
ROTARY = SMALL | {"position": "rotary", "norm": "rmsnorm", "use_bias": False}
# Runs that are trained here: the model, the data, the steps, and the families that take it.
TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "characters": (SMALL | {"activation": "gelu_tanh", "dropout_rate": 0.1, "attention_dropout_rate": 0.0},
                   {"tokenizer": "char"}, ("gpt2",)),
    "words, with documents": (ROTARY | {"activation": "swiglu", "num_kv_heads": 2},
                              {"tokenizer": "word", "vocab_size": 800, "documents": "blank_line"}, ("llama",)),
    "byte pairs": (ROTARY | {"activation": "relu_squared", "vocab_multiple": 128},
                   {"tokenizer": "bpe", "vocab_size": 600}, ("arcee",)),
    "byte pairs, with documents": (SMALL | {"position": "rotary", "rotary_fraction": 0.25, "parallel_residual": True},
                                   {"tokenizer": "bpe", "vocab_size": 601, "documents": "blank_line"}, ("gpt_neox",)),
}  # fmt: skip


def small(text: Path, model: dict[str, Any], data: dict[str, Any], **more: Any) -> Config:
    return Config(
        model=ModelConfig(**model), data=DataConfig(path=str(text), batch_size=16, **data),
        optim=OptimConfig(warmup_steps=10, learning_rate=3e-3),
        train=TrainConfig(num_steps=30, eval_every=0, checkpoint_every=0, sample_tokens=0, embedding_snapshots=0),
        **more,
    )  # fmt: skip


def trained() -> dict[str, list[dict[str, Any]]]:
    """Runs of ours, here and there, in each family that takes them."""
    plays = "".join(piece for piece in corpora.open_corpus("shakespeare").read() if piece)[:400_000]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text(plays, "utf-8")

        def made(kind: str, cfg: Config) -> Path:
            loop.train(cfg, folder / kind)
            return folder / kind

        runs = {kind: made(kind, small(text, *parts[:2])) for kind, parts in TRAINED.items()}
        families = {kind: parts[2] for kind, parts in TRAINED.items()}
        fast = cli.read_config("char_fast_portable", {"data.path": str(text), "train.num_steps": "60"})
        runs["the portable fast config"] = made("fast", fast)
        families["the portable fast config"] = ("qwen3",)
        start = runs["words, with documents"]
        lora = TRAINED["words, with documents"][0] | {
            "lora_rank": 4,
            "lora_targets": ("query", "value", "up"),
        }
        data = TRAINED["words, with documents"][1] | {"tokenizer_path": str(start / "tokenizer.json")}
        runs["LoRA, merged"] = made("lora", small(text, lora, data, init_from=str(start)))
        families["LoRA, merged"] = ("llama",)
        for kind, run in runs.items():
            opened = jaxgpt.load(run)
            found[kind] = [there(opened, family, plays[-20_000:]) for family in families[kind]]
    return found


def there(run: Run, family: str, text: str) -> dict[str, Any]:
    """A trained run, exported and opened by transformers."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "out")
        notes = published.export_run(run, folder)
        written = json.loads((folder / "config.json").read_text())["model_type"]
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = run.tokenizer.encode(text).tolist()
        T = run.config.model.context_length
        tokens = np.array(ids[: 10 * T]).reshape(10, T)
        theirs = model.eval()(torch.tensor(tokens)).logits.numpy()
        prompt = ids[:PROMPT]
        ours, other = greedy(run, prompt), their_greedy(model, prompt)
        return {
            "family": written,
            "tokenizer": run.tokenizer.kind,
            "parameters": count_params(run.params),
            "notes": notes,
            "largest_logit": float(np.abs(theirs).max()),
            "logits": float(np.abs(logits_of(run, tokens) - theirs).max()),
            "greedy_equal": ours == other and run.tokenizer.decode(ours) == tokenizer.decode(other),
            "ids": len(ids),
            "characters": len(text),
            "ids_equal": tokenizer(text)["input_ids"] == ids,
            "keys": {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys},
            "family_right": written == family,
        }


def held(found: dict[str, Any]) -> bool:
    """Whether all checks of one model hold."""
    limit = EXPORT_LIMIT if "keys" in found else LIMIT
    equal = all(value for name, value in found.items() if name.endswith(("_equal", "_right")))
    return found["logits"] < limit and found.get("loss", 0) < limit and equal and not found.get("keys")


def prepare_transformers(*others: str) -> dict[str, str]:
    """The versions of what this is compared with. Raises UserError where it, or one of the other packages, is not installed."""
    try:
        for name in others:
            importlib.import_module(name)
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: this compares with transformers") from None
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.families", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="one family")
    parser.add_argument("--trained", action="store_true", help="only the runs that are trained here")
    parser.add_argument("--results", type=Path, default=claim.RESULTS, help="the folder of families.json")
    args = parser.parse_args(argv)
    args.results.mkdir(parents=True, exist_ok=True)  # before what takes minutes
    versions = prepare_transformers()
    start, measured, good = time.perf_counter(), {}, True
    if not args.only:
        measured["trained"] = trained()
        for kind, models in measured["trained"].items():
            for found in models:
                good &= held(found)
                print(
                    f"{kind:<26} {found['family']:<9} {found['logits']:.1e} {'ok' if held(found) else f'DIFFERS {found}'}"
                )
    for family, (_, _, shapes) in MODELS.items():
        if args.only not in ("", family) or args.trained:
            continue
        models = [imported(family, shape) for shape in shapes]
        ours = exported(family, EXPORTS[family])
        full = [imported(family, FULL[family], full=True)] if family in FULL else []
        for what, found in [*(("import", model) for model in [*models, *full]), ("export", ours)]:
            good &= held(found)
            print(
                f"{family:<9} {what} {found['logits']:.1e} of {found['largest_logit']:.1f} {'ok' if held(found) else f'DIFFERS {found}'}"
            )
        measured[family] = {"imports": models, "full": full, "export": ours}
    record = {
        "name": "families",
        "command": " ".join(["python -m experiments.families", *argv]),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": claim.machine(),
        "commit": claim.commit(),
        **versions,
        "limits": {"import": LIMIT, "export": EXPORT_LIMIT},
        "held": good,
        "measurements": claim.plain(measured),
    }
    write_json(args.results / f"families{'_trained' if args.trained else ''}.json", record)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main)
