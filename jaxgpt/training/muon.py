"""Muon: momentum with all singular values set to one, for the matrices inside the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A momentum U S V^T is replaced
by its polar factor U V^T, so that rare directions of a gradient move a matrix as far as frequent ones. The
polar factor is computed by a few matrix products (Newton-Schulz), with the polynomials of Amsel et al. 2025, "The
Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm".

    N matrices of one shape   I rows   J columns, I <= J
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt.model.linear import LINEAR


def is_hidden(path: tuple) -> bool:
    """Whether the parameter at this path is the kernel of a linear layer that Muon takes (see linear.LINEAR)."""
    return path[-1].key == "kernel" and path[-2].key in LINEAR and LINEAR[path[-2].key].muon


def as_matrices(path: tuple, x: jax.Array) -> jax.Array:
    """A hidden kernel as [N, fan_in, fan_out]: heads are flattened, N counts leading axes (stacked layers)."""
    layer = LINEAR[path[-2].key]
    inputs, outputs = len(layer.inputs), len(layer.outputs)
    fan_in = int(np.prod(x.shape[x.ndim - outputs - inputs : x.ndim - outputs]))
    return x.reshape(-1, fan_in, int(np.prod(x.shape[x.ndim - outputs :])))


# --- the polar factor -----------------------------------------------------------------------------------


def _best_quintic(low: float, high: float) -> np.ndarray:
    """The (a, b, c) that make a x + b x^3 + c x^5 closest to 1 on [low, high].

    The error of the best polynomial has the same size at both ends and at the two turning points between them, with
    alternating signs (Amsel et al. 2025, section 3.2): solve for that, move the turning points, repeat.
    """
    if low / high > 1 - 5e-6:  # the limit; the system below is singular there
        return np.array([15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5])
    points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
    for _ in range(100):
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        root = np.sqrt(9 * b**2 - 20 * a * c)
        turning = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
        settled = np.abs(turning - points[1:3]).max() < 1e-14
        points[1:3] = turning
        if settled:
            break
    return np.array([a, b, c])


@functools.cache
def polar_express(iterations: int) -> tuple[tuple[float, float, float], ...]:
    """Coefficients (a, b, c) of each step's a x + b x^3 + c x^5, which together take [low, 1] to near 1.

    Each is the best on the interval that the steps before it map the singular values to. With 5 or more steps they are
    the paper's (section 3.4, low = 1e-3). Fewer steps can't raise values that small without harming the others: low is
    10^-2.5 with 4 steps, 10^-2 with 3, and so on.
    """
    low, high = max(1e-3, 10.0 ** (-(iterations + 1) / 2)), 1.0
    cushion = 0.02407327424182761  # the paper's limit of the interval, so that small values grow
    steps = []
    for step in range(iterations):
        powers = np.array([1, 3, 5])
        abc = _best_quintic(max(low, cushion * high), high)
        ends = [float(abc @ x**powers) for x in (low, high)]
        abc = abc * 2 / sum(ends)  # the images of the ends have the same distance from 1
        low = ends[0] * 2 / sum(ends)
        high = 2 - low
        if step < iterations - 1:  # the paper's margin for rounding past `high`
            abc = abc / 1.01**powers
        a, b, c = (float(x) for x in abc)
        steps.append((a, b, c))
    return tuple(steps)


def _products(x_NIJ: jax.Array, steps: tuple) -> jax.Array:
    """Three products per step with the matrices themselves: 2 I^2 J + I^3 multiplications."""
    for a, b, c in steps:
        gram_NII = jnp.einsum("NIJ,NKJ->NIK", x_NIJ, x_NIJ)
        change_NII = b * gram_NII + c * (gram_NII @ gram_NII)
        x_NIJ = a * x_NIJ + change_NII @ x_NIJ
    return x_NIJ


def _gram_products(x_NIJ: jax.Array, steps: tuple) -> jax.Array:
    """The same with steps on X X^T: about 4 I^3 multiplications per step, and I^2 J twice in all.

    Cheaper than `_products` if J >= 1.5 I. X X^T has the squares of the singular values, so this needs float32, and at
    most 5 steps at a time: a zero eigenvalue that rounding makes negative grows without bound.
    """
    multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # on GPUs, no TF32
    gram_NII = multiply(x_NIJ, x_NIJ.mT)
    total_NII: jax.Array | None = None
    for a, b, c in steps:
        step_NII = a * jnp.eye(x_NIJ.shape[1]) + b * gram_NII + c * multiply(gram_NII, gram_NII)
        total_NII = step_NII if total_NII is None else multiply(step_NII, total_NII)
        gram_NII = multiply(multiply(step_NII, gram_NII), step_NII)  # not used after the last step
    return x_NIJ if total_NII is None else multiply(total_NII, x_NIJ)


def orthogonalize(x_NIJ: jax.Array, iterations: int = 5, dtype: Any = None) -> jax.Array:
    """About U V^T for each matrix U S V^T, at any scale: singular values near 1; a zero matrix stays 0.

    I <= J is cheaper than J < I: the products are with I x I matrices. Values below 1e-3 of the Frobenius norm come
    out smaller than 1: see `polar_express`. `dtype` is that of the products; None: x's.
    """
    dtype = x_NIJ.dtype if dtype is None else dtype
    norms_N11 = jnp.linalg.norm(x_NIJ.astype(jnp.float32), axis=(1, 2), keepdims=True)
    # 1e-30 is for zeros only: the scale of a gradient must not matter.
    scaled_NIJ = (x_NIJ / (1.01 * norms_N11 + 1e-30)).astype(dtype)
    _, rows, columns = x_NIJ.shape
    by_gram = columns >= 1.5 * rows and scaled_NIJ.dtype == jnp.float32
    steps = polar_express(iterations)
    for start in range(0, iterations, 5):
        scaled_NIJ = (_gram_products if by_gram else _products)(scaled_NIJ, steps[start : start + 5])
    return scaled_NIJ


# --- the optimizer --------------------------------------------------------------------------------------


def scale_by_polar_factor(iterations: int = 5, dtype: Any = None) -> optax.GradientTransformation:
    """Hidden kernels' updates -> their polar factors times sqrt(max(1, fan_out / fan_in)).

    All matrices of one shape, or its transpose, over all layers are orthogonalized in one batch: a model has two or
    three. With the factor, an update changes activations by the same proportion for every shape (Yang et al. 2023,
    "A Spectral Condition for Feature Learning"). `dtype`: see `orthogonalize`.
    """

    def update(updates, params=None):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
        matrices = [as_matrices(path, x) for path, x in leaves]
        batches: dict[tuple[int, int], list[int]] = {}
        for index, x in enumerate(matrices):
            batches.setdefault(tuple(sorted(x.shape[1:])), []).append(index)
        out = list(matrices)
        for members in batches.values():
            wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in (matrices[i] for i in members)]
            polar_NIJ = orthogonalize(jnp.concatenate(wide), iterations, dtype)
            parts = jnp.split(polar_NIJ, np.cumsum([len(x) for x in wide])[:-1])
            for index, part in zip(members, parts, strict=True):
                _, fan_in, fan_out = matrices[index].shape
                part = part if fan_in <= fan_out else part.mT
                scaled = part * max(1.0, fan_out / fan_in) ** 0.5
                out[index] = scaled.reshape(leaves[index][1].shape).astype(leaves[index][1].dtype)
        return jax.tree.unflatten(treedef, out)

    return optax.stateless(update)


def muon(
    rate: optax.Schedule,
    other: optax.GradientTransformation,
    momentum: float = 0.95,
    iterations: int = 5,
    weight_decay: float = 0.0,
    dtype: Any = None,
) -> optax.GradientTransformation:
    """Hidden kernels: - rate * (polar factor of the Nesterov momentum + weight_decay * kernel). Others: `other`.

    State: one momentum the size of the hidden kernels, and `other`'s for the rest.
    """
    hidden = optax.chain(
        optax.trace(momentum, nesterov=True),
        scale_by_polar_factor(iterations, dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )

    def groups(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "hidden" if is_hidden(path) else "other", params
        )

    return optax.partition({"hidden": hidden, "other": other}, groups)
