"""The loss in chunks: its gradient written by hand against JAX's derivatives, and its error in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import ModelConfig
from jaxgpt.model.gpt import logits
from jaxgpt.training import losses

CFG = ModelConfig(vocab_size=61, vocab_multiple=8, context_length=16, d_model=32)
CAPPED = dataclasses.replace(CFG, logit_softcap=15.0, vocab_multiple=1)
RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(4, 16, 32)).astype(np.float32)
TARGETS_BT = RNG.integers(0, 61, size=(4, 16), dtype=np.int32)


def table(cfg):
    return jnp.asarray(RNG.normal(size=(cfg.table_rows, 32)).astype(np.float32))


def gradients(cfg, x_BTD, table_VD, targets_BT, count=None, chunk=4, stored="float32"):
    parts = (losses._in_chunks(jnp.asarray(x_BTD), chunk), losses._in_chunks(jnp.asarray(targets_BT), chunk))
    divisor = targets_BT.size if count is None else count
    loss, (dx, dtable) = jax.jit(losses._by_hand, static_argnums=(0, 4, 5))(
        cfg, parts, table_VD, divisor, count is not None, stored
    )
    return loss, dx, dtable


def plain(cfg, x_BTD, table_VD, targets_BT, count=None):
    """From all logits at once, with JAX's derivatives."""

    def loss(x, table):
        losses_BT = losses.losses(logits(cfg, x, table), targets_BT, count is not None)
        return losses_BT.mean() if count is None else losses_BT.sum() / count

    value, (dx, dtable) = jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.asarray(x_BTD), table_VD)
    return value, dx, dtable


def error(got, exact):
    return float(np.linalg.norm(np.asarray(got, np.float32) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("cfg", [CFG, CAPPED], ids=["padded rows", "capped"])
@pytest.mark.parametrize("marked", [False, True])
def test_the_gradient_by_hand_is_the_plain_one_in_float32(cfg, marked):
    table_VD = table(cfg)
    targets = np.where(RNG.random((4, 16)) < 0.3, ~TARGETS_BT, TARGETS_BT) if marked else TARGETS_BT
    count = jnp.float32((targets >= 0).sum()) if marked else None
    got, exact = gradients(cfg, X_BTD, table_VD, targets, count), plain(cfg, X_BTD, table_VD, targets, count)
    for a, b in zip(got, exact, strict=True):
        assert error(a, np.asarray(b)) < 1e-6


def test_large_logits_and_logits_that_are_not_numbers():
    """Logits of +-10^4 do not overflow; a NaN gives NaN, as in the plain form, so that a bad step is found."""
    table_VD = table(CFG)
    got, exact = (f(CFG, 1e3 * X_BTD, table_VD, TARGETS_BT) for f in (gradients, plain))
    assert float(got[0]) == pytest.approx(float(exact[0]), rel=1e-5)
    assert np.isfinite(got[1]).all() and np.isfinite(got[2]).all()
    bad = X_BTD.copy()
    bad[1, 2, 3] = np.nan
    assert np.isnan(gradients(CFG, bad, table_VD, TARGETS_BT)[0])


@pytest.mark.parametrize("cfg", [CFG, CAPPED], ids=["padded rows", "capped"])
def test_in_bfloat16_it_is_as_near_to_float32_as_jaxs_derivatives(cfg):
    table_VD, x = table(cfg), jnp.asarray(X_BTD).astype(jnp.bfloat16)
    exact = plain(cfg, x.astype(jnp.float32), table_VD.astype(jnp.bfloat16).astype(jnp.float32), TARGETS_BT)
    before, after = plain(cfg, x, table_VD, TARGETS_BT), gradients(cfg, x, table_VD, TARGETS_BT)
    narrow = gradients(cfg, x, table_VD, TARGETS_BT, stored="bfloat16")
    for old, new, low, true in zip(before, after, narrow, exact, strict=True):
        true = np.asarray(true)
        assert error(new, true) <= 1.05 * error(old, true) + 1e-6
        assert error(low, true) < 0.02
    assert (np.asarray(narrow[2]) != np.asarray(after[2])).any()
