"""The small parts of a block: activations, norms, positions, dropout, the linear layer, and the MLP."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import is_off
from jaxgpt.model.initial import GPT2_STD, initializer
from jaxgpt.model.linear import LINEAR
from jaxgpt.model.sharding import BATCH, complete_rows, constrain, parts_along


def record(module: nn.Module, **values: jax.Array) -> None:
    """Record values of a forward pass by name in the collection "intermediates", for inspect/capture.py.

    Without `mutable="intermediates"` (training, evaluation, generation) nothing is kept and the program does not change.
    """
    for name, value in values.items():
        module.sow("intermediates", name, value)


class Dropout(nn.Module):
    """Set a fraction of x to 0 and scale up the rest (Srivastava et al. 2014).

    With `bits` 32 it is bit-equal to flax.linen.Dropout, which compares the rate while tracing, so that the rate can't be
    an argument of the program (see lanes.py). With 8, one random word makes the masks of four numbers: most of a mask's
    cost is the generator. The rate is then a multiple of 1 / 256, and the rest is scaled up by exactly that.
    """

    rate: float
    bits: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or is_off(self.rate):
            return x
        if self.bits == 8:
            number, rate = jnp if isinstance(self.rate, jax.Array) else np, self.rate
            dropped = number.round(256 * rate)  # of 256 equally likely bytes
            keep = _random_bytes(self.make_rng("dropout"), x.shape) >= dropped.astype(jnp.uint8)
            scaled = x.astype(jnp.float32) * (256 / (256 - dropped)).astype(jnp.float32)
            return jnp.where(keep, scaled.astype(x.dtype), jnp.zeros_like(x))
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


def _random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random bytes of this shape, each four along the last axis from one word."""
    *rest, width = shape
    words = jax.random.bits(key, (*rest, -(-width // 4)), jnp.uint32)
    words = jax.lax.optimization_barrier(words)  # fused with its use, a word is computed once for each byte
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*rest, -1)[..., :width]


# --- activations ----------------------------------------------------------------------------------------


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), with the normal distribution's Phi; Hendrycks and Gimpel 2016.

    By erf, as in PyTorch, not by erfc as in jax.nn.gelu: the gradient takes a third less time on a CPU. They differ by
    less than 2e-7 |x|.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _keeps_its_input(activation: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The activation; in bfloat16 computed in float32, and the backward pass keeps its input alone.

    A GPU computes it again faster than it reads what JAX would keep, such as the tanh of GELU.
    """

    def apply(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.float32:
            return activation(x)
        return jax.checkpoint(lambda x: activation(x.astype(jnp.float32)).astype(x.dtype))(x)

    return apply


# The choices of model.activation; one that ends in "glu" is applied to the gate of a gated MLP.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,  # Vaswani et al. 2017
    "gelu": _keeps_its_input(gelu),
    "gelu_tanh": _keeps_its_input(functools.partial(jax.nn.gelu, approximate=True)),  # as in GPT-2
    "relu_squared": _keeps_its_input(lambda x: jnp.square(jax.nn.relu(x))),  # So et al. 2021 (Primer)
    "swiglu": _keeps_its_input(jax.nn.silu),  # Shazeer 2020
    "geglu": _keeps_its_input(gelu),  # Shazeer 2020
}


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap): within +-cap, and about x near 0. Gemma 2 (2024), section 2. 0: off."""
    return cap * jnp.tanh(x / cap) if cap else x


# --- norms ----------------------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def normalize(x: jax.Array, centered: bool, epsilon: float) -> jax.Array:
    """x divided by its root mean square along the last axis, minus its mean first where `centered`; in x's dtype.

    `epsilon` is added to the mean square. Computed in float32. The derivative is written by hand: with JAX's own, a step on a CPU takes a tenth longer.
    """
    return _standardized(x, centered, epsilon)[0].astype(x.dtype)


def _standardized(x: jax.Array, centered: bool, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The result in float32, and 1 / the root mean square."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True) if centered else 0.0
    scale = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    return (wide - mean) * scale, scale


@normalize.defjvp
def _normalize_jvp(centered: bool, epsilon: float, primals, tangents):
    (x,), (dx,) = primals, tangents
    y, scale = _standardized(x, centered, epsilon)
    step = scale * dx.astype(jnp.float32)
    # In this order, and with these signs, the transposed rule is the textbook's gradient to the last bit.
    mean = (-step).mean(axis=-1, keepdims=True) if centered else 0.0
    # Equal to y, but a separate expression, so that the compiler recomputes it (and costs.step_cost counts that).
    again = y if centered else x.astype(jnp.float32) * scale
    dy = step + (again * (y * -step).mean(axis=-1, keepdims=True) + mean)
    return y.astype(x.dtype), dy.astype(x.dtype)


class Norm(nn.Module):
    """`normalize`, then times `scale` [D] and plus `bias` [D] if the norm has them, in float32 as their gradients."""

    epsilon: float
    centered: bool = False
    use_scale: bool = True
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = normalize(x, self.centered, self.epsilon)
        if self.use_scale:
            y = y.astype(jnp.float32) * self.param("scale", initializer("scale"), x.shape[-1:])
        if self.use_bias:
            y = y.astype(jnp.float32) + self.param("bias", initializer("bias"), x.shape[-1:])
        return y.astype(x.dtype)


def layernorm(cfg: config.ModelConfig, name: str | None = None) -> Norm:
    """Ba et al. 2016: subtract the mean, divide by the standard deviation, scale (and shift)."""
    return Norm(cfg.norm_epsilon, centered=True, use_bias=cfg.use_bias, name=name)


def rmsnorm(cfg: config.ModelConfig, name: str | None = None) -> Norm:
    """Zhang and Sennrich 2019: divide by the root mean square, scale."""
    return Norm(cfg.norm_epsilon, name=name)


def rmsnorm_plain(cfg: config.ModelConfig, name: str | None = None) -> Norm:
    """Without parameters: the matrix that follows can scale."""
    return Norm(cfg.norm_epsilon, use_scale=False, name=name)


# The choices of model.norm: (cfg, name) -> module.
NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
    "rmsnorm_plain": rmsnorm_plain,
}


# --- tables ---------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Rows that are read by id: [V, E], or [S, V, E] where it is given so (see `sharding.spread_tables`)."""

    cfg: config.ModelConfig
    parameter: str
    size: tuple[int, int]

    def setup(self) -> None:
        given: Any = self.get_variable("params", "embedding")
        if given is not None and given.shape[1:] == self.size:
            self.embedding = given
        else:
            self.embedding = self.param("embedding", initializer(self.parameter, self.cfg), self.size)

    def __call__(self, ids_BT: jax.Array | np.ndarray, dtype: Any = None) -> jax.Array:
        table_VE = self.embedding
        if table_VE.ndim == 2:  # rows are read complete: a table that is split over fsdp is gathered first
            table_VE = constrain(table_VE, *complete_rows(self.parameter))
        elif len(ids_BT) == 1:
            ids_BT = np.broadcast_to(ids_BT, (len(table_VE), ids_BT.shape[1]))
        rows_KBTE = look_up_parts(table_VE, ids_BT, complete_rows(self.parameter)[0]).astype(
            dtype or table_VE.dtype
        )
        if len(rows_KBTE) == 1:
            return rows_KBTE[0]
        # One part has the row and the others zeros: a sum in a narrow dtype is exact, and devices send half of the bytes.
        return jax.lax.reduce(rows_KBTE, np.zeros((), rows_KBTE.dtype), jax.lax.add, (0,))


def look_up_parts(table_VE: jax.Array, ids_BT: jax.Array | np.ndarray, axis: str | None) -> jax.Array:
    """The rows of these ids as a sum over the parts of a table that is split over `axis` of the mesh: [K, B, T, E].

    Each row is complete in the part that has it, and 0 in the others; K is 1 without a mesh. From tables [S, V, E], each for
    B / S rows of ids.
    """
    V, K, spread = table_VE.shape[-2], parts_along(axis, table_VE.shape[-2]), table_VE.ndim == 3
    take = functools.partial(jnp.take, axis=0)
    ids = ids_BT.reshape(len(table_VE), -1, *ids_BT.shape[1:]) if spread else ids_BT
    if K == 1:
        rows = (jax.vmap(take) if spread else take)(table_VE, ids)
        return rows.reshape(1, *ids_BT.shape, -1)
    first_K = np.arange(K) * (V // K)
    tables = table_VE.reshape(*table_VE.shape[:-2], K, V // K, -1)
    tables = constrain(tables, *([BATCH] if spread else []), axis, None, None)

    def part(table, ids, first):
        here = (ids >= first) & (ids < first + V // K)
        return jnp.where(here[..., None], take(table, jnp.where(here, ids - first, 0)), 0)

    each = jax.vmap(part, (0, None, 0))  # over K
    rows = jax.vmap(each, (0, 0, None), 1)(tables, ids, first_K) if spread else each(tables, ids, first_K)
    return rows.reshape(K, *ids_BT.shape, -1)


# --- positions ------------------------------------------------------------------------------------------


def sinusoids(positions: jax.Array | np.ndarray, d_model: int) -> jax.Array:
    """Vaswani et al. 2017, section 3.5: [..., T] positions -> [..., T, D], sines and cosines alternating.

    Times GPT2_STD: the paper multiplies token embeddings by sqrt(d_model) instead, which gives the same initial
    ratio of token to position.
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, d_model, 2) / d_model)
    angles = positions[..., None] * frequencies
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return GPT2_STD * pairs.reshape(*positions.shape, d_model)


# Each makes a function of positions [B, T] that gives the vectors [B, T, D] added to the token vectors. None: nothing is
# added. "rotary" rotates queries and keys instead, "none" relies on the mask alone.
POSITIONS: dict[str, Callable[[config.ModelConfig], Callable[[jax.Array | np.ndarray], jax.Array] | None]] = {
    "learned": lambda cfg: Table(cfg, "position_embedding/embedding", (cfg.context_length, cfg.d_model)),
    "sinusoidal": lambda cfg: lambda positions_BT: sinusoids(positions_BT, cfg.d_model).astype(cfg.dtype),
    "rotary": lambda cfg: None,
    "none": lambda cfg: None,
}


def rotate(
    x_BTHK: jax.Array, positions_BT: jax.Array | np.ndarray, base: float, slots: int, width: int
) -> jax.Array:
    """Rotary positions: rotate the pairs (x_i, x_{i + R/2}) by position * base^(-2i/R), for R = width, K or less.

    The product of a query and a key then depends on their distance only. Su et al. 2021, section 3.2.2, with the
    halves of a head as pairs. The numbers of a head after the first `width` stay. All positions are below `slots`.
    """
    half = width // 2
    # A table of constants: XLA would otherwise compute sines in every loop that they are fused into. With NumPy
    # positions (no cache) the rows that are read are constants too.
    angles = np.arange(slots)[:, None] * base ** (-np.arange(half) / half)
    cos_BTK, sin_BTK = (
        table.astype(np.float32)[positions_BT]
        if isinstance(positions_BT, np.ndarray)
        else jnp.asarray(table, jnp.float32)[positions_BT]
        for table in (np.cos(angles), np.sin(angles))
    )
    cos_BTHK, sin_BTHK = cos_BTK[:, :, None], sin_BTK[:, :, None]
    a, b, rest = x_BTHK[..., :half], x_BTHK[..., half:width], x_BTHK[..., width:]
    parts = [a * cos_BTHK - b * sin_BTHK, b * cos_BTHK + a * sin_BTHK]
    turned = jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)
    return turned.astype(x_BTHK.dtype)


# --- the MLP --------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """The linear layer of this name, see linear.LINEAR: x [..., in...] -> [..., out...], in model.dtype.

    With a lora_rank r it adds x A B times lora_alpha / r, with lora_a [in..., r] and lora_b [r, out...] (Hu et al. 2021).

    Computed as one matrix product [B * T, in] x [in, out]. With separate axes, XLA's CPU backend copies the transposed
    gradient and recomputes its inputs there: a step takes 1.6 times as long.
    """

    cfg: config.ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, layer = self.cfg, LINEAR[str(self.name)]
        (in_shape, out_shape), (fan_in, fan_out) = layer.shapes(cfg), layer.fans(cfg)

        def param(name: str, *shape: int) -> jax.Array:
            return self.param(name, initializer(f"{layer.name}/{name}", cfg), shape)

        rest = x.shape[: x.ndim - len(in_shape)]
        x = x.reshape(-1, fan_in).astype(cfg.dtype)
        y = x @ param("kernel", *in_shape, *out_shape).astype(cfg.dtype).reshape(fan_in, fan_out)
        if rank := layer.rank(cfg):
            a, b = (
                x.astype(cfg.dtype)
                for x in (param("lora_a", *in_shape, rank), param("lora_b", rank, *out_shape))
            )
            y = y + cfg.lora_alpha / rank * (x @ a.reshape(fan_in, -1)) @ b.reshape(-1, fan_out)
        if layer.has_bias(cfg):
            # Spread over the rows before the cast, so that the gradient is summed over the rows in float32.
            y = y + jnp.broadcast_to(param("bias", *out_shape).reshape(-1), y.shape).astype(y.dtype)
        return y.reshape(*rest, *out_shape)


class Kernel(nn.Module):
    """Only the kernel of the linear layer of this name, for a caller that multiplies with it itself."""

    cfg: config.ModelConfig

    def setup(self) -> None:
        ins, outs = LINEAR[str(self.name)].shapes(self.cfg)
        self.kernel = self.param("kernel", initializer(f"{self.name}/kernel", self.cfg), (*ins, *outs))


class MLP(nn.Module):
    """d_model -> d_ff -> d_model, at each position separately.

    In a gated MLP a second projection decides how much of each neuron passes (Shazeer 2020).
    """

    cfg: config.ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg, activation = self.cfg, ACTIVATIONS[self.cfg.activation]
        up_BTF = Dense(cfg, name="up")(x_BTD)
        h_BTF = activation(Dense(cfg, name="gate")(x_BTD)) * up_BTF if cfg.gated else activation(up_BTF)
        record(self, hidden=h_BTF)
        return Dense(cfg, name="down")(h_BTF)
