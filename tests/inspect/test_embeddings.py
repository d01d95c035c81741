"""Tests, analogies and drift of embedding tables with known answers."""

import numpy as np
import pytest

from jaxgpt.inspect import embeddings, word_lists
from jaxgpt.inspect.plain import Names
from jaxgpt.vectors import geometry
from jaxgpt.vectors.word_vectors import Vectors

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def test_a_random_table_passes_no_test_and_a_planted_one_is_seen():
    rng = np.random.default_rng(0)
    random_ND = rng.normal(size=(52, 24)).astype(np.float32)
    planted_ND = random_ND.copy()
    planted_ND[26:] = random_ND[:26] + 0.2 * rng.normal(size=(26, 24))  # A is near a
    planted_ND[[LETTERS.index(c) for c in "aeiou"]] += 3 * rng.normal(
        size=24
    )  # vowels have something in common
    words = Vectors(LETTERS, planted_ND)
    tests = {test.name: test for test in word_lists.tests(words.row_of_word, lambda i: None)}
    for name, test in tests.items():
        start, end = embeddings.auc(random_ND, test), embeddings.auc(planted_ND, test)
        assert start.low < 0.5 < start.high, name
        if name in ("the same letter", "vowels"):
            assert end.low > 0.7, name
    assert {"the same letter", "vowels", "upper case"} == set(tests)


def test_analogies_are_found_where_they_hold_and_said_to_have_failed_where_not():
    rng = np.random.default_rng(1)
    lower = rng.normal(size=(26, 16))
    table = np.concatenate([lower, lower + rng.normal(size=16)]).astype(np.float32)
    both = {"start": rng.normal(size=(52, 16)).astype(np.float32), "end": table}
    names = Names(_Letters(), None)
    got = embeddings.analogies(both, Vectors(LETTERS, table), names)
    (family,) = got["analogy_families"]
    assert family["questions"] == 650 and family["end"]["aside"]["value"] > 0.9
    assert family["start"]["aside"]["value"] < 0.1 and family["chance"] == pytest.approx(1 / 49, rel=0.01)
    for question in got["analogies"]:
        assert question["found"] == (question["end"]["aside"]["rank"] == 1)
    failed = embeddings.analogies(
        {"start": table, "end": both["start"]}, Vectors(LETTERS, both["start"]), names
    )
    assert not all(question["found"] for question in failed["analogies"])


class _Letters:
    """The part of a tokenizer that `Names` uses."""

    vocab_size = 52

    def decode_bytes(self, ids):
        return b"".join(LETTERS[i].encode() for i in ids)


def test_frozen_rows_drift_exactly_0():
    rng = np.random.default_rng(2)
    tables = {0: rng.normal(size=(52, 8)).astype(np.float32)}
    for step in (1, 5):
        tables[step] = tables[0] + rng.normal(size=(52, 8)).astype(np.float32)
        tables[step][:20] = tables[0][:20]
    got = embeddings.drift(tables, Names(_Letters(), None))
    assert got["still"] == 20
    for at in geometry.drift(tables):
        assert (at.distance_N[:20] == 0).all()
    assert got["kept_end"][-1] == got["kept_start"][0] == 1 and got["distance"][0] == 0
    moved = {i for i, _ in got["moved_most"]} | {i for i, _ in got["moved_least"]}
    assert min(moved) >= 20
