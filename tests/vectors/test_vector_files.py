"""Files of word vectors: what is in a file is what is read; every bad file gets one clear line."""

import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import UserError
from jaxgpt.vectors import vector_files, word_vectors
from tests.errors import one_line
from tests.vectors.small_vectors import TABLE, WORDS, as_binary, as_text, assert_same, written


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


LINES = as_text().split(b"\n")


ZEROS = gzip.compress((b"the" + b" 0.0" * 5 + b"\n") * 100_000)


BAD = {
    "empty": (b"", "is empty"),
    "short line": (b"\n".join([*LINES[:3], b"king 0.5", *LINES[4:]]), "line 4 has 1 numbers, not 5"),
    "long line": (b"\n".join([*LINES[:2], LINES[2] + b" 0.5"]), "line 3 has 6 numbers, not 5"),
    "empty line": (b"\n".join([LINES[0], b"", *LINES[1:]]), "line 2 has 0 numbers"),
    "cut in a line": (as_text()[:-30], f"line {len(WORDS)} has"),
    "not a number": (b"\n".join([LINES[0], b"x 1 2 three 4 5"]), "line 2 has 'three' in place of a number"),
    "two spaces": (b"\n".join([LINES[0], b"x 1 2  4 5"]), "line 2 has '' in place of a number"),
    "nan": (b"\n".join([LINES[0], b"x 1 2 nan 4 5"]), "line 2 has a number that is not finite"),
    "beyond float32": (b"\n".join([LINES[0], b"x 1 2 1e39 4 5"]), "line 2 has a number that is not finite"),
    "not UTF-8": (as_text().replace("naïve".encode(), "naïve".encode("latin-1")), "line 4 (b'na\\xefve') is not UTF-8"),
    "no word": (b"\n".join([LINES[0], b" 1 2 3 4 5"]), "line 2 has no word"),
    "twice": (as_text() + LINES[1], "the word 'king' twice, as word 2 and as word 9"),
    "fewer than declared": (as_text(header=True)[: -len(LINES[-2]) - 1], "has 7 words, but its header declares 8"),
    "another width declared": (as_text(header=True).replace(b"8 5", b"8 4", 1), "line 2 has 5 numbers, not 4"),
    "lying header": (b"1000000000000 300\n" + as_text(), "declares 1,000,000,000,000 words x 300 numbers"),
    "lying header, gz": (gzip.compress(b"1000000000000 300\n" + as_text()), "declares 1,000,000,000,000 words"),
    "lying header, binary": (as_binary().replace(b"8 5", b"999999999 5", 1), "declares 999,999,999 words"),
    "header of nothing": (b"0 0\n", "declares 0 words"),
    "one line": (b"a " + b"1" * (1 << 21), "line 1 is longer than 1,048,576 bytes"),
    "binary cut": (as_binary()[:-10], "ends in word 8 of 8"),
    "binary with more": (as_binary() + b"more", "is longer than the 8 words"),
    "binary, less declared": (as_binary().replace(b"8 5", b"7 5", 1), "is longer than the 7 words"),
    "binary, not UTF-8": (as_binary().replace("naïve".encode(), b"na\xef\xefve"), "word 4 (b'na\\xef\\xefve')"),
    "binary, nan": (as_binary(table=TABLE * [1, 1, 1, 1, np.nan]), "word 1 has a number that is not finite"),
    "gz cut": (gzip.compress(as_text())[:-30], "is not a complete .gz file"),
    "gz damaged": (gzip.compress(as_text())[:60] + b"\0" * 60, "is not a complete .gz file"),
    "gz bomb": (ZEROS, "unpacks to more than 262,144 bytes"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "is a zip or pickle file: unpack it"),
    "pickle": (b"\x80\x04" + b"\0" * 100, "is a zip or pickle file"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_bomb(monkeypatch):
    """The size that every .gz may unpack to is lowered, so that a small file is a bomb."""
    monkeypatch.setattr(vector_files, "_FREE", 1 << 18)
    monkeypatch.setattr(vector_files, "_CHUNK", 1 << 16)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_line(tmp_path, name):
    content, words = BAD[name]
    path = written(tmp_path / "v", content)
    with pytest.raises(UserError) as error:
        word_vectors.load(path)
    assert words in one_line(error) and str(path) in one_line(error)


@pytest.mark.parametrize("name", ["lying header", "lying header, binary", "lying header, gz", "gz bomb"])
def test_nothing_is_allocated_for_a_file_with_a_wrong_header(tmp_path, name):
    path = written(tmp_path / "v", BAD[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            word_vectors.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
