"""Is an embedding lookup a product with one-hot vectors, and cheaper?

python -m experiments.lookup [--quick | --full]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim
from experiments.claim import Check, Effect, Result, Setting

CLAIM = "Looking up rows of the embedding table gives what multiplying it with one-hot vectors gives, and is cheaper."
DESIGN = (
    "1,024 random tokens, a table of V x 64, V up to GPT-2's 50,257; both as compiled programs that begin with the ids. "
    "Forward: rows. Backward: the gradient of a weighted sum of the rows by the table, for tokens that all differ (one "
    "addend a row: must be equal bit for bit) and for random ones (repeated tokens are added up in another order: equal "
    "to rounding). Times are taken in turns; their ratio counts at the largest V, forward and backward. Memory: what "
    "XLA reserves beside inputs and outputs, and the peak of a process of its own beyond what it had before."
)


def by_lookup(table_VD: jax.Array, ids_B: jax.Array) -> jax.Array:
    """Rows [B, D]."""
    return table_VD[ids_B]


def by_product(table_VD: jax.Array, ids_B: jax.Array) -> jax.Array:
    """The same as a matrix product [B, V] x [V, D]."""
    one_hot_BV = jax.nn.one_hot(ids_B, table_VD.shape[0], dtype=table_VD.dtype)
    return jnp.matmul(one_hot_BV, table_VD, precision=jax.lax.Precision.HIGHEST)  # GPUs would round the table


def gradient_of(rows: Callable) -> Callable:
    """The gradient [V, D] of the rows' weighted sum by the table."""
    return jax.grad(lambda table_VD, ids_B, weights_BD: (rows(table_VD, ids_B) * weights_BD).sum())


METHODS = {"lookup": by_lookup, "product": by_product}


def inputs(V: int, D: int, count: int, distinct: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A table [V, D], ids [count] (or as many different ones as there are) and weights for each row."""
    rng = np.random.default_rng(V)
    ids_B = rng.permutation(V)[:count] if distinct else rng.integers(V, size=count)
    table_VD, weights_BD = (rng.standard_normal((rows, D), np.float32) for rows in (V, len(ids_B)))
    return jnp.asarray(table_VD), jnp.asarray(ids_B, jnp.int32), jnp.asarray(weights_BD)


def largest_difference(one: jax.Array, other: jax.Array) -> float:
    """Relative to the largest number."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(one - other).max() / np.abs(one).max())


def compare(V: int, D: int, count: int, repeats: int) -> dict[str, Any]:
    """Differences, seconds [repeats] and temporary bytes of both methods, forward and backward."""
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
        for name, (run, arguments) in runs.items():  # in turn: what else the machine does falls on all
            began = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            row["seconds"][name].append(time.perf_counter() - began)
    return row


def peak_bytes(method: str, V: int, D: int, count: int) -> int:
    """What the process (on a GPU: the device) held at most while it computed the gradient, beyond what it had before."""
    table_VD, ids_B, weights_BD = jax.block_until_ready(inputs(V, D, count))
    device = jax.devices()[0]

    def held() -> int:
        if device.platform == "gpu":
            return device.memory_stats()["peak_bytes_in_use"]
        # Of this process alone: getrusage's would begin with the parent's.
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


def measure(setting: Setting) -> Result:
    """See DESIGN."""
    D, count = 64, setting.pick(64, 1024, 8192)
    sizes = setting.pick(
        [16, 256], [65, 256, 1024, 4096, 16_384, 50_257], [65, 256, 1024, 4096, 16_384, 50_257]
    )
    rows = [compare(V, D, count, setting.pick(3, 15, 30)) for V in sizes]
    last = rows[-1]
    on_linux = Path("/proc/self/status").exists()
    peaks = (
        {}
        if setting.scale == "quick" or not on_linux
        else {m: measured_peak(m, sizes[-1], D, count) for m in METHODS}
    )
    ratios = {
        part: [claim.ratio(r["seconds"][f"product_{part}"], r["seconds"][f"lookup_{part}"]) for r in rows]
        for part in ("forward", "backward")
    }
    temporary = {name: value / 2**20 for name, value in last["temporary"].items()}
    dearer = [row["V"] for row, found in zip(rows, ratios["backward"], strict=True) if found.high < 1]
    says = (
        f"Rows equal bit for bit at every V; at V = {sizes[-1]:,} the product takes "
        f"{claim.show(ratios['forward'][-1])} times as long forward and {claim.show(ratios['backward'][-1])} times as long "
        f"backward, and needs {temporary['product_forward']:,.0f} MiB for its one-hot vectors where the lookup needs "
        f"{temporary['lookup_forward']:,.0f}."
        if max(row["difference"] for row in rows) == 0
        else f"Rows differ by up to {max(row['difference'] for row in rows):.2g}."
    )
    if peaks:
        lookup, product = (peaks[name] / 2**20 for name in ("lookup", "product"))
        says += f" The gradient raised a process's peak memory by {product:,.0f} MiB against {lookup:,.0f}."
    says += (
        f" Backward the product was faster at V = {', '.join(f'{V:,}' for V in dearer)}."
        if dearer
        else " At no V was the product measurably faster."
    )
    parts = (
        Check("largest difference of rows, all V", max(row["difference"] for row in rows), 0.0),
        Check(
            "largest relative difference of gradients, tokens differ",
            max(r["gradient_difference_once"] for r in rows),
            0.0,
        ),
        Check(
            "largest relative difference of gradients, random tokens",
            max(r["gradient_difference"] for r in rows),
            1e-5,
        ),
        Effect(
            f"time of product / lookup forward, V = {sizes[-1]:,}", ratios["forward"][-1], "times", above=1.0
        ),
        Effect(
            f"time of product / lookup backward, V = {sizes[-1]:,}",
            ratios["backward"][-1],
            "times",
            above=1.0,
        ),
    )
    return Result(parts, says, {"width": D, "tokens": count, "rows": rows, "peak_bytes": peaks})


def draw(figure, measurements: dict[str, Any]) -> None:
    """Time and temporary memory over V."""
    times, memory = figure.subplots(1, 2)
    rows = measurements["rows"]
    V = [row["V"] for row in rows]
    for name in rows[0]["seconds"]:
        method, part = name.split("_")
        style = {"linestyle": "-" if part == "forward" else "--", "color": f"C{int(method == 'product')}"}
        milliseconds = [1000 * float(np.median(row["seconds"][name])) for row in rows]
        times.loglog(V, milliseconds, marker="o", markersize=3, label=f"{method}, {part}", **style)
        mib = [max(row["temporary"][name], 1) / 2**20 for row in rows]
        memory.loglog(V, mib, marker="o", markersize=3, **style)
    times.set(title=f"median milliseconds, {measurements['tokens']:,} tokens", xlabel="vocabulary V")
    memory.set(title="MiB beside inputs and outputs (none is drawn as 1 byte)", xlabel="vocabulary V")
    times.legend()


if __name__ == "__main__":
    claim.run()
