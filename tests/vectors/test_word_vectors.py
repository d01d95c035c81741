"""Vectors with their words, by every kind of vocabulary, and rows of a new model made of them."""

import importlib.util
import json
import struct

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs
from jaxgpt.runs import tensor_files
from jaxgpt.vectors import word_vectors
from tests.errors import one_line
from tests.vectors.small_vectors import TABLE, WORDS, as_npy, as_text, assert_same, written


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_with_a_list_of_words(tmp_path, dtype, order):
    table = TABLE.astype(np.float16)
    path = as_npy(tmp_path / "t.npy", np.asarray(table.astype(dtype), order=order))
    words = written(tmp_path / "w.txt", "\n".join(WORDS).encode())
    assert_same(word_vectors.load(path, words), table=table.astype(np.float32))


def test_safetensors_with_each_kind_of_vocabulary(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_files.write_tensors(path, {"wte": TABLE, "wpe": TABLE[:3], "bias": TABLE[0]})
    ids = {word: i for i, word in enumerate(WORDS)}
    files = {
        "vocab.txt": "\n".join(WORDS) + "\n",
        "vocab.json": json.dumps(dict(reversed(ids.items()))),
        "tokenizer.json": json.dumps({"model": {"vocab": dict(list(ids.items())[:-1])},
                                      "added_tokens": [{"id": len(WORDS) - 1, "content": WORDS[-1]}]}),
        "unigram.json": json.dumps({"model": {"vocab": [[word, -1.5] for word in WORDS]}}),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
        assert_same(word_vectors.load(path, tmp_path / name))
        assert_same(word_vectors.load(path, tmp_path / name, "wte"))
    assert_same(word_vectors.load(path))  # vocab.txt is next to it


def test_gpt2s_byte_alphabet_becomes_text(tmp_path):
    tokens = [*byte_pairs.BYTE_ALPHABET, "Ġking", "Ã¯"]
    written(tmp_path / "vocab.json", json.dumps({token: i for i, token in enumerate(tokens)}).encode())
    words = word_vectors.read_vocabulary(tmp_path / "vocab.json")
    assert words[-2:] == [" king", "ï"]
    assert words[0xE2] == "\\xe2" and words[0x20] == " "


def test_packages_are_found_and_missing_ones_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    for name, package in word_vectors.PACKAGES.items():
        with pytest.raises(UserError, match="pip install") as error:
            word_vectors.load(name)
        assert package.module in str(error.value)


def npy_that_lies() -> bytes:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 300), }".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 100


def test_bad_arrays_get_one_clear_line(tmp_path):
    words = written(tmp_path / "w.txt", b"a\nb\n")
    fine = as_npy(tmp_path / "fine.npy", np.ones((2, 3)))
    cases = [
        (as_npy(tmp_path / "o.npy", np.array([[{}], [{}]]), allow_pickle=True), words, "Python objects"),
        (written(tmp_path / "lie.npy", npy_that_lies()), words, "is not a complete .npy file"),
        (written(tmp_path / "cut.npy", fine.read_bytes()[:-1]), words, "is not a complete .npy file"),
        (written(tmp_path / "more.npy", fine.read_bytes() + b"more"), words, "are declared"),
        (as_npy(tmp_path / "0.npy", np.ones((0, 3))), words, "has the shape [0, 3]"),
        (written(tmp_path / "no.npy", b"hello"), words, "is not a complete .npy file"),
        (as_npy(tmp_path / "i.npy", np.ones((2, 3), int)), words, "has the type int64"),
        (as_npy(tmp_path / "1.npy", np.ones(3)), words, "has the shape [3]"),
        (as_npy(tmp_path / "nan.npy", np.array([[1.0], [np.inf]])), words, "row 2 has a number that is not finite"),
        (fine, written(tmp_path / "3.txt", b"a\nb\nc\n"), "has 2 rows"),
        (fine, written(tmp_path / "twice.txt", b"a\na\n"), "the word 'a' twice"),
        (fine, written(tmp_path / "latin.txt", b"a\n\xe9\n"), "is not UTF-8 at byte 2"),
        (fine, written(tmp_path / "gap.json", b'{"a": 0, "b": 2}'), "not 0, 1, 2, ..."),
        (fine, written(tmp_path / "bad.json", b'{"a": 0'), "is not JSON"),
        (fine, written(tmp_path / "list.json", b'{"a": "b"}'), "is not a vocabulary"),
        (fine, written(tmp_path / "empty.txt", b""), "has no words"),
        (fine, tmp_path / "none.txt", "can't read"),
        (fine, None, "has no words: give"),
        (tmp_path / "none", None, "there are no vectors"),
        (written(tmp_path / "v", as_text()), words, "has words of its own"),
    ]  # fmt: skip
    for path, vocabulary, expected in cases:
        with pytest.raises(UserError) as error:
            word_vectors.load(path, vocabulary)
        assert expected in one_line(error), path


def test_bad_safetensors_get_one_clear_line(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_files.write_tensors(path, {"one": TABLE[:2], "two": TABLE[:2], "flat": TABLE[0]})
    words = written(tmp_path / "w.txt", b"a\nb\n")
    for tensor, vocabulary, expected in [
        (
            None,
            words,
            "has 2 tensors with a row for each of the 2 words: give the name of one as tensor; it has one [2, 5], two",
        ),
        ("three", words, "no tensor three"),
        ("flat", words, "give a tensor with two axes"),
        ("one", None, "has no words: give"),
        ("one", written(tmp_path / "3.txt", b"a\nb\nc\n"), "has 2 rows"),
    ]:
        with pytest.raises(UserError) as error:
            word_vectors.load(path, vocabulary, tensor)
        assert expected in one_line(error)
    with pytest.raises(UserError, match="leave it out"):
        word_vectors.load(written(tmp_path / "v", as_text()), tensor="one")


def test_spellings_find_the_word_behind_a_token():
    words = ["king", " the", "Ġduke", "▁fool", "york", "##ing"]
    found = word_vectors.Vectors(words, np.eye(6, dtype=np.float32))
    for token, word in {
        "king": "king", " king": "king", "▁King": "king", "KING": "king", "the": " the", "Duke": "Ġduke",
        "Ġfool": "▁fool", " York": "york", "##ing": "##ing", "ing": None, " ": None, "\n": None, "": None,
    }.items():  # fmt: skip
        row = found.row(token)
        assert (None if row is None else words[row]) == word, token
    both = word_vectors.Vectors(["king", "King", " King"], np.eye(3, dtype=np.float32))
    assert [both.row(token) for token in ("King", " King", "KING", "Ġking")] == [1, 2, 0, 0]


def test_matched_rows_are_the_vectors_and_the_others_are_drawn_like_them():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(4, 4))
    table = (rng.normal(size=(3000, 4)) @ mixing + [3.0, 0.0, -2.0, 1.0]).astype(np.float32)
    source = word_vectors.Vectors([f"w{i}" for i in range(3000)], table)
    tokens = [f"w{i}" for i in range(2000, 2500)] + [f"new{i}" for i in range(20_000)]
    rows, matched = word_vectors.rows_for(source, tokens, 4, seed=0, std=None)
    assert rows.dtype == np.float32 and rows.shape == (20_500, 4) and matched.sum() == 500
    np.testing.assert_array_equal(rows[matched], table[2000:2500])
    given, drawn = rows[matched], rows[~matched]
    np.testing.assert_allclose(drawn.mean(axis=0), given.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(given.T), rtol=0.1, atol=0.1)
    again, _ = word_vectors.rows_for(source, tokens, 4, seed=0, std=None)
    np.testing.assert_array_equal(again, rows)
    other, _ = word_vectors.rows_for(source, tokens, 4, seed=1, std=None)
    assert (other[matched] == rows[matched]).all() and not (other[~matched] == rows[~matched]).any()


def test_rescaling_is_one_factor():
    source = word_vectors.Vectors(WORDS, TABLE)
    rows, matched = word_vectors.rows_for(source, [*WORDS, "other"], 5, seed=0, std=0.02)
    assert rows[matched].std() == pytest.approx(0.02, rel=1e-5)
    unit, _ = word_vectors.rows_for(source, [*WORDS, "other"], 5, seed=0)
    assert unit[matched].std() == pytest.approx(1 / np.sqrt(5), rel=1e-5)
    ratio = rows[matched] / TABLE
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_pca_bridge_keeps_distances_where_the_vectors_lie_in_fewer_dimensions():
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8)) + 5.0
    source = word_vectors.Vectors([f"w{i}" for i in range(50)], plane.astype(np.float32))
    rows, _ = word_vectors.rows_for(source, source.words, 3, seed=0, bridge="pca", std=None)
    assert rows.shape == (50, 3)

    def distances(table):
        return np.linalg.norm(table[:, None] - table[None], axis=-1)

    np.testing.assert_allclose(distances(rows), distances(plane), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "bridge", "tokens", "words"),
    [
        (4, "none", WORDS, ("bridge='pca'", "model.embedding_dim=5")),
        (6, "pca", WORDS, ("fewer than the table's 6", "model.embedding_dim=5")),
        (5, "none", ["x", "y", "the"], ("1 of the 3 tokens", "2 or more")),
        (5, "linear", WORDS, ("choose one of none, pca",)),
    ],
)
def test_rows_that_cannot_be_had_are_refused(width, bridge, tokens, words):
    with pytest.raises(UserError) as error:
        word_vectors.rows_for(word_vectors.Vectors(WORDS, TABLE), tokens, width, 0, bridge)
    assert all(word in one_line(error) for word in words)
