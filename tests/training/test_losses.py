"""The loss in chunks: its gradient written by hand against JAX's derivatives, and its error in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from jaxgpt.model.gpt import logits
from jaxgpt.training import losses, steps

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


# --- z-loss ---------------------------------------------------------------------------------------------

Z = 0.1  # large, so that an error of it shows


def with_z_loss(cfg, x_BTD, table_VD, targets_BT, count=None):
    """The plain loss, and the gradients of the plain loss plus Z times the mean of logsumexp^2."""

    def total(x, table):
        logits_BTV = logits(cfg, x, table)
        counts = targets_BT >= 0
        chosen = jnp.take_along_axis(logits_BTV, jnp.maximum(targets_BT, 0)[..., None], axis=-1)[..., 0]
        log_total = jax.nn.logsumexp(logits_BTV, axis=-1)
        n = counts.sum() if count is None else count
        mean = jnp.where(counts, log_total - chosen, 0).sum() / n
        return mean + Z * jnp.where(counts, jnp.square(log_total), 0).sum() / n, mean

    (_, mean), (dx, dtable) = jax.value_and_grad(total, (0, 1), has_aux=True)(jnp.asarray(x_BTD), table_VD)
    return mean, dx, dtable


@pytest.mark.parametrize("marked", [False, True])
def test_z_loss_changes_the_gradient_as_its_plain_form_does_and_not_the_value(marked):
    for cfg in (CFG, CAPPED):
        table_VD = table(cfg)
        targets = np.where(RNG.random((4, 16)) < 0.3, ~TARGETS_BT, TARGETS_BT) if marked else TARGETS_BT
        count = jnp.float32((targets >= 0).sum()) if marked else None
        exact = with_z_loss(cfg, X_BTD, table_VD, targets, count)
        assert error(plain(cfg, X_BTD, table_VD, targets, count)[1], np.asarray(exact[1])) > 0.1

        def at_once(x, table, cfg=cfg, targets=targets, count=count):
            losses_BT = losses.losses(logits(cfg, x, table), targets, count is not None, Z)
            return losses_BT.mean() if count is None else losses_BT.sum() / count

        def in_chunks(x, table, cfg=cfg, targets=targets, count=count):
            return losses.chunked_mean_loss(cfg, x, table, targets, 4, count, "float32", Z)

        parts = (losses._in_chunks(jnp.asarray(X_BTD), 4), losses._in_chunks(jnp.asarray(targets), 4))
        divisor = targets.size if count is None else count
        found = [
            losses._by_hand(cfg, parts, table_VD, divisor, marked, "float32", Z),
            *(jax.value_and_grad(f, (0, 1))(jnp.asarray(X_BTD), table_VD) for f in (at_once, in_chunks)),
        ]
        for value, gradient in found:
            for got, wanted in zip((value, *gradient), exact, strict=True):
                assert error(got, np.asarray(wanted)) < 1e-5
        alone = losses.losses(logits(cfg, jnp.asarray(X_BTD), table_VD), targets, marked)
        own = losses.losses(logits(cfg, jnp.asarray(X_BTD), table_VD), targets, marked, Z)
        assert (alone == own).all()  # to the last bit


def test_z_loss_of_a_training_step_in_parts_and_chunks_is_that_of_one():
    """The step's gradients move by Z times those of the mean square, and the reported loss is the plain one."""
    model = ModelConfig(vocab_size=61, context_length=16, d_model=32, num_layers=1, num_heads=2)
    batch = jnp.asarray(RNG.integers(0, 61, size=(4, 17), dtype=np.int32))
    found = {}
    for z_loss, num_parts, chunk in ((0.0, 1, 0), (Z, 1, 0), (Z, 2, 0), (Z, 2, 8)):
        cfg = Config(
            model=model,
            data=DataConfig(batch_size=4),
            optim=OptimConfig(z_loss=z_loss),
            train=TrainConfig(grad_accumulation_steps=num_parts, loss_chunk=chunk),
        )
        built = steps.build(cfg)
        state = steps.init_state(built.model, built.optimizer, jax.random.key(0))
        _, metrics = jax.jit(built.train_step)(state, batch, jax.random.key(1))
        found[z_loss, num_parts, chunk] = float(metrics["loss"]), np.asarray(metrics["grad_norms"])
    (loss, norms), (z_loss, z_norms), *others = found.values()
    assert z_loss == loss and np.abs(z_norms - norms).max() > 0.01
    for other_loss, other_norms in others:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(other_norms, z_norms, rtol=1e-4, atol=1e-6)
