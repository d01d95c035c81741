"""Is an embedding lookup the same as a product with one-hot vectors, and is it cheaper?

python -m experiments.lookup [--quick | --full]
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, timing
from experiments.claim import Check, Effect, Outdated, Result, Setting

NOTE = "In practice, the embedding layer acts as a lookup table. [...] This is computationally more efficient than performing matrix multiplication on one-hot encoded vectors."
CLAIM = "Looking up rows of the embedding table gives the same result as multiplying one-hot vectors by it, and is cheaper."
PREDICTION = "The rows are equal bit for bit, and the product takes longer, forward and backward."
REFUTED_BY = "A row that differs; or a product that is not slower at the vocabulary of GPT-2."
DESIGN = (
    "1,024 random tokens and a table of V x 64, with V up to GPT-2's 50,257. Both methods are compiled programs that start "
    "from the ids. Forward: the rows. Backward: the gradient of a weighted sum of the rows with respect to the table, for "
    "distinct tokens (one term per row: must be equal bit for bit) and for random tokens (repeated tokens are summed in "
    "another order: equal up to rounding). The methods are timed in turns in five fresh processes (medians; n is the number of processes), "
    "and the time ratio at the largest V decides, forward and backward. Memory: what XLA allocates besides inputs and outputs, and how much the peak memory of a separate process rises."
)
MARGINS = {"time": 0.05}
AMENDMENTS = timing.AMENDMENTS[1:]


def by_lookup(table_VD: jax.Array, ids_B: jax.Array) -> jax.Array:
    """Rows [B, D]."""
    return table_VD[ids_B]


def by_product(table_VD: jax.Array, ids_B: jax.Array) -> jax.Array:
    """The same rows as a matrix product [B, V] x [V, D]."""
    one_hot_BV = jax.nn.one_hot(ids_B, table_VD.shape[0], dtype=table_VD.dtype)
    return jnp.matmul(one_hot_BV, table_VD, precision=jax.lax.Precision.HIGHEST)  # GPUs would round the table


def gradient_of(rows: Callable) -> Callable:
    """The gradient [V, D] of the weighted sum of the rows with respect to the table."""
    return jax.grad(lambda table_VD, ids_B, weights_BD: (rows(table_VD, ids_B) * weights_BD).sum())


METHODS = {"lookup": by_lookup, "product": by_product}


def inputs(V: int, D: int, count: int, distinct: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A table [V, D], ids [count] (distinct: at most V of them) and weights for each row."""
    rng = np.random.default_rng(V)
    ids_B = rng.permutation(V)[:count] if distinct else rng.integers(V, size=count)
    table_VD, weights_BD = (rng.standard_normal((rows, D), np.float32) for rows in (V, len(ids_B)))
    return jnp.asarray(table_VD), jnp.asarray(ids_B, jnp.int32), jnp.asarray(weights_BD)


def largest_difference(one: jax.Array, other: jax.Array) -> float:
    """The largest difference, relative to the largest number."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(one - other).max() / np.abs(one).max())


def compare(V: int, D: int, count: int, repeats: int) -> dict[str, Any]:
    """Differences, median seconds and temporary bytes of both methods, forward and backward."""
    table_VD, ids_B, weights_BD = inputs(V, D, count)
    row: dict[str, Any] = {"V": V, "seconds": {}, "temporary": {}}
    forward = {name: jax.jit(rows).lower(table_VD, ids_B).compile() for name, rows in METHODS.items()}
    backward = {
        name: jax.jit(gradient_of(rows)).lower(table_VD, ids_B, weights_BD).compile()
        for name, rows in METHODS.items()
    }
    row["difference"] = largest_difference(*(run(table_VD, ids_B) for run in forward.values()))
    row["gradient_difference"] = largest_difference(
        *(run(table_VD, ids_B, weights_BD) for run in backward.values())
    )
    once = inputs(V, D, count, distinct=True)
    row["gradient_difference_once"] = largest_difference(
        *(jax.jit(gradient_of(rows))(*once) for rows in METHODS.values())
    )
    for name, run, arguments in [
        *((f"{name}_forward", run, (table_VD, ids_B)) for name, run in forward.items()),
        *((f"{name}_backward", run, (table_VD, ids_B, weights_BD)) for name, run in backward.items()),
    ]:
        row["temporary"][name] = run.memory_analysis().temp_size_in_bytes
        row["seconds"][name] = (run, arguments)
    runs, row["seconds"] = row["seconds"], {name: [] for name in row["seconds"]}
    for _ in range(repeats):
        for name, (run, arguments) in runs.items():  # in turns: other load on the machine affects all alike
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            row["seconds"][name].append(time.perf_counter() - start)
    row["seconds"] = {name: statistics.median(found) for name, found in row["seconds"].items()}
    return row


def once(sizes: list[int], D: int, count: int, repeats: int) -> list[dict[str, Any]]:
    """`compare` for each V, in this process."""
    return [compare(V, D, count, repeats) for V in sizes]


def peak_bytes(method: str, V: int, D: int, count: int) -> int:
    """By how many bytes computing the gradient raises the peak memory of the process (on a GPU: of the device)."""
    table_VD, ids_B, weights_BD = jax.block_until_ready(inputs(V, D, count))
    device = jax.devices()[0]

    def held() -> int:
        if device.platform == "gpu":
            return device.memory_stats()["peak_bytes_in_use"]
        # Of this process alone: getrusage would start from the parent's peak.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    run = jax.jit(gradient_of(METHODS[method])).lower(table_VD, ids_B, weights_BD).compile()
    before = held()
    jax.block_until_ready(run(table_VD, ids_B, weights_BD))
    return held() - before


def measured_peak(method: str, *sizes: int) -> int:
    """`peak_bytes` in a process of its own."""
    code = (
        f"import json; from experiments import lookup; print(json.dumps(lookup.peak_bytes{(method, *sizes)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(setting: Setting) -> dict[str, Any]:
    """Times, memory and differences by vocabulary size."""
    D, count = 64, setting.pick(64, 1024, 8192)
    sizes = setting.pick(
        [16, 256], [65, 256, 1024, 4096, 16_384, 50_257], [65, 256, 1024, 4096, 16_384, 50_257]
    )
    processes = timing.in_processes(setting, "lookup", "once", sizes, D, count, setting.pick(3, 15, 30))
    peaks = {}
    if setting.scale != "quick" and Path("/proc/self/status").exists():  # Linux only
        peaks = {method: measured_peak(method, sizes[-1], D, count) for method in METHODS}
    return {"width": D, "tokens": count, "processes": processes, "peak_bytes": peaks}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if "processes" not in measurements:
        raise Outdated("times from five processes")
    processes, peaks = measurements["processes"], measurements["peak_bytes"]
    rows = processes[0]
    last = rows[-1]
    V = f"{last['V']:,}"
    ratios = {
        part: [
            claim.ratio(
                [r["seconds"][f"product_{part}"] for r in found],
                [r["seconds"][f"lookup_{part}"] for r in found],
            )
            for found in zip(*processes, strict=True)
        ]
        for part in ("forward", "backward")
    }
    differs, gradient_differs_once, gradient_differs = (
        max(row[name] for process in processes for row in process)
        for name in ("difference", "gradient_difference_once", "gradient_difference")
    )
    product_mib, lookup_mib = (last["temporary"][f"{name}_forward"] / 2**20 for name in ("product", "lookup"))
    says = (
        f"{'The rows are equal bit for bit at every V' if differs == 0 else f'The rows differ by up to {differs:.2g}'}. "
        f"At V = {V} the product takes {claim.show(ratios['forward'][-1])} times as long forward and "
        f"{claim.show(ratios['backward'][-1])} times as long backward, and needs {product_mib:,.0f} MiB of temporary memory "
        f"where the lookup needs {lookup_mib:,.0f}."
    )
    if peaks:
        lookup, product = (peaks[name] / 2**20 for name in ("lookup", "product"))
        says += f" Computing the gradient raises the peak memory of a process by {product:,.0f} MiB with the product and {lookup:,.0f} MiB with the lookup."
    faster = [row["V"] for row, found in zip(rows, ratios["backward"], strict=True) if found.high < 1]
    says += (
        f" Backward, the product is faster at V = {', '.join(f'{V:,}' for V in faster)}."
        if faster
        else " The product is not measurably faster at any V."
    )
    parts = (
        Check("largest difference between the rows, all V", differs, 0.0),
        Check(
            "largest relative difference between the gradients, distinct tokens", gradient_differs_once, 0.0
        ),
        Check("largest relative difference between the gradients, random tokens", gradient_differs, 1e-5),
        Effect(
            f"time of the product / the lookup, forward, V = {V}",
            ratios["forward"][-1],
            "times",
            above=1.0,
            margin=MARGINS["time"],
        ),
        Effect(
            f"time of the product / the lookup, backward, V = {V}",
            ratios["backward"][-1],
            "times",
            above=1.0,
            margin=MARGINS["time"],
        ),
    )
    return Result(
        parts,
        says,
        headline=f"Multiplying by one-hot vectors gives {claim.worded(parts[0], 'the rows', 'other rows than those', 'the rows')} of a lookup, and takes "
        f"{ratios['forward'][-1].value:.1f} times as long with {V} words.",
    )


def draw(figure, measurements: dict[str, Any]) -> None:
    """Time and temporary memory over V."""
    times, memory = figure.subplots(1, 2)
    processes = measurements["processes"]
    rows = processes[0]
    V = [row["V"] for row in rows]
    for name in rows[0]["seconds"]:
        method, part = name.split("_")
        style = {"linestyle": "-" if part == "forward" else "--", "color": f"C{int(method == 'product')}"}
        by_process = [[1000 * row["seconds"][name] for row in process] for process in processes]
        milliseconds = np.median(by_process, axis=0)
        times.loglog(V, milliseconds, marker="o", markersize=3, label=f"{method}, {part}", **style)
        mib = [max(row["temporary"][name], 1) / 2**20 for row in rows]
        memory.loglog(V, mib, marker="o", markersize=3, **style)
    times.set(title=f"{measurements['tokens']:,} tokens", xlabel="vocabulary V", ylabel="milliseconds")
    memory.set(title="temporary memory (0 is drawn as 1 byte)", xlabel="vocabulary V", ylabel="MiB")
    times.legend()


if __name__ == "__main__":
    claim.run()
