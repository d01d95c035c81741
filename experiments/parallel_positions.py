"""One pass over all positions, compared with one step per position.

python -m experiments.parallel_positions [--quick | --full]
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, timing
from experiments.claim import Check, Effect, Outdated, Result, Setting
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
    "device. The logits of all positions are compared. Both are timed in turns in five fresh processes; of every three times in a row the "
    "fastest counts, then the median; n is the number of processes. Each T is a condition."
)
MARGINS = {"time": 0.05}
AMENDMENTS = timing.AMENDMENTS
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
    medians = {name: statistics.median(claim.fastest(taken, AMONG)) for name, taken in seconds.items()}
    difference = float(np.abs(found["pass"] - found["steps"]).max())
    return {"T": T, "difference": difference, "scale": float(np.abs(found["pass"]).max()), "seconds": medians}


def once(lengths: list[int], d_model: int, num_layers: int, repeats: int) -> list[dict[str, Any]]:
    """`compare` for each length, in this process."""
    cfg = config.ModelConfig(
        vocab_size=256, context_length=max(lengths), d_model=d_model, num_layers=num_layers, num_heads=4,
        position="rotary", init="fan_in",
    )  # fmt: skip
    model = GPT(cfg)
    params = init_params(model, jax.random.key(0))
    with jax.default_matmul_precision("highest"):  # a GPU would round each way differently
        return [compare(model, params, T, repeats) for T in lengths]


def measure(setting: Setting) -> dict[str, Any]:
    """Logits and times by the number of tokens, from each process."""
    pick = setting.pick
    lengths = pick([4, 16], [4, 16, 64, 256, 1024], [16, 64, 256, 1024, 4096])
    sizes = pick(32, 128, 768), pick(1, 4, 12)
    found = timing.in_processes(
        setting, "parallel_positions", "once", lengths, *sizes, AMONG * pick(2, 8, 10)
    )
    return {"processes": found}


def ratios_of(measurements: dict[str, Any]) -> dict[int, claim.Estimate]:
    """The time of T steps / one pass, by T."""
    by_length = zip(*measurements["processes"], strict=True)
    return {
        rows[0]["T"]: claim.ratio(
            [row["seconds"]["steps"] for row in rows], [row["seconds"]["pass"] for row in rows]
        )
        for rows in by_length
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if "processes" not in measurements:
        raise Outdated("times from five processes")
    rows = [row for process in measurements["processes"] for row in process]
    ratios = ratios_of(measurements)
    worst = max(row["difference"] / row["scale"] for row in rows)
    by_length = ", ".join(f"{claim.show(found)} (T = {T:,})" for T, found in ratios.items())
    most = max(ratios, key=lambda T: ratios[T].value)
    parts = (
        Check("largest relative difference between the logits, all T", worst, 1e-4),
        *(
            Effect(
                "time of T steps / one pass",
                found,
                "times",
                above=1.0,
                under=f"at T = {T:,}",
                margin=MARGINS["time"],
            )
            for T, found in ratios.items()
        ),
    )
    return Result(
        parts,
        f"The logits agree to {worst:.1e} of the largest. The time of T steps / one pass is {by_length}.",
        varies="the length of the text",
        headline=f"One pass over a text is {ratios[most].value:.1f} times as fast as a step for each token at {most:,} tokens, "
        f"and {ratios[max(ratios)].value:.1f} times at {max(ratios):,}.",
    )


def draw(figure, measurements: dict[str, Any]) -> None:
    """Times and their ratio by T."""
    times, ratio = figure.subplots(1, 2)
    processes = measurements["processes"]
    T = [row["T"] for row in processes[0]]
    for i, (name, label) in enumerate((("pass", "one pass"), ("steps", "T steps with a cache"))):
        for j, rows in enumerate(processes):
            milliseconds = [1000 * row["seconds"][name] for row in rows]
            times.loglog(
                T, milliseconds, "o-", markersize=3, color=f"C{i}", alpha=0.5, label=None if j else label
            )
    times.set(title="a line per process", xlabel="tokens T", ylabel="milliseconds")
    times.legend(loc="upper left")
    found = ratios_of(measurements)
    values, low, high = np.array([(e.value, e.low, e.high) for e in found.values()]).T
    ratio.errorbar(
        T, values, yerr=[values - low, high - values], marker="o", markersize=3, capsize=3, color="C2"
    )
    ratio.axhline(1, color="C4", linestyle=":")
    ratio.set(title="T steps / one pass", xlabel="tokens T", ylabel="times", xscale="log", yscale="log")


if __name__ == "__main__":
    claim.run()
