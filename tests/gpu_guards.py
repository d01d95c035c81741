"""What must not get worse in the compiled step of a GPU config. Each guard returns the violations it finds, as lines."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable

from jaxgpt.training.target import hlo
from jaxgpt.training.target.collectives import Collective
from jaxgpt.training.target.kernels import ATTENTION, Kernel

SMALL = 2**16  # bytes of what a step returns next to its state; FLOPs of products of counts are below, too
LARGE = 2**20  # bytes of an array that counts where devices send it


def slow_products(kernels: Iterable[Kernel], allowed: Collection[str] = ()) -> list[str]:
    """Products of float32, except in the parts of a step that are allowed to have them."""
    return [
        f"{k.dtype} product in {k.part}: {k.text} ({k.scope})"
        for k in kernels
        if k.dtype in ("f32", "tf32") and k.flops > SMALL and k.part not in allowed
    ]


def unfused_attention(kernels: Iterable[Kernel], layers: int, passes: int) -> list[str]:
    """Attention that is not one fused kernel forward and one backward in each layer and pass."""
    fused = [k for k in kernels if k.dtype == ATTENTION]
    found = {name: sum(k.times for k in fused if k.text.startswith(name)) for name in ("forward", "backward")}
    return [
        f"{count} fused kernels {name}, not {layers * passes}"
        for name, count in found.items()
        if count != layers * passes
    ]


def large_arrays(module: hlo.Module, elements: int) -> list[str]:
    """Arrays in memory with at least so many elements, except the program's arguments."""
    found = []
    for run in module.runs():
        x = run.instruction
        if x.op in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
            continue
        found += [
            f"{dtype}{list(shape)}: {x.name} ({x.scope})"
            for dtype, shape in hlo.arrays(x.type)
            if math.prod(shape) >= elements and dtype != "s8"  # s8: a workspace of cuBLAS
        ]
    return found


def lost_donation(outputs: int, aliased: int) -> list[str]:
    """State that is written next to the old one instead of over it. Sizes in bytes; metrics are small."""
    return [f"{outputs - aliased:,} bytes are not donated"] if outputs - aliased > SMALL else []


def host_transfers(module: hlo.Module) -> list[str]:
    """Transfers between the host and the device in the middle of a program."""
    found = []
    for run in module.runs():
        x = run.instruction
        away = x.op in ("send", "recv", "infeed", "outfeed", "send-start", "recv-start")
        called = re.search(r"callback|host|HostCompute", x.target, re.IGNORECASE)
        if away or called or re.search(r"\{[^}]*S\(5\)[^}]*\}", x.type):  # S(5): memory of the host
            found.append(f"{x.op} {x.target} ({x.scope})")
    return found


def repeated_reductions(found: Iterable[Collective], times: int = 1) -> list[str]:
    """Reductions of large arrays more than so often in a call: gradients summed in every part of a batch."""
    return [
        f"{x.op} of {x.size:,} bytes {x.times} times ({x.scope})"
        for x in found
        if x.op in ("all-reduce", "reduce-scatter") and x.size > LARGE and x.times > times
    ]


def other_traffic(found: Iterable[Collective], formula: float, tolerance: float = 0.05) -> list[str]:
    """Bytes that a device sends in a call that are not those of the formula."""
    sent = sum(x.times * x.sent for x in found)
    if abs(sent - formula) <= tolerance * formula:
        return []
    return [f"{sent:,.0f} bytes sent, {formula:,.0f} by formula"]


def moved_activations(found: Iterable[Collective], allowed: Collection[str]) -> list[str]:
    """Collectives of large arrays other than those allowed: activations or parameters that are gathered."""
    return [
        f"{x.op} of {x.size:,} bytes ({x.scope})" for x in found if x.size > LARGE and x.op not in allowed
    ]


def many_kernels(kernels: Iterable[Kernel], block: str, passes: int, most: int) -> list[str]:
    """More kernels of one layer than `most`, forward and backward, in one pass over a part of the batch."""
    count = sum(k.times for k in kernels if f"/{block}/" in k.scope) / passes
    return [f"{count:g} kernels in {block}, at most {most}"] if count > most else []


def large_temporaries(temporaries: int, most: int) -> list[str]:
    """More bytes of temporaries than `most`."""
    return [f"{temporaries:,} bytes of temporaries, at most {most:,}"] if temporaries > most else []
