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
            st.lists(st.floats(-(2.0**33), 2.0**33, width=32), min_size=D, max_size=D), min_size=1, max_size=6,
        ).map(lambda rows: [*rows, [1.0] * D])
    ),
    binary=st.booleans(),
)  # fmt: skip
def test_any_float32_of_a_sensible_scale_comes_back_as_it_was(tmp_path_factory, table, binary):
    table = np.array(table, np.float32)
    words = [f"w{i}" for i in range(len(table))]
    content = as_binary(words, table) if binary else as_text(words, table, header=True)
    path = written(tmp_path_factory.mktemp("v") / "v", content)
    assert_same(word_vectors.load(path), words, table)


def test_a_binary_row_may_start_with_any_byte(tmp_path):
    """Also with a line end (0x0a), or with bytes that look like text; the first word may be a number."""
    for first in range(256):
        numbers = np.frombuffer(bytes([first, first, first, 0x3F] * 2), "<f4")
        table = np.stack([numbers, np.ones(2, np.float32)])
        for words in (["w0", "w1"], ["5", "6"]):
            for end in (b"\n", b""):
                path = written(tmp_path / "v", as_binary(words, table, end))
                assert_same(word_vectors.load(path), words, table)


FOUR = ["0.1 0.2 0.3", "0.5 0.1 0.2", "0.5 0.12 0.25", "-0.1 0.4 0.2"]
FOUR_TABLE = np.array([row.split() for row in FOUR], np.float32)


@pytest.mark.parametrize("chunk", [64, 1 << 22])
def test_any_place_of_an_odd_word_gives_the_same_words_and_numbers(tmp_path, monkeypatch, chunk):
    """The word is what stands before the D numbers, in the first row as in others, with and without a header."""
    monkeypatch.setattr(vector_files, "_CHUNK", chunk)
    for odd in (". . .", "new york", "iphone 6", "area 51 2", "5", "\x85", "a\u00a0b", " ", " the", "#"):
        for place in range(4):
            words = ["king", "queen", "man"]
            words.insert(place, odd)
            rows = [f"{word} {row}" for word, row in zip(words, FOUR, strict=True)]
            for start in ([], ["4 3"]):
                for mark, end, last in (("", "\n", ""), ("\ufeff", " \r\n", "\r\n"), ("", "\r\n", "\n\n \n")):
                    content = mark + "".join(line + end for line in start + rows) + last
                    found = word_vectors.load(written(tmp_path / "v", content.encode()))
                    assert_same(found, words, FOUR_TABLE)
                    assert found.description == ("4 x 3, header, text" if start else "4 x 3, text")


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
    "two spaces": (b"\n".join([LINES[0], b"x 1 2  4 5"]), "line 2 has two spaces in a row"),
    "two spaces everywhere": (as_text().replace(b" ", b"  "), "line 1 has two spaces in a row"),
    "two spaces after a word": (b"the 1.5 2\nking  1.5 2\n", "line 2 has two spaces in a row"),
    "two spaces, header": (b"2 2\nthe 1.5  2\nking 1.5 2\n", "line 2 has two spaces in a row"),
    "a tab that would make up for them": (b"3 3\nthe 1\t2 3 4\nking 1  3\nman 1 2 3\n", "line 2 has tabs"),
    "tabs": (as_text().replace(b" ", b"\t"), "line 1 has tabs between its numbers"),
    "tabs, header": (b"1 2\nthe\t1.5\t2\n", "line 2 has tabs between its numbers"),
    "tab after the word": (b"the\t1.5 2\nking\t1 2.5\n", "line 1 has tabs"),
    "commas": (as_text().replace(b" ", b","), "line 1 has commas between its numbers"),
    "commas, header": (b"2 2\nthe,1.5,2\nking,1.5,2\n", "line 2 has commas between its numbers"),
    "decimal commas": (as_text().replace(b".", b","), "line 1 has numbers with a decimal comma"),
    "decimal commas, header": (as_text(header=True).replace(b".", b","), "line 2 has numbers with a decimal comma"),
    "words only": (b"king\nqueen\n", "line 1 has no numbers after its word"),
    "joined rows": (b"the 1.5 2\nking 1.5 2queen 1.5 2\nman 1.5 2\n", "line 2 has"),
    "one number too many": (b"the 1 2\nking 1 2 3\nman 1 2\n", "line 2 has 3 numbers, not 2"),
    "one number too many, header": (b"3 2\nthe 1.5 2\nking 1.5 2 3\nman 1.5 2\n", "line 3 has 3 numbers, not 2"),
    "huge": (as_text(table=TABLE * [1, 1, 1, 1, 1e12]), "line 1 has the number"),
    "huge, binary": (as_binary(table=TABLE * [1, 1, 1, 1, 1e12]), "word 1 has the number"),
    "tiny": (as_text(table=TABLE * 1e-20), "no number is above"),
    "a word with a space, binary": (as_binary(["new york", *WORDS[1:]], end=b""), "v"),
    "only a header": (b"8 5\n", "declares 8 words x 5 numbers"),
    "blank lines": (b"\n\n\n", "has only blank lines"),
    "old Macs": (as_text(end="\r"), "line ends of old Macs"),
    "UTF-16": (as_text().decode().encode("utf-16"), "is UTF-16"),
    "UTF-16 without a mark": (b"the 1 2\nking 1 2\n".decode().encode("utf-16-le"), "is UTF-16 without a mark"),
    "fastText": (b"\xba\x16\x4f\x2f\x0c\0\0\0" + b"\0" * 50, "is fastText's .bin"),
    "NumPy": (b"\x93NUMPY\x01\0" + b"\0" * 50, "is a NumPy array: name it .npy"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0{\"a\":" + b" " * 60, "is a .safetensors file"),
    "Parquet": (b"PAR1" + b"\0" * 50, "is a Parquet file"),
    "pickle in .gz": (gzip.compress(b"\x80\x04" + b"\0" * 50), "is a pickle"),
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
    "zip": (b"PK\x03\x04" + b"\0" * 100, "is a zip file"),
    "pickle": (b"\x80\x04" + b"\0" * 100, "is a pickle"),
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
