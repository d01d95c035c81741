"""The bytes that devices send each other in a training step, by formula.

In a ring of n devices, each device sends 2 (n - 1) / n of the bytes of an array to sum it (all-reduce), (n - 1) / n to
collect its parts (all-gather), and as many to sum it into parts (reduce-scatter). Thakur et al. 2005, "Optimization of
Collective Communication Operations in MPICH". P is the bytes of all matrices in model.dtype, E those of the tables that are
read by token (the tables of tokens and positions in float32, a head in model.dtype), G those of all gradients (of the blocks' matrices in
model.dtype, of the others in float32), A those of the stream [rows of a device, T, D]:

    data     all-reduce of the device's part of the gradients                             G / (fsdp tensor)
    fsdp     all-gather of the other matrices, again for the backward pass with remat     (P - E) / tensor
             all-gather of the tables                                                     E / tensor
             reduce-scatter of the gradients                                              G / tensor
    tensor   all-reduce of the stream, 2 in each layer forward and 2 backward, and        A
             1 each for the embedding and the gradient of the head

With gradient accumulation, the rows of fsdp occur in each part, except for the tables: they are gathered once (a head in
float32), and so are their gradients. Not counted: losses and the softmax over a split vocabulary, which are small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.config import Config
from jaxgpt.model import linear
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import map_named, named_leaves
from jaxgpt.model.sharding import BATCH, TABLES, bytes_per_device
from jaxgpt.training import trainable


def all_reduce(size: float, devices: int) -> float:
    """Bytes that each device sends so that all have the sum of arrays of `size` bytes."""
    return 2 * (devices - 1) / devices * size


def all_gather(size: float, devices: int) -> float:
    """Bytes that each device sends to collect `size` bytes stored in equal parts; also for a reduce-scatter."""
    return (devices - 1) / devices * size


@dataclass(frozen=True)
class Traffic:
    """Bytes that each device sends in a step, along each axis of the mesh."""

    data: float
    fsdp: float
    tensor: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


def traffic(cfg: Config, sizes: Mapping[str, int]) -> Traffic:
    """The traffic of a training step on a mesh of these sizes. model.vocab_size must be set."""
    params = param_shapes(cfg.model)
    moving = trainable.select(cfg.optim, params)  # frozen parameters have no gradients
    parts = cfg.train.grad_accumulation_steps
    # Arrays that are products' results, or cast for products, before they are sent.
    gradients = _cast(
        cfg, moving, lambda path: path.startswith("block_") and linear.of_path(path) is not None
    )
    matrices = _cast(cfg, params, lambda path: path not in TABLES or (path == "head/kernel" and parts == 1))
    kept = bytes_per_device(sizes, params, gradients)
    used, used_moving, used_tables, moving_tables = (
        bytes_per_device({**sizes, "fsdp": 1}, params, _pick(tree, tables))
        for tables in (False, True)
        for tree in (matrices, gradients)
    )
    rows = cfg.data.batch_size // math.prod(sizes[axis] for axis in BATCH)
    stream = rows * cfg.model.context_length * cfg.model.d_model * jnp.dtype(cfg.model.dtype).itemsize
    gathers = parts * (1 if cfg.train.remat == "none" else 2)
    # A product over inputs that are split is summed forward; what reads the stream before it, backward.
    split = [
        layer for layer in linear.present(cfg.model) if layer.to_stream and set(layer.inputs) & set("HGF")
    ]
    sums = 2 * len(split) * cfg.model.num_layers + 2
    return Traffic(
        data=all_reduce(kept, sizes["data"]),
        fsdp=all_gather(gathers * used + parts * used_moving + used_tables + moving_tables, sizes["fsdp"]),
        tensor=sums * all_reduce(stream, sizes["tensor"]),
    )


def _pick(tree: dict, tables: bool) -> dict:
    """The tables of a tree by parameter, or all others."""
    return dict(leaf for leaf in named_leaves(tree) if (leaf[0] in TABLES) == tables)


def _cast(cfg: Config, tree: dict, casts: Callable[[str], bool]) -> dict:
    """The shapes of parameters, with model.dtype for the matrices among those that `casts` picks."""

    def one(path: str, leaf: Any) -> Any:
        matrix = casts(path) and leaf.ndim > 1 and not path.endswith("/bias")
        return jax.ShapeDtypeStruct(leaf.shape, cfg.model.dtype if matrix else leaf.dtype)

    return map_named(one, tree)
