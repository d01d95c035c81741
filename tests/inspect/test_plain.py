"""Numbers and tokens as JSON values."""

import numpy as np

from jaxgpt.inspect.plain import Names, plain, rounded


def test_numbers_are_rounded_to_significant_digits_and_nothing_is_nan():
    assert [rounded(x) for x in (1.2345678, -123456.7, 1e-9, 0.0, 3.0)] == [1.2346, -123460, 1e-9, 0, 3]
    assert rounded(float("nan")) is None and rounded(float("inf")) is None
    got = plain({"a": np.array([[1.00001, np.nan]]), "b": [np.int32(3), True, None, "x", np.float32(0.1)]})
    assert got == {"a": [[1, None]], "b": [3, True, None, "x", 0.1]}


def test_bytes_that_are_no_text_are_given_as_bytes():
    class Bytes:
        def decode_bytes(self, ids):
            return [b"\xe2", b"\\xe2", b"e"][ids[0]]

    names = Names(Bytes(), np.array([5, 6, 7]))
    assert names.ids(np.array([[0, 1], [2, 0]])) == [[0, 1], [2, 0]]
    assert names.vocabulary() == {
        "0": {"text": "\\xe2", "count": 5, "hex": "e2"},
        "1": {"text": "\\xe2", "count": 6},
        "2": {"text": "e", "count": 7},
    }
