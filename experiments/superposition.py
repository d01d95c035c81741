"""How many features does a layer hold that has fewer dimensions than features?

python -m experiments.superposition [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import claim
from experiments.claim import Effect, Result, Setting

NOTE = "If features are sparse, a model stores more of them than it has dimensions, in directions that are almost orthogonal (Elhage et al. 2022)."
CLAIM = "With sparse features a layer represents more features than it has dimensions; with dense features it does not."
PREDICTION = "At a density of 0.01 at least two features more than dimensions, at a density of 1 as many as dimensions; a wider layer holds more."
REFUTED_BY = "As many features as dimensions at a density of 0.01, or more than dimensions at a density of 1."
DESIGN = (
    "The toy model of Elhage et al.: 20 features, each 0 or (with the probability that is the density) uniform in [0, 1], are "
    "compressed to a few dimensions and read back, relu(W^T W x + b), with the squared error of feature i weighted by 0.9^i, trained with Adam. A "
    "feature counts as represented if its direction, a column of W, is longer than 1/2. By density at 5 dimensions, and by the number of "
    "dimensions at a density of 0.03."
)
MARGINS = {"features": 1.0}
LIMITS = (
    "A toy: features are given and independent. It shows what a layer can do, not what a language model does."
)
FEATURES = 20
IMPORTANCE = 0.9
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01)
WIDTHS = (2, 5, 10)


def error(params: tuple[jax.Array, jax.Array], x_BN: jax.Array) -> jax.Array:
    """The weighted squared error of reading x [B, N] back from W x, W [K, N]."""
    w_KN, b_N = params
    read_BN = jax.nn.relu((x_BN @ w_KN.T) @ w_KN + b_N)
    weights_N = IMPORTANCE ** jnp.arange(x_BN.shape[-1])
    return (weights_N * jnp.square(x_BN - read_BN)).sum(axis=-1).mean()


@functools.partial(jax.jit, static_argnames=("width", "steps", "batch"))
def train(key: jax.Array, density: jax.Array, width: int, steps: int, batch: int) -> jax.Array:
    """W [width, FEATURES] after training."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    params = (
        jax.random.normal(jax.random.fold_in(key, 0), (width, FEATURES)) / np.sqrt(FEATURES),
        jnp.zeros(FEATURES),
    )

    def step(carry, number):
        params, state = carry
        one, two = jax.random.split(jax.random.fold_in(key, number + 1))
        shape = (batch, FEATURES)
        x_BN = jax.random.uniform(one, shape) * jax.random.bernoulli(two, density, shape)
        updates, state = optimizer.update(jax.grad(error)(params, x_BN), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params[0]


def represented(w_KN: np.ndarray) -> int:
    """The number of columns longer than 1/2."""
    return int((np.linalg.norm(w_KN, axis=0) > 0.5).sum())


def measure(setting: Setting) -> dict[str, Any]:
    """Represented features by density and by width, a number per seed."""
    steps, batch = setting.pick((20, 32), (8_000, 256), (20_000, 1_024))
    keys = jax.vmap(jax.random.key)(jnp.arange(setting.seeds))

    def numbers(width: int, density: float) -> list[int]:
        w_SKN = jax.vmap(lambda key: train(key, jnp.float32(density), width, steps, batch))(keys)
        return [represented(np.asarray(w_KN)) for w_KN in w_SKN]

    return {
        "features": FEATURES,
        "width": WIDTHS[1],
        "by_density": {f"{density:g}": numbers(WIDTHS[1], density) for density in DENSITIES},
        "by_width": {str(width): numbers(width, 0.03) for width in WIDTHS},
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    by_density, by_width = measurements["by_density"], measurements["by_width"]
    width, margin = measurements["width"], MARGINS["features"]
    extra = [found - width for found in by_density["0.01"]]
    narrow, *_, wide = by_width
    return Result(
        parts=(
            Effect(f"features represented in {width} dimensions at a density of 0.01, minus {width}", claim.mean(extra), margin=margin),
            Effect(
                f"{width + 2} minus features represented in {width} dimensions at a density of 1",
                claim.mean([width + 2 - found for found in by_density["1"]]), margin=margin,
            ),
            Effect(
                f"features represented in {wide} dimensions minus in {narrow}, density 0.03",
                claim.difference(by_width[wide], by_width[narrow]), margin=margin,
            ),
        ),
        says=(
            f"Of {measurements['features']} features, {width} dimensions represent "
            + ", ".join(f"{claim.show(claim.mean(found))} at a density of {density}" for density, found in by_density.items())
            + ". At a density of 0.03, "
            + ", ".join(f"{claim.show(claim.mean(found))} fit into {name} dimensions" for name, found in by_width.items())
            + "."
        ),
        seeds=len(extra),
        headline=(
            f"{width} dimensions hold {claim.show(claim.mean(by_density['1']))} dense features and "
            f"{claim.show(claim.mean(by_density['0.01']))} sparse ones."
        ),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Represented features by density and by width."""
    density, width = figure.subplots(1, 2)
    for axis, found in ((density, measurements["by_density"]), (width, measurements["by_width"])):
        for label, values in found.items():
            axis.plot([float(label)] * len(values), values, "o", color=claim.COLOURS[0], alpha=0.4)
        axis.set(ylabel="features represented", ylim=(0, measurements["features"] + 1))
    density.axhline(measurements["width"], color="#7a7a7a", linestyle="--", linewidth=1)
    density.set_xscale("log")
    density.set(
        xlabel="density: how often a feature is not 0", title=f"{measurements['width']} dimensions (dashed)"
    )
    names = [float(label) for label in measurements["by_width"]]
    width.plot(names, names, "--", color="#7a7a7a", linewidth=1)
    width.set(xlabel="dimensions (dashed: as many features)", title="density 0.03")


if __name__ == "__main__":
    claim.run()
