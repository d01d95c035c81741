"""Multi-head attention with a causal mask (none with model.causal=False), explicit, in blocks of queries, and fused.

Shapes as in gpt.py; each of the G heads of keys and values serves R = H / G heads of queries.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common.backend import backend, compute_capability
from jaxgpt.config import UserError, is_off
from jaxgpt.model.initial import initializer
from jaxgpt.model.layers import Dense, Dropout, Norm, normalize, record, rotate, soft_cap


def causal_mask(positions_BT: jax.Array | np.ndarray, num_keys: int, window: int | None = None) -> jax.Array:
    """[B, T, S], true where the query at a position may see key s: the keys 0..position.

    With a window, only the last `window` of them (Child et al. 2019; Beltagy et al. 2020).
    """
    keys = jnp.arange(num_keys)
    mask = keys <= positions_BT[..., None]
    return mask if window is None else mask & (keys > positions_BT[..., None] - window)


def document_starts(
    tokens_BT: jax.Array, end_id: int, length_B: jax.Array | None = None, start_B: jax.Array | None = None
) -> jax.Array:
    """[B, T + 1], the position at which the document of each token starts, and at last that of the token to come.

    A document ends with `end_id`, which belongs to it. length_B tokens came before these; the document in which they end
    starts at start_B. None: none came before.
    """
    B, T = tokens_BT.shape
    start_B1 = jnp.zeros((B, 1), jnp.int32) if start_B is None else start_B[:, None]
    after_BT = jnp.arange(1, T + 1) if length_B is None else length_B[:, None] + jnp.arange(1, T + 1)
    after_BT = jax.lax.cummax(jnp.where(tokens_BT == end_id, after_BT, start_B1), axis=1)
    return jnp.concatenate([start_B1, after_BT], axis=1)


def text_mask(cfg: config.ModelConfig, length: int, starts_BT: jax.Array | None = None) -> jax.Array:
    """[B or 1, T, T], which of these tokens each of them may see. It depends on distances, and on starts_BT if given."""
    seen_by = np.arange(length) if cfg.causal else np.full(length, length - 1)
    mask_BTS = causal_mask(seen_by[None], length, cfg.attention_window)
    return mask_BTS if starts_BT is None else mask_BTS & same_document(starts_BT)


def same_document(starts_BT: jax.Array) -> jax.Array:
    """[B, T, T], true where two tokens are of one document, from the starts of their documents."""
    return starts_BT[:, :, None] == starts_BT[:, None, :]


def _match_heads(q_BTGRK: jax.Array, k_BSGK: jax.Array) -> jax.Array:
    """q k [B, G, R, T, S], float32."""
    return jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)


def _match_heads_backward(kept, dscores_BGRTS):
    q_BTGRK, k_BSGK = kept
    dscores_BGRTS = dscores_BGRTS.astype(q_BTGRK.dtype)
    dq_BTGRK = jnp.einsum("BGRTS,BSGK->BTGRK", dscores_BGRTS, k_BSGK)
    return dq_BTGRK, jnp.einsum("BGRTS,BTGRK->BSGK", dscores_BGRTS, q_BTGRK)


# For products in bfloat16, only in reverse mode: see `gpt._match_bfloat16`.
_match_heads_bfloat16 = jax.custom_vjp(_match_heads)
_match_heads_bfloat16.defvjp(lambda q, k: (_match_heads(q, k), (q, k)), _match_heads_backward)


def attention_scores(
    q_BTHK: jax.Array, k_BSGK: jax.Array, scale: float | None = None, softcap: float = 0.0
) -> jax.Array:
    """q k / sqrt(K), how well each query matches each key: [B, H, T, S], always float32.

    Head h of the queries uses head h // R of the keys (Ainslie et al. 2023).
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
    match = _match_heads_bfloat16 if q_BTHK.dtype == k_BSGK.dtype == jnp.bfloat16 else _match_heads
    scores_BGRTS = match(q_BTGRK, k_BSGK)
    scores_BHTS = scores_BGRTS.reshape(B, H, T, -1) * (1 / np.sqrt(K) if scale is None else scale)
    return soft_cap(scores_BHTS, softcap)


@jax.custom_jvp
def attention_weights(scores_BHTS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """softmax over the keys that the mask allows: [B, H, T, S], rows sum to 1. Vaswani et al. 2017, equation 1."""
    return jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BHTS, -jnp.inf), axis=-1)


@attention_weights.defjvp
def _weights_jvp(primals, tangents):
    """A function of the weights alone (0 outside the mask): nothing else is kept for the backward pass."""
    weights_BHTS = attention_weights(*primals)
    product_BHTS = weights_BHTS * tangents[0]
    return weights_BHTS, product_BHTS - weights_BHTS * product_BHTS.sum(axis=-1, keepdims=True)


def weighted_values(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """For each query the weighted mean of the values: [B, T, H, K]."""
    B, H, T, S = weights_BHTS.shape
    G = v_BSGK.shape[2]
    weights_BGRTS = weights_BHTS.reshape(B, G, H // G, T, S).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, T, H, -1)


# On a CPU: queries of a block, and the most blocks, which are unrolled. Shorter and more blocks gain nothing: docs/fast.md.
BLOCK, MAX_BLOCKS = 64, 8


def uses_query_blocks(cfg: config.ModelConfig, attention: str, length: int, train: bool) -> bool:
    """Whether attention over `length` tokens without a cache is computed in blocks of queries: on a CPU, in float32.

    Not where random numbers drop weights: they would depend on the blocks.
    """
    chosen = attention == "auto" and backend() == "cpu" and cfg.dtype == "float32" and cfg.causal
    return chosen and length > BLOCK and not (train and not is_off(cfg.attention_dropout))


def blocked_attention(
    cfg: config.ModelConfig, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """The explicit form for one block of queries after the other: [B, T, H, K].

    The scores of a block stay in a core's cache, and the keys that all of its queries are too early or too late for are
    left out. All windows start at position 0.
    """
    T, heads = q_BTHK.shape[1], []
    size = max(BLOCK, -(-T // MAX_BLOCKS))
    for first in range(0, T, size):
        end = min(first + size, T)
        start = 0 if cfg.attention_window is None else max(0, first + 1 - cfg.attention_window)
        scores_BHTS = attention_scores(
            q_BTHK[:, first:end], k_BTGK[:, start:end], cfg.attention_scale, cfg.attention_softcap
        )
        weights_BHTS = attention_weights(scores_BHTS, mask_BTS[:, first:end, start:end])
        heads.append(weighted_values(weights_BHTS, v_BTGK[:, start:end]))
    return jnp.concatenate(heads, axis=1)


def fused_attention(
    cfg: config.ModelConfig,
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
    starts_BT: jax.Array | None = None,
) -> jax.Array:
    """The same in one kernel that never forms the weights (Dao et al. 2022): [B, T, H, K].

    All windows start at position 0. With `starts_BT` (see `document_starts`) a token sees its own document only.
    `implementation` is jax.nn.dot_product_attention's: "cudnn" on a GPU; "xla" is the same call for tests on any device.
    """
    window = None if cfg.attention_window is None else (cfg.attention_window - 1, 0)
    mask_B1TS = None
    if starts_BT is not None:
        mask_BTS = same_document(starts_BT)
        if cfg.attention_window is not None:  # cuDNN has no window next to a mask
            T = starts_BT.shape[1]
            mask_BTS &= causal_mask(np.arange(T)[None], T, cfg.attention_window)
            window = None
        mask_B1TS = mask_BTS[:, None]
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTGK, v_BTGK, mask=mask_B1TS, scale=cfg.attention_scale, is_causal=cfg.causal,
        local_window_size=window, implementation=implementation,
    )  # fmt: skip


def fused_obstacle(cfg: config.ModelConfig) -> str:
    """Why cuDNN's fused attention can't compute this model on the device that programs are traced for; empty where it can.

    The widths are those that JAX takes; cuDNN has such kernels from compute capability 8.0 (Ampere) on.
    """
    kind, capability = backend(), compute_capability()
    if capability is None:
        return f"it needs an NVIDIA GPU, JAX's backend here is {kind!r}"
    card = f"on a card of compute capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        return f"it does not run {card}: it needs 8.0 or more"
    if cfg.head_width > 128 and capability < (9, 0):
        return f"it takes head widths up to 128 {card} (up to 256 from 9.0 on), not {cfg.head_width}"
    return cfg.cudnn_obstacle


def uses_fused_attention(cfg: config.ModelConfig, attention: str) -> bool:
    """Whether attention is computed by the fused kernel. Raises UserError for 'cudnn' where it can't be."""
    if attention == "explicit":
        return False
    obstacle = fused_obstacle(cfg)
    if attention == "cudnn" and obstacle:
        raise UserError(f"train.attention='cudnn': {obstacle}; choose 'auto' or 'explicit'")
    return not obstacle


class Attention(nn.Module):
    """Every head proposes a change of the stream; W_O mixes them into one.

    concat(heads) W_O is the sum over heads of head_h W_O[h]. The kernel of `out` is stored as [H, K, D], one W_O[h] per
    head.
    """

    cfg: config.ModelConfig
    attention: str = "auto"  # as config.TrainConfig.attention

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array | np.ndarray,
        starts_BT: jax.Array | None = None,
        past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
        first_values: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
        """Returns the change [B, T, D]; keys and values of these tokens [B, T, G, K], for a cache; and their values
        before any mixing, which later layers take as `first_values`.

        Positions count from the start of the document, starts_BT (None: from the start of the text). `past` holds the
        keys, values and lengths [B] of this layer's cache.
        """
        cfg = self.cfg
        q_BTHK = Dense(cfg, name="query")(x_BTD)
        k_BTGK = Dense(cfg, name="key")(x_BTD)
        v_BTGK = own_values = Dense(cfg, name="value")(x_BTD)
        if cfg.qk_norm:
            # Henry et al. 2020. Without it, large learning rates make scores grow until the softmax saturates.
            if cfg.qk_norm_scale:
                q_BTHK = Norm(cfg.norm_epsilon, name="query_norm")(q_BTHK)
                k_BTGK = Norm(cfg.norm_epsilon, name="key_norm")(k_BTGK)
            else:
                q_BTHK, k_BTGK = (normalize(x, False, cfg.norm_epsilon) for x in (q_BTHK, k_BTGK))
        if cfg.position == "rotary":
            slots = x_BTD.shape[1] if past is None else past[0].shape[1]
            q_BTHK, k_BTGK = (
                rotate(x, positions_BT, cfg.rotary_base, slots, cfg.rotary_width) for x in (q_BTHK, k_BTGK)
            )
        if cfg.value_residual and first_values is not None:  # Zhou et al. 2024, with a learned mixture
            mix = self.param("value_mix", initializer("value_mix"), (2,)).astype(v_BTGK.dtype)
            v_BTGK = mix[0] * v_BTGK + mix[1] * first_values
        T = x_BTD.shape[1]
        if past is None and uses_fused_attention(cfg, self.attention):
            heads_BTHK = fused_attention(cfg, q_BTHK, k_BTGK, v_BTGK, starts_BT=starts_BT)
        elif (
            past is None
            and uses_query_blocks(cfg, self.attention, T, train)
            and not self.is_mutable_collection("intermediates")  # they have all scores and weights
        ):
            heads_BTHK = blocked_attention(cfg, q_BTHK, k_BTGK, v_BTGK, text_mask(cfg, T, starts_BT))
        else:
            scores_BHTS = attention_scores(q_BTHK, k_BTGK, cfg.attention_scale, cfg.attention_softcap)
            mask_BTS = text_mask(cfg, T, starts_BT)
            if past is not None:
                # The tokens of the cache come first. It is written after the last layer.
                keys_BSGK, values_BSGK, length_B = past
                kept = attention_scores(q_BTHK, keys_BSGK, cfg.attention_scale, cfg.attention_softcap)
                S = keys_BSGK.shape[1]
                slots_BT = positions_BT if starts_BT is None else starts_BT + positions_BT
                seen_BTS = causal_mask(slots_BT, S, cfg.attention_window)
                seen_BTS &= jnp.arange(S) < length_B[:, None, None]
                if starts_BT is not None:
                    seen_BTS &= jnp.arange(S) >= starts_BT[..., None]
                scores_BHTS = jnp.concatenate([kept, scores_BHTS], axis=-1)
                mask_BTS = jnp.concatenate(
                    [seen_BTS, jnp.broadcast_to(mask_BTS, (len(length_B), T, T))], axis=-1
                )
            weights_BHTS = attention_weights(scores_BHTS, mask_BTS)
            record(self, scores=scores_BHTS, mask=mask_BTS, weights=weights_BHTS)
            weights_BHTS = Dropout(cfg.attention_dropout, cfg.dropout_bits)(
                weights_BHTS, deterministic=not train
            )
            heads_BTHK = weighted_values(weights_BHTS[..., -T:], v_BTGK)
            if past is not None:
                heads_BTHK += weighted_values(weights_BHTS[..., :-T], values_BSGK)
        record(self, q=q_BTHK, k=k_BTGK, v=v_BTGK, heads=heads_BTHK)
        change_BTD = Dense(cfg, name="out")(heads_BTHK)
        return change_BTD, (k_BTGK, v_BTGK), own_values
