"""Linear probes: what can be read off activations by a linear map, against what can be read off shuffled labels.

    found = probes.probe(x_ND, labels_N, groups=window_N)
    found.score, found.low, found.high, found.control, found.baseline

Whole labels (integers, text) are classes: multinomial logistic regression, scored by accuracy. Floats are targets: ridge regression, scored
by R^2. Sources: Alain and Bengio 2016; Hewitt and Liang 2019 on controls. A probe says that something is there, not that the model uses it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgpt.config import UserError

MOST_ITERATIONS = 500
TOLERANCE = 1e-5  # of the largest entry of the logistic loss's gradient


@dataclass(frozen=True)
class Probe:
    """The result of `probe`. Scores are of examples that were not fitted."""

    kind: str  # "logistic" or "ridge"
    score: float  # accuracy, or R^2
    low: float  # the interval of the score: 2.5 % to 97.5 % of bootstrap samples of the groups
    high: float
    control: float  # the score of the same probe fitted to shuffled labels, on the real ones
    baseline: float  # of the most frequent class of the fitted examples; 0 for ridge
    fitted: int  # examples
    scored: int
    weights: (
        np.ndarray
    )  # [D + 1, classes] or [D + 1, targets]: of the standardized activations, the last row is the bias
    classes: np.ndarray  # [classes]; empty for ridge


def fit_ridge(x_ND: np.ndarray, y_NK: np.ndarray, l2: float) -> np.ndarray:
    """The weights [D + 1, K] that minimize mean squared error + l2 |w|^2; the last row, the bias, is not penalized."""
    x_ND, y_NK = np.asarray(x_ND, np.float64), np.asarray(y_NK, np.float64)
    mean_D, mean_K = x_ND.mean(axis=0), y_NK.mean(axis=0)
    centred = x_ND - mean_D
    gram = centred.T @ centred / len(x_ND) + l2 * np.eye(x_ND.shape[1])
    w_DK = np.linalg.solve(gram, centred.T @ (y_NK - mean_K) / len(x_ND))
    return np.concatenate([w_DK, (mean_K - mean_D @ w_DK)[None]])


@functools.partial(jax.jit, static_argnames="classes")
def _minimize(x_ND: jax.Array, y_N: jax.Array, l2: jax.Array, classes: int) -> jax.Array:
    def loss(w: jax.Array) -> jax.Array:
        logits_NC = x_ND @ w[:-1] + w[-1]
        return (
            optax.softmax_cross_entropy_with_integer_labels(logits_NC, y_N).mean()
            + l2 * jnp.square(w[:-1]).sum()
        )

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        w, state, _, count = carry
        value, grad = value_and_grad(w, state=state)
        updates, state = solver.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(w, updates), state, jnp.abs(grad).max(), count + 1

    w = jnp.zeros((x_ND.shape[1] + 1, classes))
    start = (w, solver.init(w), jnp.float32(jnp.inf), 0)
    return jax.lax.while_loop(lambda c: (c[2] > TOLERANCE) & (c[3] < MOST_ITERATIONS), step, start)[0]


def fit_logistic(x_ND: np.ndarray, y_N: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """The weights [D + 1, C] that minimize mean -log p(class) + l2 |w|^2; the last row, the bias, is not penalized."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            _minimize(jnp.asarray(x_ND, jnp.float32), jnp.asarray(y_N), jnp.float32(l2), classes)
        )


def probe(
    x_ND: np.ndarray,
    labels_N: np.ndarray,
    groups: np.ndarray | None = None,
    l2: float = 1e-3,
    test_fraction: float = 0.3,
    bootstrap: int = 1_000,
    seed: int = 0,
) -> Probe:
    """Fit a probe to activations [N, D], and score it on groups that it has not seen.

    `groups` [N] (None: each example is its own) are split and resampled as one: tokens of one window are not independent. Activations are
    standardized by the fitted examples. Raises UserError for lengths that differ, or too few groups or classes.
    """
    x_ND, labels_N = np.asarray(x_ND, np.float32), np.asarray(labels_N)
    groups = np.arange(len(x_ND)) if groups is None else np.asarray(groups)
    if x_ND.ndim != 2 or labels_N.shape != (len(x_ND),) or groups.shape != (len(x_ND),):
        raise UserError(
            f"activations {list(x_ND.shape)}, labels {list(labels_N.shape)} and groups {list(groups.shape)}: give [N, D], [N] and [N]"
        )
    names, group_N = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    held_out = max(1, round(test_fraction * len(names)))
    if len(names) - held_out < 1:
        raise UserError(f"{len(names)} groups can't be split into fitted and scored ones: give 2 or more")
    test_N = np.isin(group_N, order[:held_out])
    classes = np.array([]) if labels_N.dtype.kind == "f" else np.unique(labels_N)
    if len(classes) == 1:
        raise UserError(f"all labels are {classes[0]!r}: give two classes or more")
    train_ND = x_ND[~test_N]
    scale_D = train_ND.std(axis=0)
    standard_ND = (x_ND - train_ND.mean(axis=0)) / np.where(scale_D > 0, scale_D, 1)
    y_N = np.searchsorted(classes, labels_N) if len(classes) else labels_N.astype(np.float64)

    def fit(y: np.ndarray) -> np.ndarray:
        if len(classes):
            return fit_logistic(standard_ND[~test_N], y, len(classes), l2)
        return fit_ridge(standard_ND[~test_N], y[:, None], l2)

    def predicted(weights: np.ndarray) -> np.ndarray:
        out = standard_ND[test_N] @ weights[:-1] + weights[-1]
        return out.argmax(axis=1) if len(classes) else out[:, 0]

    def score(guess: np.ndarray, true: np.ndarray) -> float:
        if len(classes):
            return float((guess == true).mean())
        spread = np.square(true - true.mean()).sum()
        return float(1 - np.square(true - guess).sum() / spread) if spread else float("nan")

    weights, true, fitted = fit(y_N[~test_N]), y_N[test_N], y_N[~test_N]
    guess = predicted(weights)
    members = [np.flatnonzero(group_N[test_N] == group) for group in np.unique(group_N[test_N])]
    samples = []
    for _ in range(bootstrap):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        samples.append(score(guess[rows], true[rows]))
    low, high = np.nanquantile(samples, [0.025, 0.975])
    most = np.bincount(fitted).argmax() if len(classes) else 0
    return Probe(
        kind="logistic" if len(classes) else "ridge",
        score=score(guess, true),
        low=float(low),
        high=float(high),
        control=score(predicted(fit(rng.permutation(fitted))), true),
        baseline=float((true == most).mean()) if len(classes) else 0.0,
        fitted=int((~test_N).sum()),
        scored=int(test_N.sum()),
        weights=weights,
        classes=classes,
    )
