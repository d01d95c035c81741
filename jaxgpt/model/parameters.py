"""The decoder-only transformer: a pure function of (params, tokens).

Legend of dimensions, used as suffixes of names and as letters in einsum strings:

    B batch   T query position   S key position   D d_model   H heads   K head width (D / H)
    G heads of keys and values (H unless num_kv_heads says otherwise)   F width of the MLP's hidden layer
    V vocabulary; of the tables, rounded up to vocab_multiple
    E width of the token table (D unless embedding_dim says otherwise)   r rank of a low-rank change

Parameter paths, which optimizers and other tables refer to:

    token_embedding/embedding                      [V, E]
    embedding_projection/kernel                    [E, D]                embedding_dim, where it is not D
    position_embedding/embedding                   [context_length, D]   position="learned"
    block_<i>/attention_norm/{scale,bias}          [D]
    block_<i>/attention/query/kernel               [D, H, K], bias [H, K]
    block_<i>/attention/{key,value}/kernel         [D, G, K], bias [G, K]
    block_<i>/attention/out/kernel                 [H, K, D], bias [D]
    block_<i>/attention/value_mix                  [2]                   value_residual, but block_0
    block_<i>/embedding_mix                        [2]                   embedding_residual
    block_<i>/mlp_norm/{scale,bias}                [D]                   with d_ff=0 neither this nor the MLP
    block_<i>/mlp/{up,gate}/kernel                 [D, F], bias [F]      gate: swiglu and geglu only
    block_<i>/mlp/down/kernel                      [F, D], bias [D]
    final_norm/{scale,bias}                        [D]
    head/kernel                                    [D, V]                tie_embeddings=False

With a lora_rank the layers of lora_targets also have lora_a [in..., r] and lora_b [r, out...], beside their kernels.
Biases are there with use_bias=True (rmsnorm has none); rmsnorm_plain has no parameters at all.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.model.gpt import GPT
from jaxgpt.model.layers import GPT2_STD
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import AXES, constrain, spec

# --- parameters -----------------------------------------------------------------------------------------


def initial_std(cfg: config.ModelConfig, path: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation that a matrix or table starts with; None: it is no draw (norms, biases, mixes).

    What `init` says, times init_scale.

    "gpt2": 0.02, and 0.02 / sqrt(2 * num_layers) for what writes to the residual stream, where 2 * num_layers
    terms are summed (Radford et al. 2019, section 2.3). "fan_in": tables 1, matrices 1 / sqrt(3 * fan_in), so
    that their products neither grow nor vanish with width. With zero_init what writes to the stream, and an
    untied head, start at 0: every layer starts as the identity (Zhang et al. 2019; Yang et al. 2022, D.2).

    A projection of a narrow table: 1 / sqrt(E), so that the stream begins as large as with a whole one. LoRA's
    A: 1 / sqrt(3 * fan_in); its B starts at 0, and the layer as it was (Hu et al. 2021, section 4.1).
    """
    std = _named_std(cfg, path, shape)
    return None if std is None else cfg.init_scale * std


def _named_std(cfg: config.ModelConfig, path: str, shape: tuple[int, ...]) -> float | None:
    owner, name = path.split("/")[-2:] if "/" in path else ("", path)
    if name == "lora_a":
        return float(1 / np.sqrt(3 * np.prod(shape[:-1])))
    if name not in ("kernel", "embedding"):
        return None
    writes = owner in ("out", "down")
    if cfg.zero_init and (writes or owner == "head"):
        return 0.0
    if owner == "embedding_projection":
        return float(1 / np.sqrt(shape[0]))
    if cfg.init == "gpt2":
        return GPT2_STD / np.sqrt(2 * cfg.num_layers) if writes else GPT2_STD
    if name == "embedding":
        return 1.0 if owner == "token_embedding" else GPT2_STD
    fan_in = np.prod(shape[:2]) if owner == "out" else shape[0]
    return float(1 / np.sqrt(3 * fan_in))


# As many numbers are drawn as this many devices can share; the first ones do not depend on it.
DRAWN_MULTIPLE = 1024

# What is not drawn, by the last word of its path; all else is 0.
INITIAL_VALUES = {
    "scale": 1.0,
    "value_mix": 0.5,
    "embedding_mix": np.array([1.0, 0.0], np.float32),  # the stream alone
}


@functools.partial(jax.jit, static_argnames="count")
def _draw(key: jax.Array, count: int) -> jax.Array:
    return constrain(jax.random.normal(key, (count,)), AXES)


@functools.partial(jax.jit, static_argnames=("shape", "where"))
def _cut(
    drawn_N: jax.Array, start: jax.Array, std: jax.Array, shape: tuple[int, ...], where: tuple
) -> jax.Array:
    cut = jax.lax.dynamic_slice(drawn_N, (start,), (int(np.prod(shape)),)).reshape(shape)
    return constrain(std * cut, *where)


def init_params(model: GPT, key: jax.Array) -> dict:
    """Fresh parameters: see `initial_std`; biases 0, norms' scales 1.

    One normal draw for all of them, cut into theirs: as one program, and as one a shape, this compiles in a tenth
    of the time that a draw a parameter takes.
    """
    template = param_shapes(model.cfg)
    leaves = named_leaves(template)
    stds = [initial_std(model.cfg, path, leaf.shape) for path, leaf in leaves]
    total = sum(leaf.size for (_, leaf), std in zip(leaves, stds, strict=True) if std)
    drawn_N = _draw(key, -(-total // DRAWN_MULTIPLE) * DRAWN_MULTIPLE)
    params, used = [], 0
    for (path, leaf), std in zip(leaves, stds, strict=True):
        if std:
            params.append(_cut(drawn_N, used, std, leaf.shape, tuple(spec(path))))
            used += leaf.size
        else:
            value = INITIAL_VALUES.get(path.split("/")[-1], 0.0)
            params.append(jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(template), params)


@functools.cache
def param_shapes(cfg: config.ModelConfig) -> dict:
    """The tree of parameters as shapes and dtypes, in a moment whatever the size: layers after the second are like it."""
    few = dataclasses.replace(cfg, num_layers=min(cfg.num_layers, 2))
    params = jax.eval_shape(GPT(few).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))[
        "params"
    ]
    return params | {f"block_{layer}": params["block_1"] for layer in range(2, cfg.num_layers)}


def count_params(params: dict) -> int:
    """How many numbers a tree of arrays (or of shapes) holds; a tied table counts once."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
