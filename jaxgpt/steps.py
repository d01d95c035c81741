"""The pure functions that training is made of. Nothing here is jitted: who owns the loop does that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt.model import GPT, init_params
from jaxgpt.optim import Schedule


class TrainState(NamedTuple):
    """All that training changes. With the config, the data and the seed it determines the rest of the run."""

    step: jax.Array  # int32: optimizer steps done
    params: dict
    opt_state: Any


def init_state(model: GPT, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Step 0: fresh parameters and an optimizer that has seen nothing."""
    params = init_params(model, key)
    # A strongly typed 0: a weak one would come back from a checkpoint as int32 and trace the step again.
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """-log p(target) in nats for every position: [B, T], float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


def mean_loss(model: GPT, params: dict, tokens: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Mean -log p(next token) in nats over a batch of windows [B, T + 1]; with a key, dropout is on."""
    logits_BTV = model.apply(
        {"params": params},
        tokens[:, :-1],
        train=dropout_key is not None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    return token_losses(logits_BTV, tokens[:, 1:]).mean()


def make_train_step(
    model: GPT, optimizer: optax.GradientTransformation, schedule: Schedule, grad_accumulation_steps: int = 1
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch [B, T + 1], root key) -> (state, metrics).

    metrics: `loss` (nats, before the update), `grad_norm` (before clipping), `learning_rate`, and `grad_norms`,
    one for each parameter in the tree's order. Where loss or gradient is not finite the state comes back as
    it was, its step not counted: parameters are never spoiled.
    """

    def loss_and_grads(params, batch, key):
        key = None if model.cfg.dropout_rate == 0.0 else key
        return jax.value_and_grad(lambda p: mean_loss(model, p, batch, key))(params)

    def accumulated(params, batch, key):
        """The mean over equal parts of the batch, one after another: the memory of one part."""
        parts = batch.reshape(grad_accumulation_steps, -1, batch.shape[-1])

        def add(total, part_and_index):
            part, index = part_and_index
            return jax.tree.map(
                jnp.add, total, loss_and_grads(params, part, jax.random.fold_in(key, index))
            ), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(grad_accumulation_steps)))
        return jax.tree.map(lambda x: x / grad_accumulation_steps, total)

    def train_step(state: TrainState, batch: jax.Array, root_key: jax.Array):
        # Randomness is a function of the step: nothing to save, and a resumed run draws the same masks.
        key = jax.random.fold_in(root_key, state.step)
        compute = loss_and_grads if grad_accumulation_steps == 1 else accumulated
        loss, grads = compute(state.params, batch, key)
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
        grad_norm = jnp.sqrt(squares.sum())
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        state_out = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "grad_norms": jnp.sqrt(squares),
        }
        return state_out, metrics

    return train_step


def make_eval_step(model: GPT) -> Callable[[dict, jax.Array], jax.Array]:
    """The function (params, windows [B, T + 1]) -> -log p(next token) in nats at every position [B, T]."""

    def eval_step(params: dict, tokens: jax.Array) -> jax.Array:
        logits_BTV = model.apply({"params": params}, tokens[:, :-1])
        return token_losses(logits_BTV, tokens[:, 1:])

    return eval_step
