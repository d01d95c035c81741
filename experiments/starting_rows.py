"""At which scale should rows made of word vectors start? The loss of one small model, from GloVe's rows at several.

    python -m experiments.starting_rows [--vectors glove] [--width 48] [--steps 150] [--json FILE]

A word model of two layers on Shakespeare whose tied table starts with the vectors' rows (rows_for, bridge "pca"),
scaled to a standard deviation, or not at all; beside it, the same model with random rows of 0.02. The same batches for
all; the loss is that on 32,768 tokens of the validation split.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxgpt import batches, cli, data, steps, vectors
from jaxgpt.evaluate import evaluate
from jaxgpt.train import resolve

SCALES = (0.005, 0.02, 0.05, 0.2, None)


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.starting_rows", description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", default="glove", help="a name or a file")
    parser.add_argument("--width", type=int, default=48, help="d_model, at most the vectors' width")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", default=None, type=Path, help="a file for the losses")
    args = parser.parse_args(argv)
    cli.set_up_process()
    overrides = {
        "model.d_model": str(args.width),
        "train.num_steps": str(args.steps),
        "optim.warmup_steps": "20",
    }
    cfg = cli.read_config("configs/word.py", overrides)
    dataset = data.prepare(cfg.data)
    cfg = resolve(cfg, dataset.tokenizer)
    source, tokens = vectors.load(args.vectors), vectors.tokens_of(dataset.tokenizer)
    model, _, optimizer, train_step = steps.build(cfg)
    step, T = jax.jit(train_step, donate_argnums=0), cfg.model.context_length
    found: dict[str, dict[int, float]] = {}
    for name in ("random", *SCALES):
        state = steps.init_state(model, optimizer, jax.random.key(1))
        label = "random rows, 0.02"
        if name != "random":
            rows_VD, matched_V = vectors.rows_for(source, tokens, args.width, 0, "pca", std=name)
            state.params["token_embedding"]["embedding"] = jnp.asarray(rows_VD)
            label = f"{args.vectors}, {'as it is, ' + format(rows_VD[matched_V].std(), '.2f') if name is None else name}"
        losses = {}
        for at in range(args.steps + 1):
            if at in (0, args.steps // 3, args.steps):
                windows = batches.eval_batches(dataset.valid.ids[:32_768], context_length=T, batch_size=64)
                losses[at] = evaluate(model, state.params, windows).loss
            batch = batches.batch_at(
                dataset.train.ids, at, seed=0, batch_size=cfg.data.batch_size, context_length=T
            )
            state, _ = step(state, batch, jax.random.key(0))
        found[label] = losses
        print(
            f"{label:<24} " + "  ".join(f"step {at}: {loss:.3f}" for at, loss in losses.items()), flush=True
        )
    print(f"{matched_V.sum():,} of {len(tokens):,} tokens are words of {args.vectors}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    cli.run(main)
