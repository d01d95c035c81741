"""A plain Flax GPT-2 next to jaxgpt, a training step measured in turns in one process.

    python -m experiments.plain_flax [--windows 16] [--rounds 5] [--json FILE]

The plain one is what a textbook in Flax gives: linen's MultiHeadDotProductAttention with a causal mask, LayerNorm, Dense, all
logits at once, optax.adamw, float32 parameters computed with in bfloat16 on a GPU. jaxgpt is configs/gpt2.py with the same
windows in one part. Figures are medians over rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt.common import cli
from jaxgpt.config import Config, ModelConfig
from jaxgpt.model.parameters import count_params
from jaxgpt.training.lanes import with_values


class PlainGPT2(nn.Module):
    """Tokens [B, T] -> logits [B, T, V] in float32."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        cfg = self.cfg
        table = nn.Embed(cfg.table_rows, cfg.d_model, dtype=cfg.dtype)
        positions = nn.Embed(cfg.context_length, cfg.d_model, dtype=cfg.dtype)
        x_BTD = table(tokens_BT) + positions(jnp.arange(tokens_BT.shape[1]))
        mask = nn.make_causal_mask(tokens_BT)
        for _ in range(cfg.num_layers):
            y_BTD = nn.LayerNorm(dtype=cfg.dtype)(x_BTD)
            x_BTD += nn.MultiHeadDotProductAttention(cfg.num_heads, dtype=cfg.dtype)(y_BTD, mask=mask)
            y_BTD = nn.LayerNorm(dtype=cfg.dtype)(x_BTD)
            y_BTD = nn.gelu(nn.Dense(4 * cfg.d_model, dtype=cfg.dtype)(y_BTD))
            x_BTD += nn.Dense(cfg.d_model, dtype=cfg.dtype)(y_BTD)
        x_BTD = nn.LayerNorm(dtype=cfg.dtype)(x_BTD)
        return table.attend(x_BTD).astype(jnp.float32)


def plain_step(cfg: Config) -> tuple[Callable[[int], None], int]:
    """A function that takes a number of steps and waits for them, and the number of parameters."""
    model, optimizer = PlainGPT2(cfg.model), optax.adamw(6e-4, b2=0.95, weight_decay=0.1)

    @jax.jit
    def start(key):
        params = model.init(key, jnp.zeros((1, cfg.model.context_length), jnp.int32))
        return params, optimizer.init(params)

    def step(state, batch):
        params, moments = state

        def loss(params):
            logits_BTV = model.apply(params, batch[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state = start(jax.random.key(0))
    jitted, batch = jax.jit(step, donate_argnums=0), windows(cfg)

    def work(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, value = jitted(state, batch)
        float(value)

    return work, count_params(state[0])


def our_step(cfg: Config) -> tuple[Callable[[int], None], int]:
    """The same for jaxgpt."""
    from jaxgpt.training.steps import build, init_state, make_dispatch

    parts, key = build(cfg), jax.random.key(0)
    state = init_state(parts.model, parts.optimizer, key)
    num_params = count_params(state.params)
    jitted, batch = jax.jit(make_dispatch(parts.train_step, cfg), donate_argnums=0), windows(cfg)[None]

    def work(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = jitted(state, None, batch, key)
        float(metrics["loss"][0])

    return work, num_params


def windows(cfg: Config) -> jax.Array:
    shape = (cfg.data.batch_size, cfg.model.context_length + 1)
    return jnp.asarray(np.random.default_rng(0).integers(cfg.model.num_tokens, size=shape, dtype=np.int32))


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.plain_flax", description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=16, help="windows of a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cli.check_at_least(1, args, "windows", "rounds", "steps")
    cfg = cli.read_config(file or "configs/gpt2.py", overrides)
    cli.set_up_process()
    changes = {"data.batch_size": args.windows, "train.grad_accumulation_steps": 1}
    if cfg.model.vocab_size is None:
        changes["model.vocab_size"] = 50_257
    if jax.default_backend() == "cpu":
        changes["model.dtype"] = "float32"
    cfg = with_values(cfg, changes)
    found: dict[str, dict] = {}
    contenders = {"plain Flax": plain_step(cfg), "jaxgpt": our_step(cfg)}
    for name, (work, num_params) in contenders.items():
        start = time.perf_counter()
        work(1)
        found[name] = {"parameters": num_params, "first step": time.perf_counter() - start, "turns": []}
    for _ in range(args.rounds):
        for name, (work, _) in contenders.items():
            start = time.perf_counter()
            work(args.steps)
            found[name]["turns"].append((time.perf_counter() - start) / args.steps)
    tokens = cfg.data.batch_size * cfg.model.context_length
    for values in found.values():
        values["seconds"] = statistics.median(values["turns"])
        values["tokens a second"] = tokens / values["seconds"]
    ratio = found["plain Flax"]["seconds"] / found["jaxgpt"]["seconds"]
    result = {"device": jax.devices()[0].device_kind, "contenders": found, "plain Flax over jaxgpt": ratio}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)
