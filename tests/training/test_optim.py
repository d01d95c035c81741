"""Schedules at their key points, what decays, every optimizer against NumPy or by hand, and muP's rates."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt import config
from jaxgpt.training import optim

CFG = config.OptimConfig(
    learning_rate=1.0, final_learning_rate_ratio=0.1, warmup_steps=10, decay_fraction=0.2
)


def rates(num_steps: int, **changes) -> np.ndarray:
    """The learning rate of every step of a run, and of the one after it."""
    cfg = config.OptimConfig(**{**vars(CFG), **changes})
    # Always as many steps, so that operations are compiled once for all runs.
    return np.asarray(optim.make_schedule(cfg, num_steps)(np.arange(128)))[: num_steps + 1]


@pytest.mark.parametrize(
    "schedule, middle, end",
    [
        ("cosine", 0.55, 0.1),  # half-way down, then the final rate
        ("linear", 0.55, 0.1),
        ("constant", 1.0, 1.0),
        ("wsd", 1.0, 0.1),  # still stable
    ],
)
def test_schedules_at_their_key_points(schedule, middle, end):
    rate = rates(110, schedule=schedule)
    np.testing.assert_allclose(rate[:11], np.arange(1, 12) / 11, rtol=1e-6)  # never 0; the peak at step 10
    assert rate[60] == pytest.approx(middle, rel=1e-6)
    assert rate[110] == pytest.approx(end, rel=1e-6)
    assert (np.diff(rate[10:]) <= 1e-7).all()
    assert np.abs(np.diff(rate[10:])).max() < 0.06  # no jump


def test_cosine_and_linear_in_closed_form():
    done = np.arange(101) / 100
    np.testing.assert_allclose(rates(110, schedule="linear")[10:], 1.0 - 0.9 * done, rtol=1e-5)
    expected = 0.1 + 0.45 * (1.0 + np.cos(np.pi * done))
    np.testing.assert_allclose(rates(110, schedule="cosine")[10:], expected, rtol=1e-5)


def test_wsd_falls_in_the_last_part_only():
    rate = rates(110, schedule="wsd")  # 100 steps after the warm-up, of which the last 20 fall
    np.testing.assert_allclose(rate[10:91], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rate[90:], np.linspace(1.0, 0.1, 21), rtol=1e-5)
    np.testing.assert_allclose(rates(110, schedule="wsd", decay_fraction=1.0), rates(110, schedule="linear"))


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
@pytest.mark.parametrize("num_steps, warmup_steps", [(1, 0), (1, 10), (5, 10), (10, 10), (11, 10), (3, 0)])
def test_rates_are_between_0_and_the_peak_in_the_shortest_runs(schedule, num_steps, warmup_steps):
    rate = rates(num_steps, schedule=schedule, warmup_steps=warmup_steps)[:num_steps]
    assert np.isfinite(rate).all() and (rate > 0).all() and (rate <= 1.0).all()
    if num_steps <= warmup_steps:
        np.testing.assert_allclose(rate, np.arange(1, num_steps + 1) / (warmup_steps + 1), rtol=1e-6)
    else:
        assert rate[warmup_steps] == 1.0


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_steps_past_the_end_keep_the_last_rate(schedule):
    cfg = config.OptimConfig(**{**vars(CFG), "schedule": schedule})
    rate = np.asarray(optim.make_schedule(cfg, 110)(np.arange(128)))
    np.testing.assert_array_equal(rate[110:], rate[110])


def test_tables_offer_what_the_config_offers():
    choices = typing.get_type_hints(config.OptimConfig)
    assert set(optim.SCHEDULES) == set(typing.get_args(choices["schedule"]))
    assert set(optim.OPTIMIZERS) == set(typing.get_args(choices["name"]))


# --- optimizers -----------------------------------------------------------------------------------------


def some_params() -> dict:
    rng = np.random.default_rng(0)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "token_embedding": {"embedding": leaf(5, 3)},
        "position_embedding": {"embedding": leaf(4, 3)},
        "block_0": {
            "attention_norm": {"scale": leaf(3), "bias": leaf(3)},
            "attention": {"query": {"kernel": leaf(3, 1, 3), "bias": leaf(1, 3)}},
            "mlp": {"up": {"kernel": leaf(3, 6), "bias": leaf(6)}},
        },
        "head": {"kernel": leaf(3, 5)},
    }


def run_steps(cfg: config.OptimConfig, params: dict, grads: list[dict], rate: float = 0.01) -> dict:
    optimizer = optim.make_optimizer(cfg, lambda count: rate / (count + 1))

    def step(carry, grad):
        params, opt_state = carry
        updates, opt_state = optimizer.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def train(params, grads):
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0][0]

    return train(params, jax.tree.map(lambda *x: np.stack(x), *grads))


def global_norm(tree: dict) -> float:
    return float(np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree))))


def by_path(params: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_weight_decay_moves_what_it_should_and_nothing_else(name):
    params = some_params()
    zeros = jax.tree.map(np.zeros_like, params)
    before = by_path(params)
    assert any(path.endswith("/embedding") for path in before)
    # Schedule-free gets its average back from two others, by rounded arithmetic.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6 if name == "schedule_free" else 0.0)
    for weight_decay, decay_embeddings, decaying in (
        (0.0, True, ()),
        (0.5, False, ("/kernel",)),
        (0.5, True, ("/kernel", "/embedding")),
    ):
        # Muon's matrices have the others' rate, so that all are to decay alike.
        cfg = config.OptimConfig(
            name=name,
            weight_decay=weight_decay,
            decay_embeddings=decay_embeddings,
            learning_rate=1.0,
            muon_learning_rate=1.0,
        )
        after = by_path(run_steps(cfg, params, [zeros]))
        for path, value in before.items():
            if path.endswith(decaying):
                np.testing.assert_allclose(after[path], value * (1 - 0.01 * 0.5), rtol=1e-6)
            else:
                same(after[path], value)


def numpy_adamw(cfg: config.OptimConfig, params: dict, grads: list[dict], rate: float = 0.01) -> dict:
    """Loshchilov and Hutter 2019, algorithm 2, after clipping by the global norm; float64."""
    params = {path: value.astype(np.float64) for path, value in by_path(params).items()}
    m = {path: np.zeros_like(value) for path, value in params.items()}
    v = {path: np.zeros_like(value) for path, value in params.items()}
    for t, grad in enumerate(map(by_path, grads), start=1):
        norm = global_norm(grad)
        clip = min(1.0, cfg.grad_clip_norm / norm) if cfg.grad_clip_norm else 1.0
        for path, value in params.items():
            g = clip * grad[path].astype(np.float64)
            m[path] = cfg.b1 * m[path] + (1 - cfg.b1) * g
            v[path] = cfg.b2 * v[path] + (1 - cfg.b2) * g**2
            direction = (m[path] / (1 - cfg.b1**t)) / (np.sqrt(v[path] / (1 - cfg.b2**t)) + cfg.eps)
            if path.endswith("/kernel"):
                direction = direction + cfg.weight_decay * value
            params[path] = value - rate / t * direction
    return params


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_clip_norm": 0.0},
        {"grad_clip_norm": 1.0, "weight_decay": 0.3},
        # With so large an eps the size of the gradient counts, so that clipping is to be seen.
        {"grad_clip_norm": 2.0, "b1": 0.8, "b2": 0.95, "eps": 1.0},
    ],
)
def test_five_steps_of_adamw_equal_numpys(changes):
    cfg, params = config.OptimConfig(**changes), some_params()
    rng = np.random.default_rng(1)
    grads = [
        jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), x.dtype), params)  # noqa: B023
        for size in (0.01, 1.0, 0.1, 10.0, 1.0)
    ]
    expected = numpy_adamw(cfg, params, grads)
    for path, value in by_path(run_steps(cfg, params, grads)).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6)


def test_clipping_keeps_the_direction_and_bounds_the_global_norm():
    """Adam hides the size of a gradient; with an eps far above it, the update is in proportion."""
    params = some_params()
    ones = jax.tree.map(np.ones_like, params)
    start, size = by_path(params), global_norm(ones)

    def moved(clip: float, length: float) -> float:
        """How far one step goes on a gradient of this length."""
        cfg = config.OptimConfig(grad_clip_norm=clip, eps=1e6, weight_decay=0.0)
        grad = jax.tree.map(lambda g: np.float32(length / size) * g, ones)
        after = by_path(run_steps(cfg, params, [grad], rate=1e6))
        return global_norm({path: after[path] - start[path] for path in start})

    assert moved(clip=1.0, length=50.0) == pytest.approx(1.0, rel=1e-3)
    assert moved(clip=1.0, length=0.5) == pytest.approx(0.5, rel=1e-3)  # below the bound: as it is
    assert moved(clip=0.0, length=50.0) == pytest.approx(50.0, rel=1e-3)  # off


# --- every optimizer ------------------------------------------------------------------------------------

VARIANTS = {
    **{name: config.OptimConfig(name=name) for name in optim.OPTIMIZERS},
    "unclipped": config.OptimConfig(grad_clip_norm=0.0),
    "average": config.OptimConfig(ema_decay=0.9),
    "adamw in mup": config.OptimConfig(parametrization="mup"),
    "muon in mup": config.OptimConfig(name="muon", parametrization="mup", ema_decay=0.9),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_fits_a_regression_in_one_trace_with_donated_state(variant):
    """The product of all matrices is to become a given one; types stay as they begin, so nothing is retraced."""
    cfg = dataclasses.replace(VARIANTS[variant], learning_rate=0.03, mup_base_width=3)
    optimizer = optim.make_optimizer(cfg, lambda count: jnp.full((), cfg.learning_rate))
    params, target = some_params(), 2.0 * jnp.ones((5, 5))

    def loss(params):
        block = params["block_0"]
        h = params["token_embedding"]["embedding"] @ block["attention"]["query"]["kernel"][:, 0]
        h = h * block["attention_norm"]["scale"] + block["attention_norm"]["bias"]
        h = h @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
        return jnp.mean((h[:, :3] @ params["head"]["kernel"] - target) ** 2)

    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        traces.append(1)
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    state = jax.jit(optimizer.init)(params)
    before = types((params, state))
    losses = []
    for _ in range(100):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert types((params, state)) == before
    assert len(traces) == 1
    assert losses[-1] < 0.2 * losses[0]

    @jax.jit
    def evaluate(params, state):
        averaged = optim.evaluation_params(cfg, params, state)
        return averaged, loss(averaged)

    averaged, value = evaluate(params, state)
    assert types(averaged) == before[0]
    assert float(value) < 0.2 * losses[0]


def test_two_steps_of_sgd_by_hand():
    """The momentum is a sum of gradients, each old one times b1; a matrix also moves by its own decay."""
    cfg = config.OptimConfig(name="sgd", b1=0.9, weight_decay=0.2, grad_clip_norm=0.0)
    optimizer = optim.make_optimizer(cfg, lambda step: 0.5)
    params = {"mlp": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([1.0, 1.0])}}
    state = optimizer.init(params)
    for gradient in (jnp.array([1.0, -3.0]), jnp.array([2.0, 0.0])):
        grads = {"mlp": {"kernel": gradient[None], "bias": gradient}}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    first = np.array([2.0, -1.0]) - 0.5 * (np.array([1.0, -3.0]) + 0.2 * np.array([2.0, -1.0]))
    second = first - 0.5 * (0.9 * np.array([1.0, -3.0]) + np.array([2.0, 0.0]) + 0.2 * first)
    np.testing.assert_allclose(params["mlp"]["kernel"][0], second, rtol=1e-6)
    np.testing.assert_allclose(
        params["mlp"]["bias"], [1 - 0.5 * 1.0 - 0.5 * 2.9, 1 + 1.5 + 0.5 * 2.7], rtol=1e-6
    )


def test_two_steps_of_lion_by_hand():
    """Chen et al. 2023, algorithm 2: the sign of b1 m + (1 - b1) g; then m = b2 m + (1 - b2) g."""
    cfg = config.OptimConfig(name="lion", b1=0.9, b2=0.5, weight_decay=0.2, grad_clip_norm=0.0)
    params = {"mlp": {"kernel": jnp.array([1.0, -2.0, 3.0])}}
    grads = [{"mlp": {"kernel": jnp.array(g)}} for g in ([0.5, 0.1, -4.0], [-1.0, 2.0, 10.0])]
    # m after the first is half of it; then 0.9 m + 0.1 g is 0.125, 0.245 and -0.8: the last goes on against g.
    expected = np.array([1.0, -2.0, 3.0])
    expected = expected - 0.01 * (np.array([1, 1, -1]) + 0.2 * expected)
    expected = expected - 0.005 * (np.array([1, 1, -1]) + 0.2 * expected)
    np.testing.assert_allclose(run_steps(cfg, params, grads)["mlp"]["kernel"], expected, rtol=1e-6)


def test_adafactor_keeps_rows_and_columns_of_large_matrices_and_moves_by_their_outer_product():
    leaf = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "block_0": {
            "attention": {"query": {"kernel": leaf(128, 4, 40)}, "out": {"kernel": leaf(4, 40, 128)}}
        },
        "final_norm": {"scale": leaf(200)},
    }
    cfg = config.OptimConfig(name="adafactor", weight_decay=0.0, grad_clip_norm=0.0)
    optimizer = optim.make_optimizer(cfg, lambda count: 0.01)
    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(optimizer.init, params)))
    assert size <= 2 * (128 + 160) + 200 + 16  # heads flattened; 16: counts and empty places
    # Shazeer and Stern 2018, algorithm 4, in the first step: old squares count nothing.
    after = run_steps(cfg, params, [params])
    g = params["block_0"]["attention"]["query"]["kernel"].reshape(128, 160).astype(np.float64)
    rows, columns = (g**2).mean(axis=1), (g**2).mean(axis=0)
    update = g / np.sqrt(np.outer(rows, columns) / rows.mean())
    update /= max(1.0, np.sqrt((update**2).mean()))
    np.testing.assert_allclose(
        after["block_0"]["attention"]["query"]["kernel"].reshape(128, 160), g - 0.01 * update, rtol=1e-4, atol=1e-5
    )  # fmt: skip


# --- maximal update parametrization ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "in_blocks"), [("adamw", 0.5), ("muon", 1.0)])
def test_mup_multiplies_the_rates_of_matrices(name, in_blocks):
    params = some_params()  # d_model = 3
    cfg = config.OptimConfig(name=name, parametrization="mup", mup_base_width=1.5)
    expected = {
        "token_embedding/embedding": 1.0,
        "position_embedding/embedding": 1.0,
        "block_0/attention_norm/scale": 1.0,
        "block_0/attention_norm/bias": 1.0,
        "block_0/attention/query/kernel": in_blocks,
        "block_0/attention/query/bias": 1.0,
        "block_0/mlp/up/kernel": in_blocks,
        "block_0/mlp/up/bias": 1.0,
        "head/kernel": 0.5,
    }
    assert by_path(optim.rate_multipliers(cfg, params)) == expected
    standard = dataclasses.replace(cfg, parametrization="standard")
    assert set(jax.tree.leaves(optim.rate_multipliers(standard, params))) == {1.0}
    # And so they move; weight decay takes the same from all widths.
    grads = [jax.tree.map(np.cos, params)]
    run = lambda cfg, decay: by_path(  # noqa: E731
        run_steps(
            dataclasses.replace(cfg, weight_decay=decay, learning_rate=1.0, muon_learning_rate=1.0),
            params,
            grads,
        )
    )
    start, moved, usual, decayed = by_path(params), run(cfg, 0.0), run(standard, 0.0), run(cfg, 0.5)
    for path, multiplier in expected.items():
        step, usual_step = moved[path] - start[path], usual[path] - start[path]
        np.testing.assert_allclose(step, multiplier * usual_step, atol=1e-6)
        decay = 0.01 * 0.5 * start[path] if path.endswith("/kernel") else 0.0
        np.testing.assert_allclose(moved[path] - decayed[path], decay, atol=1e-6)
