"""Muon: how near its matrix products come to U V^T, how kernels become matrices, and what else moves how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt import config
from jaxgpt.training import muon, optim

# The coefficients that Amsel et al. 2025 print in algorithm 1.
PUBLISHED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def orthogonal_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(columns, rows)))[0].T


def matrix(kind: str, rows: int = 32, columns: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "random":
        return rng.normal(size=(rows, columns)).astype(np.float32)
    values = {
        "ill-conditioned": 10.0 ** -np.linspace(0, 3, rows),  # the largest is 1000 times the smallest
        "hopeless": 10.0 ** -np.linspace(0, 8, rows),
        "rank 1": np.eye(rows)[0],
    }[kind]
    x = (orthogonal_rows(rng, rows, rows) * values) @ orthogonal_rows(rng, rows, columns)
    return x.astype(np.float32)


ORTHOGONALIZE = jax.jit(muon.orthogonalize, static_argnums=1)
PRODUCTS = jax.jit(muon._products, static_argnums=1)


def polar_factor(x: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


def orthogonalized(x: np.ndarray, iterations: int, dtype=None) -> np.ndarray:
    return np.asarray(ORTHOGONALIZE(jnp.asarray(x[None], dtype), iterations)[0], np.float64)


# --- the polar factor -----------------------------------------------------------------------------------


def test_coefficients_are_the_papers():
    for steps in (5, 8):
        ours = np.array(muon.polar_express(steps))
        margin = 1.01 ** np.array([1, 3, 5])
        ours[:-1] *= margin  # the last step has none
        np.testing.assert_allclose(ours, PUBLISHED[:steps], rtol=1e-7)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_fewer_steps_do_better_than_the_first_of_many(iterations):
    values = np.linalg.svd(matrix("random"), compute_uv=False)

    def error(steps) -> float:
        x = values / np.linalg.norm(values)
        for a, b, c in steps:
            x = a * x + b * x**3 + c * x**5
        return float(np.sqrt(np.mean((x - 1) ** 2)))

    assert error(muon.polar_express(iterations)) < 0.85 * error(muon.polar_express(8)[:iterations])


# Measured, and rounded up: the largest singular value, and the root mean square of their distance to 1 for
# matrices of 32 x 32 and 32 x 128 random numbers, and of 32 x 32 with values from 1 down to 1/1000.
@pytest.mark.parametrize(
    ("iterations", "dtype", "largest", "square", "wide", "ill_conditioned"),
    [
        (3, None, 1.28, 0.22, 0.21, 0.54),
        (4, None, 1.20, 0.15, 0.145, 0.35),
        (5, None, 1.13, 0.11, 0.10, 0.15),
        (5, jnp.bfloat16, 1.13, 0.12, 0.10, 0.15),
        (8, None, 1.001, 0.001, 0.001, 0.001),
    ],
)
def test_singular_values_come_near_1(iterations, dtype, largest, square, wide, ill_conditioned):
    bounds = {("random", 32): square, ("random", 128): wide, ("ill-conditioned", 32): ill_conditioned}
    for (kind, columns), bound in bounds.items():
        values = np.linalg.svd(orthogonalized(matrix(kind, 32, columns), iterations, dtype), compute_uv=False)
        assert values.max() < largest, kind
        assert np.sqrt(np.mean((values - 1) ** 2)) < bound, kind


@pytest.mark.parametrize("columns", [32, 128])
@pytest.mark.parametrize(("iterations", "tolerance"), [(3, 0.28), (5, 0.13), (8, 1e-4)])
def test_the_result_is_the_polar_factor(columns, iterations, tolerance):
    x = matrix("random", 32, columns) if columns > 32 else matrix("random") + 10 * np.eye(32, dtype="f4")
    difference = orthogonalized(x, iterations) - polar_factor(x)
    assert np.linalg.norm(difference, 2) < tolerance  # so the directions are right, not only the sizes


@pytest.mark.parametrize("kind", ["random", "ill-conditioned", "hopeless", "rank 1"])
@pytest.mark.parametrize("iterations", [5, 10])
def test_both_ways_to_multiply_give_the_polynomials_value(kind, iterations):
    """Also where small singular values are nothing but rounding: nothing grows out of bounds."""
    x = matrix(kind, 32, 128)
    u, values, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    values = values / (1.01 * np.linalg.norm(values))
    scaled = (x / (1.01 * np.linalg.norm(x)))[None]
    for a, b, c in muon.polar_express(iterations):
        values = a * values + b * values**3 + c * values**5
    expected = (u * values) @ vt
    plain = np.asarray(PRODUCTS(scaled, muon.polar_express(iterations))[0])
    np.testing.assert_allclose(orthogonalized(x, iterations), expected, atol=5e-3)  # by way of X X^T
    np.testing.assert_allclose(plain, expected, atol=2e-3)


def test_size_does_not_count_and_zero_stays_zero():
    x = matrix("random")
    for factor in (1e-15, 1e10):
        np.testing.assert_allclose(orthogonalized(factor * x, 5), orthogonalized(x, 5), atol=1e-4)
    np.testing.assert_array_equal(orthogonalized(np.zeros((4, 4), np.float32), 5), 0.0)


# --- kernels as matrices --------------------------------------------------------------------------------


def gradients(layers: int = 1, seed: int = 0) -> dict:
    """A tree like the model's, D = 6, H = 2, K = 3, F = 12, V = 8."""
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731

    def block() -> dict:
        heads = {name: {"kernel": leaf(6, 2, 3), "bias": leaf(2, 3)} for name in ("query", "key", "value")}
        return {
            "attention_norm": {"scale": leaf(6)},
            "attention": {**heads, "out": {"kernel": leaf(2, 3, 6)}},
            "mlp": {"up": {"kernel": leaf(6, 12)}, "gate": {"kernel": leaf(6, 12)}, "down": {"kernel": leaf(12, 6)}},
            "value_mix": leaf(1),
        }  # fmt: skip

    return {
        "token_embedding": {"embedding": leaf(8, 6)},
        **{f"block_{i}": block() for i in range(layers)},
        "head": {"kernel": leaf(6, 8)},
    }


def hidden_only(tree: dict) -> dict:
    return {
        name: {"attention": {k: {"kernel": v["kernel"]} for k, v in block["attention"].items()}, "mlp": block["mlp"]}
        for name, block in tree.items()
        if name.startswith("block_")
    }  # fmt: skip


def polar_factors(grads: dict, iterations: int) -> dict:
    update = muon.scale_by_polar_factor(iterations).update
    return jax.jit(lambda grads: update(grads, optax.EmptyState())[0])(grads)


def test_each_kernel_gets_the_scaled_polar_factor_of_its_flattened_matrix():
    grads = hidden_only(gradients(layers=2))
    out = polar_factors(grads, 8)
    for i in range(2):
        before, after = grads[f"block_{i}"], out[f"block_{i}"]
        for name in ("query", "key", "value", "out"):  # [6, 2 * 3] or [2 * 3, 6]
            g, u = before["attention"][name]["kernel"], after["attention"][name]["kernel"]
            assert u.shape == g.shape
            np.testing.assert_allclose(u.reshape(6, 6), polar_factor(g.reshape(6, 6)), atol=0.1)
        for name, scale in {"up": 2**0.5, "gate": 2**0.5, "down": 1.0}.items():  # fan_out / fan_in: 2 or 1/2
            g, u = before["mlp"][name]["kernel"], after["mlp"][name]["kernel"]
            np.testing.assert_allclose(u, scale * polar_factor(g), atol=0.02)


def test_stacked_layers_move_as_separate_ones():
    grads = hidden_only(gradients(layers=3))
    apart = polar_factors(grads, 5)
    stack = lambda tree: {"block": jax.tree.map(lambda *x: np.stack(x), *tree.values())}  # noqa: E731
    stacked = polar_factors(stack(grads), 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stacked, stack(apart))


# --- the optimizer --------------------------------------------------------------------------------------


def run(cfg: config.OptimConfig, params: dict, steps: list[dict]) -> tuple[dict, optax.OptState]:
    """The params after these gradients, at a rate that halves at each step, and the state."""
    optimizer = optim.make_optimizer(cfg, lambda count: cfg.learning_rate / 2**count)

    @jax.jit
    def train(params):
        state = optimizer.init(params)
        for grads in steps:
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return train(params)


def test_two_steps_of_hidden_matrices_by_hand():
    cfg = config.OptimConfig(
        name="muon", learning_rate=0.1, muon_learning_rate=0.3, muon_momentum=0.8, muon_iterations=8,
        weight_decay=0.5, grad_clip_norm=0.0,
    )  # fmt: skip
    params, first, second = gradients(seed=1), gradients(seed=2), gradients(seed=3)
    after, _ = run(cfg, params, [first, second])
    for name, scale in (("up", 2**0.5), ("down", 1.0)):
        p, g1, g2 = (
            np.asarray(t["block_0"]["mlp"][name]["kernel"], np.float64) for t in (params, first, second)
        )
        p = p - 0.3 * (scale * polar_factor(g1) + 0.5 * p)
        momentum = 0.8 * g1 + g2
        p = p - 0.15 * (scale * polar_factor(g2 + 0.8 * momentum) + 0.5 * p)  # Nesterov; half of the rate
        np.testing.assert_allclose(after["block_0"]["mlp"][name]["kernel"], p, atol=0.02)


def test_all_else_moves_as_adamw_moves_it():
    cfg = config.OptimConfig(name="muon", weight_decay=0.3, decay_embeddings=True)
    params, steps = gradients(seed=1), [gradients(seed=2), gradients(seed=3)]
    by_muon, _ = run(cfg, params, steps)
    by_adam, _ = run(config.OptimConfig(name="adamw", weight_decay=0.3, decay_embeddings=True), params, steps)
    moved = []

    def compare(path, ours, adams, start):
        moved.append(muon.is_hidden(path))
        if muon.is_hidden(path):
            assert np.abs(ours - adams).max() > 1e-3
        else:
            np.testing.assert_array_equal(ours, adams)
            assert np.abs(ours - start).max() > 1e-4

    jax.tree_util.tree_map_with_path(compare, by_muon, by_adam, params)
    assert moved.count(True) == 7 and moved.count(False) == 7


def test_the_state_holds_one_moment_of_hidden_matrices_and_two_of_the_rest():
    params = gradients()
    optimizer = optim.make_optimizer(config.OptimConfig(name="muon"), lambda count: 1.0)
    state = jax.eval_shape(optimizer.init, params)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    hidden = size(hidden_only(params))
    counts = 3  # Adam's, and those of the two schedules
    assert size(state) == hidden + 2 * (size(params) - hidden) + counts


def test_products_in_bfloat16_give_nearly_the_same_update():
    """In optim.muon_dtype; the update and its shape stay float32."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 96)), jnp.float32)
    exact, near = muon.orthogonalize(x, 5), muon.orthogonalize(x, 5, jnp.bfloat16)
    assert near.dtype == jnp.bfloat16
    off = [np.linalg.norm(np.asarray(found[0], np.float32) - polar_factor(x[0])) for found in (exact, near)]
    assert off[0] != off[1] and off[1] < 1.3 * off[0]  # most of the error is the polynomial's
    updates = {"block_0": {"mlp": {"up": {"kernel": x[0]}}}}
    path = (
        muon.scale_by_polar_factor(5, dtype).update(updates, optax.EmptyState())[0]
        for dtype in (None, jnp.bfloat16)
    )
    wide, narrow = (tree["block_0"]["mlp"]["up"]["kernel"] for tree in path)
    assert wide.dtype == narrow.dtype == jnp.float32
    assert 0 < np.linalg.norm(wide - narrow) < 0.1 * np.linalg.norm(wide)
