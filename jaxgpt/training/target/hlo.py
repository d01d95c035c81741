"""An optimized HLO module, read from the compiler's text: instructions, what calls what, and how often each one runs.

The grammar that is read here is that of HloModule::ToString (https://openxla.org/xla/operation_semantics has the operations).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64,
}  # fmt: skip
# Instructions that run nothing: they name, group or reinterpret values.
_FREE = set(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id add-dependency opt-barrier "
    "async-done async-update copy-done".split()
)
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@functools.lru_cache(maxsize=65_536)
def arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The (dtype, shape) of each array in a type, such as `(f32[2,3]{1,0}, s32[])`."""
    found = _ARRAY.findall(text)
    return tuple(
        (dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in found if dtype in ITEM_BITS
    )


def count(text: str) -> int:
    """The number of elements of a type."""
    return sum(math.prod(shape) for _, shape in arrays(text))


def num_bytes(text: str) -> int:
    """The bytes of a type."""
    return sum(ITEM_BITS[dtype] * math.prod(shape) // 8 for dtype, shape in arrays(text))


@dataclass(frozen=True)
class Instruction:
    """One instruction. `operands` and `called` are names; `scope` is its place in the traced program (op_name)."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    called: tuple[str, ...]
    scope: str
    root: bool

    @property
    def target(self) -> str:
        """The function of a custom call."""
        return self._value("custom_call_target")

    @property
    def follows(self) -> bool:
        """Whether it runs the instructions of other computations."""
        return self.op in ("while", "call", "conditional") or (self.op == "async-start" and bool(self.called))

    @property
    def trips(self) -> int:
        """How often a loop's body runs. 1 where there is no loop, or the compiler does not know it."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else 1

    def dimensions(self, name: str) -> tuple[int, ...]:
        """The list of numbers of an attribute, as `lhs_contracting_dims={1}` or `"lhs_contracting_dimensions":["1"]`."""
        found = re.search(rf'{name}"?\s*[:=]\s*[\[{{]([^\]}}]*)[\]}}]', self.attributes)
        return tuple(map(int, re.findall(r"\d+", found[1]))) if found else ()

    def _value(self, name: str) -> str:
        found = re.search(rf'\b{name}="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # in the order in which they run


@dataclass(frozen=True)
class Run:
    """An instruction that the device runs (not one inside a fusion), with its computation."""

    instruction: Instruction
    computation: Computation
    times: int  # in one call of the program

    @property
    def launches(self) -> bool:
        """Whether something runs on the device."""
        return self.instruction.op not in _FREE and not self.instruction.op.endswith("-done")

    def operand(self, index: int) -> Instruction:
        return self.computation[self.instruction.operands[index]]

    @property
    def operands(self) -> list[Instruction]:
        return [self.computation[name] for name in self.instruction.operands if name in self.computation]


@dataclass
class Module:
    """A compiled program."""

    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""

    @property
    def arguments(self) -> list[Instruction]:
        return [x for x in self.computations[self.entry].values() if x.op == "parameter"]

    def runs(self) -> Iterator[Run]:
        """Every instruction that runs, with loops, calls and branches followed."""
        for computation, times in self.bodies():
            for x in computation.values():
                if not x.follows:
                    yield Run(x, computation, times)

    def bodies(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Computation, int]]:
        """The computations whose instructions run, and how often each runs in one call of the program."""
        computation = self.computations[name or self.entry]
        yield computation, times
        for x in computation.values():
            if x.follows:
                for called in x.called:
                    yield from self.bodies(called, times * x.trips)

    def inside(self, name: str) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions of a fusion's computation and of those that it calls."""
        computation = self.computations[name]
        for x in computation.values():
            yield x, computation
            if x.op in ("fusion", "call"):
                for called in x.called:
                    yield from self.inside(called)


def read(text: str) -> Module:
    """The module that a text describes."""
    module = Module()
    current: Computation = {}
    for line in text.splitlines():
        if line[:1].strip():
            if found := _COMPUTATION.match(line):
                current = module.computations[found[2]] = {}
                if found[1]:
                    module.entry = found[2]
            continue
        if found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(bool(found[1]), found[2], found[3], found[4], found[5])
    return module


def _instruction(root: bool, name: str, kind: str, op: str, rest: str) -> Instruction:
    depth, end = 1, 0
    while end < len(rest) and depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    given, attributes = rest[: end - 1], rest[end:]
    called = _CALLED.findall(attributes)
    if branches := _BRANCHES.search(attributes):
        called += re.findall(r"[\w.\-]+", branches[1])
    scope = re.search(r'op_name="([^"]*)"', attributes)
    operands = () if op in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", given))
    kind = re.sub(r"/\*.*?\*/", "", kind)
    return Instruction(name, kind, op, operands, attributes, tuple(called), scope[1] if scope else "", root)
