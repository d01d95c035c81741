"""The mesh of devices, and which part of every parameter a device holds.

A mesh has three axes. `data`: copies of the parameters, parts of the batch. `fsdp`: parts of the batch and parts of
every matrix, which are gathered for each use (Rajbhandari et al. 2020, ZeRO stage 3). `tensor`: parts of the
heads, of the MLP's width and of the vocabulary (Shoeybi et al. 2019, Megatron-LM). XLA derives
all communication (Xu et al. 2021, GSPMD): the model is the same function on one device and on many.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt import config
from jaxgpt.common import machine
from jaxgpt.config import UserError
from jaxgpt.model.linear import LINEAR
from jaxgpt.model.paths import map_named, named_leaves

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the mesh axes that split the rows of a batch

# The mesh axis of each axis of a parameter, by its path without `block_<i>/`. Small vectors are on every device.
SPECS: dict[str, P] = {
    "token_embedding/embedding": P("tensor", "fsdp"),  # [V, E]
    "position_embedding/embedding": P(None, "fsdp"),  # [T, D]
    "attention/value_mix": P(),
    "attention/query_norm/scale": P(),
    "attention/key_norm/scale": P(),
    "embedding_mix": P(),
} | {path: spec for layer in LINEAR.values() for path, spec in layer.specs().items()}
TABLES = ("token_embedding/embedding", "position_embedding/embedding", "head/kernel")  # read by token
NORMS = ("attention_norm", "mlp_norm", "final_norm")  # all their parameters are on every device


def _name(path: str) -> str:
    return re.sub(r"^block_\d+/", "", path)


def spec(path: str) -> P:
    """The mesh axes of a parameter, by its path. Raises KeyError for a path without a row: the table is complete."""
    name = _name(path)
    return P() if name.split("/")[0] in NORMS else SPECS[name]


def complete_rows(path: str) -> P:
    """The mesh axes of a table that is used: those of its parameter, without fsdp."""
    return P(*(None if axis == "fsdp" else axis for axis in spec(path)))


def mesh_sizes(cfg: config.MeshConfig, count: int) -> dict[str, int]:
    """The three sizes; -1 becomes what `count` devices leave. Raises UserError if that is not possible."""
    sizes = {name: getattr(cfg, name) for name in AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if count % given:
            raise UserError(
                f"mesh {as_text(sizes)}: {given} does not divide this run's {count} devices: choose sizes that do"
            )
        sizes = {name: count // given if size == -1 else size for name, size in sizes.items()}
    return sizes


def make_mesh(cfg: config.MeshConfig) -> jax.sharding.Mesh:
    """The mesh of a config on this machine's devices. Raises UserError if there are too few."""
    count = jax.device_count()
    sizes = mesh_sizes(cfg, count)
    total = math.prod(sizes.values())
    if total > count or (total != count and jax.process_count() > 1):
        raise UserError(
            f"mesh {as_text(sizes)} is {total} devices, this run has {count}: choose sizes whose product is {count}"
        )
    devices = jax.devices()[:total]
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def as_text(sizes: Mapping[str, int]) -> str:
    """The sizes of a mesh: `data 2 x fsdp 4 x tensor 1`."""
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def check(sizes: Mapping[str, int], params: dict, cfg: config.Config) -> None:
    """Raises UserError that lists every size that a mesh of these sizes does not divide."""
    rows = math.prod(sizes[axis] for axis in BATCH)
    part = cfg.data.batch_size // cfg.train.grad_accumulation_steps
    problems = []
    if part % rows:
        problems.append(
            f"data.batch_size={cfg.data.batch_size} over train.grad_accumulation_steps="
            f"{cfg.train.grad_accumulation_steps} is {part} rows, not a multiple of data x fsdp = {rows}"
        )
    wrong = {
        f"{_name(path)} {list(leaf.shape)}: {size} is not a multiple of mesh.{axis}={sizes[axis]}"
        for path, leaf in named_leaves(params)
        for size, axis in zip(leaf.shape, spec(path), strict=False)
        if axis and size % sizes[axis]
    }
    if problems := problems + sorted(wrong):
        raise UserError(
            "the mesh does not fit: "
            + "; ".join(problems)
            + " (model.vocab_multiple rounds the vocabulary up)"
        )


def device_memory() -> int:
    """Bytes that the first device may use; on a CPU, the memory of the machine."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or machine.memory()


def taken(per_device: int, sizes: Mapping[str, int]) -> int:
    """Bytes of what `device_memory` gives that are taken by `per_device` bytes on each device of a mesh of these sizes.

    CPU devices share the memory of the machine.
    """
    shared = jax.default_backend() == "cpu"
    return per_device * min(math.prod(sizes.values()), jax.local_device_count()) if shared else per_device


def bytes_by_device(tree: Any) -> dict[jax.Device, int]:
    """Bytes of arrays, or of their shapes with shardings, on each device of this process."""
    found: dict[jax.Device, int] = dict.fromkeys(jax.local_devices(), 0)
    for leaf in jax.tree.leaves(tree):
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for device in leaf.sharding.addressable_devices:
            found[device] += part
    return found


def fits_twice(tree: Any) -> bool:
    """Whether a second copy of these arrays fits on the devices; on a CPU, into a quarter of the machine's memory.

    The leaves are arrays, or their shapes with shardings.
    """
    for device, size in bytes_by_device(tree).items():
        stats = device.memory_stats() or {}
        free = (
            stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else device_memory() // 4
        )
        if size > free * 0.9:
            return False
    return True


# --- trees ----------------------------------------------------------------------------------------------


def specs(params: dict, tree: Any) -> Any:
    """A PartitionSpec for every array of a tree of parameters or of optimizer state.

    An array whose path ends with a parameter's path, and that has its shape, is split as the parameter; all others
    (counts, factored moments) are on every device.
    """
    shapes = {path: leaf.shape for path, leaf in named_leaves(params)}

    def one(path: str, leaf: Any) -> P:
        words = path.split("/")
        names = ("/".join(words[start:]) for start in range(len(words)))
        return next((spec(name) for name in names if shapes.get(name) == leaf.shape), P())

    return map_named(one, tree)


def bytes_per_device(sizes: Mapping[str, int], params: dict, tree: Any) -> int:
    """Bytes of a tree of arrays or shapes on each device of a mesh of these sizes, split as `specs` says."""

    def one(leaf: Any, where: P) -> int:
        return leaf.size * leaf.dtype.itemsize // math.prod(sizes[axis] for axis in where if axis)

    return sum(jax.tree.leaves(jax.tree.map(one, tree, specs(params, tree))))


def with_shardings(mesh: jax.sharding.Mesh, params: dict, tree: Any) -> Any:
    """The shapes of a tree with the sharding of each; unchanged on one device."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where)),
        tree,
        specs(params, tree),
    )


# --- within a traced function ---------------------------------------------------------------------------


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh):
    """Within this context the functions below constrain traced arrays to the mesh; on one device they do nothing."""
    if mesh.size == 1:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def _mesh_in_use() -> jax.sharding.AbstractMesh | None:
    """The mesh of `use_mesh`, or None: the mesh of `lanes.map_lanes` has other axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if AXES[0] in mesh.axis_names else None


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """x with its axes split over those of the mesh in use; an axis that the mesh does not divide stays unsplit."""
    mesh = _mesh_in_use()
    if mesh is None:
        return x

    def fits(size: int, axis: str | tuple[str, ...] | None) -> bool:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return size % math.prod(mesh.shape[name] for name in names) == 0

    kept = [axis if fits(size, axis) else None for size, axis in zip(x.shape, axes, strict=False)]
    return jax.lax.with_sharding_constraint(x, P(*kept))


def parts_of_batch(rows: int) -> int:
    """How many parts a batch of so many rows has on the mesh in use, each of equally many rows; 1 without a mesh."""
    mesh = _mesh_in_use()
    count = 1 if mesh is None else math.prod(mesh.shape[name] for name in BATCH)
    return count if rows % count == 0 else 1


def parts_along(axis: str | None, size: int) -> int:
    """How many parts an array of this size has along an axis of the mesh in use; 1 without a mesh or an axis."""
    mesh = _mesh_in_use()
    count = 1 if mesh is None or axis is None else mesh.shape[axis]
    return count if size % count == 0 else 1


def constrain_like(params: dict, tree: Any) -> Any:
    """A tree of arrays (gradients, new states), each split as `specs` says."""
    if _mesh_in_use() is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(params, tree))


def spread_tables(tree: dict) -> dict:
    """A tree by parameter with a copy of each of TABLES for each part of a batch's rows: [V, E] -> [S, V, E].

    Each device has the copy for its rows, complete but for the tensor axis. So in the parts of an accumulated batch it adds to a
    gradient of its own, and `sum_tables` adds those of all devices once. The model takes tables of both shapes.
    """

    def one(path: str, leaf: jax.Array) -> jax.Array:
        copies = jnp.broadcast_to(leaf, (count, *leaf.shape))
        return constrain(copies, BATCH, *complete_rows(path))

    mesh = _mesh_in_use()
    count = 1 if mesh is None else math.prod(mesh.shape[name] for name in BATCH)
    return tree if count == 1 else map_named(lambda path, x: one(path, x) if path in TABLES else x, tree)


def sum_tables(tree: dict) -> dict:
    """The sums over the copies that `spread_tables` has made, split as the parameters."""

    def one(path: str, leaf: jax.Array) -> jax.Array:
        if path in TABLES and leaf.ndim > len(spec(path)):
            return constrain(leaf.sum(axis=0), *spec(path))
        return leaf

    return map_named(one, tree)


def replicate(tree: Any) -> Any:
    """A tree of arrays, each complete on every device, for the host to read."""
    if _mesh_in_use() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)


@jax.jit
def gather(tree: Any) -> Any:
    """`replicate`, for arrays of any sharding, also across processes."""
    return replicate(tree)


# --- batches --------------------------------------------------------------------------------------------


def put_batch(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], cut: Callable[[slice], np.ndarray], axis: int
) -> jax.Array | np.ndarray:
    """A batch with its rows along `axis`; `cut(rows)` makes any part. Each process makes only the rows of its devices."""
    if mesh.size == 1:
        return cut(slice(None))
    where = NamedSharding(mesh, P(*(None,) * axis, BATCH))

    def cut_at(index: tuple[slice, ...] | None) -> np.ndarray:
        return cut(slice(None) if index is None else index[axis])

    return jax.make_array_from_callback(shape, where, cut_at)


def put_replicated(mesh: jax.sharding.Mesh, x: np.ndarray) -> jax.Array:
    """An array of the host, complete on every device of the mesh."""
    if mesh.size == 1:
        return jax.device_put(x)
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P()), lambda index: x[index])


def put_flag(mesh: jax.sharding.Mesh, flag: int) -> jax.Array:
    """An array [devices] in which each device has the flag of its process, so that a traced function sees all flags."""
    where = NamedSharding(mesh, P(AXES))
    return jax.make_array_from_callback((mesh.size,), where, lambda _: np.full((1,), flag, np.int32))
