"""At which scale should word vectors start a token table? The loss of one small model, from GloVe's rows at several scales.

    python -m experiments.starting_rows [--vectors glove] [--width 48] [--steps 150] [--json FILE]

A word model of two layers on Shakespeare whose tied table starts with the vectors' rows (rows_for, bridge "pca"), scaled
to a standard deviation or unscaled; for comparison, random rows of 0.02. All train on the same batches. The loss is on
32,768 tokens of the validation split.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxgpt.common import cli
from jaxgpt.data.batches import Batches, eval_batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.training import steps
from jaxgpt.training.evaluation import evaluate
from jaxgpt.training.loop import resolve
from jaxgpt.vectors import word_vectors


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.starting_rows", description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", default="glove", help="a name or a file")
    parser.add_argument("--width", type=int, default=48, help="d_model, at most the vectors' width")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--scales", default="random,0.005,0.02,0.05,unit,0.2,as_it_is", help="separated by commas"
    )
    parser.add_argument("--json", default=None, type=Path, help="a file for the losses")
    args = parser.parse_args(argv)
    cli.set_up_process()
    overrides = {
        "model.d_model": str(args.width),
        "train.num_steps": str(args.steps),
        "optim.warmup_steps": "20",
    }
    cfg = cli.read_config("configs/word.py", overrides)
    dataset = prepare_dataset(cfg.data)
    cfg = resolve(cfg, dataset.tokenizer)
    source, tokens = word_vectors.load(args.vectors), word_vectors.tokens_of(dataset.tokenizer)
    known = sum(source.row(token) is not None for token in tokens)
    print(f"{known:,} of {len(tokens):,} tokens are words of {args.vectors}")
    model, _, optimizer, train_step = steps.build(cfg)
    step, T = jax.jit(train_step, donate_argnums=0), cfg.model.context_length
    found: dict[str, dict[int, float]] = {}
    for name in args.scales.split(","):
        state = steps.init_state(model, optimizer, jax.random.key(1))
        label = "random rows, 0.02"
        if name != "random":
            std = {"as_it_is": None, "unit": "unit"}.get(name) if name.isidentifier() else float(name)
            rows_VD, matched_V = word_vectors.rows_for(source, tokens, args.width, 0, "pca", std=std)
            state.params["token_embedding"]["embedding"] = jnp.asarray(rows_VD)
            label = f"{args.vectors}, {rows_VD[matched_V].std():.3f}"
        losses = {}
        for at in range(args.steps + 1):
            if at in (0, args.steps // 3, args.steps):
                windows = eval_batches(dataset.valid.ids[:32_768], context_length=T, batch_size=64)
                losses[at] = evaluate(model, state.params, windows).loss
            batch = Batches(dataset.train.ids, 0, cfg.data.batch_size, T).at(at)
            state, _ = step(state, batch, jax.random.key(0))
        found[label] = losses
        print(
            f"{label:<24} " + "  ".join(f"step {at}: {loss:.3f}" for at, loss in losses.items()), flush=True
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    cli.run(main)
