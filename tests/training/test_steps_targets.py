"""A batch may mark tokens that are no targets: they are read, and leave the loss and its gradient alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.data.batches import marked
from jaxgpt.model.gpt import GPT
from jaxgpt.training import steps
from tests.models import TINY, random_params

CFG = dataclasses.replace(TINY, num_layers=1)
PARAMS = random_params(CFG)
OPTIM = config.OptimConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")
KEY = jax.random.key(0)
IDS = np.random.default_rng(0).integers(0, 11, (8, 9))
# Between no and all targets of a row.
COUNTS = np.random.default_rng(1).random((8, 9)) < np.linspace(0, 1, 8)[:, None]
BATCH = marked(IDS, COUNTS)


def stepped(batch, parts=1, chunk=0, windows="documents"):
    """The state after a step, and its metrics."""
    cfg = config.Config(
        model=CFG,
        data=config.DataConfig(windows=windows),
        optim=OPTIM,
        train=config.TrainConfig(grad_accumulation_steps=parts, loss_chunk=chunk),
    )
    model, _, optimizer, step = steps.build(cfg)
    return jax.jit(step)(steps.init_state(model, optimizer, PARAMS), jnp.asarray(batch, jnp.int32), KEY)


def assert_close(one, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.fixture(scope="module")
def plain():
    return stepped(BATCH)


def test_the_loss_is_the_mean_over_what_counts(plain):
    losses = np.asarray(steps.make_eval_step(GPT(CFG))(PARAMS, jnp.asarray(IDS)), np.float64)
    counted = COUNTS[:, 1:]
    assert not counted[0].any() and counted[-1].all()
    assert float(plain[1]["loss"]) == pytest.approx(losses[counted].mean(), rel=1e-6)
    assert float(plain[1]["loss"]) != pytest.approx(losses.mean(), rel=1e-3)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_batch_share_one_mean(plain, parts, chunk):
    """Parts have different numbers of targets, the first almost none: a mean of means would be another number."""
    assert len({int(part.sum()) for part in np.split(COUNTS[:, 1:], 4)}) == 4
    (state, metrics), (expected, numbers) = stepped(BATCH, parts, chunk), plain
    assert float(metrics["loss"]) == pytest.approx(float(numbers["loss"]), rel=1e-6)
    np.testing.assert_allclose(metrics["grad_norms"], numbers["grad_norms"], rtol=1e-4, atol=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(numbers["grad_norm"]), rel=1e-5)
    # Adam divides by the size of a gradient: a key's bias has one that is rounding.
    gradient = lambda s: s.opt_state  # noqa: E731
    assert_close(
        [x for x in jax.tree.leaves(gradient(state)) if x.ndim > 1],
        [x for x in jax.tree.leaves(gradient(expected)) if x.ndim > 1],
        rtol=1e-4,
    )


@pytest.mark.parametrize("chunk", [0, 4])
def test_what_does_not_count_has_no_gradient_and_is_read_all_the_same(chunk):
    """The last token of a window is a target only: where it does not count, it may be any. One in the middle is read."""
    loss = jax.jit(
        jax.value_and_grad(lambda p, b: steps.mean_loss(GPT(CFG), p, b, None, chunk, steps.count_targets(b)))
    )
    ids, counts = IDS.copy(), COUNTS.copy()
    counts[:, -1] = False
    before = loss(PARAMS, marked(ids, counts))
    ids[:, -1] = (ids[:, -1] + 1) % 11
    after = loss(PARAMS, marked(ids, counts))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    counts[:, 4], ids[:, 4] = False, (ids[:, 4] + 1) % 11
    assert float(loss(PARAMS, marked(ids, counts))[0]) != float(before[0])


@pytest.mark.parametrize("parts", [1, 2])
def test_where_all_count_a_step_is_that_of_flat_windows(parts):
    marked_step, flat = stepped(IDS, parts), stepped(IDS, parts, windows="flat")
    assert float(marked_step[1]["loss"]) == pytest.approx(float(flat[1]["loss"]), rel=1e-6)
    np.testing.assert_allclose(marked_step[1]["grad_norms"], flat[1]["grad_norms"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 4])
def test_a_batch_without_targets_changes_nothing_but_by_decay(chunk):
    state, metrics = stepped(marked(IDS, np.zeros_like(COUNTS)), chunk=chunk)
    assert float(metrics["loss"]) == 0 and float(metrics["grad_norm"]) == 0 and not metrics["bad"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_padding_rows_of_the_table_do_not_spoil_a_target_that_does_not_count():
    """-1 as an index would be the last row, whose logit is -inf."""
    cfg = dataclasses.replace(CFG, vocab_multiple=8)
    batch = jnp.asarray(BATCH)
    loss = lambda p: steps.mean_loss(GPT(cfg), p, batch, None, 0, steps.count_targets(batch))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(random_params(cfg))
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
