"""Attention on a CPU in several ways: one layer forward and backward, and a complete training step, in turns in one process.

    python -m experiments.cpu_attention [--rounds 9] [--only "6 x 384"] [--torch_python PYTHON] [--out FILE]

Every way computes the same numbers up to rounding, which is checked against the explicit form. A step is that of
configs/nanogpt_cpu.py. Times are medians over rounds, ratios medians of those to the explicit form in the same round. With an
interpreter that has PyTorch, its scaled_dot_product_attention is measured too, in turns with the layers. Written as JSON.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim
from experiments.against_nanogpt import SERVE, SHAPES, Contender
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.model import attention
from jaxgpt.training import steps

OUT = Path(__file__).parent / "results" / "cpu_attention.json"
CALLS = {"4 x 128": (50, 10), "6 x 384": (5, 1), "tiny": (1, 1)}  # of a layer and of a step, in one turn

# --- the ways: q, k, v [B, T, H, K] -> [B, T, H, K], causal ----------------------------------------------


def spans(length: int, size: int) -> list[tuple[int, int]]:
    """First and end of each block."""
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def mask_of(first: int, end: int) -> np.ndarray:
    """[queries, keys], which of the keys 0..end the queries first..end may see."""
    return np.arange(end) <= np.arange(first, end)[:, None]


def explicit(q, k, v):
    """All weights at once."""
    return blocks(q.shape[1], q, k, v)


def blocks(size: int, q, k, v):
    """Blocks of queries, without the keys after them: what jaxgpt.model.attention.blocked_attention does."""
    heads = []
    for first, end in spans(q.shape[1], size):
        scores = attention.attention_scores(q[:, first:end], k[:, :end])
        weights = attention.attention_weights(scores, mask_of(first, end)[None])
        heads.append(attention.weighted_values(weights, v[:, :end]))
    return jnp.concatenate(heads, axis=1)


def by_rows(q, k, v):
    """One row of the batch after the other, in a loop."""
    return jax.lax.map(lambda x: explicit(*(y[None] for y in x))[0], (q, k, v))


def heads_first(inner: Callable) -> Callable:
    """With queries, keys and values copied to [B, H, T, K] first."""

    def way(q, k, v):
        return inner(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

    return way


def textbook(size: int, kept: Any = None) -> Callable:
    """Blocks of queries [B, H, T, K] with the gradient by hand (Dao et al. 2022).

    The weights are computed again in the backward pass, or kept in the dtype `kept`.
    """

    def scores_of(q, k, first, end):
        scores = jnp.einsum("BHTK,BHSK->BHTS", q[:, :, first:end], k[:, :, :end]) / np.sqrt(q.shape[-1])
        return jnp.where(mask_of(first, end), scores, -1e30)

    def forward(q, k, v):
        heads, saved = [], []
        for first, end in spans(q.shape[2], size):
            scores = scores_of(q, k, first, end)
            total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - total)
            heads.append(jnp.einsum("BHTS,BHSK->BHTK", weights, v[:, :, :end]))
            saved.append(total if kept is None else weights.astype(kept))
        out = jnp.concatenate(heads, axis=2)
        return out, (q, k, v, out, saved)

    def backward(residuals, dout):
        q, k, v, out, saved = residuals
        dq, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
        along = (dout * out).sum(axis=-1, keepdims=True)
        for (first, end), one in zip(spans(q.shape[2], size), saved, strict=True):
            rows = slice(first, end)
            weights = jnp.exp(scores_of(q, k, first, end) - one) if kept is None else one.astype(q.dtype)
            dweights = jnp.einsum("BHTK,BHSK->BHTS", dout[:, :, rows], v[:, :, :end])
            dscores = weights * (dweights - along[:, :, rows]) / np.sqrt(q.shape[-1])
            dv = dv.at[:, :, :end].add(jnp.einsum("BHTS,BHTK->BHSK", weights, dout[:, :, rows]))
            dk = dk.at[:, :, :end].add(jnp.einsum("BHTS,BHTK->BHSK", dscores, q[:, :, rows]))
            dq.append(jnp.einsum("BHTS,BHSK->BHTK", dscores, k[:, :, :end]))
        return jnp.concatenate(dq, axis=2), dk, dv

    way = jax.custom_vjp(lambda q, k, v: forward(q, k, v)[0])
    way.defvjp(forward, backward)
    return heads_first(way)


def no_attention(q, k, v):
    """What is left of a step without it."""
    return q + k + v


YNN = "xla_cpu_experimental_ynn_fusion_type"
# The way, XLA's options, and the largest relative difference to the explicit form (None: another function).
WAYS: dict[str, tuple[Callable, dict[str, Any], float | None]] = {
    "explicit": (explicit, {}, 2e-6),
    "no attention": (no_attention, {}, None),
    "jax.nn.dot_product_attention": (functools.partial(jax.nn.dot_product_attention, is_causal=True), {}, 2e-6),
    "heads first": (heads_first(lambda q, k, v: explicit(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)), {}, 2e-6),
    "one row after the other": (by_rows, {}, 2e-6),
    **{f"blocks of {size}": (functools.partial(blocks, size), {}, 2e-6) for size in (32, 64, 128)},
    "blocks of 64, recomputed": (jax.checkpoint(functools.partial(blocks, 64)), {}, 2e-6),
    "blocks of 64, textbook's gradient, recomputed": (textbook(64), {}, 2e-6),
    "blocks of 64, textbook's gradient, weights kept": (textbook(64, jnp.float32), {}, 2e-6),
    "blocks of 64, textbook's gradient, weights kept in bfloat16": (textbook(64, jnp.bfloat16), {}, 2e-2),
    "explicit, without YNN": (explicit, {YNN: ""}, 2e-6),
    "blocks of 64, without YNN": (functools.partial(blocks, 64), {YNN: ""}, 2e-6),
    "blocks of 64, YNN for sums alone": (functools.partial(blocks, 64), {YNN: "LIBRARY_FUSION_TYPE_REDUCE"}, 2e-6),
    "blocks of 64, vectors of 512 bits": (functools.partial(blocks, 64), {"xla_cpu_prefer_vector_width": 512}, 2e-6),
}  # fmt: skip
# A step takes longer to compile and to run: these only.
STEPS = [
    "explicit", "no attention", "blocks of 64", "blocks of 128", "blocks of 64, textbook's gradient, recomputed",
    "blocks of 64, textbook's gradient, weights kept", "explicit, without YNN", "blocks of 64, YNN for sums alone",
]  # fmt: skip

TORCH = """
import sys, time
import torch
import torch.nn.functional as F
warm_up, H, D, T, B = map(int, sys.argv[1:])
inputs = [torch.randn(B * T, D, requires_grad=True) for _ in range(3)]
direction = torch.randn(B * T, D)
start = time.perf_counter()

def work(calls):
    for _ in range(calls):
        q, k, v = (x.view(B, T, H, D // H).transpose(1, 2) for x in inputs)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B * T, D)
        torch.autograd.grad(out, inputs, direction)
"""

# --- measuring ------------------------------------------------------------------------------------------


def layer(name: str, shape: str) -> Callable[[int], Any]:
    """A function of n that computes heads and gradients n times, from rows [B T, D] as a linear layer gives them."""
    way, options, _ = WAYS[name]
    _, H, D, T, B, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    rows, (direction,) = (
        [jnp.asarray(rng.normal(size=(B * T, D)), jnp.float32) for _ in range(n)] for n in (3, 1)
    )

    def both(rows, direction):
        out, pull = jax.vjp(
            lambda rows: way(*(x.reshape(B, T, H, D // H) for x in rows)).reshape(B * T, D), rows
        )
        return out, *pull(direction)[0]

    compiled = jax.jit(both).lower(rows, direction).compile(compiler_options=options)

    def work(calls: int) -> Any:
        for _ in range(calls):
            found = compiled(rows, direction)
        return jax.block_until_ready(found)

    return work


def step(name: str, shape: str) -> Callable[[int], Any]:
    """A function of n that does n training steps."""
    way, options, _ = WAYS[name]
    layers, heads, width, context, batch, vocabulary = SHAPES[shape]
    values = cli.load_config_dict("configs/nanogpt_cpu.py").to_dict()
    values["model"] |= {
        "vocab_size": vocabulary, "num_layers": layers, "num_heads": heads, "d_model": width, "context_length": context,
    }  # fmt: skip
    cfg = config.from_config_dict(values)
    model, _, optimizer, train_step = steps.build(cfg)
    batches = np.random.default_rng(0).integers(vocabulary, size=(1, batch, context + 1), dtype=np.int32)
    key = jax.random.key(0)
    state = steps.init_state(model, optimizer, key)
    with (
        mock.patch.object(attention, "uses_fused_attention", lambda *_: True),
        mock.patch.object(attention, "fused_attention", lambda _, q, k, v, **__: way(q, k, v)),
    ):
        dispatch = jax.jit(steps.make_dispatch(train_step, cfg), donate_argnums=0)
        compiled = dispatch.lower(state, None, batches, key).compile(compiler_options=options)

    def work(count: int) -> Any:
        nonlocal state
        for _ in range(count):
            state, metrics = compiled(state, None, batches, key)
        return jax.block_until_ready(metrics)

    return work


def in_turns(
    what: str, ways: dict[str, Callable[[int], float]], calls: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds a call by name, and the ratio to the explicit form's; printed too."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way(calls) / calls)
    result = {}
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds["explicit"], strict=True))
        numbers = {"ms": 1e3 * statistics.median(found), "ms_least": 1e3 * min(found), "ratio": ratio}
        result[name] = {key: float(f"{value:.4g}") for key, value in numbers.items()}
        print(f"{what}, {name}: {numbers['ms']:.4g} ms ({ratio:.3f})", flush=True)
    return result


def timed(work: Callable[[int], Any]) -> Callable[[int], float]:
    """The seconds that the work takes."""
    work(1)

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        work(calls)
        return time.perf_counter() - start

    return seconds


def difference(found: tuple, expected: tuple) -> float:
    """The largest difference of an array relative to its largest number."""
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, expected, strict=True))


def measured(shape: str, rounds: int, torch_python: str | None) -> dict[str, Any]:
    """Times of a layer and of a step at a shape."""
    layers = {name: layer(name, shape) for name in WAYS}
    expected = layers["explicit"](1)
    differences = {name: difference(work(1), expected) for name, work in layers.items()}
    for name, (_, _, most) in WAYS.items():
        if most is not None and differences[name] > most:
            raise AssertionError(
                f"{name} is not the explicit form at {shape}: off by {differences[name]:.1e}"
            )
    ways = {name: timed(work) for name, work in layers.items()}
    torch = torch_python and Contender(torch_python, TORCH + SERVE, 1, *SHAPES[shape][1:5])
    if torch:
        ways["torch, scaled_dot_product_attention"] = torch.seconds
    found = {"layer": in_turns(f"{shape}, a layer", ways, CALLS[shape][0], rounds)}
    if torch:
        torch.close()
    step_ways = {name: timed(step(name, shape)) for name in STEPS}
    found["step"] = in_turns(f"{shape}, a step", step_ways, CALLS[shape][1], rounds)
    return found | {"differences": {name: float(f"{x:.1e}") for name, x in differences.items()}}


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.cpu_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way")
    parser.add_argument("--only", choices=list(CALLS), help="one shape; default: the two for a CPU")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of results")
    args = parser.parse_args(argv)
    cli.check_at_least(1, args, "rounds")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cli.set_up_process()
    shapes = {}
    for shape in [args.only] if args.only else ["4 x 128", "6 x 384"]:
        shapes[shape] = measured(shape, args.rounds, args.torch_python)
        record = {
            "machine": claim.machine(),
            "commit": claim.commit(),
            "rounds": args.rounds,
            "shapes": shapes,
        }
        write_json(args.out, record)


if __name__ == "__main__":
    cli.run(main)
