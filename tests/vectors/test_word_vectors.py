"""Vectors from elsewhere: what a file holds is what is loaded; every bad file gets one clear line."""

import gzip
import importlib.util
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs
from jaxgpt.runs import tensor_files
from jaxgpt.vectors import vector_files, word_vectors

WORDS = ["the", "king", "queen", "naïve", "東京", "don't", "\x85", "a\u2028b"]
TABLE = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)


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


# --- what is in a file is what is loaded ----------------------------------------------------------------


@pytest.mark.parametrize("pack", [lambda x: x, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(
    "content",
    [
        as_text(), as_text(header=True), as_text(end="\r\n"), as_text(end=" \n", header=True), as_text()[:-1],
        as_binary(), as_binary(end=b""),
    ],
    ids=["glove", "word2vec", "windows", "space at the end", "no last line end", "binary", "binary without line ends"],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [256, 1 << 22])
def test_text_and_binary_are_read_exactly(tmp_path, monkeypatch, content, pack, chunk):
    monkeypatch.setattr(vector_files, "_CHUNK", chunk)
    assert_same(word_vectors.load(written(tmp_path / "v", pack(content))))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    table=st.integers(1, 4).flatmap(
        lambda D: st.lists(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=D, max_size=D),
            min_size=1, max_size=6,
        )
    ),
    binary=st.booleans(),
)  # fmt: skip
def test_any_float32_comes_back_as_it_was(tmp_path_factory, table, binary):
    table = np.array(table, np.float32)
    words = [f"w{i}" for i in range(len(table))]
    content = as_binary(words, table) if binary else as_text(words, table, header=True)
    path = written(tmp_path_factory.mktemp("v") / "v", content)
    assert_same(word_vectors.load(path), words, table)


def test_words_with_spaces_are_words(tmp_path):
    """The large GloVe files have a few: the last D fields are the numbers."""
    words = ["the", ". . .", "at name@domain.com"]
    assert_same(word_vectors.load(written(tmp_path / "v", as_text(words, TABLE[:3]))), words, TABLE[:3])


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
    assert_same(word_vectors.load(path))  # vocab.txt lies beside it


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


# --- what is wrong with a file is one line --------------------------------------------------------------

LINES = as_text().split(b"\n")
ZEROS = gzip.compress((b"the" + b" 0.0" * 5 + b"\n") * 100_000)
BAD = {
    "empty": (b"", "is empty"),
    "short line": (b"\n".join([*LINES[:3], b"king 0.5", *LINES[4:]]), "line 4 has 1 numbers where 5 belong"),
    "long line": (b"\n".join([*LINES[:2], LINES[2] + b" 0.5"]), "line 3 has 6 numbers where 5 belong"),
    "empty line": (b"\n".join([LINES[0], b"", *LINES[1:]]), "line 2 has 0 numbers"),
    "cut in a line": (as_text()[:-30], f"line {len(WORDS)} has"),
    "not a number": (b"\n".join([LINES[0], b"x 1 2 three 4 5"]), "line 2 has 'three' where a number belongs"),
    "two spaces": (b"\n".join([LINES[0], b"x 1 2  4 5"]), "line 2 has '' where a number belongs"),
    "nan": (b"\n".join([LINES[0], b"x 1 2 nan 4 5"]), "line 2 has a number that is not finite"),
    "beyond float32": (b"\n".join([LINES[0], b"x 1 2 1e39 4 5"]), "line 2 has a number that is not finite"),
    "not UTF-8": (as_text().replace("naïve".encode(), "naïve".encode("latin-1")), "line 4 (b'na\\xefve') is not UTF-8"),
    "no word": (b"\n".join([LINES[0], b" 1 2 3 4 5"]), "line 2 has no word"),
    "twice": (as_text() + LINES[1], "the word 'king' twice, as word 2 and as word 9"),
    "fewer than declared": (as_text(header=True)[: -len(LINES[-2]) - 1], "holds 7 words, its header declares 8"),
    "another width declared": (as_text(header=True).replace(b"8 5", b"8 4", 1), "line 2 has 5 numbers where 4 belong"),
    "lying header": (b"1000000000000 300\n" + as_text(), "declares 1,000,000,000,000 words x 300 numbers"),
    "lying header, gz": (gzip.compress(b"1000000000000 300\n" + as_text()), "declares 1,000,000,000,000 words"),
    "lying header, binary": (as_binary().replace(b"8 5", b"999999999 5", 1), "declares 999,999,999 words"),
    "header of nothing": (b"0 0\n", "declares 0 words"),
    "one line": (b"a " + b"1" * (1 << 21), "line 1 is longer than 1,048,576 bytes"),
    "binary cut": (as_binary()[:-10], "ends or breaks off in word 8 of 8"),
    "binary with more": (as_binary() + b"more", "goes on after the 8 words"),
    "binary, less declared": (as_binary().replace(b"8 5", b"7 5", 1), "goes on after the 7 words"),
    "binary, not UTF-8": (as_binary().replace("naïve".encode(), b"na\xef\xefve"), "word 4 (b'na\\xef\\xefve')"),
    "binary, nan": (as_binary(table=TABLE * [1, 1, 1, 1, np.nan]), "word 1 has a number that is not finite"),
    "gz cut": (gzip.compress(as_text())[:-30], "is no whole .gz"),
    "gz damaged": (gzip.compress(as_text())[:60] + b"\0" * 60, "is no whole .gz"),
    "gz bomb": (ZEROS, "unpacks to more than 262,144 bytes"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "is a zip or pickle file: unpack it"),
    "pickle": (b"\x80\x04" + b"\0" * 100, "is a zip or pickle file"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_bomb(monkeypatch):
    """What a .gz may grow to in any case is small here, so that the bomb can be."""
    monkeypatch.setattr(vector_files, "_FREE", 1 << 18)
    monkeypatch.setattr(vector_files, "_CHUNK", 1 << 16)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_line(tmp_path, name):
    content, words = BAD[name]
    path = written(tmp_path / "v", content)
    with pytest.raises(UserError) as error:
        word_vectors.load(path)
    assert words in one_line(error) and str(path) in one_line(error)


@pytest.mark.parametrize("name", ["lying header", "lying header, binary", "lying header, gz", "gz bomb"])
def test_nothing_is_allocated_for_a_file_that_lies(tmp_path, name):
    path = written(tmp_path / "v", BAD[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            word_vectors.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def npy_that_lies() -> bytes:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 300), }".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 100


def test_bad_arrays_get_one_clear_line(tmp_path):
    words = written(tmp_path / "w.txt", b"a\nb\n")
    fine = as_npy(tmp_path / "fine.npy", np.ones((2, 3)))
    cases = [
        (as_npy(tmp_path / "o.npy", np.array([[{}], [{}]]), allow_pickle=True), words, "pickled, which are never read"),
        (written(tmp_path / "lie.npy", npy_that_lies()), words, "declares 1,000,000,000,000 x 300 float32"),
        (written(tmp_path / "cut.npy", fine.read_bytes()[:-1]), words, "declares 2 x 3 float64"),
        (written(tmp_path / "no.npy", b"hello"), words, "is no .npy file"),
        (as_npy(tmp_path / "i.npy", np.ones((2, 3), int)), words, "holds int64"),
        (as_npy(tmp_path / "1.npy", np.ones(3)), words, "has the shape [3]"),
        (as_npy(tmp_path / "nan.npy", np.array([[1.0], [np.inf]])), words, "row 2 has a number that is not finite"),
        (fine, written(tmp_path / "3.txt", b"a\nb\nc\n"), "has 2 rows"),
        (fine, written(tmp_path / "twice.txt", b"a\na\n"), "the word 'a' twice"),
        (fine, written(tmp_path / "latin.txt", b"a\n\xe9\n"), "is not UTF-8 at byte 2"),
        (fine, written(tmp_path / "gap.json", b'{"a": 0, "b": 2}'), "not 0, 1, 2, ..."),
        (fine, written(tmp_path / "bad.json", b'{"a": 0'), "is no JSON"),
        (fine, written(tmp_path / "list.json", b'{"a": "b"}'), "is not a vocabulary"),
        (fine, written(tmp_path / "empty.txt", b""), "holds no words"),
        (fine, tmp_path / "none.txt", "can't read"),
        (fine, None, "has no words in it"),
        (tmp_path / "none", None, "no vectors"),
        (written(tmp_path / "v", as_text()), words, "brings its own words"),
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
            "has 2 tensors with a row for each of the 2 words: name the tensor; it has one [2, 5], two",
        ),
        ("three", words, "no tensor three"),
        ("flat", words, "name one with two axes"),
        ("one", None, "has no words in it"),
        ("one", written(tmp_path / "3.txt", b"a\nb\nc\n"), "has 2 rows"),
    ]:
        with pytest.raises(UserError) as error:
            word_vectors.load(path, vocabulary, tensor)
        assert expected in one_line(error)
    with pytest.raises(UserError, match="leave it out"):
        word_vectors.load(written(tmp_path / "v", as_text()), tensor="one")


# --- rows for a new model -------------------------------------------------------------------------------


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
        (6, "pca", WORDS, ("fewer than the width 6", "model.embedding_dim=5")),
        (5, "none", ["x", "y", "the"], ("1 of the 3 tokens", "2 or more")),
        (5, "linear", WORDS, ("choose one of none, pca",)),
    ],
)
def test_rows_that_cannot_be_had_are_refused(width, bridge, tokens, words):
    with pytest.raises(UserError) as error:
        word_vectors.rows_for(word_vectors.Vectors(WORDS, TABLE), tokens, width, 0, bridge)
    assert all(word in one_line(error) for word in words)
