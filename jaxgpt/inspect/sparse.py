"""A TopK sparse autoencoder: activations as sums of a few features out of many (Gao et al. 2024; Cunningham et al. 2023).

Shapes: N activations, D width, M features, k of them active at a time.

    z = the k largest of relu(W_enc (x - b) + c), the others 0          x' = W_dec z + b

Each row of W_dec [M, D] has length 1. Features that did not fire for a while learn to write what is left of x (AuxK, section A.2 of Gao et al.).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt.config import UserError
from jaxgpt.inspect.interventions import Edit, edited_logits
from jaxgpt.model.gpt import GPT
from jaxgpt.training.steps import token_losses

AUXILIARY = 1 / 32  # weight of what dead features write
QUIET = 50  # steps without firing after which a feature counts as dead in training
BATCH = 1_024
# The sites where a reconstruction can be put in the place of the activation, by the name of the recorded value.
SPLICED = {"after": "stream", "mlp_change": "mlp", "mlp/hidden": "neurons"}


class Sparse(NamedTuple):
    """The parameters, of activations that are divided by `scale` after `bias` is taken away."""

    encoder: Any  # [D, M]
    threshold: Any  # [M]
    decoder: Any  # [M, D]
    bias: Any  # [D]
    scale: Any  # root mean square of the activations less their mean


def codes(sae: Sparse, x_ND: Any, k: int) -> jax.Array:
    """The features [N, M] of activations, at most k of a row above 0."""
    return _top(jax.nn.relu((x_ND - sae.bias) / sae.scale @ sae.encoder + sae.threshold), k)


def _top(z_NM: jax.Array, k: int) -> jax.Array:
    values_Nk, at_Nk = jax.lax.top_k(z_NM, k)
    return jnp.zeros_like(z_NM).at[jnp.arange(len(z_NM))[:, None], at_Nk].set(values_Nk)


def decode(sae: Sparse, z_NM: Any) -> jax.Array:
    """The activations [N, D] of features."""
    return z_NM @ sae.decoder * sae.scale + sae.bias


def fit(
    x_ND: np.ndarray, features: int, k: int, steps: int = 2_000, learning_rate: float = 2e-3, seed: int = 0
) -> Sparse:
    """Train an autoencoder on activations. Raises UserError for numbers that do not fit together."""
    if not 1 <= k <= features or len(x_ND) < 2:
        raise UserError(
            f"{len(x_ND)} activations, {features} features, {k} of them active: give 2 activations or more, and k from 1 to the "
            "number of features"
        )
    x_ND = jnp.asarray(x_ND, jnp.float32)
    mean_D = x_ND.mean(axis=0)
    scale = jnp.sqrt(jnp.square(x_ND - mean_D).mean()) + 1e-12
    keys = jax.random.split(jax.random.key(seed), 2)
    decoder_MD = _unit(jax.random.normal(keys[0], (features, x_ND.shape[1])))
    start = Sparse(decoder_MD.T, jnp.zeros(features), decoder_MD, mean_D, scale)
    return _train(start, x_ND, keys[1], k, steps, learning_rate)


def _unit(rows_MD: jax.Array) -> jax.Array:
    return rows_MD / jnp.linalg.norm(rows_MD, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("k", "steps"))
def _train(start: Sparse, x_ND: jax.Array, key: jax.Array, k: int, steps: int, rate: float) -> Sparse:
    M, D = start.decoder.shape
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, steps))

    def loss(learned, x_BD, quiet_M):
        sae = Sparse(*learned, start.bias, start.scale)
        y_BD = (x_BD - sae.bias) / sae.scale
        raw_BM = jax.nn.relu(y_BD @ sae.encoder + sae.threshold)
        z_BM = _top(raw_BM, k)
        left_BD = y_BD - z_BM @ sae.decoder
        dead_BM = _top(jnp.where(quiet_M > QUIET, raw_BM, 0.0), min(M, max(k, D // 2)))
        more = jnp.square(jax.lax.stop_gradient(left_BD) - dead_BM @ sae.decoder).mean()
        more = jnp.where((quiet_M > QUIET).any(), more, 0.0)
        return jnp.square(left_BD).mean() + AUXILIARY * more, (z_BM > 0).any(axis=0)

    def step(carry, i):
        learned, state, quiet_M = carry
        rows = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(x_ND))
        gradient, fired_M = jax.grad(loss, has_aux=True)(learned, x_ND[rows], quiet_M)
        updates, state = optimizer.update(gradient, state)
        encoder, threshold, decoder = optax.apply_updates(learned, updates)
        return ((encoder, threshold, _unit(decoder)), state, jnp.where(fired_M, 0, quiet_M + 1)), None

    learned = (start.encoder, start.threshold, start.decoder)
    carry = (learned, optimizer.init(learned), jnp.zeros(M, jnp.int32))
    (learned, _, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    return Sparse(*learned, start.bias, start.scale)


@dataclass(frozen=True)
class Quality:
    """What an autoencoder keeps of activations that it was not trained on."""

    explained: float  # 1 - sum of squared errors / sum of squares around the mean
    dead: int  # features that never fire
    rates: np.ndarray  # [M], share of the tokens at which a feature fires
    largest: np.ndarray  # [M, contexts], largest activations of each feature
    places: np.ndarray  # [M, contexts], and their rows


def quality(sae: Sparse, x_ND: np.ndarray, k: int, contexts: int = 5) -> Quality:
    """Measure an autoencoder, 4,096 activations at a time."""
    error, M = 0.0, sae.threshold.shape[0]
    counts_M = np.zeros(M)
    best, at = np.zeros((M, 0), np.float32), np.zeros((M, 0), int)
    encode = jax.jit(codes, static_argnums=2)
    for first in range(0, len(x_ND), 4_096):
        part = x_ND[first : first + 4_096]
        z_NM = encode(sae, part, k)
        error += float(np.square(np.asarray(decode(sae, z_NM)) - part, dtype=np.float64).sum())
        z_MN = np.asarray(z_NM).T
        counts_M += (z_MN > 0).sum(axis=1)
        rows = np.broadcast_to(np.arange(first, first + len(part)), z_MN.shape)
        best, at = np.concatenate([best, z_MN], axis=1), np.concatenate([at, rows], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :contexts]
        best, at = np.take_along_axis(best, order, axis=1), np.take_along_axis(at, order, axis=1)
    spread = float(np.square(x_ND - x_ND.mean(axis=0), dtype=np.float64).sum())
    return Quality(1 - error / spread, int((counts_M == 0).sum()), counts_M / len(x_ND), best, at)


def spliced(
    model: GPT, params: dict, tokens_BT: np.ndarray, site: str, x_ND: np.ndarray, sae: Sparse, k: int
) -> dict[str, float]:
    """The loss (nats per token) of windows with the activation as it is, reconstructed, and replaced by its mean.

    x_ND are the activations of these windows at the site. `recovered` is the share of what the mean loses that the reconstruction keeps.
    """
    block, _, value = site.partition("/")
    if value not in SPLICED:
        raise UserError(
            f"{site!r} can't be replaced in the model: choose block_I/{', block_I/'.join(SPLICED)}"
        )
    place = (SPLICED[value], int(block.removeprefix("block_")))
    shape = (*tokens_BT.shape, -1)

    @jax.jit
    def loss(tokens_BT, replace):
        edits = {} if replace is None else {place: Edit(replace=replace)}
        logits_BTV = edited_logits(model, params, tokens_BT, edits)
        return token_losses(logits_BTV[:, :-1], tokens_BT[:, 1:]).mean()

    mean_ND = np.broadcast_to(x_ND.mean(axis=0), x_ND.shape)
    again_ND = decode(sae, codes(sae, x_ND, k))
    found = {
        "loss": float(loss(tokens_BT, None)),
        "reconstructed": float(loss(tokens_BT, again_ND.reshape(shape))),
        "mean": float(loss(tokens_BT, mean_ND.reshape(shape))),
    }
    lost = found["mean"] - found["loss"]
    return found | {"recovered": (found["mean"] - found["reconstructed"]) / lost if lost else float("nan")}
