"""Tokenizers: nothing is lost on the way to ids and back, however text is cut; mistakes are one line."""

import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.common import files
from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs, tokenizers
from tests.errors import one_line

TEXT = (
    "KING HENRY:\nOnce more unto the breach, dear friends, once more;\nOr close the wall up with our English"
    " dead.\n\n'Tis the king's o'erthrow -- 1415, \u00e9t\u00e9; na\u00efve"
    " \u6f22\u5b57 \U0001f642!\n\tThe   end_\r\n"
) * 3
# Errors are likely near white space of all kinds, apostrophes, marks, and characters of several bytes.
ODD = " \n\t\r\x0b\x1c\x1f\x85\xa0\u180e\u200b\u2028\u3000'\u2019s1_a\u0301\u00e9\u6f22\U0001f642.<unk>|"
texts = st.one_of(
    st.text(st.sampled_from(ODD), max_size=60),
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.lists(st.sampled_from(["the", "king's", " ", "\n", "  ", "'s", "\n\n", "1415"]), max_size=30).map(
        "".join
    ),
)
properties = settings(derandomize=True, deadline=None, max_examples=300)


def read(text: str = TEXT, size: int = 7):
    return lambda: iter([text[i : i + size] for i in range(0, len(text), size)])


def char_of(text: str) -> tokenizers.Tokenizer:
    return tokenizers.train("char", read(text or "a"), None)


WORD = tokenizers.train("word", read(), None)
BPE = tokenizers.train("bpe", read(), 300)
CHAR = tokenizers.train("char", read(), None)
trained = pytest.mark.parametrize("tokenizer", [CHAR, WORD, BPE], ids=["char", "word", "bpe"])


# Round trips


@properties
@given(text=texts)
def test_round_trip(text):
    for tokenizer in (char_of(text), BPE, tokenizers.train("word", read(text or "a"), None)):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids.tolist()) == text.encode()


@properties
@given(text=texts)
def test_lengths_of_tokens_add_up(text):
    for tokenizer in (char_of(text), BPE, tokenizers.train("word", read(text or "a"), None)):
        num_bytes, num_chars = tokenizer.token_lengths()
        assert num_bytes.shape == num_chars.shape == (tokenizer.vocab_size,)
        ids = tokenizer.encode(text)
        assert num_bytes[ids].sum() == len(text.encode())
        assert num_chars[ids].sum() == len(text)


@properties
@given(text=texts, cuts=st.lists(st.integers(0, 60), max_size=20))
def test_pieces_give_the_ids_of_the_complete_text(text, cuts):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    for tokenizer in (char_of(text), WORD, BPE):
        for given_pieces in (pieces, list(text), ["", *pieces, ""]):
            ids = list(tokenizers.encode_pieces(tokenizer, iter(given_pieces)))
            np.testing.assert_array_equal(np.concatenate([np.zeros(0, int), *ids]), tokenizer.encode(text))


@trained
@pytest.mark.parametrize("size, most", [(1, 5), (5, 2), (100, 1)])
def test_pieces_are_encoded_as_they_come(tokenizer, size, most):
    """Bounded memory: no more is held back than the last word."""
    taken = []

    def pieces():
        for piece in read("once more " * 100, size)():
            taken.append(piece)
            yield piece

    next(tokenizers.encode_pieces(tokenizer, pieces()))
    assert len(taken) <= most


@properties
@given(text=texts)
def test_long_text_is_encoded_in_segments_without_a_trace(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_pairs, "_SEGMENT_LENGTH", 1)
        in_segments = BPE.encode(text)
    np.testing.assert_array_equal(in_segments, BPE.encode(text))


# Ids and display


@trained
def test_ids_of_any_integer_kind_are_decoded(tokenizer):
    ids = tokenizer.encode("dead.\n")
    for given_ids in (ids, ids.tolist(), tuple(ids), ids.astype(np.uint16), ids.astype(np.int64)):
        assert tokenizer.decode(given_ids) == "dead.\n"
    assert tokenizer.decode([]) == "" and tokenizer.decode(np.zeros(0, np.int32)) == ""
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int32


@trained
@pytest.mark.parametrize("ids", [[-1], [0, 10**6], [1.5], ["a"], [True]])
def test_ids_that_are_none_are_refused(tokenizer, ids):
    with pytest.raises(UserError, match="token id") as error:
        tokenizer.decode(ids)
    one_line(error)


@trained
def test_token_is_one_token_for_display(tokenizer):
    assert "".join(tokenizer.token(int(i)) for i in tokenizer.encode("the king's")) == "the king's"
    assert tokenizer.eos_id is None


def test_parts_of_a_character_are_bytes_then_text():
    ids = tokenizers.train("bpe", read(), 256).encode("\u6f22")
    assert len(ids) == 3
    assert BPE.decode(ids) == "\u6f22"
    assert BPE.decode(ids[:2]) == "\ufffd"
    assert BPE.decode_bytes(ids[:1]) + BPE.decode_bytes(ids[1:]) == "\u6f22".encode()
    assert BPE.token(ids[0]) == "\\xe6"


@trained
def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"U\+DC80 at position 4 is a lone surrogate") as error:
        tokenizer.encode("dead\udc80")
    one_line(error)
    with pytest.raises(UserError, match=r"U\+D800 at position 9"):
        list(tokenizers.encode_pieces(tokenizer, iter(["dead ", "dead\ud800"])))
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizers.train(tokenizer.kind, read("dead\udc80"), 256)


# Characters


def test_char_ids_follow_code_points():
    tokenizer = tokenizers.train("char", read("b\U0001f642a\n\u00e9a"), None)
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("\nab\u00e9\U0001f642").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("unknown", ["~", "\x00", "b", "\u00ea", "\U0001f643", "\U0010ffff"])
def test_unknown_character_is_named_with_its_place(unknown):
    tokenizer = tokenizers.train("char", read("ac\u00e9\U0001f642"), None)
    with pytest.raises(UserError) as error:
        tokenizer.encode("aca" + unknown + "a" + unknown)
    assert f"{unknown!r} (U+{ord(unknown):04X}) at position 3 is not one of the tokenizer's 4" in one_line(
        error
    )
    with pytest.raises(UserError, match="at position 103"):
        list(tokenizers.encode_pieces(tokenizer, iter(["a" * 100, "aca" + unknown])))


def test_char_vocabulary_that_is_too_small_is_refused():
    assert tokenizers.train("char", read("abc"), 3).vocab_size == 3
    with pytest.raises(UserError, match=r"4 distinct characters, more than data\.vocab_size=3") as error:
        tokenizers.train("char", read("abcd"), 3)
    one_line(error)


# Words


def test_words_are_bare():
    tokens = [WORD.token(i) for i in WORD.encode("'Tis the king's o'erthrow, 1415!\n\nHENRY")]
    assert tokens == [
        "'",
        "Tis",
        " ",
        "the",
        " ",
        "king's",
        " ",
        "o'erthrow",
        ",",
        " ",
        "1415",
        "!",
        "\n\n",
        "HENRY",
    ]


def test_word_ids_go_by_frequency_then_code_points():
    tokenizer = tokenizers.train("word", read("b b a c c a b"), None)
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == ["<unk>", " ", "b", "a", "c"]


def test_rare_and_unknown_words_are_unk():
    tokenizer = tokenizers.train("word", read("b b a c c a b"), 4)
    assert tokenizer.vocab_size == 4 and tokenizer.unk_id == 0
    assert tokenizer.encode("a c\td").tolist() == [3, 1, 0, 0, 0]
    assert tokenizer.decode([3, 1, 0]) == "a <unk>"
    with pytest.raises(UserError, match="vocab_size=1"):
        tokenizers.train("word", read(), 1)


def test_the_text_unk_is_no_unk():
    tokenizer = tokenizers.train("word", read("<unk> a <unk>"), None)
    ids = tokenizer.encode("<unk> a")
    assert tokenizer.unk_id not in ids and tokenizer.decode(ids) == "<unk> a"


# Byte pairs


def test_bpe_learns_the_most_frequent_pairs_first():
    tokenizer = tokenizers.train("bpe", read("aab aab aab xaab"), 259)
    assert tokenizer.merges[:2] == ["a a", "aa b"] or tokenizer.merges[:2] == ["a b", "a ab"]
    assert sorted(tokenizer.token_lengths()[0])[-1] == 4  # " aab"
    assert tokenizer.vocab_size == 259


def test_bpe_has_all_bytes_and_exactly_the_size_asked_for():
    assert BPE.vocab_size == len(BPE.vocab) == 300
    assert {BPE.decode_bytes([i]) for i in range(300)} >= {bytes([byte]) for byte in range(256)}
    for size in (None, 255, 0):
        with pytest.raises(UserError, match=f"vocab_size={size}: a bpe tokenizer needs 256"):
            tokenizers.train("bpe", read(), size)
    with pytest.raises(UserError, match=r"vocab_size=500: this text is too short for more than 257"):
        tokenizers.train("bpe", read("ab"), 500)


# Training


@pytest.mark.parametrize("kind, size", [("char", None), ("word", 30), ("bpe", 300)])
def test_training_does_not_depend_on_the_pieces(kind, size):
    prints = {tokenizers.fingerprint(tokenizers.train(kind, read(size=n), size)) for n in (1, 2, 5, 1000)}
    assert len(prints) == 1


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_training_mistakes(kind):
    with pytest.raises(UserError, match=r"empty|too short"):
        tokenizers.train(kind, lambda: iter([]), 300)

    def broken():
        yield "some text "
        raise UserError("text.txt is not UTF-8")

    with pytest.raises(UserError, match=r"^text\.txt is not UTF-8$"):
        tokenizers.train(kind, broken, 300)


@pytest.mark.parametrize("kind", ["gpt2", "wordpiece"])
def test_only_some_kinds_are_trained(kind):
    with pytest.raises(UserError, match=r"cannot be trained: choose one of \['bpe', 'char', 'word'\]"):
        tokenizers.train(kind, read(), None)


# More tokens


def test_added_tokens_come_after_the_known_ones():
    char = tokenizers.train("char", read("hello"), None)
    more = char.extended(read("a hello z"))
    assert more.characters == "ehlo" + " az"
    np.testing.assert_array_equal(more.encode("hello"), char.encode("hello"))
    assert more.decode(more.encode("a zoo")) == "a zoo"
    assert tokenizers.fingerprint(tokenizers.from_json(more.to_json())) == tokenizers.fingerprint(more)
    word = tokenizers.train("word", read("to be or not to be"), None)
    longer = word.extended(read("to see, or see to see"), word.vocab_size + 1)
    assert longer.words == [*word.words, "see"]
    with pytest.raises(UserError, match=r"data\.vocab_size=5"):
        char.extended(read("xyz"), 5)
    with pytest.raises(UserError, match="bpe tokenizer can't get more"):
        tokenizers.train("bpe", read("ab " * 9), 257).extended(read("x"))


# Files


@trained
def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.save(tokenizer, path)
    loaded = tokenizers.load(str(path))
    assert type(loaded) is type(tokenizer) is tokenizers.TOKENIZERS[tokenizer.kind]
    assert loaded.to_json() == tokenizer.to_json() == tokenizers.from_json(tokenizer.to_json()).to_json()
    assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(tokenizer)
    np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_fingerprints_tell_tokenizers_apart():
    assert len({tokenizers.fingerprint(tokenizer) for tokenizer in (CHAR, WORD, BPE, char_of("ab"))}) == 4


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    tokenizers.save(CHAR, path)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*tokenizer\.json \(No space left") as error:
        tokenizers.save(WORD, path)
    one_line(error)
    assert tokenizers.load(path).kind == "char"
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a tokenizer.json"),
        (b"\xff", "is not a tokenizer.json"),
        (b"{", "is not a tokenizer.json"),
        (b"[" * 100_000, "is not a tokenizer.json"),
        (b"[]", "not a tokenizer"),
        (b'{"kind": "sentencepiece"}', "'sentencepiece', not one of"),
        (b'{"kind": []}', "not a tokenizer"),
        (b'{"model": {}}', "not a tokenizer"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.load(path)
    assert str(path) in one_line(error)


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read .*missing\.json \(No such file"):
        tokenizers.load(tmp_path / "missing.json")
    tokenizers.save(CHAR, tmp_path / "tokenizer.json")
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    with pytest.raises(UserError, match="is larger than"):
        tokenizers.load(tmp_path / "tokenizer.json")


CHANGES = [
    ("char", {"characters": 1}, '"characters" is not a str'),
    ("char", {"characters": ""}, "distinct"),
    ("char", {"characters": "aa"}, "distinct"),
    ("char", {"characters": "aba"}, "distinct"),
    ("char", {"characters": "a\ud800"}, "surrogate"),
    ("char", {"more": 1}, "has the fields kind, characters"),
    ("word", {"words": "a"}, '"words" is not a list'),
    ("word", {"words": ["a", 1]}, '"words" has 1'),
    ("word", {"words": ["a", ""]}, "\"words\" has ''"),
    ("word", {"words": ["a", "a"]}, "twice"),
    ("word", {"words": ["\udc80"]}, "surrogate"),
    ("bpe", {"vocab": BPE.vocab[1:]}, "lacks 1 of the 256 bytes"),
    ("bpe", {"vocab": [*BPE.vocab, BPE.vocab[0]]}, "twice"),
    ("bpe", {"vocab": [*BPE.vocab, "a b"]}, "does not stand for bytes"),
    ("bpe", {"vocab": [*BPE.vocab, None]}, '"vocab" has None'),
    ("bpe", {"merges": ["a"]}, "not a pair of tokens"),
    ("bpe", {"merges": ["a b c"]}, "not a pair of tokens"),
    ("bpe", {"merges": [["a", "b"]]}, "not a pair of tokens"),
    ("bpe", {"merges": ["z q"]}, "not a pair of tokens that make a token"),
]


@pytest.mark.parametrize("kind, change, message", CHANGES)
def test_malformed_tokenizers_are_refused(kind, change, message):
    fields = {tokenizer.kind: tokenizer.to_json() for tokenizer in (CHAR, WORD, BPE)}[kind]
    with pytest.raises(UserError) as error:
        tokenizers.from_json({**fields, **change})
    assert message in one_line(error)
    with pytest.raises(UserError, match="has the fields"):
        tokenizers.from_json({"kind": kind})
    json.dumps({**fields})  # what was checked is what a file can hold
