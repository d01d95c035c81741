"""One pass over all positions, compared with one step per position.

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

NOTE = "Position 0 -> vector1, Position 1 -> vector2, Position 2 -> vector3: why? because transformers process all tokens in parallel."
CLAIM = "All positions of a text are processed in parallel: one pass gives the same as a step for each token, and is faster."
PREDICTION = "One pass gives the logits of T steps, and takes less time at every T."
REFUTED_BY = "Other logits, or a length at which one pass is not faster by 5 %."
DESIGN = (
    "An untrained model (four layers, d_model 128) and random texts of T tokens, one at a time. One pass over all positions is compared with "
    "T steps of one token each, which keep earlier keys and values in a cache and run in one compiled loop on the "
    "device. The logits of all positions are compared. Both are timed in turns; of every three times the fastest counts, and "
    "their ratio at the largest T decides."
)
MARGINS = {"time": 0.05}
AMONG = 3  # of every so many times the fastest counts


def one_pass(model: GPT, params: dict, tokens_T: jax.Array) -> jax.Array:
    """Logits [T, V]."""
    return model.apply({"params": params}, tokens_T[None])[0]


def one_by_one(model: GPT, params: dict, tokens_T: jax.Array) -> jax.Array:
    """The same logits from T steps with a cache."""
    T = len(tokens_T)

    def step(i, carry):
        cache, out_TV = carry
        logits_BTV, cache = model.apply({"params": params}, tokens_T[i][None, None], cache=cache)
        return cache, out_TV.at[i].set(logits_BTV[0, 0])

    start = KVCache.empty(model.cfg, 1, T), jnp.zeros((T, model.cfg.vocab_size))
    return jax.lax.fori_loop(0, T, step, start)[1]


def compare(model: GPT, params: dict, T: int, repeats: int) -> dict[str, Any]:
    """The difference between the logits, and the seconds of both ways, for one length."""
    tokens_T = jnp.asarray(np.random.default_rng(T).integers(model.cfg.vocab_size, size=T), jnp.int32)
    # As jaxgpt.model.generation compiles it: without it, XLA's CPU backend copies the cache at every step.
    options = {"xla_cpu_copy_insertion_use_region_analysis": True}
    ways = {
        "pass": jax.jit(functools.partial(one_pass, model)),
        "steps": jax.jit(functools.partial(one_by_one, model), compiler_options=options),
    }
    found = {name: np.asarray(way(params, tokens_T)) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():  # in turns: other load on the machine affects both alike
            start = time.perf_counter()
            jax.block_until_ready(way(params, tokens_T))
            seconds[name].append(time.perf_counter() - start)
    seconds = {name: claim.fastest(taken, AMONG) for name, taken in seconds.items()}
    difference = float(np.abs(found["pass"] - found["steps"]).max())
    return {"T": T, "difference": difference, "scale": float(np.abs(found["pass"]).max()), "seconds": seconds}


def measure(setting: Setting) -> dict[str, Any]:
    """Logits and times by the number of tokens."""
    lengths = setting.pick([4, 16], [4, 16, 64, 256, 1024], [16, 64, 256, 1024, 4096])
    size = setting.pick(32, 128, 768)
    cfg = config.ModelConfig(
        vocab_size=256, context_length=max(lengths), d_model=size, num_layers=setting.pick(1, 4, 12), num_heads=4,
        position="rotary", init="fan_in",
    )  # fmt: skip
    model = GPT(cfg)
    params = init_params(model, jax.random.key(0))
    with jax.default_matmul_precision("highest"):  # a GPU would round each way differently
        return {"rows": [compare(model, params, T, AMONG * setting.pick(2, 8, 10)) for T in lengths]}


def ratios_of(measurements: dict[str, Any]) -> list[claim.Estimate]:
    """The time of T steps / one pass, for each T."""
    return [claim.ratio(row["seconds"]["steps"], row["seconds"]["pass"]) for row in measurements["rows"]]


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    rows, ratios = measurements["rows"], ratios_of(measurements)
    worst = max(row["difference"] / row["scale"] for row in rows)
    by_length = ", ".join(
        f"{claim.show(found)} (T = {row['T']:,})" for row, found in zip(rows, ratios, strict=True)
    )
    parts = (
        Check("largest relative difference between the logits, all T", worst, 1e-4),
        Effect(
            f"time of T steps / one pass, T = {rows[-1]['T']:,}",
            ratios[-1],
            "times",
            above=1.0,
            margin=MARGINS["time"],
        ),
    )
    return Result(
        parts,
        f"The logits agree to {worst:.1e} of the largest. The time of T steps / one pass is {by_length}.",
    )


def draw(figure, measurements: dict[str, Any]) -> None:
    """Times and their ratio by T."""
    times, ratio = figure.subplots(1, 2)
    rows = measurements["rows"]
    T = [row["T"] for row in rows]
    for name, label in (("pass", "one pass"), ("steps", "T steps with a cache")):
        times.loglog(
            T, [1000 * np.median(row["seconds"][name]) for row in rows], marker="o", markersize=3, label=label
        )
    times.set(title="median milliseconds", xlabel="tokens T")
    times.legend()
    values, low, high = np.array([(e.value, e.low, e.high) for e in ratios_of(measurements)]).T
    ratio.errorbar(
        T, values, yerr=[values - low, high - values], marker="o", markersize=3, capsize=3, color="C2"
    )
    ratio.axhline(1, color="C4", linestyle=":")
    ratio.set(title="T steps / one pass", xlabel="tokens T", xscale="log", yscale="log")


if __name__ == "__main__":
    claim.run()
