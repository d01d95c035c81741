"""Several runs as lanes of one compiled program: which runs can share one, and how one step becomes many.

Training is a pure function of (state, batch, key). So N runs that differ only in numbers are N lanes of one program: their
states are stacked, and the numbers in which they differ are arguments. Lanes share nothing. Each device gets its part of
the lanes and computes `width` of them at once (jax.vmap), one group after another (jax.lax.map).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.config import FIELDS, Config, OptimConfig, is_off, value_of
from jaxgpt.training.steps import build, make_dispatch

LANE = "lane"

# ARGUMENTS: fields that the compiled step takes as numbers. SWITCHES: those of them where 0 switches something off; all
# lanes have it on, or all off. OUTSIDE: fields that the compiled step does not use (initial parameters, order of batches).
ARGUMENTS = tuple(name for name, f in FIELDS.items() if f.meaning.lane == "argument")
SWITCHES = tuple(name for name, f in FIELDS.items() if f.meaning.switch)
OUTSIDE = tuple(name for name, f in FIELDS.items() if f.meaning.lane == "outside")
# The names of the numbers passed. The final rate is passed as a product: computed from a ratio in float32 it could differ
# in its last bit from that of a single run.
_NUMBERS = tuple(name.replace("final_learning_rate_ratio", "final_learning_rate") for name in ARGUMENTS)


@dataclasses.dataclass(frozen=True)
class _LaneOptimConfig(OptimConfig):
    """An OptimConfig with the final rate as an argument."""

    final_learning_rate: Any = None


def with_values(cfg: Config, values: dict[str, Any]) -> Config:
    """The config with fields changed, by dotted name. Nothing is checked, so values may be traced."""
    for dotted, value in values.items():
        group, _, name = dotted.rpartition(".")
        if group:
            owner = getattr(cfg, group)
            if name == "final_learning_rate":
                value = _LaneOptimConfig(**vars(owner) | {name: value})
            else:
                value = dataclasses.replace(owner, **{name: value})
        cfg = dataclasses.replace(cfg, **{group or name: value})
    return cfg


def program_of(cfg: Config) -> Config:
    """The config with every field that lanes may vary set to one value. Runs with equal results can share a program."""
    plain = dict.fromkeys(ARGUMENTS, 0.0) | {name: FIELDS[name].default for name in OUTSIDE}
    return with_values(cfg, plain | {name: float(not is_off(value_of(cfg, name))) for name in SWITCHES})


def numbers_of(cfgs: Sequence[Config]) -> dict[str, np.ndarray]:
    """The arguments in which N configs differ, by dotted name: [N] each."""
    columns = {name: [value_of(cfg, name) for cfg in cfgs] for name in _NUMBERS}
    return {
        name: np.asarray(values, np.int32 if isinstance(values[0], int) else np.float32)
        for name, values in columns.items()
        if len(set(values)) > 1
    }


def lane_mesh(count: int) -> jax.sharding.Mesh:
    """A mesh over this process's devices, at most one for each of `count` lanes."""
    devices = jax.local_devices()[: min(count, jax.local_device_count())]
    return jax.make_mesh((len(devices),), (LANE,), (AxisType.Auto,), devices=devices)


def put(mesh: jax.sharding.Mesh, lanes: Any) -> Any:
    """Put arrays with a leading axis of lanes on the devices, each device's lanes on that device."""
    return jax.device_put(lanes, NamedSharding(mesh, P(LANE)))


def put_shared(mesh: jax.sharding.Mesh, x: Any) -> Any:
    """Put arrays that all lanes read on every device."""
    return jax.device_put(x, NamedSharding(mesh, P()))


def take(stacked: Any, n: int) -> Any:
    """Lane n of a tree of arrays, copied to the host. Only the device that holds the lane is read."""

    def one(x: jax.Array) -> np.ndarray:
        for shard in x.addressable_shards:
            first = shard.index[0].start or 0
            if first <= n < first + len(shard.data):
                return np.asarray(shard.data[n - first])
        raise IndexError(n)

    return jax.tree.map(one, stacked)


def map_lanes(function: Callable, mesh: jax.sharding.Mesh, width: int) -> Callable:
    """The function (lane, shared) -> tree as a function of all lanes: (lanes, shared) -> tree.

    Lanes are the leading axis. Their number is a multiple of the mesh's size times `width`.
    """

    def on_one_device(lanes, shared):
        def one(lane):
            return function(lane, shared)

        return jax.lax.map(one, lanes, batch_size=width if width > 1 else None)

    # Devices exchange nothing. JAX can't prove that for every operation inside, hence check_vma=False.
    return jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(LANE), P()), out_specs=P(LANE), check_vma=False
    )


def make_lane_dispatch(cfg: Config) -> Callable:
    """`steps.make_dispatch` of a lane: ((numbers, state, batches, key), ids or None) -> (state, metrics)."""

    def dispatch(lane, ids):
        numbers, state, batches, root_key = lane
        train_step = build(with_values(cfg, numbers)).train_step
        return make_dispatch(train_step, cfg)(state, ids, batches, root_key)

    return dispatch
