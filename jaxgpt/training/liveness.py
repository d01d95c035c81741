"""The cost of a traced program, from its jaxpr: nothing is compiled or allocated.

`read` inlines the calls in a jaxpr. The `Program` that it returns has the operations of matrix products; `alive` gives the
bytes that are alive at each point after fusion. The rules of fusion are the same for every program:

- Views (reshape, transpose, ...) take no memory.
- Matrix products, reductions, gathers, scatters, loops, and transcendental functions with several uses write
  their result to memory. The inputs of these operations, except reductions, are written too.
- Other elementwise results are computed again at each use. Their inputs stay alive until then.
- Reductions on a CPU (without `fuses_broadcasts`) read complete arrays: their inputs are written if they have several
  uses, and smaller operands are broadcast in memory first.
- An elementwise result takes the place of an operand of the same size that has no other reader left.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

_VIEWS = set("reshape transpose squeeze expand_dims copy copy_p stop_gradient sharding_constraint".split())
_TRANSCENDENTAL = set(
    "exp exp2 log log1p expm1 tanh erf erf_inv erfc logistic pow sqrt rsqrt cbrt sin cos div".split()
)
_REDUCTIONS = set(
    "reduce_sum reduce_max reduce_min reduce_and reduce_or reduce_prod argmax argmin reduce".split()
)
_ELEMENTWISE = set(
    "add sub mul neg sign floor ceil round max min abs integer_pow square select_n convert_element_type "
    "broadcast_in_dim iota eq ne lt le gt ge and or xor not is_finite clamp rem shift_left nextafter "
    "shift_right_logical shift_right_arithmetic bitcast_convert_type add_any rev pad slice "
    "reduce_precision copy_start empty full pvary".split()
)
_FUSIBLE = _ELEMENTWISE | _TRANSCENDENTAL
_LOOPS = {"scan", "while", "cond"}


@dataclass
class Operation:
    """One primitive, with its inputs and outputs by number; `scope` is its place in the model."""

    name: str
    inputs: list[int]
    outputs: list[int]
    scope: str
    flops: int = 0  # of matrix products, including those in a loop's body
    transient: int = 0  # peak bytes in a loop's body


@dataclass
class Program:
    """A jaxpr without its calls. Values are numbered, arguments first."""

    operations: list[Operation] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    num_arguments: int = 0
    results: list[int] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """Operations of matrix products: 2 for each multiplication."""
        return sum(op.flops for op in self.operations)


def read(closed: core.ClosedJaxpr) -> Program:
    """The program of a jaxpr (from jax.make_jaxpr), without operations that its results do not need."""
    program = Program()
    seen: dict[tuple, int] = {}

    def new(aval: Any) -> int:
        program.shapes.append(tuple(aval.shape))
        # A key's dtype has no itemsize: it is at most 4 words.
        itemsize = aval.dtype.itemsize if isinstance(aval.dtype, np.dtype) else 16
        program.bytes.append(math.prod(aval.shape) * itemsize)
        return len(program.bytes) - 1

    def walk(jaxpr: Any, names: dict[Any, int], scope: str) -> None:
        def number(atom: Any) -> int | None:
            return None if _is_literal(atom) else names[atom]

        for var in jaxpr.constvars:
            names.setdefault(var, new(var.aval))
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            inputs = [n for n in map(number, eqn.invars) if n is not None]
            here = f"{scope}/{eqn.source_info.name_stack}"
            inner = [] if name in _LOOPS else list(_jaxprs(eqn.params))
            if len(inner) == 1:
                body = getattr(inner[0], "jaxpr", inner[0])
                given = list(eqn.invars)[-len(body.invars) :] if body.invars else []
                inner_names = {}
                for var, atom in zip(body.invars, given, strict=True):
                    n = number(atom)
                    inner_names[var] = new(var.aval) if n is None else n
                walk(body, inner_names, here)
                for out, atom in zip(eqn.outvars, body.outvars, strict=True):
                    names[out] = new(out.aval) if _is_literal(atom) else inner_names[atom]
                continue
            same_size = eqn.invars and eqn.outvars[0].aval.size == getattr(eqn.invars[0].aval, "size", -1)
            view = name in _VIEWS or (name == "broadcast_in_dim" and same_size)
            if view and inputs:
                names[eqn.outvars[0]] = inputs[0]
                continue
            if name == "optimization_barrier":
                for out, atom in zip(eqn.outvars, eqn.invars, strict=True):
                    n = number(atom)
                    names[out] = new(out.aval) if n is None else n
                continue
            op = Operation(name, inputs, [], here)
            same = None  # operations with equal `same` are merged by the compiler
            if name in _FUSIBLE | _REDUCTIONS and len(inputs) == len(eqn.invars):
                same = (name, tuple(inputs), eqn.outvars[0].aval.shape, str(eqn.params))
            if same in seen:
                names[eqn.outvars[0]] = seen[same]
                continue
            for out in eqn.outvars:
                names[out] = new(out.aval)
                op.outputs.append(names[out])
            if same is not None:
                seen[same] = op.outputs[0]
            if name == "dot_general":
                op.flops = _matmul_flops(eqn)
            for body in _jaxprs(eqn.params) if name in _LOOPS else ():
                part = read(body)
                op.flops += part.flops * (eqn.params["length"] if name == "scan" else 1)
                # Loops are read by the rules of a GPU: their broadcasts are small.
                op.transient = max(op.transient, peak_bytes(part, fuses_broadcasts=True))
            program.operations.append(op)

    names = {var: new(var.aval) for var in closed.jaxpr.invars}
    program.num_arguments = len(names)
    walk(closed.jaxpr, names, "")
    program.results = [names[v] for v in closed.jaxpr.outvars if not _is_literal(v)]
    _drop_unused(program)
    return program


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, core.Literal)


def _jaxprs(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr]:
    """The programs among a primitive's parameters (the body of a call or loop)."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "branches"):
        value = params.get(key)
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, core.Jaxpr | core.ClosedJaxpr):
                yield core.ClosedJaxpr(one, ()) if isinstance(one, core.Jaxpr) else one


def _matmul_flops(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _drop_unused(program: Program) -> None:
    needed, kept = set(program.results), []
    for op in reversed(program.operations):
        if needed.intersection(op.outputs):
            needed.update(op.inputs)
            kept.append(op)
    program.operations = kept[::-1]


class Alive(NamedTuple):
    """The arrays in memory while an operation runs, without the arguments."""

    total: int  # bytes
    transient: int  # bytes of them in a loop's body
    arrays: dict[int, tuple[tuple[int, ...], int]]  # (shape, bytes) of each


def peak_bytes(program: Program, fuses_broadcasts: bool) -> int:
    """The most bytes of temporaries that are alive at once."""
    return max((at.total for at in alive(program, fuses_broadcasts)), default=0)


def _fusion(ops: list[Operation], fuses_broadcasts: bool) -> tuple[set[int], set[int]]:
    """The values that are written to memory by the rules at the top, and those that are fused into a reduction."""
    users: dict[int, list[Operation]] = {}
    for op in ops:
        for value in set(op.inputs):
            users.setdefault(value, []).append(op)
    written: set[int] = set()
    into_reduction: set[int] = set()
    readers: dict[int, int] = {}  # number of operations that compute the value again
    for op in reversed(ops):
        for out in op.outputs:
            uses = users.get(out, [])
            results = [u.outputs[0] for u in uses]
            reduced = any(u.name in _REDUCTIONS for u in uses)
            if reduced or any(n in into_reduction and n not in written for n in results):
                into_reduction.add(out)
            readers[out] = sum(1 if n in written else max(1, readers[n]) for n in results)
            if (
                op.name not in _FUSIBLE
                or (op.name in _TRANSCENDENTAL and readers[out] > 1)
                or any(u.name not in _FUSIBLE | _REDUCTIONS for u in uses)
                or (len(uses) > 1 and (reduced or (not fuses_broadcasts and out in into_reduction)))
            ):
                written.add(out)
    return written, into_reduction


def alive(program: Program, fuses_broadcasts: bool) -> Iterator[Alive]:
    """The arrays alive while each operation runs. Results are written over arguments, as in a step with donation."""
    ops, arguments, results = program.operations, range(program.num_arguments), set(program.results)
    shapes, size = list(program.shapes), list(program.bytes)
    count = [math.prod(shape) for shape in shapes]
    written, into_reduction = _fusion(ops, fuses_broadcasts)
    in_memory = written | results

    # The values in memory from which each value is computed: itself if it is there.
    roots: dict[int, frozenset[int]] = {n: frozenset([n]) for n in arguments}
    born: dict[int, int] = {}
    last_use: dict[int, int] = {}
    copies: dict[tuple[int, int], int] = {}  # (value, count) -> the value broadcast to `count` numbers
    # CPU: an argument is copied first if a result that is not written over it reads it. Until then its place holds
    # temporaries of its size, or of half of it.
    copied: set[int] = set()
    written_over = dict(zip(program.results, arguments, strict=False))
    for i, op in enumerate(ops):
        inputs = list(op.inputs)
        first = op.outputs[0]
        if not fuses_broadcasts and first in into_reduction and op.name in _FUSIBLE:
            full = count[first]
            for n in op.inputs:
                if 1 < count[n] < full:
                    copy = copies.setdefault((n, full), len(size))
                    if copy == len(size):
                        size.append(size[n] // count[n] * full)
                        shapes.append(shapes[first])
                        roots[copy], born[copy] = frozenset([copy]), born.get(n, 0)
                    inputs.append(copy)
        reads = frozenset().union(*(roots.get(n, frozenset()) for n in inputs))
        for out in op.outputs:
            born[out] = i
            roots[out] = frozenset([out]) if out in in_memory else reads
            if out in results and not fuses_broadcasts:
                copied |= {n for n in reads if n in arguments and n != written_over.get(out)}
        # A fused operation reads nothing: its users read its inputs.
        if in_memory.intersection(op.outputs):
            last_use |= dict.fromkeys(reads, i)
    free = sorted(size[n] for n in copied)

    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for n, i in last_use.items():
        if n not in results and (n >= program.num_arguments or n in copied):
            begins.setdefault(born.get(n, 0), []).append(n)
            ends.setdefault(i, []).append(n)

    live = 0
    arrays: dict[int, Any] = {}
    lodgers: dict[int, int] = {}  # value -> bytes of the argument's place that it has

    def end(n: int) -> None:
        nonlocal live
        if n in lodgers:
            bisect.insort(free, lodgers.pop(n))
        else:
            del arrays[n]
            live -= size[n]

    for i, op in enumerate(ops):
        dying = [n for n in ends.get(i, ()) if n in arrays or n in lodgers]
        in_place = op.name in _FUSIBLE or op.name.startswith("scatter")
        for n in begins.get(i, ()):
            same = next((d for d in dying if in_place and size[d] == size[n]), None)
            if same is not None:
                dying.remove(same)
                end(same)
            place = bisect.bisect_left(free, size[n])
            if n not in copied and place < len(free) and free[place] <= 2 * size[n]:
                lodgers[n] = free.pop(place)
                continue
            arrays[n] = shapes[n], size[n]
            live += size[n]
        yield Alive(live + op.transient, op.transient, arrays)
        for n in dying:
            end(n)


def trace(function: Callable, *abstract: Any) -> Program:
    """The program of a function at arguments given as shapes."""
    return read(jax.make_jaxpr(function)(*abstract))
