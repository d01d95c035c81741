"""The nearest rows are those of a full sort of naive scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import UserError
from jaxgpt.vectors import nearest
from tests.vectors.small_vectors import RANDOM_TABLE as TABLE
from tests.vectors.small_vectors import naive_scores


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    metric=st.sampled_from(nearest.METRICS), centre=st.booleans(), measured=st.booleans(), k=st.integers(1, 12), rows=st.integers(2, 300),
    queries=st.integers(1, 9), aside=st.integers(0, 3), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_neighbours_are_those_of_a_full_sort(metric, centre, measured, k, rows, queries, aside, seed):
    """In blocks of any size: the scores of all, sorted, without the rows set aside."""
    rng = np.random.default_rng(seed)
    table, q = TABLE[:rows], rng.normal(size=(queries, 7)).astype(np.float32)
    hidden = rng.integers(-1, rows, size=(queries, aside)) if aside else None
    mean = nearest.mean_row(table) if centre else None
    lengths = nearest.lengths(table, mean) if measured else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_SCORES", 50 * queries)
        patch.setattr(nearest, "_MIN_BLOCK", 40)
        patch.setattr(nearest, "_QUERIES", 4)
        found, scores = nearest.nearest(table, q, k, metric, hidden, mean, lengths)
    expected = naive_scores(table, q, metric, mean)
    assert found.shape == (queries, max(0, min(k, rows - aside)))
    if aside:
        for i, at in enumerate(hidden):
            expected[i, at[at >= 0]] = -np.inf
    order = np.argsort(-expected, axis=1)[:, : found.shape[1]]
    np.testing.assert_array_equal(found, order)
    signed = -expected if metric == "euclidean" else expected
    np.testing.assert_allclose(scores, np.take_along_axis(signed, order, axis=1), rtol=1e-4, atol=1e-5)


def test_rank_is_the_place_in_a_full_sort():
    rng = np.random.default_rng(1)
    q, answers = rng.normal(size=(20, 7)).astype(np.float32), rng.integers(300, size=20)
    aside = (answers[:, None] + [1, 2, 3]) % 300
    for hidden in (None, aside):
        scores = naive_scores(TABLE, q, "cosine")
        if hidden is not None:
            np.put_along_axis(scores, hidden, -np.inf, axis=1)
        own = np.take_along_axis(scores, answers[:, None], axis=1)
        np.testing.assert_array_equal(
            nearest.rank_of(TABLE, q, answers, hidden), 1 + (scores > own).sum(axis=1)
        )


def test_metrics_differ_where_lengths_do_and_centring_takes_a_common_direction_away():
    table = np.array([[1, 0], [10, 8], [0.9, 0.1], [1, 0.05]], np.float32)
    first = {
        m: int(nearest.nearest(table, table[:1], 1, m, np.array([[0]]))[0][0, 0]) for m in nearest.METRICS
    }
    assert first == {"cosine": 3, "dot": 1, "euclidean": 3}
    with_mean = table + np.array([100, 100], np.float32)
    raw = nearest.nearest(with_mean, with_mean[:1], 3)[1]
    assert raw.min() > 0.99  # all are alike
    centred = nearest.nearest(with_mean, with_mean[:1], 3, mean_D=nearest.mean_row(with_mean))
    again = nearest.nearest(table, table[:1], 3, mean_D=nearest.mean_row(table))
    mean = nearest.mean_row(with_mean)
    measured = nearest.nearest(
        with_mean, with_mean[:1], 3, mean_D=mean, lengths_N=nearest.lengths(with_mean, mean)
    )
    np.testing.assert_array_equal(measured[0], centred[0])
    np.testing.assert_array_equal(measured[1], centred[1])
    np.testing.assert_array_equal(centred[0], again[0])
    np.testing.assert_allclose(centred[1], again[1], atol=1e-4)


def test_unknown_metrics_list_the_choices():
    with pytest.raises(UserError, match="choose one of cosine, dot, euclidean"):
        nearest.nearest(TABLE, TABLE[:1], 1, "manhattan")
