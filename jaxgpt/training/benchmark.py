"""The measurements of `python -m jaxgpt.bench`: the machine's ceilings, training, decoding; and their text."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.common.machine import peak_memory
from jaxgpt.config import Config, from_config_dict, to_json
from jaxgpt.config.presets import PRESETS
from jaxgpt.model import generation, sharding
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, init_params
from jaxgpt.training import costs, preflight
from jaxgpt.training.programs import SingleRun
from jaxgpt.training.steps import compiler_options
from jaxgpt.training.target import bounds, hlo
from jaxgpt.training.target.cards import CARDS, of_device
from jaxgpt.training.target.collectives import collectives
from jaxgpt.training.target.kernels import kernels

# Dense bfloat16 FLOP/s from NVIDIA's data sheets, without sparsity. The first name that matches the device counts.
DATASHEET = {
    "H200": CARDS["h200"].bf16,
    "H100 PCIe": CARDS["h100-pcie"].bf16,
    "H100 NVL": 835e12,
    "H100": CARDS["h100"].bf16,  # SXM: "NVIDIA H100 80GB HBM3"
    "A100": CARDS["a100"].bf16,
    "L40S": CARDS["l40s"].bf16,
    "L4": CARDS["l4"].bf16,
    "A10G": CARDS["a10g"].bf16,
    "RTX 4090": CARDS["rtx4090"].bf16,
}
GPT2_VOCABULARY = 50_257
OTHER_VOCABULARY = 256  # where it depends on the text: about that of a char tokenizer
DECODE_BATCHES = (1, 64)


def with_vocabulary(cfg: Config, file: str, vocab_size: int | None) -> Config:
    """The config with a vocabulary size, which in a run comes from the tokenizer."""
    size = vocab_size or cfg.model.vocab_size or cfg.data.vocab_size
    if size is None:
        shape = file.partition(":")[2]
        size = PRESETS[shape].vocab_size if shape in PRESETS else None
    if size is None:
        size = GPT2_VOCABULARY if cfg.data.tokenizer == "gpt2" else OTHER_VOCABULARY
    values = to_json(cfg)
    values["model"]["vocab_size"] = size
    if cfg.finds_documents and cfg.model.document_end is None:
        values["model"]["document_end"] = size - 1
    return from_config_dict(values)


def datasheet_peak(device_kind: str, dtype: str) -> float | None:
    """The bfloat16 FLOP/s of a device by its data sheet; None: unknown."""
    if dtype != "bfloat16":
        return None
    words = device_kind.replace("-", " ").split()
    names = [n for n in DATASHEET if all(any(w == part for w in words) for part in n.split())]
    return DATASHEET[names[0]] if names else None


# --- timing ---------------------------------------------------------------------------------------------


def timed(once: Callable[[], Any], count: int, warmup: int) -> list[float]:
    """The seconds of each of `count` calls, each waited for, after `warmup` calls."""
    return [seconds_of(once)[1] for _ in range(warmup + count)][warmup:]


def seconds_of(once: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, once the device has it, and the seconds that it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(once())
    return result, time.perf_counter() - start


def memory_bandwidth(num_bytes: int, seconds: float = 0.5) -> float:
    """Bytes per second that a sum over a large array reads, the best within `seconds`."""
    x = jax.jit(lambda: jnp.ones((num_bytes // 4,), jnp.float32))()
    total = jax.jit(jnp.sum)
    return num_bytes / preflight.best_seconds(lambda: total(x), seconds)


# --- the measurements ------------------------------------------------------------------------------------


def machine(dtype: str) -> dict[str, Any]:
    """The device and its measured ceilings: matrix products in `dtype`, and reading memory."""
    on_cpu = jax.default_backend() == "cpu"
    kind = jax.devices()[0].device_kind
    sizes = (1024, 2048) if on_cpu else (4096, 8192)
    return {
        "device": kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "matmul_dtype": dtype,
        "matmul_flops_per_second": max(preflight.matmul_speed(dtype, size) for size in sizes),
        "datasheet_flops_per_second": datasheet_peak(kind, dtype),
        "read_bytes_per_second": memory_bandwidth(2**28 if on_cpu else 2**30),
    }


def bound_seconds(text: str, devices: int, steps: int, kind: str | None = None) -> dict[str, float] | None:
    """The least time of a step by its optimized HLO, of a program of `steps` steps, for each of bounds.SHARES.

    None for a device that cards.py does not have.
    """
    card = of_device(kind or jax.devices()[0].device_kind)
    if card is None:
        return None
    module = hlo.read(text)
    sent = bounds.sending(card, collectives(module, devices), steps)
    found = bounds.step_seconds(bounds.parts(card, kernels(module), steps), sent)
    return {share.name: x for share, x in zip(bounds.SHARES, found, strict=True)}


def bench_training(cfg: Config, limits: dict[str, Any], steps: int, warmup: int) -> dict[str, Any]:
    """Time, speed and memory of a config's training step, on its mesh of this machine's devices."""
    count, T = cfg.train.steps_per_dispatch, cfg.model.context_length
    rng = np.random.default_rng(0)
    ids = rng.integers(0, cfg.model.vocab_size, max(2**16, 64 * (T + 1)), dtype=np.uint32)
    program = SingleRun(cfg, ids)
    with program.context():
        key = jax.random.key(cfg.train.seed)
        state, init_seconds = seconds_of(lambda: program.init([init_params(program.model, key)]))
        feed = jax.device_put(program.feed(0))
        dispatch = jax.jit(program.dispatch, donate_argnums=0)
        traced, trace_seconds = seconds_of(lambda: dispatch.trace(state, *feed))
        lowered, lower_seconds = seconds_of(traced.lower)
        compiled, compile_seconds = seconds_of(
            lambda: lowered.compile(compiler_options=compiler_options(cfg))
        )

        def once() -> Any:
            nonlocal state
            state, metrics = compiled(state, *feed)
            return metrics["loss"]

        seconds = timed(once, max(1, steps // count), warmup)
        feed_seconds = statistics.median(timed(lambda: jax.device_put(program.feed(1)[1]), 5, 1)) / count
    step_seconds = statistics.median(seconds) / count
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    tokens = cfg.data.batch_size * T
    cost = costs.step_cost(cfg)
    # Per device. CPU devices share the cores, and so the ceiling.
    shared = jax.default_backend() == "cpu"
    flops_per_second = cost.model_flops / step_seconds / (1 if shared else program.mesh.size)
    peak = limits["datasheet_flops_per_second"]
    bound = bound_seconds(compiled.as_text() or "", program.mesh.size, count)
    analysis, planned = compiled.cost_analysis() or {}, compiled.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "devices": sharding.as_text(program.mesh.shape),
        "num_params": count_params(program.shapes.params),
        "tokens_per_step": tokens,
        "init_seconds": init_seconds,
        "trace_seconds": trace_seconds,
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "step_seconds": step_seconds,
        "step_quartile_range_seconds": (high - low) / count,
        "steps_timed": len(seconds) * count,
        "tokens_per_second": tokens / step_seconds,
        "model_flops_per_step": cost.model_flops,
        "hardware_flops_per_step": cost.hardware_flops,
        # XLA counts elementwise work too, a loop's body once, and nothing inside external kernels (cuDNN).
        "xla_flops_per_step": analysis.get("flops", math.nan),
        "model_flops_per_second": flops_per_second,
        "share_of_matmul_ceiling": flops_per_second / limits["matmul_flops_per_second"],
        "share_of_datasheet": None if peak is None else flops_per_second / peak,
        # The least time of the compiled step at shares of the card's speeds, and how much of it the measured step is.
        "bound_seconds": bound,
        "share_of_bound": None if bound is None else {name: x / step_seconds for name, x in bound.items()},
        "predicted_bytes": costs.memory_per_device(cfg, cost.memory, program.mesh.shape).total,
        "compiled_bytes": (
            planned.argument_size_in_bytes
            + planned.output_size_in_bytes
            - planned.alias_size_in_bytes
            + planned.temp_size_in_bytes
        ),
        # Of the process so far, including the ceilings (1 GiB); None on CPU, where it is not counted.
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "process_peak_bytes": peak_memory(),
        "data_seconds": feed_seconds,
        "data_share": feed_seconds / step_seconds,
    }


def bench_decoding(
    cfg: Config, limits: dict[str, Any], batch_size: int, new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Prefill and decoding speed of generation.py, greedy, with new parameters.

    The bound is the bandwidth of main memory: a model that fits into a CPU's caches may exceed it.
    """
    model, T = GPT(cfg.model), cfg.model.context_length
    params = init_params(model, jax.random.key(0))
    new_tokens = min(new_tokens, T // 2)
    prompt = T - new_tokens
    sampler = generation.Sampler(temperature=0)
    tokens_BT = jnp.zeros((batch_size, prompt), jnp.int32)
    length_B = jnp.full((batch_size,), prompt, jnp.int32)
    keys_B = jax.random.split(jax.random.key(0), batch_size)

    def prefill() -> Any:
        return generation.prefill(
            model, params, tokens_BT, length_B, keys_B, length_B, sampler=sampler, slots=T
        )

    def decode(cache: Any, token_B: jax.Array) -> Any:
        return generation.decode(
            model, params, cache, token_B, keys_B, length_B, new_tokens, sampler=sampler, size=new_tokens
        )

    prefill_seconds = statistics.median(timed(prefill, repeats, 1))
    seconds = []
    for _ in range(repeats + 1):  # the first call compiles
        cache, token_B, _ = jax.block_until_ready(prefill())
        seconds.append(seconds_of(functools.partial(decode, cache, token_B))[1])
    token_seconds = statistics.median(seconds[1:]) / new_tokens
    # Every byte is read once per step.
    bound_tokens = (
        batch_size * limits["read_bytes_per_second"] / sum(costs.decode_bytes(cfg.model, batch_size))
    )
    return {
        "batch_size": batch_size,
        "prompt_tokens": prompt,
        "new_tokens": new_tokens,
        "prefill_seconds": prefill_seconds,
        "prefill_tokens_per_second": batch_size * prompt / prefill_seconds,
        "decode_tokens_per_second": batch_size / token_seconds,
        "decode_seconds_per_token": token_seconds,
        "bandwidth_bound_tokens_per_second": bound_tokens,
        "share_of_bandwidth_bound": batch_size / token_seconds / bound_tokens,
    }


# --- text -----------------------------------------------------------------------------------------------


def training_text(found: dict[str, Any], limits: dict[str, Any]) -> str:
    """A training measurement as text."""
    ms, T = 1e3, 1e12
    share, peak = found["share_of_datasheet"], limits["datasheet_flops_per_second"]
    rows = [
        ("parameters", f"{found['num_params']:,}"),
        ("devices", found["devices"]),
        ("trace, lower, compile", " + ".join(f"{found[f'{n}_seconds']:.1f}" for n in ("trace", "lower", "compile")) + " s"),
        ("step", f"{found['step_seconds'] * ms:,.2f} ms, quartiles {found['step_quartile_range_seconds'] * ms:,.2f} ms "
                   f"apart, {found['steps_timed']} steps"),
        ("tokens", f"{found['tokens_per_second']:,.0f} per second, {found['tokens_per_step']:,} per step"),
        ("FLOP per step", f"{found['model_flops_per_step'] / T:.4g} T by formula, {found['hardware_flops_per_step'] / T:.4g} T "
                        f"with recomputation, {found['xla_flops_per_step'] / T:.4g} T counted by XLA"),
        ("FLOP/s", f"{found['model_flops_per_second'] / T:.4g} T"),
        ("of the matrix ceiling", f"{found['share_of_matmul_ceiling']:.1%} of {limits['matmul_flops_per_second'] / T:.4g} T "
                                  f"measured in {limits['matmul_dtype']}"),
        ("of the data sheet", "unknown for this device and dtype" if share is None else f"{share:.1%} of {peak / T:.4g} T"),
        ("of the bound", "unknown for this device" if found["share_of_bound"] is None else ", ".join(
            f"{share:.1%} of {found['tokens_per_step'] / found['bound_seconds'][name]:,.0f} tokens/s ({name})"
            for name, share in found["share_of_bound"].items())),
        ("memory", f"{found['compiled_bytes'] / 2**30:.3f} GiB planned by the compiler, "
                   f"{found['predicted_bytes'] / 2**30:.3f} GiB predicted"),
        ("peak memory", f"{found['peak_bytes'] / 2**30:.3f} GiB on the device" if found["peak_bytes"] else
                        f"{found['process_peak_bytes'] / 2**30:.3f} GiB of the process" if found["process_peak_bytes"]
                        else "unknown on this system"),
        ("data", f"{found['data_seconds'] * ms:.3f} ms per step to cut and send, {found['data_share']:.1%} of the step"),
    ]  # fmt: skip
    return "\n".join(f"{name:<24}{value}" for name, value in rows)


def decoding_text(found: dict[str, Any], limits: dict[str, Any]) -> str:
    """A decoding measurement as one line."""
    return (
        f"decode, batch {found['batch_size']:<4} prefill of {found['prompt_tokens']} tokens "
        f"{found['prefill_seconds'] * 1e3:,.2f} ms; {found['decode_tokens_per_second']:,.1f} tokens/s, "
        f"{found['share_of_bandwidth_bound']:.1%} of the {found['bandwidth_bound_tokens_per_second']:,.1f} that "
        f"reading memory at {limits['read_bytes_per_second'] / 1e9:,.1f} GB/s allows"
    )


def sweep_text(field: str, results: list[dict[str, Any]]) -> str:
    """A table with one line per value; growth is relative to the line before."""
    header = (
        f"{field:<28}{'ms per step':>12}{'growth':>9}{'tokens/s':>13}{'GiB':>9}{'growth':>9}{'compile s':>11}"
    )
    lines, before = [header], None
    for result in results:
        found = result["training"]
        times = "" if before is None else f"x {found['step_seconds'] / before['step_seconds']:.2f}"
        memory = "" if before is None else f"x {found['compiled_bytes'] / before['compiled_bytes']:.2f}"
        lines.append(
            f"{result['value']:<28}{found['step_seconds'] * 1e3:>12,.2f}{times:>9}"
            f"{found['tokens_per_second']:>13,.0f}{found['compiled_bytes'] / 2**30:>9.3f}{memory:>9}"
            f"{found['compile_seconds']:>11.1f}"
        )
        before = found
    return "\n".join(lines)
