"""The train step: pure, accumulated, guarded against what is not finite, traced once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.model import parameters
from jaxgpt.model.gpt import GPT
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import optim, steps

CFG = config.ModelConfig(vocab_size=13, context_length=8, d_model=16, num_layers=1, num_heads=2, d_ff=32)
OPTIM = config.OptimConfig(learning_rate=1e-2, final_learning_rate_ratio=0.1, warmup_steps=5)
SCHEDULE = optim.make_schedule(OPTIM, 200)
OPTIMIZER = optim.make_optimizer(OPTIM, SCHEDULE)
KEY = jax.random.key(7)
# Four windows that start differently: a model can know all of them by heart.
BATCH = np.random.default_rng(0).integers(0, 13, (4, 9))
BATCH[:, 0] = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def start() -> steps.TrainState:
    """The state that every test starts from; drawn by NumPy, so that it is the same with any JAX."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.1, leaf.shape), leaf.dtype), parameters.param_shapes(CFG)
    )
    return steps.TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))


@pytest.fixture(scope="module")
def traces() -> list[int]:
    return []


@pytest.fixture(scope="module")
def train_step(traces):
    """One compiled step for all tests."""
    step = steps.make_train_step(GPT(CFG), OPTIMIZER, SCHEDULE, config.Config())

    def traced(state, batch, key):
        traces.append(1)
        return step(state, batch, key)

    return jax.jit(traced)


def in_parts_of(parts: int) -> config.Config:
    return config.Config(train=config.TrainConfig(grad_accumulation_steps=parts))


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_fresh_state_is_at_step_0_with_an_optimizer_that_has_seen_nothing():
    state = jax.eval_shape(lambda: steps.init_state(GPT(CFG), OPTIMIZER, KEY))
    assert (state.step.shape, state.step.dtype, state.step.weak_type) == ((), jnp.int32, False)
    assert jax.tree.structure(state.params) == jax.tree.structure(parameters.param_shapes(CFG))


def test_the_step_is_a_function_of_its_arguments(start, train_step):
    kept = jax.tree.map(np.array, start)
    one, one_metrics = train_step(start, BATCH, KEY)
    again, again_metrics = train_step(start, BATCH, KEY)
    assert_same_bits(one, again)
    assert_same_bits(one_metrics, again_metrics)
    assert_same_bits(start, kept)
    assert int(one.step) == 1
    for (path, before), (_, after) in zip(named_leaves(start.params), named_leaves(one.params), strict=True):
        assert (np.asarray(before) != after).any(), path


def test_three_steps_are_traced_once_also_from_a_restored_state(start, train_step, traces):
    state = start
    for _ in range(3):
        state, _ = train_step(state, BATCH, KEY)
        state = jax.tree.map(jnp.asarray, jax.tree.map(np.array, state))  # as from a checkpoint
    state, _ = train_step(jax.tree.map(np.array, state), BATCH, KEY)
    assert int(state.step) == 4
    assert len(traces) == 1


def test_the_first_losses_are_those_recorded(start, train_step):
    """A change of these numbers is a change of what training does. Say so where it is meant."""
    recorded = [2.565644, 2.561789, 2.554338]
    losses, state = [], start
    for _ in range(3):
        state, metrics = train_step(state, BATCH, KEY)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, recorded, rtol=1e-4)


def test_metrics_say_what_they_are_called(start, train_step):
    _, metrics = train_step(start, BATCH, KEY)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: steps.mean_loss(GPT(CFG), p, BATCH)))(start.params)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(metrics["grad_norms"]), rel=1e-5)
    named = named_leaves(grads)
    assert len(metrics["grad_norms"]) == len(named)
    for norm, (path, grad) in zip(metrics["grad_norms"], named, strict=True):
        # A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding.
        assert norm == pytest.approx(float(np.linalg.norm(grad)), rel=1e-4, abs=1e-7), path
    for step in (0, 3, 150):
        _, metrics = train_step(start._replace(step=jnp.int32(step)), BATCH, KEY)
        assert metrics["learning_rate"] == pytest.approx(float(SCHEDULE(step)), rel=1e-6)


def test_the_loss_is_the_mean_over_positions_of_the_eval_step(start, train_step):
    _, metrics = train_step(start, BATCH, KEY)
    losses_BT = jax.jit(steps.make_eval_step(GPT(CFG)))(start.params, BATCH)
    assert losses_BT.shape == (4, 8) and losses_BT.dtype == jnp.float32
    assert metrics["loss"] == pytest.approx(float(losses_BT.mean()), rel=1e-6)
    apply = jax.jit(lambda tokens_BT: GPT(CFG).apply({"params": start.params}, tokens_BT))
    logits_BTV = np.asarray(apply(BATCH[:, :-1]), np.float64)
    probs_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    right_BT = np.take_along_axis(probs_BTV, BATCH[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses_BT, -np.log(right_BT), rtol=1e-5)


def test_one_batch_is_learnt_by_heart(start, train_step):
    state = start
    for _ in range(200):
        state, metrics = train_step(state, BATCH, KEY)
    assert metrics["loss"] < 0.1
    assert int(state.step) == 200


def test_accumulation_equals_the_whole_batch(start, train_step):
    """By the metrics and by Adam's moments, which are gradients; its updates are so also where those are only
    rounding, as a key's bias has it."""
    whole_state, whole_metrics = train_step(start, BATCH, KEY)
    for parts in (2, 4):
        in_parts = jax.jit(steps.make_train_step(GPT(CFG), OPTIMIZER, SCHEDULE, in_parts_of(parts)))
        state, metrics = in_parts(start, BATCH, KEY)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            (state.step, state.opt_state, metrics),
            (whole_state.step, whole_state.opt_state, whole_metrics),
        )


def spoiled_by_nan(params: dict) -> dict:
    table = params["token_embedding"]["embedding"]
    return {**params, "token_embedding": {"embedding": table.at[BATCH[0, 0], 0].set(jnp.nan)}}


def spoiled_by_size(params: dict) -> dict:
    """Logits of 1e30: the loss is finite, the squares of its gradient are not."""
    return {**params, "final_norm": jax.tree.map(lambda x: x * 1e30, params["final_norm"])}


@pytest.mark.parametrize("spoil", [spoiled_by_nan, spoiled_by_size])
def test_what_is_not_finite_changes_nothing(start, train_step, spoil):
    state, _ = train_step(start, BATCH, KEY)  # an optimizer that has seen something
    state = state._replace(params=spoil(state.params))
    after, metrics = train_step(state, BATCH, KEY)
    assert_same_bits(after, state)
    assert not np.isfinite(metrics["grad_norm"])
    assert np.isfinite(metrics["loss"]) == (spoil is spoiled_by_size)


DROPPED = GPT(dataclasses.replace(CFG, dropout_rate=0.3))
SAME = np.repeat(BATCH[:1], 2, axis=0)  # twice the same window


@pytest.fixture(scope="module")
def dropped_step():
    """A step with dropout, in two parts."""
    return jax.jit(steps.make_train_step(DROPPED, OPTIMIZER, SCHEDULE, in_parts_of(2)))


def test_dropout_is_a_function_of_step_and_key_not_of_history(start, dropped_step):
    def loss(at: int, key: jax.Array, state: steps.TrainState = start) -> float:
        state = steps.TrainState(jnp.int32(at), start.params, state.opt_state)
        return float(dropped_step(state, SAME, key)[1]["loss"])

    walked, _ = dropped_step(start, SAME, KEY)
    assert loss(5, KEY) == loss(5, KEY, state=walked)
    assert len({loss(0, KEY), loss(1, KEY), loss(2, KEY), loss(0, jax.random.key(8))}) == 4


def test_accumulated_parts_draw_different_masks(start, dropped_step):
    """With one mask for both parts the loss would be that of either alone."""
    loss = float(dropped_step(start, SAME, KEY)[1]["loss"])
    mean_loss = jax.jit(lambda key: steps.mean_loss(DROPPED, start.params, SAME[:1], key))
    key = jax.random.fold_in(KEY, 0)
    parts = [float(mean_loss(jax.random.fold_in(key, part))) for part in range(2)]
    assert parts[0] != pytest.approx(parts[1], rel=1e-4)
    assert loss == pytest.approx(sum(parts) / 2, rel=1e-5)


# --- the loss in chunks, steps in one dispatch, batches cut on the device -----------------------------------

WIDE = dataclasses.replace(CFG, vocab_size=50, vocab_multiple=64, tie_embeddings=False, logit_softcap=3.0)


@pytest.mark.parametrize("cfg", [CFG, WIDE], ids=["tied", "padded"])
@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_the_loss_in_chunks_and_its_gradient_are_those_of_the_whole(cfg, chunk):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), leaf.dtype), parameters.param_shapes(cfg)
    )
    both = jax.jit(
        jax.value_and_grad(lambda p, chunk: steps.mean_loss(GPT(cfg), p, BATCH, None, chunk)),
        static_argnums=1,
    )
    (whole, grads), (parts, part_grads) = both(params, 0), both(params, chunk)
    assert parts == pytest.approx(float(whole), rel=1e-6)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for (path, a), (_, b) in zip(named_leaves(grads), named_leaves(part_grads), strict=True):
        # A key's bias shifts all scores of a query alike, which the softmax does not see: its gradient is 0 and what is
        # there is rounding, as large as that of what it is summed from.
        size = largest if path.endswith("key/bias") else float(jnp.abs(a).max())
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * size, err_msg=path)
    tripled = jax.grad(lambda p: 3.0 * steps.mean_loss(GPT(cfg), p, BATCH, None, chunk))(params)
    np.testing.assert_allclose(
        tripled["token_embedding"]["embedding"],
        3 * grads["token_embedding"]["embedding"],
        rtol=1e-4,
        atol=1e-6,
    )
    losses_BT = steps.make_eval_step(GPT(cfg), chunk)(params, BATCH)
    np.testing.assert_allclose(losses_BT, steps.make_eval_step(GPT(cfg))(params, BATCH), rtol=1e-6)
    assert losses_BT.mean() == pytest.approx(float(whole), rel=1e-6)


def test_padding_rows_get_no_probability_and_no_gradient():
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), parameters.param_shapes(WIDE))
    grads = jax.grad(lambda p: steps.mean_loss(GPT(WIDE), p, BATCH))(params)
    assert grads["head"]["kernel"].shape == (16, 64)
    assert (grads["head"]["kernel"][:, 50:] == 0).all() and (grads["head"]["kernel"][:, :50] != 0).any()
    assert GPT(WIDE).apply({"params": params}, BATCH[:, 1:]).shape == (4, 8, 50)
    # All logits alike: the 50 real tokens share the probability.
    assert steps.mean_loss(GPT(WIDE), params, BATCH) == pytest.approx(np.log(50), rel=1e-5)


def test_steps_in_one_dispatch_equal_steps_one_by_one_with_batches_cut_on_either_side(start):
    step = steps.make_train_step(GPT(CFG), OPTIMIZER, SCHEDULE, config.Config())
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 13, 100), jnp.uint16)
    starts = np.array([[0, 9, 50, 91], [3, 2, 1, 60], [7, 7, 80, 20]], np.int32)
    windows = np.asarray(ids)[starts[..., None] + np.arange(9)].astype(np.int32)
    np.testing.assert_array_equal(steps.windows_at(ids, jnp.asarray(starts), 8), windows)
    one_by_one, expected = start, []
    for batch in windows:
        one_by_one, metrics = jax.jit(step)(one_by_one, batch, KEY)
        expected.append(metrics)
    for on_device in (False, True):
        three = config.Config(
            model=CFG,
            data=config.DataConfig(on_device=on_device),
            train=config.TrainConfig(steps_per_dispatch=3),
        )
        dispatch = jax.jit(steps.make_dispatch(step, three))
        state, metrics = dispatch(start, ids, starts if on_device else windows, KEY)
        assert int(state.step) == 3 and metrics["loss"].shape == (3,)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), state, one_by_one)
        for i, before in enumerate(expected):
            assert metrics["loss"][i] == pytest.approx(float(before["loss"]), rel=1e-5)
