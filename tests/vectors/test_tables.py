"""The tables of a run at its steps; damaged ones get one clear line."""

import shutil

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.vectors import tables, word_vectors


def test_tables_are_those_of_the_run(word_run):
    """Snapshots and checkpoints hold the same table where both have the step."""
    steps = tables.saved_steps(word_run)
    assert steps[0] == 0 and steps[-1] == 24
    from_snapshot = tables.open_run(word_run, 24).values
    (word_run / "embeddings" / f"{24:08d}.npz").rename(word_run / "away")
    try:
        np.testing.assert_array_equal(tables.open_run(word_run, 24).values, from_snapshot)
    finally:
        (word_run / "away").rename(word_run / "embeddings" / f"{24:08d}.npz")
    assert tables.open_run(word_run, "best").step in (8, 16, 24)
    positions = tables.open_run(word_run, 0, "position")
    assert positions.words == [str(i) for i in range(16)]


def test_damaged_tables_get_one_line(word_run, tmp_path):
    shutil.copy(word_run / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "embeddings").mkdir()
    content = (word_run / "embeddings" / "00000000.npz").read_bytes()
    (tmp_path / "embeddings" / "00000000.npz").write_bytes(content[:-40])
    np.savez(tmp_path / "embeddings" / "00000001.npz", token=np.ones((3, 4), np.float32))
    np.savez(tmp_path / "embeddings" / "00000002.npz", other=np.ones((3, 4), np.float32))
    np.savez(tmp_path / "embeddings" / "00000003.npz", token=np.array([{}], object))
    for step, message in enumerate(["can't read", "3 rows at step 1", "no token table", "can't read"]):
        with pytest.raises(UserError) as error:
            tables.open_run(tmp_path, step)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_tests_look_for_complete_words_first():
    table = tables.Table(
        "", word_vectors.Vectors(["king", " king", " the", " of", "xq"], np.eye(5, dtype=np.float32))
    )
    assert table.vectors.row_of_word("king") == 1 and table.row("king") == 0
