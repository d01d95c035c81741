"""The averages of params that optimizers keep: against explicit sums, and what evaluation gets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt import config
from jaxgpt.training import optim


def trajectory(cfg: config.OptimConfig, schedule: optim.Schedule, steps: int) -> tuple[list, list, list]:
    """After each of so many steps on random gradients: params and evaluation params; and the gradients."""
    rng = np.random.default_rng(0)
    params = {"mlp": {"up": {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}}}
    grads = [{"mlp": {"up": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}}} for _ in range(steps)]
    optimizer = optim.make_optimizer(cfg, schedule)
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, optim.evaluation_params(cfg, params, state)

    kernel = lambda tree: np.asarray(tree["mlp"]["up"]["kernel"], np.float64)  # noqa: E731
    trained = [kernel(params)]
    evaluated = [kernel(optim.evaluation_params(cfg, params, state))]
    for grad in grads:
        params, state, averaged = step(params, state, grad)
        trained.append(kernel(params))
        evaluated.append(kernel(averaged))
    return trained, evaluated, [kernel(grad) for grad in grads]


def test_who_averages():
    assert not optim.averages(config.OptimConfig())
    assert optim.averages(config.OptimConfig(ema_decay=0.5))
    assert optim.averages(config.OptimConfig(name="schedule_free"))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_without_an_average_evaluation_gets_the_params_themselves(clip):
    cfg = config.OptimConfig(grad_clip_norm=clip)
    params = {"mlp": {"kernel": jnp.ones(3)}}
    state = optim.make_optimizer(cfg, lambda count: 0.1).init(params)
    assert optim.evaluation_params(cfg, params, state) is params


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_moving_average_is_the_weighted_mean_of_all_params_after_updates(name, clip):
    cfg = config.OptimConfig(
        name=name, ema_decay=0.7, grad_clip_norm=clip, learning_rate=1.0, muon_learning_rate=1.0
    )
    trained, evaluated, _ = trajectory(cfg, lambda count: 1.0, steps=6)
    np.testing.assert_array_equal(evaluated[0], trained[0])  # before the first update: there is nothing else
    for t in range(1, 7):
        weights = 0.7 ** np.arange(t - 1, -1, -1.0)
        expected = np.average(trained[1 : t + 1], axis=0, weights=weights)
        np.testing.assert_allclose(evaluated[t], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(trained[6] - evaluated[6]).max() > 0.05


def test_the_correction_keeps_its_digits_where_decay_is_near_1():
    cfg = config.OptimConfig(ema_decay=0.99999, learning_rate=1.0)
    trained, evaluated, _ = trajectory(cfg, lambda count: 0.1, steps=4)
    np.testing.assert_allclose(evaluated[1], trained[1], rtol=1e-6)  # all weight on the only one
    np.testing.assert_allclose(evaluated[4], np.mean(trained[1:], axis=0), rtol=1e-4)  # nearly equal weights


def test_an_average_does_not_change_training():
    with_it, _, _ = trajectory(config.OptimConfig(ema_decay=0.9), lambda count: 0.1, steps=3)
    without, _, _ = trajectory(config.OptimConfig(), lambda count: 0.1, steps=3)
    np.testing.assert_allclose(with_it, without, rtol=1e-6)


def test_the_average_is_float32_and_evaluation_gets_the_params_dtype():
    cfg = config.OptimConfig(ema_decay=0.9)
    params = {"mlp": {"kernel": jnp.ones(3, jnp.bfloat16)}}
    state = optim.make_optimizer(cfg, lambda count: 0.1).init(params)
    assert state[-1].average["mlp"]["kernel"].dtype == jnp.float32
    assert optim.evaluation_params(cfg, params, state)["mlp"]["kernel"].dtype == jnp.bfloat16


def test_schedule_free_is_the_papers_algorithm():
    """Defazio et al. 2024, algorithm 1, in float64, with a warm-up of 3 steps; evaluation gets x."""
    cfg = config.OptimConfig(
        name="schedule_free", schedule="constant", learning_rate=0.1, warmup_steps=2, weight_decay=0.3, b1=0.8,
        b2=0.9, grad_clip_norm=0.0,
    )  # fmt: skip
    trained, evaluated, grads = trajectory(cfg, optim.make_schedule(cfg, 100), steps=6)
    x = z = y = trained[0]
    v, total = np.zeros_like(x), 0.0
    np.testing.assert_allclose(evaluated[0], x, rtol=1e-6)
    for t, g in enumerate(grads, start=1):
        rate = 0.1 * min(1.0, t / 3)
        v = 0.9 * v + 0.1 * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - 0.9**t)) + cfg.eps) + 0.3 * y)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        y = 0.8 * x + 0.2 * z
        np.testing.assert_allclose(trained[t], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(evaluated[t], x, rtol=1e-5, atol=1e-6)
    assert np.abs(y - x).max() > 0.01
