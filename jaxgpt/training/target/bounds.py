"""How long a compiled step takes at least: every kernel at the speed of the card's data sheet, or at a stated share of it.

A kernel takes the longest of its products, its bytes and its integer work. Not in it: the time between kernels, which kernel
is chosen for a product, and how well it does at this shape. A collective takes its bytes over the link; what other kernels
compute meanwhile hides it.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxgpt.training.target.cards import Card
from jaxgpt.training.target.collectives import Collective
from jaxgpt.training.target.kernels import ATTENTION, PARTS, Kernel

INTEGER_UNITS = 64  # of a core of the GPUs in cards.py, one operation in a cycle


@dataclass(frozen=True)
class Share:
    """Shares of the speeds of a data sheet."""

    name: str
    products: float
    attention: float  # of the products' speed, in fused attention
    memory: float

    def text(self) -> str:
        return f"{self.products:.0%} of products, {self.attention:.0%} in fused attention, {self.memory:.0%} of memory"


# The first is a bound. The second is what large kernels reach alone (790 of an H100's 989 TFLOP/s under its power limit, 500 in
# attention); the third 80 % of that, and 85 % of memory bandwidth.
SHARES = (
    Share("data sheet", 1.0, 1.0, 1.0),
    Share("large kernels", 0.8, 0.5, 1.0),
    Share("usual kernels", 0.64, 0.4, 0.85),
)


def peak(card: Card, dtype: str) -> float:
    """FLOP/s of the data sheet for products of a dtype."""
    speeds = {"bf16": card.bf16, "f16": card.bf16, ATTENTION: card.bf16, "tf32": card.tf32, "f32": card.f32}
    return speeds.get(dtype, card.bf16)


def kernel_seconds(card: Card, share: Share, kernel: Kernel) -> float:
    """The time of one launch."""
    part = share.attention if kernel.dtype == ATTENTION else share.products
    integers = card.cores * INTEGER_UNITS * card.clock * 1e9
    return max(
        kernel.flops / (peak(card, kernel.dtype) * part),
        kernel.bytes / (card.bandwidth * share.memory),
        kernel.integers / integers if integers else 0.0,
    )


def seconds(card: Card, share: Share, kernels: Iterable[Kernel]) -> float:
    """The time of all launches, one after another."""
    return sum(kernel.times * kernel_seconds(card, share, kernel) for kernel in kernels)


@dataclass(frozen=True)
class Part:
    """A part of a step: launches, work and times, each of one step."""

    name: str
    launches: float
    flops: float
    bytes: float
    seconds: tuple[float, ...]  # for each of SHARES


def parts(card: Card, kernels: Sequence[Kernel], steps: int) -> list[Part]:
    """The parts of a step that have any kernel, from a program of `steps` steps."""
    groups: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        groups[kernel.part].append(kernel)
    return [
        Part(
            name=name,
            launches=sum(k.times for k in groups[name]) / steps,
            flops=sum(k.times * k.flops for k in groups[name]) / steps,
            bytes=sum(k.times * k.bytes for k in groups[name]) / steps,
            seconds=tuple(seconds(card, share, groups[name]) / steps for share in SHARES),
        )
        for name in PARTS
        if name in groups
    ]


@dataclass(frozen=True)
class Sending:
    """The collectives of one kind in a step: launches, bytes that each device sends, and times, each of one step."""

    op: str
    launches: float
    overlapped: float  # launches between whose start and end other kernels run
    bytes: float
    seconds: float
    hidden: tuple[float, ...]  # seconds of it behind other kernels, for each of SHARES


def sending(card: Card, found: Sequence[Collective], steps: int) -> list[Sending]:
    """The traffic of a step by kind of operation."""
    groups: dict[str, list[Collective]] = collections.defaultdict(list)
    for one in found:
        groups[one.op].append(one)

    def hidden(one: Collective, share: Share) -> float:
        return min(one.sent / card.link, seconds(card, share, one.meanwhile)) if one.asynchronous else 0.0

    return [
        Sending(
            op=op,
            launches=sum(x.times for x in group) / steps,
            overlapped=sum(x.times for x in group if x.asynchronous and x.meanwhile) / steps,
            bytes=sum(x.times * x.sent for x in group) / steps,
            seconds=sum(x.times * x.sent for x in group) / card.link / steps,
            hidden=tuple(sum(x.times * hidden(x, share) for x in group) / steps for share in SHARES),
        )
        for op, group in groups.items()
    ]


@dataclass(frozen=True)
class Overlap:
    """How much of the traffic of a step the compiled schedule hides behind other kernels, for one of SHARES."""

    share: str
    seconds: float  # of all traffic
    hidden: float  # seconds of it between whose start and end as long a work runs

    @property
    def part(self) -> float:
        return self.hidden / self.seconds if self.seconds else 0.0


def overlaps(sent: Sequence[Sending]) -> list[Overlap]:
    """The overlap of a step's traffic for each of SHARES."""
    total = math.fsum(x.seconds for x in sent)
    return [
        Overlap(share.name, total, math.fsum(x.hidden[i] for x in sent)) for i, share in enumerate(SHARES)
    ]


def step_seconds(found: Sequence[Part], sent: Sequence[Sending]) -> tuple[float, ...]:
    """The time of a step for each of SHARES: its kernels, and what of its traffic is not hidden."""
    return tuple(
        math.fsum([part.seconds[i] for part in found] + [x.seconds - x.hidden[i] for x in sent])
        for i in range(len(SHARES))
    )
