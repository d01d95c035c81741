"""One pass over all positions against one step a position.

python -m experiments.parallel_positions [--quick | --full]
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt import config
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.model.parameters import init_params

CLAIM = "All positions of a text are processed in parallel: one pass gives what a step for each token gives, and sooner."
DESIGN = (
    "An untrained model (four layers, 128 wide), random texts of T tokens, one at a time. One pass over all positions, "
    "and T steps of one token each that keep keys and values of those before in a cache; the steps are one compiled "
    "loop, with no word to the host between. Logits of all positions are compared; times are taken in turns, the fastest of every "
    "three counts, and their ratio is judged at the largest T."
)
AMONG = 3  # rounds: the fastest of so many counts


def one_pass(model: GPT, params: dict, tokens_T: jax.Array) -> jax.Array:
    """Logits [T, V]."""
    return model.apply({"params": params}, tokens_T[None])[0]


def one_by_one(model: GPT, params: dict, tokens_T: jax.Array) -> jax.Array:
    """The same from T steps with a cache."""
    T = len(tokens_T)

    def step(i, carry):
        cache, out_TV = carry
        logits_BTV, cache = model.apply({"params": params}, tokens_T[i][None, None], cache=cache)
        return cache, out_TV.at[i].set(logits_BTV[0, 0])

    start = KVCache.empty(model.cfg, 1, T), jnp.zeros((T, model.cfg.vocab_size))
    return jax.lax.fori_loop(0, T, step, start)[1]


def compare(model: GPT, params: dict, T: int, repeats: int) -> dict[str, Any]:
    """Difference of the logits and seconds [repeats] of both ways, for one length."""
    tokens_T = jnp.asarray(np.random.default_rng(T).integers(model.cfg.vocab_size, size=T), jnp.int32)
    # As generate.decode is compiled: else XLA's CPU backend copies the cache at every step.
    options = {"xla_cpu_copy_insertion_use_region_analysis": True}
    ways = {
        "pass": jax.jit(functools.partial(one_pass, model)),
        "steps": jax.jit(functools.partial(one_by_one, model), compiler_options=options),
    }
    found = {name: np.asarray(way(params, tokens_T)) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():  # in turn: what else the machine does falls on both
            began = time.perf_counter()
            jax.block_until_ready(way(params, tokens_T))
            seconds[name].append(time.perf_counter() - began)
    seconds = {name: claim.fastest(taken, AMONG) for name, taken in seconds.items()}
    difference = float(np.abs(found["pass"] - found["steps"]).max())
    return {"T": T, "difference": difference, "scale": float(np.abs(found["pass"]).max()), "seconds": seconds}


def measure(setting: Setting) -> Result:
    """See DESIGN."""
    lengths = setting.pick([4, 16], [4, 16, 64, 256, 1024], [16, 64, 256, 1024, 4096])
    size = setting.pick(32, 128, 768)
    cfg = config.ModelConfig(
        vocab_size=256, context_length=max(lengths), d_model=size, num_layers=setting.pick(1, 4, 12), num_heads=4,
        position="rotary", init="fan_in",
    )  # fmt: skip
    model = GPT(cfg)
    params = init_params(model, jax.random.key(0))
    with jax.default_matmul_precision("highest"):  # a GPU would round each way differently
        rows = [compare(model, params, T, AMONG * setting.pick(2, 8, 10)) for T in lengths]
    ratios = [claim.ratio(row["seconds"]["steps"], row["seconds"]["pass"]) for row in rows]
    worst = max(row["difference"] / row["scale"] for row in rows)
    says = (
        f"Logits agree to {worst:.1e} of the largest; T steps take "
        f"{', '.join(f'{claim.show(found)} times' for found in ratios)} as long as one pass for T = {', '.join(f'{T:,}' for T in lengths)}."
    )
    parts = (
        Check("largest relative difference of logits, all T", worst, 1e-4),
        Effect(f"time of T steps / one pass, T = {lengths[-1]:,}", ratios[-1], "times", above=1.0),
    )
    return Result(parts, says, {"rows": rows, "ratios": ratios})


def draw(figure, measurements: dict[str, Any]) -> None:
    """Times, and their ratio, over T."""
    times, ratio = figure.subplots(1, 2)
    rows = measurements["rows"]
    T = [row["T"] for row in rows]
    for name, label in (("pass", "one pass"), ("steps", "T steps with a cache")):
        times.loglog(
            T, [1000 * np.median(row["seconds"][name]) for row in rows], marker="o", markersize=3, label=label
        )
    times.set(title="median milliseconds", xlabel="tokens T")
    times.legend()
    values, low, high = (
        np.array([found[key] for found in measurements["ratios"]]) for key in ("value", "low", "high")
    )
    ratio.errorbar(
        T, values, yerr=[values - low, high - values], marker="o", markersize=3, capsize=3, color="C2"
    )
    ratio.axhline(1, color="C4", linestyle=":")
    ratio.set(title="T steps / one pass", xlabel="tokens T", xscale="log", yscale="log")


if __name__ == "__main__":
    claim.run()
