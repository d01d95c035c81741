"""Checksums of arrays that do not depend on the number of devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.model.sharding import replicate


def checksums(tree: Any) -> jax.Array:
    """One uint32 per leaf: sums of integers, which do not depend on the number of devices or on the order."""

    def leaf_sum(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        # Each element is first mixed with its position: a plain sum would not change when two elements are swapped.
        for axis in range(x.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            bits = (bits ^ (place * jnp.uint32(2_654_435_761))) * jnp.uint32(2_246_822_519 - 2 * axis)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(3_266_489_917)
        return bits.sum(dtype=jnp.uint32)

    return replicate(jnp.stack([leaf_sum(leaf) for leaf in jax.tree.leaves(tree)]))


jit_checksums = jax.jit(checksums)


@jax.jit
def copied(tree: Any) -> Any:
    """A copy of every array, which the next training step can't overwrite."""
    return jax.tree.map(jnp.copy, tree)
