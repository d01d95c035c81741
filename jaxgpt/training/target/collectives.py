"""What devices send each other in a compiled program, and what they compute meanwhile."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxgpt.training import traffic
from jaxgpt.training.target.hlo import Computation, Instruction, Module, Run, num_bytes
from jaxgpt.training.target.kernels import Kernel, is_collective, kernel


@dataclass(frozen=True)
class Collective:
    """A collective operation of a program, in one launch."""

    op: str
    scope: str
    times: int  # launches in one call of the program
    size: int  # bytes of the arrays, complete
    devices: int  # that take part
    sent: float  # bytes that each device sends in a ring
    asynchronous: bool  # other kernels may run until it is done
    meanwhile: tuple[Kernel, ...]  # those that do


# Bytes that each of n devices sends for complete arrays of this size.
_SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": traffic.all_reduce,
    "all-gather": traffic.all_gather,
    "reduce-scatter": traffic.all_gather,
    "all-to-all": traffic.all_gather,
    "ragged-all-to-all": traffic.all_gather,
    "collective-permute": lambda size, _: size,
    "collective-broadcast": lambda size, _: size,
}


def collectives(module: Module, num_devices: int) -> list[Collective]:
    """The collective operations of a program for `num_devices` devices."""
    found = []
    for computation, times in module.bodies():
        for x in computation.values():
            start, holder = x, computation
            if x.op == "async-start" and x.called:
                holder = module.computations[x.called[0]]
                start = next((y for y in holder.values() if is_collective(y.op)), x)
            elif _inside_async(module, computation):
                continue
            if not is_collective(start.op) or start.op.endswith("-done"):
                continue
            op = start.op.removesuffix("-start")
            size = _size(op, start, holder)
            devices = _group(start.attributes, num_devices)
            later = tuple(_meanwhile(module, x, computation))
            found.append(
                Collective(
                    op=op,
                    scope=start.scope,
                    times=times,
                    size=size,
                    devices=devices,
                    sent=_SENT[op](size, devices),
                    asynchronous=(x is not start or x.op.endswith("-start"))
                    and '"is_sync":true' not in start.attributes,
                    meanwhile=later,
                )
            )
    return found


def _inside_async(module: Module, computation: Computation) -> bool:
    """Whether a computation is the body of an async-start, which is read with its start."""
    return any(
        module.computations[name] is computation
        for body in module.computations.values()
        for x in body.values()
        if x.op == "async-start"
        for name in x.called
    )


def _size(op: str, x: Instruction, computation: Computation) -> int:
    """The bytes of the complete arrays: what is reduced or exchanged, or what a gather makes."""
    given = sum(num_bytes(computation[name].type) for name in x.operands if name in computation)
    if op != "all-gather":
        return given
    return num_bytes(x.type) - (
        given if x.op.endswith("-start") else 0
    )  # a start has its operands in its type


def _group(attributes: str, num_devices: int) -> int:
    """How many devices take part together, from the three ways to write replica_groups."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    return num_devices


def _meanwhile(module: Module, start: Instruction, computation: Computation) -> Iterator[Kernel]:
    """The kernels between the start of an operation and its end."""
    names = list(computation)
    first = names.index(start.name) + 1
    end = next(
        (
            n
            for n, name in enumerate(names[first:], first)
            if computation[name].op.endswith("-done") and start.name in computation[name].operands
        ),
        first,
    )
    between = {name: computation[name] for name in names[first:end]}
    inner = Module({**module.computations, "between": between}, "between")
    for body, times in inner.bodies():
        known = computation if body is between else body  # operands may come from before the start
        for x in body.values():
            run = Run(x, known, times)
            if not x.follows and run.launches and not is_collective(x.op):
                yield kernel(module, run)
