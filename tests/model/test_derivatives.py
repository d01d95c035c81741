"""Derivatives of every kind pass through the hand-written rules: forward, reverse, and forward over reverse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import attention, layers
from jaxgpt.model.gpt import GPT
from jaxgpt.training import steps
from tests.models import EVERYTHING, TINY, TOKENS, random_params

WINDOWS = np.concatenate([TOKENS, TOKENS[:, :1]], axis=1)


def loss_of(cfg, chunk):
    return lambda params: steps.mean_loss(GPT(cfg), params, WINDOWS, loss_chunk=chunk)


def directions(params):
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 1.0, x.shape), x.dtype), params)


def assert_near(found, expected, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-3, float(np.abs(b).max())))


@pytest.mark.parametrize("norm", layers.NORMS)
def test_hessian_times_vector_is_that_of_the_model_without_rules(norm, monkeypatch):
    cfg = dataclasses.replace(
        TINY, **EVERYTHING | {"norm": norm, "use_bias": norm == "layernorm", "num_layers": 1}
    )
    params = random_params(cfg)
    direction = directions(params)

    def derivatives(chunk):
        """The loss, its slope along the direction, its gradient, and its Hessian times the direction."""
        loss = jax.value_and_grad(loss_of(cfg, chunk))
        (value, gradient), (slope, product) = jax.jit(lambda p, v: jax.jvp(loss, (p,), (v,)))(
            params, direction
        )
        return value, slope, gradient, product

    found = [derivatives(chunk) for chunk in (0, 4)]
    rules = layers.normalize.fun, attention.attention_weights.fun
    for module in (layers, attention):
        monkeypatch.setattr(module, "normalize", rules[0])
    monkeypatch.setattr(attention, "attention_weights", rules[1])
    expected = derivatives(0)
    for one in found:
        for a, b in zip(one, expected, strict=True):
            assert_near(a, b, 2e-4)


def test_the_hessian_of_a_norm_and_of_softmax_is_symmetric_and_that_of_differences():
    x_D = jnp.asarray(np.random.default_rng(0).normal(size=6), jnp.float32)
    weights_D = jnp.arange(1.0, 7.0)
    mask = np.arange(6)[None, None] < 5
    for function in (
        lambda x: layers.normalize(x, True, 1e-5) @ weights_D,
        lambda x: layers.normalize(x, False, 1e-5) @ weights_D,
        lambda x: attention.attention_weights(x[None, None, None], mask)[0, 0, 0] @ weights_D,
    ):
        hessian = jax.hessian(function)(x_D)
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-5)
        ahead, behind = (jax.vmap(jax.grad(function))(x_D + h * jnp.eye(6)) for h in (1e-2, -1e-2))
        np.testing.assert_allclose(hessian, (ahead - behind) / 2e-2, atol=5e-3 * np.abs(hessian).max())


def test_bfloat16_models_have_reverse_mode_derivatives():
    cfg = dataclasses.replace(TINY, num_layers=1)
    half = dataclasses.replace(cfg, dtype="bfloat16")
    params = random_params(cfg)
    exact, *others = (jax.jit(jax.grad(loss_of(*case)))(params) for case in ((cfg, 0), (half, 0), (half, 4)))
    for gradient in others:
        assert_near(gradient, exact, 0.1)
