"""Small tables of vectors, the files that hold them, and scores by definition."""

from pathlib import Path

import numpy as np

from jaxgpt.vectors import word_vectors

WORDS = ["the", "king", "queen", "naïve", "東京", "don't", "\x85", "a\u2028b"]
TABLE = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)
RANDOM_TABLE = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32) + 0.5


def as_text(words=WORDS, table=TABLE, header: bool = False, end: str = "\n") -> bytes:
    lines = [f"{len(words)} {table.shape[1]}"] * header
    lines += [
        " ".join([word, *(repr(float(x)) for x in row)]) for word, row in zip(words, table, strict=True)
    ]
    return (end.join(lines) + end).encode()


def as_binary(words=WORDS, table=TABLE, end: bytes = b"\n") -> bytes:
    rows = (w.encode() + b" " + r.astype("<f4").tobytes() + end for w, r in zip(words, table, strict=True))
    return f"{len(words)} {table.shape[1]}\n".encode() + b"".join(rows)


def as_npy(path: Path, table: np.ndarray, **kwargs) -> Path:
    np.save(path, table, **kwargs)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_same(found: word_vectors.Vectors, words=WORDS, table=TABLE) -> None:
    assert found.words == list(words)
    assert found.table.dtype == np.float32 and found.table.flags.c_contiguous
    np.testing.assert_array_equal(found.table, table)


def naive_scores(table, queries, metric, mean=None):
    """[Q, N] float64, larger for nearer rows."""
    table, queries = table.astype(np.float64), queries.astype(np.float64)
    if mean is not None:
        table, queries = table - mean, queries - mean
    if metric == "euclidean":
        return -np.linalg.norm(queries[:, None] - table[None], axis=-1)
    if metric == "cosine":
        table, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (table, queries))
    return queries @ table.T
