"""Causally masked multi-head attention, by formula and fused.

Dimensions as in model.py, and G heads of keys and values, each for R = H / G heads of queries.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.layers import dense, drawn_later, rms_normalize, rotate, soft_cap


def causal_mask(positions_BT: jax.Array, num_keys: int, window: int | None = None) -> jax.Array:
    """[B, T, S], true where the query at a position may see key s: exactly the keys 0..position.

    With a window only the last so many of them (Child et al. 2019; Beltagy et al. 2020).
    """
    keys = jnp.arange(num_keys)
    mask = keys <= positions_BT[..., None]
    return mask if window is None else mask & (keys > positions_BT[..., None] - window)


def attention_weights(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """softmax(q k / sqrt(K)) over the keys that the mask allows: [B, H, T, S], rows sum to 1.

    Head h of the queries meets head h // R of the keys (Ainslie et al. 2023). Scores and softmax are float32
    whatever the inputs are. Vaswani et al. 2017, equation 1.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
    scores_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
    scores_BHTS = scores_BGRTS.reshape(B, H, T, -1) * (1 / np.sqrt(K) if scale is None else scale)
    scores_BHTS = jnp.where(mask_BTS[:, None], soft_cap(scores_BHTS, softcap), -jnp.inf)
    return jax.nn.softmax(scores_BHTS, axis=-1)


def weighted_values(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """Each query's mean of the values by its weights: [B, T, H, K]."""
    B, H, T, S = weights_BHTS.shape
    G = v_BSGK.shape[2]
    weights_BGRTS = weights_BHTS.reshape(B, G, H // G, T, S).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, T, H, -1)


def fused_attention(
    cfg: config.Model, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, implementation: str = "cudnn"
) -> jax.Array:
    """The same mean in one kernel that never forms the weights (Dao et al. 2022): [B, T, H, K].

    All windows start at position 0. `implementation` is jax.nn.dot_product_attention's: "cudnn" on a GPU;
    "xla" is the same call for tests on any device.
    """
    window = None if cfg.attention_window is None else (cfg.attention_window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTGK, v_BTGK, scale=cfg.attention_scale, is_causal=True, local_window_size=window,
        implementation=implementation,
    )  # fmt: skip


def uses_cudnn(cfg: config.Model, attention: str) -> bool:
    """Whether training runs fused. Raises UserError where that is asked for and the machine has no GPU."""
    on_gpu = jax.default_backend() == "gpu"
    if attention == "cudnn" and not on_gpu:
        raise UserError(
            f"train.attention='cudnn' needs an NVIDIA GPU, JAX's backend here is {jax.default_backend()!r}: "
            "choose 'auto' or 'explicit'"
        )
    return attention == "cudnn" or (attention == "auto" and on_gpu and not cfg.cudnn_obstacle)


class Attention(nn.Module):
    """Causally masked multi-head attention: every head proposes a change, W_O mixes them into one.

    concat(heads) W_O is the same as the sum over heads of head_h W_O[h]: the kernel of `out` is kept as
    [H, K, D] so that each head's own part can be read off.
    """

    cfg: config.Model
    attention: str = "auto"  # as config.Train.attention

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array | np.ndarray,
        past: tuple[jax.Array, jax.Array] | None = None,
        first_values: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
        """Returns the change [B, T, D], keys and values [B, S, G, K] with these tokens written in, and these
        tokens' values before any mixing [B, T, G, K], which later layers take as `first_values`."""
        cfg = self.cfg
        q_BTHK = dense(cfg, "query", cfg.num_heads, cfg.head_dim)(x_BTD)
        k_BSGK = dense(cfg, "key", cfg.kv_heads, cfg.head_dim)(x_BTD)
        v_BSGK = own_values = dense(cfg, "value", cfg.kv_heads, cfg.head_dim)(x_BTD)
        if (
            cfg.qk_norm
        ):  # Henry et al. 2020; without it large rates make scores grow until the softmax is stuck
            q_BTHK, k_BSGK = rms_normalize(q_BTHK), rms_normalize(k_BSGK)
        if cfg.position == "rotary":
            q_BTHK, k_BSGK = (
                rotate(x, positions_BT, cfg.rotary_base, cfg.context_length) for x in (q_BTHK, k_BSGK)
            )
        if cfg.value_residual and first_values is not None:  # Zhou et al. 2024, with a learned mixture
            mix = self.param("value_mix", drawn_later, (2,)).astype(v_BSGK.dtype)
            v_BSGK = mix[0] * v_BSGK + mix[1] * first_values
        if past is None and uses_cudnn(cfg, self.attention):
            heads_BTHK = fused_attention(cfg, q_BTHK, k_BSGK, v_BSGK)
        else:
            if past is not None:
                rows = jnp.arange(x_BTD.shape[0])[:, None]
                k_BSGK = past[0].at[rows, positions_BT].set(k_BSGK.astype(past[0].dtype))
                v_BSGK = past[1].at[rows, positions_BT].set(v_BSGK.astype(past[1].dtype))
            mask_BTS = causal_mask(positions_BT, k_BSGK.shape[1], cfg.attention_window)
            weights_BHTS = attention_weights(
                q_BTHK, k_BSGK, mask_BTS, cfg.attention_scale, cfg.attention_softcap
            )
            weights_BHTS = nn.Dropout(cfg.dropout_rate)(weights_BHTS, deterministic=not train)
            heads_BTHK = weighted_values(weights_BHTS, v_BSGK)
        change_BTD = dense(cfg, "out", cfg.d_model, inputs=2)(heads_BTHK)
        return change_BTD, (k_BSGK, v_BSGK), own_values
