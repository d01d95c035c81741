"""What bfloat16 models keep, and the precision of their gradients, against float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

from jaxgpt.config import ModelConfig
from jaxgpt.model import attention, generation, layers
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.model.layers import ACTIVATIONS
from tests.models import TINY, random_params

RNG = np.random.default_rng(0)


def error(got, exact):
    return float(np.linalg.norm(np.asarray(got, np.float32) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "relu"])
def test_an_activation_keeps_its_input_alone_and_is_the_plain_one(name):
    x, dy = (jnp.asarray(RNG.normal(size=(64, 32)), jnp.bfloat16) for _ in range(2))
    kept = [aval for aval, _ in saved_residuals(ACTIVATIONS[name], x) if aval.shape == x.shape]
    assert [aval.dtype for aval in kept] == [jnp.bfloat16]
    y, pull = jax.vjp(ACTIVATIONS[name], x)
    exact, exact_pull = jax.vjp(ACTIVATIONS[name], x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16 and error(y, exact) < 2**-9
    assert error(pull(dy)[0], exact_pull(dy.astype(jnp.float32))[0]) < 2**-8


def test_biases_and_scales_have_gradients_summed_in_float32():
    """Of 4,096 rows; a sum in bfloat16 is off by a percent or more."""
    cfg = ModelConfig(vocab_size=11, d_model=32, num_heads=2, norm="layernorm", dtype="bfloat16")
    x, dy = (RNG.normal(size=(4096, 32)).astype(np.float32) for _ in range(2))
    x, dy = (jnp.asarray(a + 0.5, jnp.bfloat16) for a in (x, dy))
    for module in (layers.layernorm(cfg, "norm"), layers.Dense(cfg, name="down")):
        x_in = x if module.name == "norm" else jnp.tile(x, (1, 4))
        params = module.init(jax.random.key(0), x_in)["params"]
        _, pull = jax.vjp(lambda p, module=module, x=x_in: module.apply({"params": p}, x), params)
        grads = pull(dy)[0]
        assert grads["bias"].dtype == jnp.float32
        assert error(grads["bias"], np.asarray(dy, np.float32).sum(0)) < 1e-6
        if "scale" in grads:
            y = np.asarray(layers.normalize(x, True, cfg.norm_epsilon), np.float32)
            assert error(grads["scale"], (np.asarray(dy, np.float32) * y).sum(0)) < 1e-5


def test_the_token_tables_gradient_is_summed_in_float32():
    """Also of a token that stands at 2,000 positions, where a sum in bfloat16 stops growing."""
    cfg = ModelConfig(vocab_size=5, context_length=4096, d_model=16, num_layers=0, num_heads=2, position="none",
                      dtype="bfloat16")  # fmt: skip
    params = random_params(cfg)
    tokens = np.array([[0] * 2000 + [1, 2, 3, 4] * 12])
    dx = jnp.asarray(1 + RNG.normal(size=(*tokens.shape, 16)), jnp.bfloat16)

    def rows(table):
        given = {**params, "token_embedding": {"embedding": table}}
        return GPT(cfg).apply({"params": given}, tokens, np.arange(tokens.shape[1])[None], method="embed")

    got = jax.vjp(rows, params["token_embedding"]["embedding"])[1](dx)[0]
    exact = np.zeros((5, 16), np.float32)
    np.add.at(exact, tokens[0], np.asarray(dx[0], np.float32))
    for row in range(5):
        assert error(got[row], exact[row]) < 1e-6


def test_scores_have_gradients_from_products_in_bfloat16_as_near_to_float32():
    q, k = (jnp.asarray(RNG.normal(size=(2, 16, 4, 8)), jnp.bfloat16) for _ in range(2))
    dy = jnp.asarray(RNG.normal(size=(2, 4, 16, 16)), jnp.float32)
    text = str(jax.make_jaxpr(lambda q, k: jax.vjp(attention.attention_scores, q, k)[1](dy))(q, k))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3 and sum(":f32[" in line for line in products) == 1  # the scores themselves
    got = jax.vjp(attention.attention_scores, q, k)[1](dy)
    exact = jax.vjp(attention.attention_scores, *(a.astype(jnp.float32) for a in (q, k)))[1](dy)
    for a, b in zip(got, exact, strict=True):
        assert error(a, b) < 2**-8


def test_decoding_casts_parameters_before_its_loop():
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    model, params = GPT(cfg), random_params(cfg)
    cache = KVCache.empty(cfg, 2, 8)
    assert cache.keys[0].dtype == jnp.bfloat16
    ids = jnp.zeros(2, jnp.int32)
    jaxpr = jax.make_jaxpr(
        lambda p, c: generation.decode.__wrapped__(
            model,
            p,
            c,
            ids,
            jax.random.split(jax.random.key(0), 2),
            ids,
            jnp.int32(3),
            sampler=generation.Sampler(),
            size=4,
        )
    )(params, cache)
    (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while")
    matrices = [
        v.aval for v in loop.invars if v.aval.ndim >= 2 and jnp.issubdtype(v.aval.dtype, jnp.floating)
    ]
    assert matrices and all(aval.dtype == jnp.bfloat16 for aval in matrices)
