"""What each kernel of a compiled program computes, reads and writes, and the part of the step that it belongs to.

An instruction of the module that is not inside a fusion is one kernel. It has to read what its operands need and to write its
result, at least; a slice or a gather reads what it takes, an update in place writes what it changes.
"""

from __future__ import annotations

import collections
import math
import re
from dataclasses import dataclass

from jaxgpt.training.target.hlo import Computation, Instruction, Module, Run, arrays, count, num_bytes

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
               "collective-broadcast")  # fmt: skip
_INTEGER_WORK = set("add subtract multiply xor and or shift-left shift-right-logical".split())
ATTENTION = "fused attention"  # the dtype of its products, in these tables


@dataclass(frozen=True)
class Kernel:
    """A kernel of a program, with its work in one launch."""

    name: str
    op: str
    scope: str  # its place in the traced program
    part: str  # one of PARTS
    times: int  # launches in one call of the program
    read: float  # bytes
    written: float
    flops: int = 0  # of matrix products
    dtype: str = ""  # of them: bf16, tf32, f32, or ATTENTION
    integers: int = 0  # operations on integers: random masks
    text: str = ""  # shapes of its products, or the shape of its result

    @property
    def bytes(self) -> float:
        return self.read + self.written


def is_collective(op: str) -> bool:
    return op.removesuffix("-start").removesuffix("-done") in COLLECTIVES


def kernels(module: Module) -> list[Kernel]:
    """The kernels of a program, without collectives."""
    return [
        kernel(module, run) for run in module.runs() if run.launches and not is_collective(run.instruction.op)
    ]


# --- one kernel -----------------------------------------------------------------------------------------


def kernel(module: Module, run: Run) -> Kernel:
    """The work of one launch. Bytes of workspaces are not counted."""
    x = run.instruction
    read: float = sum(num_bytes(operand.type) for operand in run.operands)
    written: float = num_bytes(x.type)
    flops, dtype, text, integers = 0, "", _plain(x.type), 0
    if x.op == "fusion":
        read, written = _fusion_bytes(module, x)
        inside = list(module.inside(x.called[0]))
        products = [_PRODUCTS[y.op](y, computation) for y, computation in inside if y.op in _PRODUCTS]
        if products:
            flops, dtype = sum(product[0] for product in products), products[0][1]
            text = "; ".join(product[2] for product in products)
        integers = sum(
            count(y.type)
            for y, _ in inside
            if y.op in _INTEGER_WORK and y.type.startswith(("u32", "s32", "u64"))
        )
    elif x.op in _PRODUCTS:
        flops, dtype, text = _PRODUCTS[x.op](x, run.computation)
    elif "fmha" in x.target:
        flops, dtype, text = _attention(run)
        written = sum(_bytes_of(found) for found in arrays(x.type) if found[0] != "u8")
    elif "cublas" in x.target or "matmul" in x.target:
        flops, dtype, text = _library_product(run)
        written = _bytes_of(arrays(x.type)[0])  # the second is the workspace
    elif x.op == "dynamic-slice":
        read = written
    elif x.op == "dynamic-update-slice":
        read = written = num_bytes(run.operand(1).type)
    scope = x.scope or _scope_inside(module, x)
    return Kernel(
        x.name, x.op, scope, part_of(scope, dtype), run.times, read, written, flops, dtype, integers, text
    )


def _plain(text: str) -> str:
    return re.sub(r"\{[^}]*\}", "", text)


def _bytes_of(array: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = array
    return num_bytes(f"{dtype}[{','.join(map(str, shape))}]")


def _scope_inside(module: Module, x: Instruction) -> str:
    """The scope that most instructions of a fusion have, for one that has none."""
    if x.op != "fusion":
        return ""
    scopes = collections.Counter(y.scope for y, _ in module.inside(x.called[0]) if "/" in y.scope)
    return scopes.most_common(1)[0][0] if scopes else ""


def _product_dtype(dtype: str, attributes: str) -> str:
    """float32 is multiplied as tf32 unless the product asks for more."""
    if dtype != "f32":
        return dtype
    exact = re.search(r"highest|f32_f32_f32", attributes, re.IGNORECASE)
    return "f32" if exact else "tf32"


def _dot(x: Instruction, computation: Computation) -> tuple[int, str, str]:
    """FLOPs, dtype and text of a product in a fusion."""
    (left, left_shape), (right, right_shape) = (arrays(computation[name].type)[0] for name in x.operands[:2])
    contracted = math.prod(left_shape[axis] for axis in x.dimensions("lhs_contracting_dims"))
    flops = 2 * count(x.type) * contracted
    text = f"{left}{list(left_shape)} x {right}{list(right_shape)} -> {_plain(x.type)}"
    return flops, _product_dtype(left, x.attributes), text


def _convolution(x: Instruction, computation: Computation) -> tuple[int, str, str]:
    """The same of a convolution, which is what XLA's compiler for TPUs makes of a product.

    Axes of a batch become positions of a window, with zeros between or around the input's: only the input's count.
    """
    (left, left_shape), (right, right_shape) = (arrays(computation[name].type)[0] for name in x.operands[:2])
    (_, out_shape) = arrays(x.type)[0]
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    inputs, kernel, outputs = found.groups() if found else ("bf", "io", "bf")
    multiplied: float = count(x.type) * right_shape[kernel.index("i")]
    window = re.search(r"window=\{([^}]*)\}", x.attributes)
    values = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    axes = len(inputs) - 2
    for axis in range(axes):

        def of(name: str, default: str, axis: int = axis) -> str:
            return values[name].split("x")[axis] if name in values else default

        size, stride, dilation = int(of("size", "1")), int(of("stride", "1")), int(of("lhs_dilate", "1"))
        before, spread = int(of("pad", "0_0").split("_")[0]), int(of("rhs_dilate", "1"))
        real, results = left_shape[inputs.index(str(axis))], out_shape[outputs.index(str(axis))]
        places = [o * stride + w * spread - before for o in range(results) for w in range(size)]
        hits = sum(0 <= place <= (real - 1) * dilation and place % dilation == 0 for place in places)
        multiplied *= hits / results
    text = f"{left}{list(left_shape)} x {right}{list(right_shape)} -> {_plain(x.type)}"
    return round(2 * multiplied), _product_dtype(left, x.attributes), text


_PRODUCTS = {"dot": _dot, "convolution": _convolution}


def _library_product(run: Run) -> tuple[int, str, str]:
    """FLOPs, dtype and text of a product that cuBLAS computes."""
    x = run.instruction
    (left, left_shape), (right, right_shape) = (arrays(run.operand(n).type)[0] for n in (0, 1))
    out, out_shape = arrays(x.type)[0]
    contracted = math.prod(left_shape[axis] for axis in x.dimensions("lhs_contracting_dimensions"))
    precision = re.search(r'"precision_config":\{[^}]*\}', x.attributes)
    text = f"{left}{list(left_shape)} x {right}{list(right_shape)} -> {out}{list(out_shape)}"
    dtype = _product_dtype(left, precision[0] if precision else "")
    return 2 * math.prod(out_shape) * contracted, dtype, text


def _attention(run: Run) -> tuple[int, str, str]:
    """FLOPs of cuDNN's attention: two products forward, five backward; half of them with a causal mask."""
    x = run.instruction
    scores = math.prod(x.dimensions("dimensions"))
    width = arrays(run.operand(0).type)[0][1][-1]
    products = 5 if "Backward" in x.target else 2
    causal = re.search(r'"mask_type":\s*"[A-Z_]*CAUSAL', x.attributes) is not None
    direction = "backward" if "Backward" in x.target else "forward"
    text = f"{direction} {_plain(run.operand(0).type)}{', causal' if causal else ''}"
    return products * 2 * scores * width // (2 if causal else 1), ATTENTION, text


def _fusion_bytes(module: Module, x: Instruction) -> tuple[float, float]:
    """The bytes that a fusion has to read and to write.

    The elements that its result needs are followed back to its parameters.
    """
    inside = module.computations[x.called[0]]
    size = {name: max(1, count(y.type)) for name, y in inside.items()}
    root = next(y for y in inside.values() if y.root)
    needed: dict[str, float] = collections.defaultdict(float)
    needed[root.name] = size[root.name]
    for name in reversed(inside):  # users come after what they use
        y = inside[name]
        wanted = min(needed[name], size[name])
        if not wanted or y.op in ("parameter", "constant"):
            continue
        for index, operand in enumerate(y.operands):
            if operand not in inside:
                continue
            if (y.op in ("slice", "dynamic-slice", "gather") and index == 0) or y.op == "get-tuple-element":
                needed[operand] += wanted
            elif y.op in ("dynamic-update-slice", "scatter") and index == 0:
                needed[operand] += 0 if _is_argument(operand, inside) else wanted
            elif y.op in ("dot", "fusion", "tuple"):
                needed[operand] += size[operand]
            else:
                needed[operand] += wanted / size[name] * size[operand]
    read = sum(
        num_bytes(y.type) * min(needed[name], size[name]) / size[name]
        for name, y in inside.items()
        if y.op == "parameter"
    )
    written = 0.0
    for result in [inside[name] for name in root.operands] if root.op == "tuple" else [root]:
        while result.op == "bitcast":
            result = inside[result.operands[0]]
        if result.op == "dynamic-update-slice":
            written += num_bytes(inside[result.operands[1]].type)
        elif result.op == "scatter":  # reads and writes the rows that it adds to
            written += 2 * num_bytes(inside[result.operands[-1]].type)
        else:
            written += num_bytes(result.type)
    return read, written


def _is_argument(name: str, inside: Computation) -> bool:
    """Whether a value is a parameter of the fusion, which the compiler updates in place."""
    while inside[name].op in ("bitcast", "get-tuple-element", "convert"):
        name = inside[name].operands[0]
    return inside[name].op == "parameter"


# --- parts of a step ------------------------------------------------------------------------------------

PARTS = (
    "block products",
    "loss products",
    "loss, the rest",
    "norms, activations, biases",
    "attention",
    "embedding",
    "optimizer products",
    "optimizer, guard, copies",
)


def part_of(scope: str, dtype: str) -> str:
    """The part of a step that a kernel belongs to, by its scope and whether it is a product.

    Everything within `GPT.features` belongs to the model, everything else that is differentiated to the loss.
    """
    if dtype == ATTENTION:
        return "attention"
    if "GPT.embed" in scope:
        return "embedding"
    if "GPT.features" in scope:
        if re.search(r"/attention/(?!query|key|value|out)", scope):
            return "attention"
        return "block products" if dtype else "norms, activations, biases"
    if "jvp(" in scope:
        return "loss products" if dtype else "loss, the rest"
    return "optimizer products" if dtype else "optimizer, guard, copies"
