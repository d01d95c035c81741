"""Exact nearest rows of a table: by cosine, dot product or Euclidean distance.

Scores are computed for one block of rows at a time and only the best are kept, so 400,000 rows need no matrix of
400,000 x 400,000. The candidates are found in float32; their scores are then computed again in float64.

    Q queries   N rows   D numbers per row   k neighbours   E excluded rows per query
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxgpt.config import UserError

METRICS = ("cosine", "dot", "euclidean")
_QUERIES = 1024  # queries at once
_SCORES = 1 << 23  # scores at once: 32 MiB
_MIN_BLOCK = 1024  # rows at once, at least


def mean_row(table_ND: np.ndarray) -> np.ndarray:
    """The mean of all rows: [D] float32."""
    return table_ND.mean(axis=0, dtype=np.float64).astype(np.float32)


def lengths(table_ND: np.ndarray, mean_D: np.ndarray | None = None) -> np.ndarray:
    """The length of each row [N], after `mean_D` is subtracted."""
    found_N = np.empty(len(table_ND), np.float32)
    for start in range(0, len(table_ND), 1 << 14):
        part = table_ND[start : start + (1 << 14)]
        part = part if mean_D is None else part - mean_D
        found_N[start : start + (1 << 14)] = _norms(part)
    return found_N


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows [..., D] scaled to length 1; rows of zeros stay zeros."""
    return rows / np.maximum(_norms(rows), np.finfo(rows.dtype).tiny)[..., None]


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...D,...D->...", rows, rows))


def nearest(
    table_ND: np.ndarray,
    queries_QD: np.ndarray,
    k: int,
    metric: str = "cosine",
    exclude_QE: np.ndarray | None = None,
    mean_D: np.ndarray | None = None,
    lengths_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query, the nearest first: (rows [Q, k] int64, scores [Q, k] float64).

    Scores are cosines, dot products, or distances (smallest first). The rows `exclude_QE` are left out (-1: none).
    `mean_D` is subtracted from rows and queries first. `lengths_N` are the `lengths` of the table, for cosines: with them
    many calls with few queries each do not scale the table again. Where fewer than k rows are left, all are returned. Rows with
    equal scores are in the order of the table.
    """
    if metric not in METRICS:
        raise UserError(f"metric={metric!r}: choose one of {', '.join(METRICS)}")
    N, Q = len(table_ND), len(queries_QD)
    E = 0 if exclude_QE is None else exclude_QE.shape[1]
    k = max(0, min(k, N - E))
    want = min(k + E, N)
    rows_Qk, scores_Qk = np.zeros((Q, k), np.int64), np.zeros((Q, k))
    for start in range(0, Q, _QUERIES):
        some = slice(start, start + _QUERIES)
        queries = _prepared(queries_QD[some], mean_D, metric)
        best = (np.full((len(queries), want), -np.inf, np.float32), np.full((len(queries), want), -1))
        for first_row, scores in _scores(table_ND, queries, metric, mean_D, lengths_N):
            best = _merged(*best, scores, first_row)
        rows = np.sort(best[1], axis=1)
        exact = _exact(table_ND, rows, queries_QD[some], metric, mean_D)
        if exclude_QE is not None:
            exact[(rows[:, :, None] == exclude_QE[some][:, None, :]).any(axis=2)] = np.inf
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        rows_Qk[some] = np.take_along_axis(rows, order, axis=1)
        scores_Qk[some] = np.take_along_axis(exact, order, axis=1)
    return rows_Qk, scores_Qk if metric == "euclidean" else -scores_Qk


def rank_of(
    table_ND: np.ndarray,
    queries_QD: np.ndarray,
    answers_Q: np.ndarray,
    exclude_QE: np.ndarray | None = None,
) -> np.ndarray:
    """The rank [Q] by cosine of one row per query among all rows, 1 for the nearest; excluded rows do not count."""
    ranks_Q = np.ones(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), _QUERIES):
        some = slice(start, start + _QUERIES)
        queries, answers = _prepared(queries_QD[some], None, "cosine"), answers_Q[some]
        own = np.einsum("QD,QD->Q", queries, unit(table_ND[answers]))
        hidden = answers[:, None] if exclude_QE is None else np.column_stack([answers, exclude_QE[some]])
        for first_row, scores in _scores(table_ND, queries, "cosine", None):
            at_q, at_e = np.nonzero((hidden >= first_row) & (hidden < first_row + scores.shape[1]))
            scores[at_q, hidden[at_q, at_e] - first_row] = -np.inf
            ranks_Q[some] += np.count_nonzero(scores > own[:, None], axis=1)
    return ranks_Q


def _rows(rows_ND: np.ndarray, mean_D: np.ndarray | None, metric: str) -> np.ndarray:
    rows_ND = rows_ND if mean_D is None else rows_ND - mean_D
    return unit(rows_ND) if metric == "cosine" else rows_ND


def _prepared(queries_QD: np.ndarray, mean_D: np.ndarray | None, metric: str) -> np.ndarray:
    return np.ascontiguousarray(_rows(queries_QD, mean_D, metric), np.float32)


def _half_squares(rows_ND: np.ndarray) -> np.ndarray:
    return np.einsum("ND,ND->N", rows_ND, rows_ND) / 2


def _scores(
    table_ND: np.ndarray,
    queries_QD: np.ndarray,
    metric: str,
    mean_D: np.ndarray | None,
    lengths_N: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, scores [Q, rows of the block]), larger for nearer rows. The next block overwrites a block.

    For distances the score is q x - |x|^2 / 2, which has the order of -|q - x|^2.
    """
    size = max(_MIN_BLOCK, _SCORES // max(1, len(queries_QD)))
    out = np.empty((len(queries_QD), min(size, len(table_ND))), np.float32)
    for start in range(0, len(table_ND), size):
        part = table_ND[start : start + size]
        scaled = metric != "cosine" or lengths_N is None
        part = np.asarray(_rows(part, mean_D, metric) if scaled else part, np.float32)
        scores = out if len(part) == out.shape[1] else np.empty((len(queries_QD), len(part)), np.float32)
        np.matmul(queries_QD, part.T, out=scores)
        if metric == "euclidean":
            scores -= _half_squares(part)
        if not scaled:
            if mean_D is not None:  # q (x - m) = q x - q m
                scores -= (queries_QD @ mean_D)[:, None]
            scores /= np.maximum(lengths_N[start : start + size], np.finfo(np.float32).tiny)
        yield start, scores


def _merged(
    best_scores: np.ndarray, best_rows: np.ndarray, scores: np.ndarray, first_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best [Q, k] of those so far and a block. Only scores above the worst so far are looked at."""
    Q, want = best_scores.shape
    if first_row == 0 and scores.shape[1] > want:
        columns = np.argpartition(scores, -want, axis=1)[:, -want:]
        return np.take_along_axis(scores, columns, axis=1), columns.astype(np.int64)
    worst = best_scores.min(axis=1)
    at_q, at_n = np.divmod(np.flatnonzero(scores > worst[:, None]), scores.shape[1])
    if not at_q.size:
        return best_scores, best_rows
    counts = np.bincount(at_q, minlength=Q)
    places = np.arange(len(at_q)) - np.repeat(np.cumsum(counts) - counts, counts)
    new_scores = np.full((Q, want + counts.max()), -np.inf, np.float32)
    new_rows = np.full(new_scores.shape, -1)
    new_scores[:, :want], new_rows[:, :want] = best_scores, best_rows
    new_scores[at_q, want + places], new_rows[at_q, want + places] = scores[at_q, at_n], first_row + at_n
    columns = np.argpartition(new_scores, -want, axis=1)[:, -want:]
    return np.take_along_axis(new_scores, columns, axis=1), np.take_along_axis(new_rows, columns, axis=1)


def _exact(
    table_ND: np.ndarray, rows_Qk: np.ndarray, queries_QD: np.ndarray, metric: str, mean_D: np.ndarray | None
) -> np.ndarray:
    """Distances, or negative scores: [Q, k] float64, smaller is nearer."""
    Q, k = rows_Qk.shape
    found = table_ND[rows_Qk.reshape(-1)].astype(np.float64)
    queries = queries_QD.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((found.reshape(Q, k, -1) - queries[:, None]) ** 2).sum(axis=-1))
    found, queries = _rows(found, mean_D, metric), _rows(queries, mean_D, metric)
    return -np.einsum("QkD,QD->Qk", found.reshape(Q, k, -1), queries)
