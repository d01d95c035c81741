"""Optimizers, learning rate schedules, weight decay, and averages of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxgpt import config
from jaxgpt.config import is_off
from jaxgpt.model.linear import LINEAR
from jaxgpt.training import muon, trainable

Schedule = Callable[[jax.Array], jax.Array]


def _cosine(cfg: config.OptimConfig, t: jax.Array) -> jax.Array:
    """Half a cosine from the peak to the final rate. Loshchilov and Hutter 2017."""
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * 0.5 * (
        1.0 + jnp.cos(jnp.pi * t)
    )


def _linear(cfg: config.OptimConfig, t: jax.Array) -> jax.Array:
    """A straight line from the peak to the final rate."""
    return cfg.learning_rate + (cfg.final_learning_rate - cfg.learning_rate) * t


def _constant(cfg: config.OptimConfig, t: jax.Array) -> jax.Array:
    return jnp.full_like(t, cfg.learning_rate)


def _wsd(cfg: config.OptimConfig, t: jax.Array) -> jax.Array:
    """Warm-up, stable, decay: the peak, then a line down in the last `decay_fraction`. Hu et al. 2024."""
    return _linear(cfg, jnp.clip((t - (1.0 - cfg.decay_fraction)) / cfg.decay_fraction, 0.0, 1.0))


# Each gives the rate at t, the fraction of the run after the warm-up (0 to 1).
SCHEDULES: dict[str, Callable[[config.OptimConfig, jax.Array], jax.Array]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}


def make_schedule(cfg: config.OptimConfig, num_steps: int) -> Schedule:
    """The learning rate of each step: a linear warm-up to the peak, then the named schedule.

    Steps count from 0. The first step's rate is learning_rate / (warmup_steps + 1), not 0, so that no batch
    is wasted. Step `warmup_steps` has the peak. A run shorter than its warm-up never reaches it.
    """

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / (cfg.warmup_steps + 1))
        t = jnp.clip((step - cfg.warmup_steps) / jnp.maximum(1, num_steps - cfg.warmup_steps), 0.0, 1.0)
        return warmup * SCHEDULES[cfg.schedule](cfg, t)

    return schedule


def decay_mask(cfg: config.OptimConfig, params: dict) -> dict:
    """Whether each parameter decays: matrices do, tables only with decay_embeddings."""
    decaying = {"kernel", "lora_a", "lora_b", *(["embedding"] if cfg.decay_embeddings else [])}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decaying, params)


def rate_multipliers(cfg: config.OptimConfig, params: dict) -> dict:
    """The factor of each parameter's learning rate: a tree of floats.

    With parametrization="mup" the best rate of a narrow model is also the best of a wide one (Yang et al. 2022,
    "Tensor Programs V", table 3), given init="fan_in", a head that starts at 0 and heads of one width:

        parameter                       adamw                      muon
        kernels inside the blocks       mup_base_width / d_model   1
        head                            mup_base_width / d_model   mup_base_width / d_model
        all others                      1                          1

    (All others: tables, the projection of a narrow table, biases, norms, scalars, LoRA.) A wide matrix sums more
    inputs, and Adam moves all entries by the same amount, so its entries must move less. An orthogonal update needs
    no factor: its largest singular value, sqrt(max(1, fan_out / fan_in)), does not depend on the width, nor does the
    change of activations. All factors are 1 in the standard parametrization.
    """
    if cfg.parametrization == "standard":
        return jax.tree.map(lambda _: 1.0, params)

    def multiplier(path: tuple, x: jax.Array) -> float:
        layer = LINEAR.get(path[-2].key) if path[-1].key == "kernel" else None
        if layer is None or not layer.grows or (cfg.name == "muon" and layer.muon):
            return 1.0
        return cfg.mup_base_width / x.shape[(layer.inputs + layer.outputs).index("D")]

    return jax.tree_util.tree_map_with_path(multiplier, params)


# --- the optimizers: each is (cfg, schedule) -> gradients to updates ------------------------------------


def _adamw(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2019: Adam with decoupled weight decay, times the learning rate."""
    mask = functools.partial(decay_mask, cfg)
    if cfg.parametrization == "standard":
        return optax.adamw(
            schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=mask
        )
    # The factor comes before the decay: a wide model decays as fast as a narrow one, see Wang and
    # Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size".
    return optax.chain(
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.stateless(lambda g, params: jax.tree.map(jnp.multiply, g, rate_multipliers(cfg, params))),
        optax.add_decayed_weights(cfg.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Jordan et al. 2024: orthogonal updates for the matrices inside the blocks, AdamW for all other parameters."""
    return muon.muon(
        lambda step: cfg.muon_learning_rate / cfg.learning_rate * schedule(step),
        other=_adamw(cfg, schedule),
        momentum=cfg.muon_momentum,
        iterations=cfg.muon_iterations,
        dtype=jnp.dtype(cfg.muon_dtype),
        weight_decay=cfg.weight_decay,
    )


def _sgd(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum `b1` (Polyak 1964) and decoupled weight decay.

    Nothing divides by the size of gradients, so good rates are 100 to 1,000 times Adam's. `b2` and `eps` are not used.
    """
    return optax.chain(
        optax.trace(cfg.b1),
        optax.add_decayed_weights(cfg.weight_decay, functools.partial(decay_mask, cfg)),
        optax.scale_by_learning_rate(schedule),
    )


def _lion(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms": the sign of a momentum.

    Every entry moves by the full rate, so the paper uses a rate 3 to 10 times lower than Adam's, and a decay
    higher by the same factor. `eps` is not used.
    """
    return optax.lion(
        schedule,
        b1=cfg.b1,
        b2=cfg.b2,
        weight_decay=cfg.weight_decay,
        mask=functools.partial(decay_mask, cfg),
    )


def _adafactor(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Shazeer and Stern 2018: Adam without momentum, its second moments kept as sums of rows and of columns.

    The state of a matrix of 128 x 128 or more is rows + columns numbers. As in the paper, old squares decay by
    1 - step^-0.8 and the root mean square of an update is kept below 1; `b1`, `b2` and `eps` are not used. Rates
    are absolute, as Adam's, not relative to the size of a parameter: one that starts at 0 would stay there.
    """

    def flat(updates: dict) -> dict:
        """Hidden kernels as matrices: a kernel split into heads has no two large axes."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: muon.as_matrices(path, x) if muon.is_hidden(path) else x, updates
        )

    factored = optax.scale_by_factored_rms()
    clip = optax.clip_by_block_rms(1.0)

    def update(updates, state, params=None):
        scaled, state = factored.update(flat(updates), state, flat(updates))
        scaled, _ = clip.update(scaled, optax.EmptyState())
        return jax.tree.map(lambda new, old: new.reshape(old.shape), scaled, updates), state

    return optax.chain(
        optax.GradientTransformation(lambda params: factored.init(flat(params)), update),
        optax.add_decayed_weights(cfg.weight_decay, functools.partial(decay_mask, cfg)),
        optax.scale_by_learning_rate(schedule),
    )


def _schedule_free(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Defazio et al. 2024, "The Road Less Scheduled": AdamW with an average instead of a decaying rate.

    The params of training, at which gradients are taken, interpolate between the average (by `b1`) and the fast
    iterate; `evaluation_params` gives the average, weighted by the square of the rate. `b1` is above 0.
    """
    fast = optax.chain(
        optax.scale_by_rms(decay=cfg.b2, eps=cfg.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(cfg.weight_decay, functools.partial(decay_mask, cfg)),
        optax.scale_by_learning_rate(schedule),
        *_own_rates(cfg),
    )
    # Its count starts at 1, the count of the fast iterate at 0.
    return optax.contrib.schedule_free(fast, lambda count: schedule(count - 1), b1=cfg.b1)


def _own_rates(cfg: config.OptimConfig) -> list[optax.GradientTransformation]:
    """The transformation that multiplies updates by optim.rates, if there are any."""
    if not cfg.rates:
        return []
    return [
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, trainable.rates(cfg, updates)))
    ]


OPTIMIZERS: dict[str, Callable[[config.OptimConfig, Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
    "sgd": _sgd,
    "lion": _lion,
    "adafactor": _adafactor,
    "schedule_free": _schedule_free,
}


# --- averages -------------------------------------------------------------------------------------------


class AverageState(NamedTuple):
    """The moving average of params after `count` updates; before the first, the params themselves."""

    count: jax.Array  # type: ignore[assignment]  # int32; tuple.count is not used
    average: dict  # float32


def average_params(decay: float) -> optax.GradientTransformation:
    """Keep an average of the params; updates pass unchanged.

    After t updates it is sum_i decay^(t - i) params_i / sum_i decay^(t - i), i = 1..t: an exponential moving
    average with the bias correction of Adam's moments (Kingma and Ba 2015, section 3). It is a weighted mean from
    the first update on; initial values do not count.
    """

    def init(params: dict) -> AverageState:
        # A copy: params and state are donated to the same call.
        return AverageState(
            jnp.zeros((), jnp.int32), jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        )

    def update(updates, state, params):
        count = optax.safe_increment(state.count)
        # (1 - decay) / (1 - decay^count) is the weight of the newest params; expm1 is exact for a decay near 1.
        log = np.float32(np.log(decay)) if isinstance(decay, float) else jnp.log(decay)
        share = (1.0 - decay) / -jnp.expm1(count * log)
        new_params = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda old, new: old + share * (new.astype(jnp.float32) - old), state.average, new_params
        )
        return updates, AverageState(count, average)

    return optax.GradientTransformation(init, update)


def averages(cfg: config.OptimConfig) -> bool:
    """Whether `evaluation_params` differ from the params that training holds."""
    return not is_off(cfg.ema_decay) or cfg.name == "schedule_free"


def evaluation_params(cfg: config.OptimConfig, params: dict, opt_state: optax.OptState) -> dict:
    """The params to evaluate, sample from and export: those of training, or the average that the optimizer keeps."""
    if not averages(cfg):
        return params
    last, moving = opt_state[-1], trainable.select(cfg, params)  # see make_optimizer
    if cfg.name == "schedule_free":
        average = optax.contrib.schedule_free_eval_params(last, moving)
    else:
        average = jax.tree.map(lambda average, p: average.astype(p.dtype), last.average, moving)
    return trainable.merge(params, trainable.keep_rows(cfg, average, moving))


def make_optimizer(cfg: config.OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Gradients (clipped by their global norm first, Pascanu et al. 2013) -> updates of the trainable parameters.

    `init` and `update` take all params; gradients, updates and state have the parameters of `trainable.select` only.
    With an average, its state is the last entry of the state, a tuple.
    """
    links = [OPTIMIZERS[cfg.name](cfg, schedule)]
    if cfg.name != "schedule_free":  # it applies them to its fast iterate
        links += _own_rates(cfg)
    if not is_off(cfg.grad_clip_norm):
        links.insert(0, optax.clip_by_global_norm(cfg.grad_clip_norm))
    if not is_off(cfg.ema_decay):
        links.append(average_params(cfg.ema_decay))
    inner = optax.chain(*links) if len(links) > 1 or averages(cfg) else links[0]

    def update(grads, state, params):
        return inner.update(trainable.select(cfg, grads), state, trainable.select(cfg, params))

    return optax.GradientTransformation(lambda params: inner.init(trainable.select(cfg, params)), update)
