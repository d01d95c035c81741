"""Prompts that a tokenizer knows, for every kind of tokenizer."""

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.data import prompts
from jaxgpt.data.tokenizers import CharTokenizer, IdsTokenizer, WordTokenizer, train

LINES = "ng himself.\n\nTHE KING: it's late.\nNobody comes.\n" * 3
ONE_LINE = "the king sleeps, and the queen sees it. " * 3

TOKENIZERS = {
    "characters": CharTokenizer("\n abc"),
    "characters without a newline": CharTokenizer("abc"),
    "words": train("word", lambda: iter([LINES]), None),
    "words without a newline": train("word", lambda: iter([ONE_LINE]), None),
    "byte pairs": train("bpe", lambda: iter([ONE_LINE]), 260),
    "ids": IdsTokenizer(9),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_default_prompt_is_one_known_token_a_newline_where_there_is_one(kind):
    tokenizer = TOKENIZERS[kind]
    prompt = prompts.default(tokenizer)
    (token,) = tokenizer.encode(prompt)
    assert token != getattr(tokenizer, "unk_id", None)
    assert tokenizer.decode([token]) == prompt
    assert (prompt == "\n") == (kind in ("characters", "words", "byte pairs"))
    assert prompts.sample_ids(tokenizer, "", context_length=1) == [token]


def test_a_sample_prompt_comes_before_the_default_and_must_fit():
    tokenizer = TOKENIZERS["characters"]
    assert prompts.default(tokenizer, "ab") == "ab"
    assert prompts.sample_ids(tokenizer, "ab", context_length=2) == tokenizer.encode("ab").tolist()
    with pytest.raises(
        UserError, match=r"train\.sample_prompt has 2 tokens, model\.context_length=1: shorten"
    ):
        prompts.sample_ids(tokenizer, "ab", context_length=1)
    with pytest.raises(UserError, match="character 'x'"):
        prompts.sample_ids(tokenizer, "x", context_length=1)


@pytest.mark.parametrize(("kind", "text", "expected"), [
    ("char", LINES, "THE KING: it's"),  # not the line that is cut, not the empty one
    ("word", LINES, "THE KING: it's"),
    ("bpe", LINES, "THE KING: it's"),
    ("char", ONE_LINE, "the king sleeps,"),
])  # fmt: skip
def test_first_words_come_from_the_text_and_encode(kind, text, expected):
    tokenizer = train(kind, lambda: iter([text]), 260 if kind == "bpe" else None)
    words = prompts.first_words(tokenizer, tokenizer.encode(text))
    assert words == expected
    assert prompts.is_known(tokenizer, words, tokens=2)


def test_first_words_have_no_unknown_words():
    tokenizer = WordTokenizer.from_json({"kind": "word", "words": [" ", "\n", "king", "sleeps"]})
    ids = tokenizer.encode("x\nthe king\nking sleeps\n")
    assert prompts.first_words(tokenizer, ids) == "king sleeps"
    assert prompts.first_words(tokenizer, tokenizer.encode("x y z\n")) == "\n"


def test_first_words_of_token_ids_are_ids():
    assert prompts.first_words(IdsTokenizer(9), np.array([3, 1, 4, 1, 5])) == "3 1 4"


def test_first_words_fit_the_context():
    tokenizer = CharTokenizer("\n abc")
    ids = tokenizer.encode("abc\nabc cab bac\n")
    assert prompts.first_words(tokenizer, ids) == "abc cab bac"
    assert [prompts.first_words(tokenizer, ids, most) for most in (1, 2, 8, 11)] == [
        "a",
        "ab",
        "abc cab ",
        "abc cab bac",
    ]
