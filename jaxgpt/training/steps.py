"""The pure functions of training: state, loss, train step, dispatch. They are jitted where the loop is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgpt import config
from jaxgpt.common.backend import backend
from jaxgpt.model.gpt import GPT, logits, output_side
from jaxgpt.model.parameters import init_params, param_shapes
from jaxgpt.model.sharding import BATCH, constrain, constrain_like, replicate, spread_tables, sum_tables
from jaxgpt.runs.state import TrainState
from jaxgpt.training import trainable
from jaxgpt.training.losses import chunked_losses, chunked_mean_loss, losses, token_losses
from jaxgpt.training.optim import Schedule, make_optimizer, make_schedule


def init_state(model: GPT, optimizer: optax.GradientTransformation, start: jax.Array | dict) -> TrainState:
    """The state at step 0. `start` is the initial parameters, or a key to draw them with."""
    params = start if isinstance(start, dict) else init_params(model, start)
    init = jax.jit(lambda p: constrain_like(p, (p, optimizer.init(p))))
    # A strongly typed 0: a weakly typed one comes back from a checkpoint as int32, and the step is traced again.
    return TrainState(jnp.zeros((), jnp.int32), *init(params))


def state_shapes(model: GPT, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of `init_state`. Allocates nothing."""
    params = param_shapes(model.cfg)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, jax.eval_shape(optimizer.init, params))


def mean_loss(
    model: GPT,
    params: dict,
    tokens: jax.Array,
    dropout_key: jax.Array | None = None,
    loss_chunk: int = 0,
    count: jax.Array | None = None,
    logits_dtype: str = "float32",
    z_loss: float = 0.0,
) -> jax.Array:
    """Mean -log p(next token) in nats over a batch of windows [B, T + 1]. With a key, dropout is on.

    `loss_chunk` (see TrainConfig) changes the memory used, not the result, and `logits_dtype` its precision. With `count` some tokens are marked as no
    targets (see batches.marked), and the sum over the others is divided by it: by `count_targets` of the complete batch,
    of which these windows may be a part. `z_loss` (see OptimConfig) changes the gradient, not the value.
    """
    inputs_BT = tokens[:, :-1]
    if count is not None:
        inputs_BT = jnp.where(inputs_BT < 0, ~inputs_BT, inputs_BT)
    x_BTD, _ = model.apply(
        {"params": params},
        inputs_BT,
        train=dropout_key is not None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method=GPT.features,
    )
    x_BTD, table_VD = output_side(model.cfg, params, x_BTD)  # D is E if a tied table is narrow
    if loss_chunk:
        return chunked_mean_loss(
            model.cfg, x_BTD, table_VD, tokens[:, 1:], loss_chunk, count, logits_dtype, z_loss
        )
    losses_BT = losses(logits(model.cfg, x_BTD, table_VD), tokens[:, 1:], count is not None, z_loss)
    return losses_BT.mean() if count is None else losses_BT.sum() / count


def count_targets(batch: jax.Array) -> jax.Array:
    """The targets of windows [B, T + 1] that are not marked, as a float32 number to divide by: at least 1."""
    return jnp.maximum((batch[:, 1:] >= 0).sum(), 1).astype(jnp.float32)


def make_train_step(
    model: GPT,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    cfg: config.Config,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch [B, T + 1], root key) -> (state, metrics).

    `cfg.train` and `cfg.optim` say how; the model, optimizer and schedule are those passed. Metrics that are one number
    reach every log by themselves (see step_log.py):

        loss           nats per token, before the update
        grad_norm      before clipping
        learning_rate
        grad_norms     [P], one for each trained parameter, in the tree's order
        bad            the loss or a gradient is not finite, or grad_norm is above train.bad_grad_norm (0: no limit)

    A bad step returns the state that it received, so it can't damage parameters or optimizer state. It is counted only
    with train.on_bad_step="skip".
    """
    train, moving = cfg.train, cfg.optim
    num_parts = train.grad_accumulation_steps
    marked = cfg.data.marks_targets

    def loss_and_grads(params, batch, key, count):
        key = key if model.cfg.drops else None

        def loss(part):
            return mean_loss(
                model,
                trainable.merge(params, part),
                batch,
                key,
                train.loss_chunk,
                count,
                train.logits_dtype,
                moving.z_loss,
            )

        return jax.value_and_grad(loss)(trainable.select(moving, params))

    def accumulated(params, batch, key, count):
        """The mean over equal parts of the batch, one after another: activations of one part at a time.

        With marked targets each part is divided by the targets of all parts, and the parts are added.
        """
        parts = constrain(batch.reshape(num_parts, -1, batch.shape[-1]), None, BATCH)

        def add(total, part_and_index):
            part, index = part_and_index
            return jax.tree.map(
                jnp.add, total, loss_and_grads(params, part, jax.random.fold_in(key, index), count)
            ), None

        part = trainable.select(moving, params)
        zeros = constrain_like(params, jax.tree.map(jnp.zeros_like, part))
        params, start = spread_tables(params), (jnp.zeros(()), spread_tables(zeros))
        (loss, grads), _ = jax.lax.scan(add, start, (parts, jnp.arange(num_parts)))
        total = loss, sum_tables(grads)
        return total if marked else jax.tree.map(lambda x: x / num_parts, total)

    def train_step(state: TrainState, batch: jax.Array, root_key: jax.Array):
        # The key is a function of the step. Nothing needs saving, and a resumed run draws the same masks.
        key = jax.random.fold_in(root_key, state.step)
        compute = loss_and_grads if num_parts == 1 else accumulated
        loss, grads = compute(state.params, batch, key, count_targets(batch) if marked else None)
        grads = constrain_like(state.params, trainable.keep_rows(moving, grads))
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
        grad_norm = jnp.sqrt(squares.sum())
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # Only the trained parameters; the others are returned unchanged.
        old_state = state._replace(params=trainable.select(moving, state.params))
        new_params = trainable.keep_rows(
            moving, optax.apply_updates(old_state.params, updates), old_state.params
        )
        new_state = TrainState(state.step + 1, new_params, opt_state)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if train.bad_grad_norm:
            good &= grad_norm <= train.bad_grad_norm
        state_out = jax.tree.map(lambda new, old: jnp.where(good, new, old), new_state, old_state)
        state_out = state_out._replace(params=trainable.merge(state.params, state_out.params))
        if train.on_bad_step == "skip":
            state_out = state_out._replace(step=state.step + 1)
        state_out = constrain_like(state.params, state_out)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "grad_norms": jnp.sqrt(squares),
            "bad": ~good,
        }
        return state_out, replicate(metrics)

    return train_step


class Parts(NamedTuple):
    """The result of `build`."""

    model: GPT
    schedule: Schedule
    optimizer: optax.GradientTransformation
    train_step: Callable


def build(cfg: config.Config) -> Parts:
    """The model, schedule, optimizer and train step of a config whose model.vocab_size is known."""
    model = GPT(cfg.model, attention=cfg.train.attention, remat=cfg.train.remat)
    schedule = make_schedule(cfg.optim, cfg.train.num_steps)
    optimizer = make_optimizer(cfg.optim, schedule)
    return Parts(model, schedule, optimizer, make_train_step(model, optimizer, schedule, cfg))


def windows_at(ids: jax.Array, starts: jax.Array, context_length: int) -> jax.Array:
    """The windows [..., T + 1] that start at `starts`: a batch cut from ids that are on the device."""
    return ids[starts[..., None] + jnp.arange(context_length + 1)].astype(jnp.int32)


def make_dispatch(train_step: Callable, cfg: config.Config) -> Callable:
    """train.steps_per_dispatch steps (N) in one call: (state, ids or None, [N, ...], key) -> (state, metrics).

    The third argument has the batch of each step [B, T + 1], or with data.on_device the starts of its windows [B] in `ids`.
    Every metric gets a leading axis of N.
    """
    context_length, on_device = cfg.model.context_length, cfg.data.on_device

    def dispatch(state: TrainState, ids: jax.Array | None, batches: jax.Array, root_key: jax.Array):
        def one(state, batch):
            return train_step(state, windows_at(ids, batch, context_length) if on_device else batch, root_key)

        if cfg.train.steps_per_dispatch > 1:
            return jax.lax.scan(one, state, batches)
        state, metrics = one(state, batches[0])
        return state, jax.tree.map(lambda x: x[None], metrics)

    return dispatch


# With these a GPU gathers the matrices of the next part of a batch, and scatters the gradients of the last one, while it
# computes a part. XLA hides other collectives behind kernels by itself: its latency hiding scheduler is on.
PIPELINED = ("xla_gpu_enable_pipelined_all_gather", "xla_gpu_enable_pipelined_reduce_scatter")


def compiler_options(
    cfg: config.Config, kind: str | None = None, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """XLA's options for a config's dispatch on a kind of device: "cpu", "gpu" or "tpu" (None: `backend.backend()`).

    What the user has set in XLA_FLAGS stays.
    """
    options: dict[str, Any] = {}
    if cfg.train.deterministic:  # without it a GPU adds to the rows of a table in any order
        options["xla_gpu_deterministic_ops"] = True
    if cfg.train.pipelined and cfg.mesh.fsdp != 1 and (kind or backend()) == "gpu":
        given = {flag.partition("=")[0].lstrip("-") for flag in environment.get("XLA_FLAGS", "").split()}
        options |= {name: True for name in PIPELINED if name not in given}
    return options


def with_signals(dispatch: Callable) -> Callable:
    """A dispatch for several processes. It takes the flags of all devices [devices] and adds their maximum as `signal`.

    So all processes learn of a signal with the metrics of the same step, and stop at the same step.
    """

    def with_signal(state, ids, batches, root_key, flags: jax.Array):
        state, metrics = dispatch(state, ids, batches, root_key)
        return state, metrics | {"signal": replicate(flags.max())}

    return with_signal


def make_eval_step(model: GPT, loss_chunk: int = 0) -> Callable[[dict, jax.Array], jax.Array]:
    """The function (params, windows [B, T + 1]) -> -log p(next token) in nats at every position [B, T]."""

    def eval_step(params: dict, tokens: jax.Array) -> jax.Array:
        x_BTD, _ = model.apply({"params": params}, tokens[:, :-1], method=GPT.features)
        (x_BTD, table_VD), targets_BT = output_side(model.cfg, params, x_BTD), tokens[:, 1:]
        if loss_chunk:
            losses_BT = chunked_losses(model.cfg, x_BTD, table_VD, targets_BT, loss_chunk)
        else:
            losses_BT = token_losses(logits(model.cfg, x_BTD, table_VD), targets_BT)
        return replicate(losses_BT)

    return eval_step
