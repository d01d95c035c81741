"""The decoder-only transformer: a pure function of (params, tokens).

Legend of shapes, in suffixes of names and in einsum strings:

    B batch   T query position   S key position   D d_model   H heads   K head width (head_dim, or D / H)
    G heads of keys and values (num_kv_heads, or H)   F width of the MLP's hidden layer
    V vocabulary; of the tables, rounded up to vocab_multiple
    E width of the token table (embedding_dim, or D)   r rank of a low-rank change

Parameter paths:

    token_embedding/embedding                      [V, E]
    embedding_projection/kernel                    [E, D]                if E is not D
    position_embedding/embedding                   [context_length, D]   position="learned"
    block_<i>/attention_norm/{scale,bias}          [D]
    block_<i>/attention/query/kernel               [D, H, K], bias [H, K]
    block_<i>/attention/{key,value}/kernel         [D, G, K], bias [G, K]
    block_<i>/attention/out/kernel                 [H, K, D], bias [D]
    block_<i>/attention/{query,key}_norm/scale     [K]                   qk_norm_scale
    block_<i>/attention/value_mix                  [2]                   value_residual; not in block_0
    block_<i>/embedding_mix                        [2]                   embedding_residual
    block_<i>/mlp_norm/{scale,bias}                [D]                   not with d_ff=0, nor the MLP
    block_<i>/mlp/{up,gate}/kernel                 [D, F], bias [F]      gate: swiglu and geglu only
    block_<i>/mlp/down/kernel                      [F, D], bias [D]
    final_norm/{scale,bias}                        [D]                   not with post_norm
    head/kernel                                    [D, V]                tie_embeddings=False

With a lora_rank the layers of lora_targets also have lora_a [in..., r] and lora_b [r, out...].
Biases exist with use_bias=True, in attention's linear layers with attention_bias=True where it is given (rmsnorm has
none); rmsnorm_plain has no parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.model.attention import Attention, document_starts
from jaxgpt.model.initial import draw, initializer
from jaxgpt.model.layers import MLP, NORMS, POSITIONS, Dropout, Kernel, Table, record, soft_cap
from jaxgpt.model.linear import check_lora_targets
from jaxgpt.model.sharding import BATCH, constrain


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far, so that one more token costs the work of one position.

    Rows of a batch may hold different numbers of tokens. The mask hides the empty slots of a row.
    """

    keys: tuple[jax.Array, ...]  # one [B, G, S, K] a layer, S = slots
    values: tuple[jax.Array, ...]  # one [B, G, K, S] a layer
    length_B: jax.Array  # int32: tokens seen by each row
    starts_BS: (
        jax.Array | None
    )  # with document_mask: the slot where the document of the token after this one starts

    @property
    def slots(self) -> int:
        """S: the tokens that fit."""
        return self.keys[0].shape[2]

    @classmethod
    def empty(cls, cfg: config.ModelConfig, batch_size: int, slots: int) -> KVCache:
        """An empty cache for `slots` tokens (at most context_length) per row, in the model's dtype."""
        heads = (batch_size, cfg.kv_heads)
        keys, values = (
            tuple(jnp.zeros((*heads, *shape), cfg.dtype) for _ in range(cfg.num_layers))
            for shape in ((slots, cfg.head_width), (cfg.head_width, slots))
        )
        starts_BS = jnp.zeros((batch_size, slots), jnp.int32) if cfg.document_mask else None
        return cls(keys, values, jnp.zeros((batch_size,), jnp.int32), starts_BS)

    def layer(self, i: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values [B, S, G, K] of a layer, and how many slots of each row are used [B].

        They are stored with their axes in the order in which attention's two products read them. In any other order
        XLA's CPU backend would copy them for every token.
        """
        return jnp.moveaxis(self.keys[i], 2, 1), jnp.moveaxis(self.values[i], 3, 1), self.length_B

    def document_start(self) -> jax.Array | None:
        """[B], the slot where the document of the next token starts; None without document_mask."""
        if self.starts_BS is None:
            return None
        last_B1 = jnp.maximum(self.length_B - 1, 0)[:, None]
        start_B = jnp.take_along_axis(self.starts_BS, last_B1, axis=1)[:, 0]
        return jnp.where(self.length_B > 0, start_B, 0)

    def append(self, new: list[tuple[jax.Array, jax.Array]], starts_BT: jax.Array | None = None) -> KVCache:
        """Append T tokens per row, given the keys and values [B, T, G, K] of each layer, and what starts_BS gets."""
        T = new[0][0].shape[1]
        rows_B1 = jnp.arange(len(self.length_B))[:, None]
        slots_BT = self.length_B[:, None] + jnp.arange(T)
        keys, values = [], []
        for kept_BGSK, kept_BGKS, (k_BTGK, v_BTGK) in zip(self.keys, self.values, new, strict=True):
            keys.append(kept_BGSK.at[rows_B1, :, slots_BT].set(k_BTGK.astype(kept_BGSK.dtype)))
            values.append(kept_BGKS.at[rows_B1, :, :, slots_BT].set(v_BTGK.astype(kept_BGKS.dtype)))
        starts_BS = self.starts_BS
        if starts_BS is not None:
            starts_BS = starts_BS.at[rows_B1, slots_BT].set(starts_BT)
        return KVCache(tuple(keys), tuple(values), self.length_B + T, starts_BS)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): each layer learns a change only.

    With parallel_residual both read the same x: x + attention(norm(x)) + mlp(norm(x)). With residual=False, x is not
    added: attention(norm(x)), then mlp(norm(x)). With post_norm the sum is normalized: norm(x + attention(x)), then
    norm(x + mlp(x)).
    """

    cfg: config.ModelConfig
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, x_BTD, positions_BT, starts_BT=None, past=None, start_BTD=None, first_values=None, train=False
    ):
        """Returns the residual stream [B, T, D] after both changes, then what Attention returns.

        `start_BTD` is the embedding, `first_values` are the values of the first layer."""
        cfg = self.cfg
        if cfg.embedding_residual:  # modded-nanogpt's record of November 2024; no change at the start
            mix = self.param("embedding_mix", initializer("embedding_mix"), (2,)).astype(x_BTD.dtype)
            x_BTD = mix[0] * x_BTD + mix[1] * start_BTD
        drop = functools.partial(Dropout(cfg.dropout_rate, cfg.dropout_bits), deterministic=not train)
        before, after = (_same, NORMS[cfg.norm]) if cfg.post_norm else (NORMS[cfg.norm], _same)
        read_BTD = x_BTD
        normed_BTD = before(cfg, name="attention_norm")(read_BTD)
        record(self, before=x_BTD, attention_input=normed_BTD)
        change_BTD, new, own_values = Attention(cfg, self.attention, name="attention")(
            normed_BTD, positions_BT, starts_BT, past, first_values, train
        )
        x_BTD = x_BTD + drop(change_BTD) if cfg.residual else drop(change_BTD)
        x_BTD = after(cfg, name="attention_norm")(x_BTD)
        record(self, between=x_BTD)
        if cfg.mlp_width:
            normed_BTD = before(cfg, name="mlp_norm")(read_BTD if cfg.parallel_residual else x_BTD)
            record(self, mlp_input=normed_BTD)
            change_BTD = MLP(cfg, name="mlp")(normed_BTD)
            x_BTD = x_BTD + drop(change_BTD) if cfg.residual else drop(change_BTD)
            x_BTD = after(cfg, name="mlp_norm")(x_BTD)
            record(self, mlp_change=change_BTD)
        record(self, after=x_BTD)
        return x_BTD, new, own_values


def _same(cfg: config.ModelConfig, name: str) -> Callable[[jax.Array], jax.Array]:
    """In place of a norm that is elsewhere."""
    return lambda x: x


# The values kept for the backward pass, which recomputes the others (Chen et al. 2016).
REMATS = {
    "none": None,
    # Products with parameters are kept; scores, norms and activations are recomputed.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class GPT(nn.Module):
    """Tokens in, logits of the next token out.

    `model.apply({"params": params}, tokens_BT)` gives logits [B, T, V], float32. With `cache=` it gives
    (logits, cache), and the tokens continue what the cache has seen. With `train=True` dropout is on and
    `rngs={"dropout": key}` is needed. Parameters come from `init_params`.

    `attention` and `remat` (see config.TrainConfig) change the computation, not the result.

    Layers are unrolled, `block_0`, `block_1`, ...: every parameter has a path that reads like the architecture.
    Stacking and scanning them was no better. On one CPU core (seconds to compile, milliseconds per step) 4 x 128 took
    5.4 and 80 scanned, 4.5 and 69 unrolled; 12 x 768 took 4.2 and 3105, 5.0 and 2633: XLA compiles equal kernels once.
    """

    cfg: config.ModelConfig
    attention: str = "auto"
    remat: str = "none"

    def setup(self) -> None:
        cfg = self.cfg
        check_lora_targets(cfg)
        self.token_embedding = Table(cfg, "token_embedding/embedding", (cfg.table_rows, cfg.table_width))
        if cfg.factorised:
            self.embedding_projection = Kernel(cfg)
        self.position_embedding = POSITIONS[cfg.position](cfg)
        self.embedding_dropout = Dropout(cfg.dropout_rate, cfg.dropout_bits)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMATS[self.remat], static_argnums=(7,))  # train
        self.block = [block(cfg, self.attention) for _ in range(cfg.num_layers)]
        if not cfg.post_norm:  # there the last block ends with a norm
            self.final_norm = NORMS[cfg.norm](cfg)
        if not cfg.tie_embeddings:
            self.head = Kernel(cfg)

    @nn.nowrap
    def init(self, rngs: jax.Array | dict, *args, **kwargs) -> dict:
        """As in Flax. The parameters are those that training starts with, `parameters.init_params(model, key)`."""
        key = rngs["params"] if isinstance(rngs, dict) else rngs
        variables = jax.eval_shape(lambda: nn.Module.init(self, rngs, *args, **kwargs))
        return {**variables, "params": draw(self.cfg, variables["params"], key)}

    def __call__(self, tokens_BT: jax.Array, *, cache: KVCache | None = None, train: bool = False):
        x_BTD, cache = self.features(tokens_BT, cache=cache, train=train)
        logits_BTV = self.unembed(x_BTD)
        return logits_BTV if cache is None else (logits_BTV, cache)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array | np.ndarray) -> jax.Array:
        """The start of the residual stream: token rows (projected if narrow) plus position vectors, [B, T, D]."""
        # Cast after the lookup, so that the gradient of a row is summed in float32.
        x_BTD = rows_BTE = self.token_embedding(tokens_BT, self.cfg.dtype)
        if self.cfg.factorised:
            x_BTD = x_BTD @ self.embedding_projection.kernel.astype(self.cfg.dtype)
        record(self, token_rows=rows_BTE, token_vectors=x_BTD)
        if self.position_embedding is not None:
            vectors = self.position_embedding(positions_BT)
            record(self, position_vectors=vectors.astype(x_BTD.dtype))
            # Spread over the rows before the cast: as above.
            B, T, D = x_BTD.shape
            vectors = jnp.broadcast_to(vectors[:, None], (len(vectors), B // len(vectors), T, D))
            x_BTD = x_BTD + vectors.reshape(x_BTD.shape).astype(x_BTD.dtype)
        return x_BTD

    def features(
        self,
        tokens_BT: jax.Array,
        *,
        cache: KVCache | None = None,
        cache_is_empty: bool = False,
        train: bool = False,
    ):
        """The residual stream after all blocks and the final norm [B, T, D], and the cache (or None).

        With `cache_is_empty` the cache is not read: a prefill costs the same as a pass without a cache.
        """
        if cache is not None and not self.cfg.causal:
            raise UserError(
                "this model has no causal mask (model.causal=false): every new token changes the values of all tokens before "
                "it, so it has no cache; generate text with a model with model.causal=true"
            )
        room = self.cfg.context_length if cache is None else cache.slots
        num_tokens = tokens_BT.shape[1]
        if num_tokens > room:
            what = f"context_length={room}" if cache is None else f"a cache of {room}"
            raise UserError(f"{num_tokens} tokens do not fit into {what}: give fewer")
        past_cache = None if cache_is_empty else cache
        # Without a past, positions are constants of the traced program, the same for all rows.
        positions_BT: jax.Array | np.ndarray = np.arange(num_tokens)[None]
        if past_cache is not None:
            positions_BT = past_cache.length_B[:, None] + positions_BT
        starts_BT = next_BT = None
        if self.cfg.document_mask:
            before = () if past_cache is None else (past_cache.length_B, past_cache.document_start())
            starts_BU = document_starts(tokens_BT, self.cfg.end_id, *before)
            starts_BT, next_BT = starts_BU[:, :-1], starts_BU[:, 1:]
            positions_BT = positions_BT - starts_BT
        start_BTD = self.embedding_dropout(self.embed(tokens_BT, positions_BT), deterministic=not train)
        x_BTD = start_BTD = constrain(start_BTD, BATCH)
        news, first_values = [], None
        for i, block in enumerate(self.block):
            past = None if past_cache is None else past_cache.layer(i)
            x_BTD, new, own_values = block(
                x_BTD, positions_BT, starts_BT, past, start_BTD, first_values, train
            )
            x_BTD = constrain(x_BTD, BATCH)
            first_values = own_values if i == 0 else first_values
            news.append(new)
        features_BTD = x_BTD if self.cfg.post_norm else self.final_norm(x_BTD)
        record(self, start=start_BTD, features=features_BTD)
        return features_BTD, cache.append(news, next_BT) if cache else None

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [..., V], float32: how well each vector of the stream matches each row of the (tied) table."""
        cfg, params = self.cfg, {"token_embedding": {"embedding": self.token_embedding.embedding}}
        if cfg.factorised:
            params["embedding_projection"] = {"kernel": self.embedding_projection.kernel}
        if not cfg.tie_embeddings:
            params["head"] = {"kernel": self.head.kernel}
        return logits(cfg, *output_side(cfg, params, x_BTD))[..., : cfg.vocab_size]


def output_side(cfg: config.ModelConfig, params: dict, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two factors of the logits: vectors of the stream, and the table whose rows they are matched with.

    An untied head has its own table [V, D]. Otherwise it is the token table [V, E], and the stream goes back through
    the projection, x P^T [B, T, E], so that no table [V, D] is formed.
    """
    if not cfg.tie_embeddings:
        return x_BTD, params["head"]["kernel"].swapaxes(-1, -2)
    if cfg.factorised:
        x_BTD = jnp.einsum(
            "...D,ED->...E", x_BTD, params["embedding_projection"]["kernel"].astype(x_BTD.dtype)
        )
    return x_BTD, params["token_embedding"]["embedding"]


def _match(x_ND: jax.Array, table_VD: jax.Array) -> jax.Array:
    """x E^T [N, V] with inputs in x's dtype and sums in float32."""
    return jnp.einsum("ND,VD->NV", x_ND, table_VD.astype(x_ND.dtype), preferred_element_type=jnp.float32)


# JAX derives two slow float32 products from a bfloat16 product with a float32 result. This rule is fast, but only for
# reverse mode. (A model with dtype="float32" has all derivatives.)
_match_bfloat16 = jax.custom_vjp(_match)


def _match_forward(x_ND, table_VD):
    return _match(x_ND, table_VD), (x_ND, table_VD)


def _match_backward(kept, dlogits_NV):
    x_ND, table_VD = kept
    dlogits_NV = dlogits_NV.astype(x_ND.dtype)
    dx_ND = jnp.einsum("NV,VD->ND", dlogits_NV, table_VD.astype(x_ND.dtype))
    return dx_ND, jnp.einsum("NV,ND->VD", dlogits_NV, x_ND, preferred_element_type=table_VD.dtype)


_match_bfloat16.defvjp(_match_forward, _match_backward)


def logits(cfg: config.ModelConfig, x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """How well vectors of the stream match each row of a table: [..., rows], float32; -inf for padding rows."""
    match = _match if x_BTD.dtype == jnp.float32 else _match_bfloat16
    if table_VD.ndim == 3:  # see sharding.spread_tables
        scores = jax.vmap(match)(x_BTD.reshape(len(table_VD), -1, x_BTD.shape[-1]), table_VD)
    else:
        scores = match(x_BTD.reshape(-1, x_BTD.shape[-1]), table_VD)
    scores = scores.reshape(*x_BTD.shape[:-1], -1)
    scores = constrain(soft_cap(scores, cfg.logit_softcap), BATCH, *(None,) * (scores.ndim - 2), "tensor")
    if cfg.table_rows == cfg.vocab_size:
        return scores
    return jnp.where(jnp.arange(cfg.table_rows) < cfg.num_tokens, scores, -jnp.inf)
