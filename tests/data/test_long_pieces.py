"""Byte pairs of text with long pieces are those of the package tokenizers, and are learned in another way."""

import random
import threading

import pytest

from jaxgpt.common import progress
from jaxgpt.data import byte_pairs, long_pieces

ALPHABETS = ("a", "ab", "abc", "aab é", "abcdefgh", "ab ", "the quick é\n", "日本語ab")


def by_package(text, vocab_size):
    return byte_pairs._train_with_package(byte_pairs._segments(text), vocab_size)


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_those_of_the_package(monkeypatch, seed):
    monkeypatch.setattr(byte_pairs, "_SEGMENT_LENGTH", 20)
    monkeypatch.setattr(long_pieces, "is_faster", lambda *_: True)
    draw = random.Random(seed)
    for _ in range(40):
        text = "".join(draw.choices(draw.choice(ALPHABETS), k=draw.choice([60, 100, 400, 2000])))
        text = " ".join([text[:30]] * draw.choice([0, 5])) + text + "x" * 50  # the end is a long piece
        vocab_size = draw.choice([256, 258, 262, 280, 300, 400])
        assert byte_pairs.train(lambda text=text: [text], vocab_size) == by_package(text, vocab_size)


def test_a_long_line_is_not_left_to_the_package(monkeypatch):
    found = []
    monkeypatch.setattr(long_pieces, "train", lambda counts, *_: found.append(dict(counts)) or ([], []))
    draw = random.Random(0)
    line = "".join(draw.choices("abcdefghij", k=300_000))
    texts = ["some words ", line, line]  # a piece that comes again takes no more time
    byte_pairs.train(lambda: texts, 300)
    assert found == [{"some": 1, "Ġwords": 1, "Ġ": 1, line: 2}]
    byte_pairs.train(lambda: [line[:50_000]] * 9, 257)
    assert len(found) == 1  # not long enough to matter


def test_a_block_that_takes_time_says_so(capsys):
    went_on = threading.Event()

    def state():
        went_on.set()
        return "5 characters read"

    with progress.reported("training", state, first=0.01):
        assert went_on.wait(10)
    assert capsys.readouterr().err.startswith("training: 5 characters read after 0:00\n")
    with progress.reported("training", state):
        pass
    assert capsys.readouterr().err == ""
