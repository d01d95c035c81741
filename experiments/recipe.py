"""What each ingredient of configs/char_fast.py is worth: the full recipe, and the recipe with one thing changed.

    python -m experiments.recipe --text tinyshakespeare.txt [--seeds 5] [--only base,...] [--json FILE]

Every variant is trained with the same seeds (weights and batches). The loss is over the complete validation split. The
difference from the recipe is paired by seed, with Student's 95 % interval; above 0 means that the recipe is better.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import jax

from experiments import claim
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.data.batches import Batches, eval_batches
from jaxgpt.data.dataset import Dataset, prepare_dataset
from jaxgpt.training import optim, steps
from jaxgpt.training.evaluation import evaluate
from jaxgpt.training.loop import resolve

CONFIG = "configs/char_fast.py"
# The recipe before its reduction: the config, and the ingredients whose effect is within the noise.
FULL = {"model.logit_softcap": "15", "model.zero_init": "true"}
# The fields that each variant changes.
VARIANTS = {
    "base": {},
    "AdamW for Muon (rate 0.004)": {
        "optim.name": "adamw",
        "optim.learning_rate": "4e-3",
        "optim.final_learning_rate_ratio": "0.02",
    },
    "learned positions for rotary": {"model.position": "learned"},
    "LayerNorm for RMSNorm without parameters": {"model.norm": "layernorm"},
    "no query-key norm": {"model.qk_norm": "false", "model.attention_scale": "None"},
    "attention scale 1 / sqrt(32) for 0.3": {"model.attention_scale": "None"},
    "GELU for ReLU squared": {"model.activation": "gelu"},
    "output projections and head not zero": {"model.zero_init": "false"},
    "GPT-2's initial values": {"model.init": "gpt2"},
    "tied head": {"model.tie_embeddings": "true"},
    "no cap on the logits": {"model.logit_softcap": "0"},
    "momentum 0.95 for 0.9": {"optim.muon_momentum": "0.95"},
    "4 Newton-Schulz steps for 5": {"optim.muon_iterations": "4"},
    "neither a cap nor zeros: the config": {"model.logit_softcap": "0", "model.zero_init": "false"},
    "with value residuals": {"model.value_residual": "true"},
    "with embedding residuals": {"model.embedding_residual": "true"},
}


def losses(cfg: config.Config, dataset: Dataset, seeds: list[int]) -> list[float]:
    """The validation loss after training, for each seed; compiled once."""
    model, _, optimizer, train_step = steps.build(cfg)
    step = jax.jit(train_step, donate_argnums=0)
    T, found = cfg.model.context_length, []
    for seed in seeds:
        key = jax.random.key(seed)
        state = steps.init_state(model, optimizer, jax.random.fold_in(key, 2**32 - 1))  # as Trainer does
        for at in range(cfg.train.num_steps):
            batch = Batches(dataset.train.ids, seed, cfg.data.batch_size, T).at(at)
            state, _ = step(state, batch, key)
        params = optim.evaluation_params(cfg.optim, state.params, state.opt_state)
        windows = eval_batches(dataset.valid.ids, context_length=T, batch_size=64)
        found.append(evaluate(model, params, windows).loss)
    return found


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="tiny Shakespeare")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each variant")
    parser.add_argument("--steps", type=int, default=None, help="steps per run; default: the config's")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument(
        "--json",
        default=None,
        type=Path,
        help="a file for the losses; losses that it has are not measured again",
    )
    args = parser.parse_args(argv)
    cli.set_up_process()
    dataset = prepare_dataset(config.DataConfig(path=args.text))
    found: dict[str, list[float]] = {}
    if args.json and args.json.is_file():
        found = json.loads(args.json.read_text())
    for name in args.only.split(","):
        if name not in VARIANTS:
            raise config.UserError(f"no variant {name!r}: choose from {', '.join(VARIANTS)}")
        if name not in found:
            cfg = resolve(cli.read_config(CONFIG, FULL | VARIANTS[name]), dataset.tokenizer)
            if args.steps:
                cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, num_steps=args.steps))
            found[name] = losses(cfg, dataset, list(range(args.seeds)))
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
        line = f"{name:48} {statistics.mean(found[name]):.4f}  {' '.join(f'{x:.4f}' for x in found[name])}"
        if name != "base" and "base" in found:
            found_difference = claim.difference(found[name], found["base"])
            line += (
                f"   {found_difference.value:+.4f} +- {found_difference.high - found_difference.value:.4f}"
            )
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
