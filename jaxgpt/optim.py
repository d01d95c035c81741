"""Optimizers and schedules: how fast parameters move, and which of them decay."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxgpt import config

Schedule = Callable[[jax.Array], jax.Array]


def _cosine(cfg: config.Optim, t: jax.Array) -> jax.Array:
    """Half a cosine from the peak to the final rate. Loshchilov and Hutter 2017."""
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * 0.5 * (
        1.0 + jnp.cos(jnp.pi * t)
    )


def _linear(cfg: config.Optim, t: jax.Array) -> jax.Array:
    """A straight line from the peak to the final rate."""
    return cfg.learning_rate + (cfg.final_learning_rate - cfg.learning_rate) * t


def _constant(cfg: config.Optim, t: jax.Array) -> jax.Array:
    return jnp.full_like(t, cfg.learning_rate)


def _wsd(cfg: config.Optim, t: jax.Array) -> jax.Array:
    """Warm-up, stable, decay: the peak, then a line down in the last `decay_fraction`. Hu et al. 2024."""
    return _linear(cfg, jnp.clip((t - (1.0 - cfg.decay_fraction)) / cfg.decay_fraction, 0.0, 1.0))


# Each: the rate at t, the part of the run after the warm-up that is done (0 to 1).
SCHEDULES: dict[str, Callable[[config.Optim, jax.Array], jax.Array]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}


def make_schedule(cfg: config.Optim, num_steps: int) -> Schedule:
    """The learning rate of each step: a linear warm-up to the peak, then the named shape to the end.

    Steps count from 0. The first step's rate is learning_rate / (warmup_steps + 1), not 0, so that no batch
    is wasted; step `warmup_steps` has the peak and the last step comes next to final_learning_rate. In a run
    shorter than its warm-up the rate rises to the end.
    """

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / (cfg.warmup_steps + 1))
        t = jnp.clip((step - cfg.warmup_steps) / max(1, num_steps - cfg.warmup_steps), 0.0, 1.0)
        return warmup * SCHEDULES[cfg.schedule](cfg, t)

    return schedule


def decay_mask(cfg: config.Optim, params: dict) -> dict:
    """For each parameter whether weight decay acts on it: on matrices, on tables only if so configured."""
    decaying = {"kernel", "embedding"} if cfg.decay_embeddings else {"kernel"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decaying, params)


def _adamw(cfg: config.Optim, schedule: Schedule) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2019: Adam with decay apart from the gradient, times the learning rate."""
    return optax.adamw(
        schedule,
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=functools.partial(decay_mask, cfg),
    )


OPTIMIZERS: dict[str, Callable[[config.Optim, Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
}


def make_optimizer(cfg: config.Optim, schedule: Schedule) -> optax.GradientTransformation:
    """Gradients (clipped by their global norm first, Pascanu et al. 2013) -> updates."""
    optimizer = OPTIMIZERS[cfg.name](cfg, schedule)
    if cfg.grad_clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(cfg.grad_clip_norm), optimizer)
    return optimizer
