"""The decoder-only transformer: a pure function of (params, tokens).

Legend of dimensions, used as suffixes of names and as letters in einsum strings:

    B batch   T query position   S key position   D d_model   H heads   K head width (D / H)
    F width of the MLP's hidden layer   V vocabulary

Parameter paths, which optimizers and other tables refer to:

    token_embedding/embedding                      [V, D]
    position_embedding/embedding                   [context_length, D]   position="learned"
    block_<i>/attention_norm/{scale,bias}          [D]
    block_<i>/attention/{query,key,value}/kernel   [D, H, K], bias [H, K]
    block_<i>/attention/out/kernel                 [H, K, D], bias [D]
    block_<i>/mlp_norm/{scale,bias}                [D]
    block_<i>/mlp/up/kernel                        [D, F], bias [F]
    block_<i>/mlp/down/kernel                      [F, D], bias [D]
    final_norm/{scale,bias}                        [D]
    head/kernel                                    [D, V]                tie_embeddings=False

Biases are there with use_bias=True (rmsnorm has none).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import UserError

INIT_STD = 0.02  # GPT-2's, for every matrix and table


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far, so that one more token costs one position's work.

    Rows of a batch may hold different numbers of tokens. Slots at and past a row's length weigh nothing: the
    mask hides them, and the next tokens overwrite them.
    """

    keys: tuple[jax.Array, ...]  # one [B, S, H, K] a layer, S = slots
    values: tuple[jax.Array, ...]
    length_B: jax.Array  # int32: tokens seen by each row; the next token's position

    @classmethod
    def empty(cls, cfg: config.Model, batch_size: int, slots: int, dtype=jnp.float32) -> KVCache:
        """A cache for `slots` tokens (at most context_length) a row, none seen yet."""
        shape = (batch_size, slots, cfg.num_heads, cfg.head_dim)
        zeros = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))
        return cls(zeros, zeros, jnp.zeros((batch_size,), jnp.int32))


# --- tables: what a config's words mean -----------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,  # max(x, 0); Vaswani et al. 2017
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # x Phi(x); Hendrycks and Gimpel 2016
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # its tanh approximation; GPT-2
}

NORMS: dict[str, Callable[..., nn.Module]] = {
    # Ba et al. 2016: subtract the mean, divide by the standard deviation, scale (and shift).
    "layernorm": lambda cfg, name=None: nn.LayerNorm(
        epsilon=1e-5, use_bias=cfg.use_bias, use_fast_variance=False, name=name
    ),
    # Zhang and Sennrich 2019: divide by the root mean square, scale.
    "rmsnorm": lambda cfg, name=None: nn.RMSNorm(epsilon=1e-5, name=name),
}


def sinusoids(positions: jax.Array, d_model: int) -> jax.Array:
    """Vaswani et al. 2017, section 3.5: [..., T] positions -> [..., T, D], sines beside cosines.

    Times INIT_STD: the paper multiplies token embeddings by sqrt(d_model) instead, which comes to the same
    ratio of token to position at the start.
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, d_model, 2) / d_model)
    angles = positions[..., None] * frequencies
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return INIT_STD * pairs.reshape(*positions.shape, d_model)


class Sinusoidal(nn.Module):
    """Positions without parameters; see `sinusoids`."""

    d_model: int

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        return sinusoids(positions_BT, self.d_model)


# Each entry makes what turns positions [B, T] into a vector [B, T, D] that is added to the token's, or None.
POSITIONS: dict[str, Callable[[config.Model], nn.Module | None]] = {
    "learned": lambda cfg: nn.Embed(
        cfg.context_length, cfg.d_model, embedding_init=nn.initializers.normal(INIT_STD)
    ),
    "sinusoidal": lambda cfg: Sinusoidal(cfg.d_model),
    "none": lambda cfg: None,
}


# --- the model ------------------------------------------------------------------------------------------


def causal_mask(positions_BT: jax.Array, num_keys: int) -> jax.Array:
    """[B, T, S], true where the query at a position may see key s: exactly the keys 0..position."""
    return jnp.arange(num_keys) <= positions_BT[..., None]


def attention_weights(q_BTHK: jax.Array, k_BSHK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(K)) over the keys that the mask allows: [B, H, T, S], rows sum to 1.

    Scores and softmax are float32 whatever the inputs are. Vaswani et al. 2017, equation 1.
    """
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    scores_BHTS = scores_BHTS / np.sqrt(q_BTHK.shape[-1])
    scores_BHTS = jnp.where(mask_BTS[:, None], scores_BHTS, -jnp.inf)
    return jax.nn.softmax(scores_BHTS, axis=-1)


def _residual_init(cfg: config.Model) -> nn.initializers.Initializer:
    """GPT-2: what is added to the residual stream starts smaller, as 2 * num_layers terms are summed."""
    return nn.initializers.normal(INIT_STD / np.sqrt(2 * cfg.num_layers))


class Attention(nn.Module):
    """Causally masked multi-head attention: every head proposes a change, W_O mixes them into one.

    concat(heads) W_O is the same as the sum over heads of head_h W_O[h]: the kernel of `out` is kept as
    [H, K, D] so that each head's own part can be read off.
    """

    cfg: config.Model

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        past: tuple[jax.Array, jax.Array] | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the change [B, T, D], and the keys and values [B, S, H, K] with these tokens written in."""
        cfg = self.cfg

        def project(name: str) -> jax.Array:
            return nn.DenseGeneral(
                (cfg.num_heads, cfg.head_dim),
                use_bias=cfg.use_bias,
                kernel_init=nn.initializers.normal(INIT_STD),
                name=name,
            )(x_BTD)

        q_BTHK, k_BSHK, v_BSHK = project("query"), project("key"), project("value")
        if past is not None:
            rows = jnp.arange(x_BTD.shape[0])[:, None]
            k_BSHK = past[0].at[rows, positions_BT].set(k_BSHK.astype(past[0].dtype))
            v_BSHK = past[1].at[rows, positions_BT].set(v_BSHK.astype(past[1].dtype))
        weights_BHTS = attention_weights(q_BTHK, k_BSHK, causal_mask(positions_BT, k_BSHK.shape[1]))
        weights_BHTS = nn.Dropout(cfg.dropout_rate)(weights_BHTS, deterministic=not train)
        heads_BTHK = jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS.astype(v_BSHK.dtype), v_BSHK)
        change_BTD = nn.DenseGeneral(
            cfg.d_model, axis=(-2, -1), use_bias=cfg.use_bias, kernel_init=_residual_init(cfg), name="out"
        )(heads_BTHK)
        return change_BTD, (k_BSHK, v_BSHK)


class MLP(nn.Module):
    """d_model -> d_ff -> d_model, at each position by itself: neurons that fire on what they recognise."""

    cfg: config.Model

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg = self.cfg
        h_BTF = nn.Dense(
            cfg.d_ff or 4 * cfg.d_model,
            use_bias=cfg.use_bias,
            kernel_init=nn.initializers.normal(INIT_STD),
            name="up",
        )(x_BTD)
        h_BTF = ACTIVATIONS[cfg.activation](h_BTF)
        return nn.Dense(cfg.d_model, use_bias=cfg.use_bias, kernel_init=_residual_init(cfg), name="down")(
            h_BTF
        )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): each layer only has to learn a change."""

    cfg: config.Model

    @nn.compact
    def __call__(self, x_BTD, positions_BT, past=None, train=False):
        """Returns the residual stream [B, T, D] after both changes, and the layer's keys and values."""
        cfg = self.cfg
        drop = nn.Dropout(cfg.dropout_rate, deterministic=not train)
        normed_BTD = NORMS[cfg.norm](cfg, name="attention_norm")(x_BTD)
        change_BTD, past = Attention(cfg, name="attention")(normed_BTD, positions_BT, past, train)
        x_BTD = x_BTD + drop(change_BTD)
        change_BTD = MLP(cfg, name="mlp")(NORMS[cfg.norm](cfg, name="mlp_norm")(x_BTD))
        return x_BTD + drop(change_BTD), past


class GPT(nn.Module):
    """Tokens in, logits of the next token out.

    `model.apply({"params": params}, tokens_BT)` gives logits [B, T, V], float32; with `cache=` it gives
    (logits, cache), where the tokens go on from what the cache has seen; with `train=True` dropout is on and
    `rngs={"dropout": key}` is needed.

    Layers are unrolled, `block_0`, `block_1`, ...: every parameter has a path of its own that reads like the
    architecture, and XLA may fuse across layers. The price is that compile time grows with num_layers.
    """

    cfg: config.Model

    def setup(self) -> None:
        cfg = self.cfg
        self.token_embedding = nn.Embed(
            cfg.vocab_size, cfg.d_model, embedding_init=nn.initializers.normal(INIT_STD)
        )
        self.position_embedding = POSITIONS[cfg.position](cfg)
        self.embedding_dropout = nn.Dropout(cfg.dropout_rate)
        self.block = [Block(cfg) for _ in range(cfg.num_layers)]
        self.final_norm = NORMS[cfg.norm](cfg)
        if not cfg.tie_embeddings:
            self.head = nn.Dense(cfg.vocab_size, use_bias=False, kernel_init=nn.initializers.normal(INIT_STD))

    def __call__(self, tokens_BT: jax.Array, *, cache: KVCache | None = None, train: bool = False):
        x_BTD, cache = self.features(tokens_BT, cache=cache, train=train)
        logits_BTV = self.unembed(x_BTD)
        return logits_BTV if cache is None else (logits_BTV, cache)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The start of the residual stream: E[token], plus the position's vector."""
        x_BTD = self.token_embedding(tokens_BT)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        return x_BTD

    def features(self, tokens_BT: jax.Array, *, cache: KVCache | None = None, train: bool = False):
        """The residual stream after all blocks and the final norm [B, T, D], and the cache (or None)."""
        slots = cache.keys[0].shape[1] if cache else self.cfg.context_length
        num_tokens = tokens_BT.shape[1]
        if num_tokens > slots:
            room = f"a cache of {slots}" if cache else f"context_length={slots}"
            raise UserError(f"{num_tokens} tokens do not fit into {room}: give fewer")
        start_B = cache.length_B if cache else jnp.zeros((tokens_BT.shape[0],), jnp.int32)
        positions_BT = start_B[:, None] + jnp.arange(num_tokens)
        x_BTD = self.embedding_dropout(self.embed(tokens_BT, positions_BT), deterministic=not train)
        pasts = []
        for layer, block in enumerate(self.block):
            past = (cache.keys[layer], cache.values[layer]) if cache else None
            x_BTD, past = block(x_BTD, positions_BT, past, train)
            pasts.append(past)
        if cache:
            keys, values = zip(*pasts, strict=True)
            cache = KVCache(keys, values, cache.length_B + num_tokens)
        return self.final_norm(x_BTD), cache

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [..., V], float32: how well the stream's vector matches each row of the (tied) table."""
        logits = self.token_embedding.attend(x_BTD) if self.cfg.tie_embeddings else self.head(x_BTD)
        return logits.astype(jnp.float32)


def init_params(model: GPT, key: jax.Array) -> dict:
    """Fresh parameters: normal with std 0.02, residual projections 0.02 / sqrt(2 * num_layers), biases 0."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def param_shapes(cfg: config.Model) -> dict:
    """The tree of parameters as shapes and dtypes; takes no memory, whatever the size."""
    return jax.eval_shape(lambda: init_params(GPT(cfg), jax.random.key(0)))


def count_params(params: dict) -> int:
    """How many numbers a tree of arrays (or of shapes) holds; a tied table counts once."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def named_leaves(params: dict) -> list[tuple[str, jax.Array]]:
    """(`block_0/mlp/up/kernel`, leaf) for every leaf, in the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [("/".join(str(getattr(k, "key", k)) for k in path), leaf) for path, leaf in leaves]
