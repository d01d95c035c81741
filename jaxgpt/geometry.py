"""What a table of vectors looks like and does: principal axes, how rows move, lookup against one-hot product."""

from __future__ import annotations

import numpy as np


def principal_axes(rows_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean [D], the first `count` principal axes [count, D], and each axis's share of the variance [count].

    By the eigenvectors of the covariance [D, D] in float64, so N may be large (Pearson 1901). An axis has a sign
    by convention: its largest number is positive.
    """
    mean_D = rows_ND.mean(axis=0, dtype=np.float64)
    D = rows_ND.shape[1]
    covariance_DD = np.zeros((D, D))
    for start in range(0, len(rows_ND), 65_536):  # in parts: a centred copy of all would be large
        part = rows_ND[start : start + 65_536] - mean_D
        covariance_DD += part.T @ part
    values, directions = np.linalg.eigh(covariance_DD)
    values, axes = np.maximum(values[::-1], 0.0), directions[:, ::-1].T[:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return mean_D, axes * np.where(largest < 0, -1.0, 1.0), values[:count] / max(values.sum(), 1e-300)
