"""Our arrays in the tensors of other tools: where each stands, and in which form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxgpt.model import linear

Shape = tuple[int, ...]


class Form(NamedTuple):
    """How arrays of ours are stored in one tensor of theirs. The numbers are the same in both directions."""

    shape: Callable[[Sequence[Shape], int], Shape]  # theirs, from ours and the number of input axes
    theirs: Callable[[list[np.ndarray], Shape], np.ndarray]
    ours: Callable[[np.ndarray, Sequence[Shape]], list[np.ndarray]]


def _side_by_side(shapes: Sequence[Shape], inputs: int) -> Shape:
    """All outputs on one axis, after all inputs on another."""
    outputs = sum(math.prod(shape[inputs:]) for shape in shapes)
    return (math.prod(shapes[0][:inputs]), outputs) if inputs else (outputs,)


def _join_columns(parts: list[np.ndarray], shape: Shape) -> np.ndarray:
    return np.concatenate([part.reshape(*shape[:-1], -1) for part in parts], axis=-1)


def _split_columns(array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    parts = np.split(array, len(shapes), axis=-1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _join_heads(parts: list[np.ndarray], shape: Shape) -> np.ndarray:
    """[..., H, K] of queries, keys and values -> [H 3 K, ...]: the three of one head are next to each other."""
    return np.stack(parts, axis=-2).reshape(shape[::-1]).T


def _split_heads(array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    *rest, heads, width = shapes[0]
    by_head = array.T.reshape(*rest, heads, len(shapes), width)
    return [by_head[..., i, :] for i in range(len(shapes))]


FORMS: dict[str, Form] = {
    # A table as it is.
    "table": Form(
        lambda shapes, inputs: shapes[0],
        lambda parts, shape: parts[0],
        lambda array, shapes: [array],
    ),
    # A vector. Ours of heads has two axes.
    "vector": Form(
        lambda shapes, inputs: (math.prod(shapes[0]),),
        lambda parts, shape: parts[0].reshape(shape),
        lambda array, shapes: [array.reshape(shapes[0])],
    ),
    # torch.nn.Linear: [out, in].
    "linear": Form(
        lambda shapes, inputs: _side_by_side(shapes, inputs)[::-1],
        lambda parts, shape: parts[0].reshape(shape[::-1]).T,
        lambda array, shapes: [array.T.reshape(shapes[0])],
    ),
    # GPT-2's Conv1D: [in, out], several layers side by side.
    "columns": Form(_side_by_side, _join_columns, _split_columns),
    # GPT-NeoX's queries, keys and values.
    "by_head": Form(
        lambda shapes, inputs: _side_by_side(shapes, inputs)[::-1],
        _join_heads,
        _split_heads,
    ),
}


class Row(NamedTuple):
    """A line of a family's table of tensors: their name, the form, and our paths."""

    name: str
    form: str
    paths: str


@dataclass(frozen=True)
class Place:
    """One of their tensors in a model: its name without prefix, and our arrays in it."""

    name: str
    form: str
    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of our arrays

    @property
    def shape(self) -> Shape:
        """The shape of their tensor."""
        layer = linear.of_path(self.paths[0])
        inputs = len(layer.inputs) if layer and self.paths[0].endswith("/kernel") else 0
        return FORMS[self.form].shape(self.shapes, inputs)

    def theirs(self, ours: Mapping[str, np.ndarray]) -> np.ndarray:
        """Their tensor from our arrays by path."""
        return FORMS[self.form].theirs([ours[path] for path in self.paths], self.shape)

    def ours(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Our arrays by path from their tensor."""
        return dict(zip(self.paths, FORMS[self.form].ours(array, self.shapes), strict=True))


def place(row: Row, shapes: Mapping[str, Shape], theirs: str = "", ours: str = "") -> Place | None:
    """The place of a row, with what stands in front of both names; None where the model has none of its arrays."""
    paths = tuple(ours + path for path in row.paths.split())
    if not any(path in shapes for path in paths):
        return None
    return Place(theirs + row.name, row.form, paths, tuple(shapes[path] for path in paths))
