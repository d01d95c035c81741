"""Principal axes, drift and lookups against their definitions."""

import numpy as np

from jaxgpt.vectors import geometry
from tests.vectors.small_vectors import RANDOM_TABLE as TABLE


def test_principal_axes_are_those_of_the_singular_values():
    mean, axes, shares = geometry.principal_axes(TABLE, 3)
    centred = TABLE.astype(np.float64) - TABLE.astype(np.float64).mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(mean, TABLE.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(np.abs(np.einsum("KD,KD->K", axes, directions[:3])), 1.0, rtol=1e-6)
    np.testing.assert_allclose(shares, values[:3] ** 2 / (values**2).sum(), rtol=1e-6)
    assert (axes.max(axis=1) > -axes.min(axis=1)).all()


def test_few_rows_have_the_axes_of_their_covariance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 50)) * np.linspace(3, 1, 50)
    _mean, axes, shares = geometry.principal_axes(rows, 3)
    values, directions = np.linalg.eigh(np.cov(rows.T))
    np.testing.assert_allclose(np.abs(axes @ directions[:, :-4:-1]), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(shares, values[:-4:-1] / values.sum(), rtol=1e-9)
    assert (axes.max(axis=1) > -axes.min(axis=1)).all()
    # Rows on a line tell one axis: the others are of length 1 too, and have no variance.
    line = np.outer(rng.normal(size=5), rng.normal(size=50))
    _, axes, shares = geometry.principal_axes(line, 2)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-7)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)


def test_drift_of_a_table_that_stays_rotates_or_is_random():
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    history = {0: TABLE, 1: TABLE, 5: (TABLE @ turn).astype(np.float32), 9: rng.normal(size=TABLE.shape)}
    still, same, turned, other = geometry.drift(history, k=5)
    for at in (still, same):
        np.testing.assert_allclose(at.cosine_N, 1.0, rtol=1e-6)
        assert at.kept_start == at.kept_before == 1.0
    assert abs(turned.cosine_N.mean()) < 0.9
    assert (
        turned.kept_start == turned.kept_before == 1.0
    )  # a rotation moves every row and keeps every neighbour
    assert other.kept_start < 0.1 and other.kept_before < 0.1


def test_lookup_is_the_one_hot_product_bit_for_bit_in_fewer_bytes():
    result = geometry.compare_lookups(TABLE, num_ids=50, repeats=1)
    assert result["bit_equal"] and result["max_difference"] == 0.0
    assert result["lookup"]["bytes"] == 4 * 50 + 2 * 4 * 50 * 7
    assert result["one_hot"]["bytes"] == 4 * (50 * 300 + 300 * 7 + 50 * 7)
