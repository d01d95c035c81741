"""The loss of a language model: -log p(target) at every position, from all logits or from those of a part at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from jaxgpt import config
from jaxgpt.model.gpt import logits
from jaxgpt.model.layers import look_up_parts
from jaxgpt.model.sharding import BATCH, constrain, parts_of_batch


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """-log p(target) in nats at every position: [B, T] float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


def losses(logits_BTV: jax.Array, targets_BT: jax.Array, marked: bool, z_loss: float = 0.0) -> jax.Array:
    """`token_losses`, 0 for targets that are marked as none (see batches.marked).

    The gradient, and not the value, has optim.z_loss * logsumexp^2 in addition (Chowdhery et al. 2022, section 5).
    """
    losses_BT = token_losses(logits_BTV, jnp.maximum(targets_BT, 0) if marked else targets_BT)
    if z_loss:
        squares_BT = z_loss * jnp.square(jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1))
        losses_BT += squares_BT - jax.lax.stop_gradient(squares_BT)
    return jnp.where(targets_BT >= 0, losses_BT, 0.0) if marked else losses_BT


def _in_chunks(x_BT: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] -> [T / chunk, B, chunk, ...]. Every chunk has all rows, so that devices share each chunk."""
    B, T, *rest = x_BT.shape
    return jnp.moveaxis(x_BT.reshape(B, T // chunk, chunk, *rest), 1, 0)


def _of_chunks(parts: jax.Array) -> jax.Array:
    """The inverse of `_in_chunks`."""
    count, B, chunk, *rest = parts.shape
    return jnp.moveaxis(parts, 0, 1).reshape(B, count * chunk, *rest)


def chunked_losses(cfg, x_BTD, table_VD, targets_BT, chunk: int, marked: bool = False) -> jax.Array:
    """`losses` [B, T], from the logits of `chunk` positions per window at a time."""
    parts = (_in_chunks(x_BTD, chunk), _in_chunks(targets_BT, chunk))
    return _of_chunks(jax.lax.map(lambda p: losses(logits(cfg, p[0], table_VD), p[1], marked), parts))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 4, 6, 7))
def chunked_mean_loss(
    cfg: config.ModelConfig,
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    chunk: int,
    count: jax.Array | None = None,
    stored: str = "float32",
    z_loss: float = 0.0,
) -> jax.Array:
    """The mean of `token_losses`, from the logits of `chunk` positions per window at a time; `count` as in `mean_loss`,
    `z_loss` as in `losses`.

    `stored` is train.logits_dtype. Each chunk's gradient is computed in the forward pass, from the same logits (as Hsu et al. 2024, Liger Kernel,
    section 3.2): exact, at no further cost.
    """
    losses_BT = chunked_losses(cfg, x_BTD, table_VD, targets_BT, chunk, count is not None)
    return losses_BT.mean() if count is None else losses_BT.sum() / count


def _chunked_gradients(cfg, x_BTD, table_VD, targets_BT, count, chunk: int, stored: str, z_loss: float):
    """The mean loss, and its gradients by x and by the table."""
    divisor = targets_BT.size if count is None else count
    marked = count is not None
    parts = (_in_chunks(x_BTD, chunk), _in_chunks(targets_BT, chunk))
    if x_BTD.dtype == jnp.float32 and parts_of_batch(len(x_BTD)) == 1:
        return _by_autodiff(cfg, parts, table_VD, divisor, marked, z_loss)
    return _by_hand(cfg, parts, table_VD, divisor, marked, stored, z_loss)


def _by_autodiff(cfg, parts, table_VD, divisor, marked: bool, z_loss: float = 0.0):
    """`_chunked_gradients` of chunks, with JAX's derivatives."""

    def one(carry, part):
        loss, dtable_VD = carry
        x, targets = part
        new, (dx, d) = jax.value_and_grad(
            lambda x, table: losses(logits(cfg, x, table), targets, marked, z_loss).sum() / divisor, (0, 1)
        )(x, table_VD)
        return (loss + new, dtable_VD + d), dx

    (loss, dtable_VD), dx = jax.lax.scan(one, (jnp.zeros(()), jnp.zeros_like(table_VD)), parts)
    return loss, (_of_chunks(dx), dtable_VD)


def _by_hand(cfg, parts, table_VD, divisor, marked: bool, stored: str = "float32", z_loss: float = 0.0):
    """The same with a GPU's memory in mind, which limits a loss in bfloat16.

    The logits of a chunk are written once and read twice: for the maximum and the sum together, and for softmax minus
    one-hot. The table is cast, and over a mesh gathered, once for all chunks. Each device sums the table's gradient over
    its own rows; the devices' sums are added after the last chunk.
    """
    dtype, shards, chunks = parts[0].dtype, parts_of_batch(parts[0].shape[1]), len(parts[0])
    spread = table_VD.ndim == 3  # see sharding.spread_tables
    table, narrow = (
        ("SVD", table_VD.astype(dtype))
        if spread
        else ("VD", constrain(table_VD.astype(dtype), "tensor", None))
    )
    ids_V = jnp.arange(cfg.table_rows)
    padding_V = jnp.where(ids_V < cfg.num_tokens, 0.0, -jnp.inf)

    def split(x):  # [B, chunk, ...] -> [shards, N, ...], each device its rows
        x = x.reshape(shards, -1, *x.shape[2:])
        return constrain(x, BATCH, *(None,) * (x.ndim - 1))

    def one(dtable_SVD, part):
        x_SND, targets_SN = (split(x) for x in part)
        counts_SN = targets_SN >= 0
        raw_SNV = jnp.einsum(f"SND,{table}->SNV", x_SND, narrow, preferred_element_type=stored)
        raw_SNV = constrain(raw_SNV, BATCH, None, "tensor")
        # Behind barriers: a broadcast constant would be written once, before the loop, and read in every chunk, and the
        # probabilities would be stored where computing them from the logits again is cheaper.
        raw_SNV, pad_V, one = jax.lax.optimization_barrier((raw_SNV, padding_V, jnp.float32(1)))
        log_total_SN = _log_sum(_cap(cfg, raw_SNV)[0] + pad_V, one)
        raw_SNV, pad_V, log_total_SN = jax.lax.optimization_barrier((raw_SNV, pad_V, log_total_SN))
        capped_SNV, slope = _cap(cfg, raw_SNV)
        target_SN = jnp.where(counts_SN, targets_SN, 0)
        is_target = target_SN[..., None] == ids_V
        weight = 1 / divisor
        if marked:
            weight = weight * counts_SN[..., None]
        p_SNV = jnp.exp(capped_SNV + pad_V - log_total_SN[..., None])
        if z_loss:
            p_SNV *= 1 + 2 * z_loss * log_total_SN[..., None]
        d_SNV = (p_SNV - is_target) * slope * weight
        d_SNV = constrain(d_SNV.astype(dtype), BATCH, None, "tensor")
        dx = jnp.einsum(f"SNV,{table}->SND", d_SNV, narrow)
        more_SVD = jnp.einsum("SNV,SND->SVD", d_SNV, x_SND, preferred_element_type=jnp.float32)
        # Where devices have parts of the table, they add scores, not rows.
        chosen_KSND = look_up_parts(narrow, target_SN, "tensor").astype(jnp.float32)
        chosen_SN, _ = _cap(cfg, (x_SND.astype(jnp.float32) * chosen_KSND).sum(axis=-1).sum(axis=0))
        loss_SN = log_total_SN - chosen_SN
        if marked:
            loss_SN = jnp.where(counts_SN, loss_SN, 0.0)
        total = constrain(dtable_SVD + more_SVD, BATCH, "tensor", None)
        return total, (loss_SN, constrain(dx.reshape(part[0].shape), BATCH))

    zeros = constrain(jnp.zeros((shards, *table_VD.shape[-2:]), jnp.float32), BATCH, "tensor", None)
    dtable_SVD, (loss, dx) = jax.lax.scan(one, zeros, parts, length=chunks)
    dtable = dtable_SVD if spread else dtable_SVD.sum(axis=0)
    return loss.sum() / divisor, (_of_chunks(dx), dtable.astype(table_VD.dtype))


def _cap(cfg, raw: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Logits with model.logit_softcap, and the derivative of that."""
    raw = raw.astype(jnp.float32)
    if not cfg.logit_softcap:
        return raw, 1.0
    bent = jnp.tanh(raw / cfg.logit_softcap)
    return cfg.logit_softcap * bent, 1 - jnp.square(bent)


def _log_sum(logits_NV: jax.Array, one: jax.Array) -> jax.Array:
    """logsumexp over the last axis: maximum and sum in one pass over the logits. `one` is 1."""

    def merge(a, b):
        top = jnp.maximum(a[0], b[0])
        safe = jnp.where(jnp.isfinite(top), top, 0.0)  # -inf - -inf is NaN
        return top, a[1] * jnp.exp(a[0] - safe) + b[1] * jnp.exp(b[0] - safe)

    ones_NV = jnp.broadcast_to(one, logits_NV.shape)
    start = (jnp.float32(-jnp.inf), jnp.float32(0))
    top, total = jax.lax.reduce((logits_NV, ones_NV), start, merge, (logits_NV.ndim - 1,))
    return top + jnp.log(total)


@chunked_mean_loss.defjvp
def _chunked_jvp(cfg, chunk, stored, z_loss, primals, tangents):
    loss, gradients = _chunked_gradients(cfg, *primals, chunk, stored, z_loss)
    products = jax.tree.map(lambda g, t: (g * t).sum(dtype=jnp.float32), gradients, tuple(tangents[:2]))
    return loss, sum(products)
