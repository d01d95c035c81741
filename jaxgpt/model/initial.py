"""Initial parameters: standard deviations by path, one draw for a complete model, and initializers for its parts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import ModelConfig
from jaxgpt.model import linear
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import AXES, constrain, spec

GPT2_STD = 0.02  # of GPT-2's tables and matrices

# Parameters that start as a constant, by the last part of their path; all others that are not drawn start at 0.
CONSTANTS = {
    "scale": 1.0,
    "value_mix": 0.5,
    "embedding_mix": np.array([1.0, 0.0], np.float32),  # the stream alone
}


def initial_std(cfg: ModelConfig, path: str, shape: tuple[int, ...]) -> float | None:
    """The initial standard deviation of a matrix or table, times init_scale; None for a constant (norms, biases, mixes).

    "gpt2": 0.02, and 0.02 / sqrt(2 * num_layers) for layers that write to the residual stream, where 2 * num_layers
    terms are summed (Radford et al. 2019, section 2.3). "fan_in": tables 1, matrices 1 / sqrt(3 * fan_in), so
    that their products neither grow nor vanish with width. With zero_init layers that write to the stream, and an
    untied head, start at 0: every layer starts as the identity (Zhang et al. 2019; Yang et al. 2022, D.2).

    The projection of a narrow table: 1 / sqrt(E), so that the stream starts as large as with a full-width table.
    LoRA's A: 1 / sqrt(3 * fan_in); its B starts at 0, so the layer starts unchanged (Hu et al. 2021, section 4.1).
    """
    std = _std(cfg, path, shape)
    return None if std is None else cfg.init_scale * std


def _std(cfg: ModelConfig, path: str, shape: tuple[int, ...]) -> float | None:
    owner, name = path.split("/")[-2:] if "/" in path else ("", path)
    if name == "lora_a":
        return float(1 / np.sqrt(3 * np.prod(shape[:-1])))
    if name == "embedding":
        return 1.0 if cfg.init != "gpt2" and owner == "token_embedding" else GPT2_STD
    if name != "kernel":
        return None
    layer = linear.LINEAR[owner]
    if cfg.zero_init and (layer.to_stream or owner == "head"):
        return 0.0
    fan_in = np.prod(shape[: len(layer.inputs)])
    if owner == "embedding_projection":
        return float(1 / np.sqrt(fan_in))
    if cfg.init == "gpt2":
        return GPT2_STD / np.sqrt(2 * cfg.num_layers) if layer.to_stream else GPT2_STD
    return float(1 / np.sqrt(3 * fan_in))


def _constant(path: str, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(CONSTANTS.get(path.split("/")[-1], 0.0), dtype), shape)


# --- a complete model -----------------------------------------------------------------------------------

# The count of drawn numbers is rounded up to this, so that devices can share the draw; the first numbers do not
# depend on it.
DRAWN_MULTIPLE = 1024


@functools.partial(jax.jit, static_argnames="count")
def _draw(key: jax.Array, count: int) -> jax.Array:
    return constrain(jax.random.normal(key, (count,)), AXES)


@functools.partial(jax.jit, static_argnames=("shape", "axes"))
def _cut(
    drawn_N: jax.Array, start: jax.Array, std: jax.Array, shape: tuple[int, ...], axes: tuple
) -> jax.Array:
    cut = jax.lax.dynamic_slice(drawn_N, (start,), (int(np.prod(shape)),)).reshape(shape)
    return constrain(std * cut, *axes)


def draw(cfg: ModelConfig, shapes: dict, key: jax.Array) -> dict:
    """The initial parameters of a model whose tree of shapes is given: see `initial_std`.

    One normal draw, cut into the parameters: this compiles in a tenth of the time of one draw per parameter.
    """
    leaves = named_leaves(shapes)
    stds = [initial_std(cfg, path, leaf.shape) for path, leaf in leaves]
    total = sum(leaf.size for (_, leaf), std in zip(leaves, stds, strict=True) if std)
    drawn_N = _draw(key, -(-total // DRAWN_MULTIPLE) * DRAWN_MULTIPLE)
    params, used = [], 0
    for (path, leaf), std in zip(leaves, stds, strict=True):
        if std:
            params.append(_cut(drawn_N, used, std, leaf.shape, tuple(spec(path))))
            used += leaf.size
        else:
            params.append(_constant(path, leaf.shape, leaf.dtype))
    params = jax.tree.unflatten(jax.tree.structure(shapes), params)
    return passing_on(cfg, params) if cfg.init == "identity" else params


OWN_SCORE = 12.0  # of a position for itself: 8 blocks of width 32 end at a cosine of 0.9 with their start


def passing_on(cfg: ModelConfig, params: dict) -> dict:
    """The parameters with blocks whose f(x) is close to a normed x, for models without residual connections.

    Attention: keys are queries, so that a position attends to itself, with a score of OWN_SCORE, and values are passed
    on (He et al. 2023). MLP: 2 D of its hidden numbers are x and -x, and relu(x) - relu(-x) = x (Balduzzi et al. 2017);
    the others are drawn, and are not read at the start.
    """
    D, H, K = cfg.d_model, cfg.num_heads, cfg.head_width
    eye_DD = jnp.eye(D)
    # A drawn matrix has entries of 1 / sqrt(3 D), so q . q is K / 3.
    larger = np.sqrt(3 * OWN_SCORE / (K * (cfg.attention_scale or K**-0.5)))
    started = dict(params)
    for layer in range(cfg.num_layers):
        block = jax.tree.map(lambda leaf: leaf, params[f"block_{layer}"])  # new dictionaries
        attention, mlp = block["attention"], block["mlp"]
        attention["query"]["kernel"] = larger * attention["query"]["kernel"]
        attention["key"]["kernel"] = jnp.copy(attention["query"]["kernel"])
        attention["value"]["kernel"] = eye_DD.reshape(D, H, K)
        attention["out"]["kernel"] = eye_DD.reshape(H, K, D)
        mlp["up"]["kernel"] = jnp.concatenate([eye_DD, -eye_DD, mlp["up"]["kernel"][:, 2 * D :]], axis=1)
        down_FD = jnp.zeros_like(mlp["down"]["kernel"])
        mlp["down"]["kernel"] = down_FD.at[:D].set(eye_DD).at[D : 2 * D].set(-eye_DD)
        started[f"block_{layer}"] = block
    return started


# --- parts of a model -----------------------------------------------------------------------------------


def initializer(path: str, cfg: ModelConfig | None = None) -> Callable[..., jax.Array]:
    """The Flax initializer of one parameter, by the end of its path; without `cfg`, of a constant.

    A module that is initialized by itself (`Attention(cfg).init`) draws from it. A complete GPT does not: see `draw`.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        std = None if cfg is None else initial_std(cfg, path, shape)
        return std * jax.random.normal(key, shape, dtype) if std else _constant(path, shape, dtype)

    return init
